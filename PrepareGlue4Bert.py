"""Tokenizes the GLUE tasks for BERT.

    data/<TASK>/*.tsv or *.parquet, bert/vocab.txt  →  cache/bert/<task>.pt

Run it without parameters. Tasks whose folder is missing are skipped; whatever is up to date already
is left alone. Sequences are cut to `max_length` tokens (the longer sentence of a pair first) and
stored as long as they are: padding belongs to batches, not to caches.
"""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

from pruning import bert_folder, preparing, tasks, wordpieces
from pruning.batches import BertExamples
from pruning.errors import run_script
from pruning.tasks import Rows

# ----------------------------------------------------------------------------------------------
# Settings
max_length = 128  # tokens of a sequence, [CLS] and [SEP] included; at most the BERT's positions
# ----------------------------------------------------------------------------------------------


def check_max_length() -> None:
    """Raises UserError unless a token of each sentence fits, and the BERT has as many positions."""
    pairs = any(task.second is not None and task.is_there() for task in tasks.GLUE.values())
    positions = None  # a BERT may come without its configuration until it is converted
    if any(path.is_file() for path in bert_folder.CONFIGS):
        positions = bert_folder.read_config(bert_folder.config_path())["max_position_embeddings"]
    preparing.check_number("PrepareGlue4Bert.py", "max_length", max_length, 5 if pairs else 3, positions)


def main() -> None:
    check_max_length()
    vocabulary = bert_folder.read_vocabulary()
    settings = {"max_length": max_length, **bert_folder.tokenizer_settings()}
    tokenizer = wordpieces.build_tokenizer(vocabulary, settings)
    case = "lower-cased" if settings["do_lower_case"] else "cased"
    print(f"{len(vocabulary):,} words from {bert_folder.vocabulary_path()}, {case}")

    def encode(rows: dict[str, Rows]) -> tuple[list[str], dict[str, BertExamples]]:
        return vocabulary, {split: wordpieces.encode(part, tokenizer, split) for split, part in rows.items()}

    sources = [bert_folder.vocabulary_path()]
    preparing.prepare("bert", tasks.GLUE.values(), settings, encode, sources)


if __name__ == "__main__":
    run_script(main)
