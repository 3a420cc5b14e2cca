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

from pruning import bert_folder, preparing, readers, tasks
from pruning.batches import BertExamples, Ragged
from pruning.errors import UserError, run_script
from pruning.tasks import Rows

# ----------------------------------------------------------------------------------------------
# Settings
max_length = 128  # tokens of a sequence, [CLS] and [SEP] included; at most the BERT's positions
# ----------------------------------------------------------------------------------------------

CHUNK = 2_000  # rows handed to the tokenizer at once: it works on a chunk with all cores


def check_max_length() -> None:
    """Raises UserError unless a token of each sentence fits, and the BERT has as many positions."""
    pairs = any(task.second is not None and task.is_there() for task in tasks.GLUE.values())
    positions = None  # a BERT may come without its configuration until it is converted
    if any(path.is_file() for path in bert_folder.CONFIGS):
        positions = bert_folder.read_config(bert_folder.config_path())["max_position_embeddings"]
    preparing.check_number("PrepareGlue4Bert.py", "max_length", max_length, 5 if pairs else 3, positions)


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


def tokenize(rows: Rows, tokenizer: Tokenizer, name: str) -> BertExamples:
    """Ids of [CLS] first [SEP] (second [SEP]) for every row."""
    flat, lengths, second_starts = array("i"), array("i"), array("i")  # a list would take 9 times as much
    texts = rows.first if rows.second is None else list(zip(rows.first, rows.second, strict=True))
    with tqdm(total=len(texts), desc=name, unit="rows") as bar:
        for start in range(0, len(texts), CHUNK):
            encoded = tokenizer.encode_batch_fast(texts[start : start + CHUNK])
            flat.extend(chain.from_iterable(row.ids for row in encoded))
            lengths.extend(len(row.ids) for row in encoded)
            second_starts.extend(len(row.ids) - sum(row.type_ids) for row in encoded)
            bar.update(len(encoded))
    return BertExamples(
        Ragged.of(np.asarray(flat), np.asarray(lengths)),
        torch.tensor(rows.labels, dtype=torch.float32),
        torch.from_numpy(np.asarray(second_starts)),
    )


def main() -> None:
    check_max_length()
    vocabulary = bert_folder.read_vocabulary()
    tokenizer = build_tokenizer(vocabulary, max_length)
    settings = {"max_length": max_length, **bert_folder.tokenizer_settings()}
    case = "lower-cased" if settings["do_lower_case"] else "cased"
    print(f"{len(vocabulary):,} words from {bert_folder.vocabulary_path()}, {case}")

    def encode(rows: dict[str, Rows]) -> tuple[list[str], dict[str, BertExamples]]:
        return vocabulary, {split: tokenize(part, tokenizer, split) for split, part in rows.items()}

    sources = [bert_folder.vocabulary_path()]
    preparing.prepare("bert", tasks.GLUE.values(), settings, readers.read_tsv, encode, sources)


if __name__ == "__main__":
    run_script(main)
