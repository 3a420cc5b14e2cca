"""Tokenizes the GLUE tasks for BERT.

    data/<TASK>/*.tsv, bert/vocab.txt  →  cache/bert/<task>.pt

Run it without parameters. Tasks whose folder is missing are skipped; whatever is up to date already
is left alone. Sequences are cut to `max_length` tokens (the longer sentence of a pair first) and
stored as long as they are: padding belongs to batches, not to caches.
"""

import os
from array import array
from itertools import chain

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import numpy as np
import torch
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import BertTokenizer

from pruning import bert_folder, preparing, tasks
from pruning.batches import Examples, Ragged
from pruning.errors import UserError
from pruning.tasks import Rows

# ----------------------------------------------------------------------------------------------
# Settings
max_length = 128  # tokens of a sequence, [CLS] and [SEP] included; at most the BERT's positions
# ----------------------------------------------------------------------------------------------

CHUNK = 2_000  # rows handed to the tokenizer at once: it works on a chunk with all cores


def build_tokenizer(vocabulary: list[str], max_length: int) -> Tokenizer:
    """The Rust tokenizer of the BERT in bert/, cutting at `max_length` tokens.

    Raises UserError if the vocabulary lacks one of BERT's special tokens.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    for special in ("[CLS]", "[SEP]", "[UNK]", "[PAD]"):
        if special not in ids:
            raise UserError(f"{bert_folder.vocabulary_path()} is no BERT vocabulary: no {special}")
    # `vocab=`, not `vocab_file=`: transformers 5 swallows the latter and knows no word at all.
    tokenizer = BertTokenizer(vocab=ids, **bert_folder.tokenizer_settings()).backend_tokenizer
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    return tokenizer


def tokenize(rows: Rows, tokenizer: Tokenizer, name: str) -> Examples:
    """Ids of [CLS] first [SEP] (second [SEP]) for every row."""
    separator = tokenizer.token_to_id("[SEP]")
    flat, lengths, second_starts = array("i"), array("i"), array("i")  # a list would take 9 times as much
    texts = rows.first if rows.second is None else list(zip(rows.first, rows.second, strict=True))
    with tqdm(total=len(texts), desc=name, unit="rows") as bar:
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer.encode_batch_fast(texts[start : start + CHUNK])
            ids = [row.ids for row in encoded]
            flat.extend(chain.from_iterable(ids))
            lengths.extend(map(len, ids))
            second_starts.extend(row.index(separator) + 1 for row in ids)
            bar.update(len(ids))
    return Examples(
        Ragged.of(np.asarray(flat), np.asarray(lengths)),
        torch.tensor(rows.labels, dtype=torch.float32),
        second_starts=torch.from_numpy(np.asarray(second_starts)),
    )


def main() -> None:
    vocabulary = bert_folder.read_vocabulary()
    tokenizer = build_tokenizer(vocabulary, max_length)
    settings = {"max_length": max_length, **bert_folder.tokenizer_settings()}
    print(
        f"{len(vocabulary):,} words from {bert_folder.vocabulary_path()}, "
        + ("lower-cased" if settings["do_lower_case"] else "cased")
    )

    def encode(rows: dict[str, Rows]) -> tuple[list[str], dict[str, Examples]]:
        return vocabulary, {split: tokenize(part, tokenizer, split) for split, part in rows.items()}

    preparing.prepare(
        list(tasks.GLUE.values()),
        "bert",
        settings,
        [bert_folder.vocabulary_path()],
        tasks.read_tsv,
        encode,
    )


if __name__ == "__main__":
    main()
