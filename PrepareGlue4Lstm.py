"""Turns the GLUE tasks into word ids for the LSTM.

    data/<TASK>/*.tsv  →  cache/lstm/<task>.pt

Run it without parameters. Tasks whose folder is missing are skipped; whatever is up to date already
is left alone. Each task has its own vocabulary, from its training text only.
"""

from pruning import preparing, tasks, words

# ----------------------------------------------------------------------------------------------
# Settings
vocabulary_size = 65_000  # commonest words of the training text
# ----------------------------------------------------------------------------------------------


def main() -> None:
    preparing.prepare(
        list(tasks.GLUE.values()),
        "lstm",
        {"vocabulary_size": vocabulary_size},
        [],
        tasks.read_tsv,
        lambda rows: words.encode(rows, vocabulary_size),
    )


if __name__ == "__main__":
    main()
