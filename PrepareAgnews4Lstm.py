"""Turns AG News into word ids for the LSTM.

    data/ag_news_csv/train.csv, test.csv  →  cache/lstm/agnews.pt

Run it without parameters. A text is the title and the description, in that order. If the cache is up to
date already, nothing is done.
"""

import csv
import html
import re
from pathlib import Path

import pandas as pd

from pruning import preparing, tasks, words
from pruning.errors import UserError
from pruning.tasks import Rows, Task

# ----------------------------------------------------------------------------------------------
# Settings
vocabulary_size = 65_000  # commonest words of the training text
# ----------------------------------------------------------------------------------------------


def read_csv(task: Task, path: Path) -> Rows:
    """Reads "class","title","description"; the text is title and description.

    Raises:
        UserError: for bytes that are not UTF-8, a quote that is never closed, more than 1% broken rows.
    """
    text = tasks.decode(path)  # also names the line of a byte that is not UTF-8, which pandas does not
    try:
        table = pd.read_csv(
            path,
            header=None,
            names=list(range(task.fields or 0)),
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            engine="python",
            on_bad_lines=lambda fields: ["", "", f"{len(fields)} fields"],
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise UserError(f"{path}: {error}") from None
    fields = table.fillna("").to_numpy().tolist()
    rows = []
    line = 1
    for row in fields:
        rows.append((line, row))
        line += 1 + sum(field.count("\n") for field in row)
    if text.count('"') % 2:
        raise UserError(f"{path}: a quote is never closed; the last row read starts in line {rows[-1][0]}")
    columns = (task.first, task.second, task.label)
    found = tasks.collect_rows(task, path, rows, columns, task.fields or 0, clean)
    texts = [f"{title} {text}" for title, text in zip(found.first, found.second or [], strict=True)]
    return Rows(texts, None, found.labels, found.broken)


def clean(text: str) -> str:
    """Puts back the characters that AG News holds as entities, most without their ampersand, and
    some ("the Web #39;s") behind a stray space."""
    whole = re.sub(r"&?(#\d+|quot|amp|lt|gt);", r"&\1;", text.replace(" #39;", "#39;"))
    return html.unescape(whole).strip()


def main() -> None:
    preparing.prepare(
        [tasks.AGNEWS],
        "lstm",
        {"vocabulary_size": vocabulary_size},
        [],
        read_csv,
        lambda rows: words.encode(rows, vocabulary_size),
    )


if __name__ == "__main__":
    main()
