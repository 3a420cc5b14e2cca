"""Files to rows: the tab-separated files of GLUE and the quoted ones of AG News.

No row is lost in silence: every line of a file belongs to a row that was read or is counted as broken,
except for blank lines at the file's end.
"""

import csv
import html
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pruning.errors import UserError
from pruning.tasks import Rows, Task

BROKEN_SHARE = 0.01  # more broken rows than this, and the file is not what it should be
ROW_START = re.compile(r'"\w+"[,;\t]')  # a class in quotes at the start of a line of AG News

csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, would break a row with a long text


def read_lines(path: Path) -> list[str]:
    """The lines of a file in UTF-8, with or without a byte order mark, as far as the last that is not blank.

    Raises UserError for a file that cannot be read, is empty, or holds bytes that are no UTF-8 text.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
        place, why = data.find(b"\0"), "a zero byte; is it UTF-16?"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        place, why = error.start, error.reason
    if place >= 0:
        line = data.count(b"\n", 0, place) + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({why})")
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines: it also breaks at U+2028 and form feeds
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty")
    return lines


def collect_rows(
    task: Task,
    path: Path,
    rows: Sequence[tuple[int, list[str] | ValueError]],
    fields: int,
    choose: Callable[[list[str]], list[str]],
) -> Rows:
    """Splits rows into good ones and broken ones.

    Broken are a row that could not be split into fields, a wrong number of fields, an unknown label, an
    empty sentence. Raises UserError, with the first line, if there are no rows or more than 1% are broken.

    Args:
        rows: line number and fields, or what is wrong with the line.
        fields: how many fields a good row has.
        choose: fields → the label and the sentence(s).
    """
    result = Rows([], None if task.second is None else [], [], [])
    for line, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            if len(row) != fields:
                raise ValueError(f"{len(row)} fields instead of {fields}")
            text, *sentences = choose(row)
            if not all(sentences):
                raise ValueError("empty sentence")
            label = task.parse_label(text)
        except ValueError as error:
            result.broken.append((line, str(error)))
            continue
        result.first.append(sentences[0])
        if result.second is not None:
            result.second.append(sentences[1])
        result.labels.append(label)
    if len(result.broken) > BROKEN_SHARE * len(rows):
        line, why = result.broken[0]
        raise UserError(
            f"{path}: {len(result.broken)} of {len(rows)} rows are broken, more than "
            f"{BROKEN_SHARE:.0%}; the first is line {line}: {why}"
        )
    if not result.labels:
        raise UserError(f"{path}: no rows")
    return result


def read_tsv(task: Task, path: Path) -> Rows:
    """Reads a GLUE file: tab-separated, no quoting (a quote is a character like any other).

    Raises UserError as `read_lines` and `collect_rows` do, and for a header without the task's columns.
    """
    rows = [(number, line.split("\t")) for number, line in enumerate(read_lines(path), start=1)]
    columns: list[Any] = [column for column in (task.label, task.first, task.second) if column is not None]
    fields = task.fields
    if fields is None:
        header = [name.strip() for name in rows.pop(0)[1]]
        for column in columns:
            if column not in header:
                shown = " ".join(" | ".join(header).split())[:200]
                raise UserError(f"{path}, line 1: the header has no column {column!r}; it reads: {shown}")
        columns = [header.index(column) for column in columns]
        fields = len(header)
    return collect_rows(task, path, rows, fields, lambda row: [row[column].strip() for column in columns])


def read_agnews(task: Task, path: Path) -> Rows:
    """Reads "class","title","description"; the text is title and description, one of which may be empty.

    Raises UserError as `read_lines` and `collect_rows` do.
    """

    def choose(row: list[str]) -> list[str]:
        label, *texts = row
        return [label.strip(), " ".join(map(put_back_characters, texts)).strip()]

    assert task.fields is not None  # the table has it for files without a header
    return collect_rows(task, path, list(split_csv(read_lines(path))), task.fields, choose)


def split_csv(lines: list[str]) -> Iterator[tuple[int, list[str] | ValueError]]:
    """Line number and fields of every row, or what is wrong with a line that is no row.

    A quoted field may go over several lines, in a row whose class is quoted as well. It cannot go over a line
    that starts with a quoted class, as every row of AG News does: there the first quote ends the field, and
    what follows is neither a comma nor a line end. So a quote which is never closed costs one row only.
    """
    at = 0
    while at < len(lines):
        end = len(lines) if ROW_START.match(lines[at]) else at + 1
        reader = csv.reader((lines[number] + "\n" for number in range(at, end)), strict=True)
        row: list[str] | ValueError
        try:
            row, used = next(reader), reader.line_num
        except csv.Error as error:
            row, used = split_bare_quotes(lines[at]) or ValueError(f"quotes that do not match ({error})"), 1
        yield at + 1, row
        at += used


def split_bare_quotes(line: str) -> list[str] | None:
    r"""Fields of a row with quotes that are not doubled: "1","the "big" one","he said \"no\"".

    Returns None if the line does not start and end with a quote, or a quote has no partner.
    """
    paired = line.replace(r"\"", "").count('"') % 2 == 0
    if not (ROW_START.match(line) and line.endswith('"') and paired):
        return None
    return [field.replace(r"\"", '"').replace('""', '"') for field in line[1:-1].split('","')]


def put_back_characters(text: str) -> str:
    """Puts back the characters that AG News holds as entities, most without their ampersand, and
    some ("the Web #39;s") behind a stray space."""
    whole = re.sub(r"&?(#\d+|quot|amp|lt|gt);", r"&\1;", text.replace(" #39;", "#39;"))
    return html.unescape(whole).strip()
