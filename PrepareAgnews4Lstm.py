"""Turns AG News into word ids for the LSTM.

    data/ag_news_csv/train.csv, test.csv or *.parquet  →  cache/lstm/agnews.pt

Run it without parameters. A text is the title and the description, in that order. If the cache is up to
date already, nothing is done.
"""

from functools import partial

from pruning import preparing, tasks, words
from pruning.errors import run_script

# ----------------------------------------------------------------------------------------------
# Settings
vocabulary_size = 65_000  # commonest words of the training text
# ----------------------------------------------------------------------------------------------


def main() -> None:
    preparing.check_number("PrepareAgnews4Lstm.py", "vocabulary_size", vocabulary_size, least=3)
    settings = {"vocabulary_size": vocabulary_size}
    encode = partial(words.encode, vocabulary_size=vocabulary_size)
    preparing.prepare("lstm", [tasks.AGNEWS], settings, encode)


if __name__ == "__main__":
    run_script(main)
