"""Word pieces for BERT: its tokenizer, built of a vocabulary; texts to ids."""

from array import array
from itertools import chain
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import BertTokenizer

from pruning.batches import BertExamples, Ragged
from pruning.tasks import Rows

CHUNK = 2_000  # rows handed to the tokenizer at once: it works on a chunk with all cores


def build_tokenizer(vocabulary: list[str], settings: dict[str, Any]) -> BertTokenizer:
    """The tokenizer of a BERT. settings: `max_length`, and those of `bert_folder.tokenizer_settings`."""
    casing = {name: value for name, value in settings.items() if name != "max_length"}
    ids = {word: i for i, word in enumerate(vocabulary)}
    # `vocab=`, not `vocab_file=`: transformers 5 swallows the latter and knows no word at all.
    return BertTokenizer(vocab=ids, model_max_length=settings["max_length"], **casing)


def encode(rows: Rows, tokenizer: BertTokenizer, name: str | None) -> BertExamples:
    """Ids of [CLS] first [SEP] (second [SEP]) for every row, cut at the tokenizer's greatest length, the
    longer sentence of a pair first. name: of the bar that is shown; None shows none."""
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(tokenizer.model_max_length, strategy="longest_first")
    flat, lengths, second_starts = array("i"), array("i"), array("i")  # a list would take 9 times as much
    texts = rows.first if rows.second is None else list(zip(rows.first, rows.second, strict=True))
    with tqdm(total=len(texts), desc=name, unit="rows", disable=name is None) as bar:
        for start in range(0, len(texts), CHUNK):
            encoded = backend.encode_batch_fast(texts[start : start + CHUNK])
            flat.extend(chain.from_iterable(row.ids for row in encoded))
            lengths.extend(len(row.ids) for row in encoded)
            second_starts.extend(len(row.ids) - sum(row.type_ids) for row in encoded)
            bar.update(len(encoded))
    return BertExamples(
        Ragged.of(np.asarray(flat), np.asarray(lengths)),
        torch.tensor(rows.labels, dtype=torch.float32),
        torch.from_numpy(np.asarray(second_starts)),
    )
