"""Turns the GLUE tasks into word ids for the LSTM.

    data/<TASK>/*.tsv or *.parquet  →  cache/lstm/<task>.pt

Run it without parameters. Tasks whose folder is missing are skipped; whatever is up to date already
is left alone. Each task has its own vocabulary, from its training text only.
"""

from functools import partial

from pruning import preparing, tasks, words
from pruning.errors import run_script

# ----------------------------------------------------------------------------------------------
# Settings
vocabulary_size = 65_000  # commonest words of the training text
# ----------------------------------------------------------------------------------------------


def main() -> None:
    preparing.check_number("PrepareGlue4Lstm.py", "vocabulary_size", vocabulary_size, least=3)
    settings = {"vocabulary_size": vocabulary_size}
    encode = partial(words.encode, vocabulary_size=vocabulary_size)
    preparing.prepare("lstm", tasks.GLUE.values(), settings, encode)


if __name__ == "__main__":
    run_script(main)
