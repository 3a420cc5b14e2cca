"""Files to rows: the tab-separated files of GLUE, the quoted ones of AG News, the hub's parquet of both.

No row is lost in silence: every line of a file belongs to a row that was read or is counted as broken,
except for blank lines at the file's end.
"""

import csv
import html
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from pruning.errors import UserError
from pruning.tasks import Rows, Task

BROKEN_SHARE = 0.01  # more broken rows than this, and the file is not what it should be
ROW_START = re.compile(r'"\w+"[,;\t]')  # a class in quotes at the start of a line of AG News

csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, would break a row with a long text


def read(task: Task, path: Path) -> Rows:
    """Reads a file of a task by its ending. Raises UserError as the readers do."""
    return READERS.get(path.suffix, read_tsv)(task, path)


def place_of(path: Path, number: int) -> str:
    """How a row is named: by the line of the file, or by its number from 1 in parquet, which has no lines."""
    return f"{'row' if path.suffix == '.parquet' else 'line'} {number}"


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
        rows: line number (parquet: row number) and fields, or what is wrong with the line.
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
            f"{BROKEN_SHARE:.0%}; the first is {place_of(path, line)}: {why}"
        )
    if not result.labels:
        raise UserError(f"{path}: no rows")
    return result


def split_tabs(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of every line; a quote is a character like any other."""
    return [(number, line.split("\t")) for number, line in enumerate(read_lines(path), start=1)]


def find_columns(path: Path, header: list[str], columns: Sequence[Any]) -> list[int]:
    """Where these columns are in a header. Raises UserError if one is not."""
    names = [name.strip() for name in header]
    for column in columns:
        if column not in names:
            shown = " ".join(" | ".join(names).split())[:200]
            raise UserError(f"{path}, line 1: the header has no column {column!r}; it reads: {shown}")
    return [names.index(column) for column in columns]


def read_tsv(task: Task, path: Path) -> Rows:
    """Reads a GLUE file: tab-separated, no quoting.

    Raises UserError as `read_lines` and `collect_rows` do, and for a header without the task's columns.
    """
    rows, fields = split_tabs(path), task.fields
    columns: list[Any] = [task.label, *task.columns]
    if fields is None:
        _, header = rows.pop(0)
        columns, fields = find_columns(path, header, columns), len(header)
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


def read_parquet(task: Task, path: Path) -> Rows:
    """Reads a file as the hub has it: sentences in columns, labels as numbers whose names it says itself.

    Raises UserError as `read_columns` and `collect_rows` do, and for names that are not the task's classes.
    """
    number_type = pyarrow.float64() if task.is_regression else pyarrow.int64()
    schema, columns = read_columns(path, {"label": number_type, **dict.fromkeys(task.hub, pyarrow.string())})
    labels = {} if task.is_regression else labels_by_number(task, path, schema)
    clean = put_back_characters if task.escaped else str.strip

    def choose(row: list[Any]) -> list[str]:
        number, *texts = row
        label = str(number) if task.is_regression else labels.get(number, f"number {number}")
        return [label, *(clean(text or "") for text in texts)]

    rows = [(number, list(row)) for number, row in enumerate(zip(*columns, strict=True), start=1)]
    return collect_rows(task, path, rows, len(columns), choose)


def read_columns(path: Path, types: dict[str, pyarrow.DataType]) -> tuple[pyarrow.Schema, list[list[Any]]]:
    """The schema of a parquet file, and columns of these names and types. Raises UserError for a file that
    cannot be read, lacks one of them, or holds something else in it."""
    wanted = pyarrow.schema(types)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            missing = {*types} - {*schema.names}
            if not missing:
                table = file.read([*types]).select([*types]).cast(wanted)
                return schema, [column.to_pylist() for column in table.columns]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        number = getattr(error, "errno", None)
        why = os.strerror(number) if number else "it is damaged, or no parquet with labels and sentences"
        raise UserError(f"{path} cannot be read: {why}") from None
    raise UserError(f"{path} has no column {min(missing)!r}; it has: {', '.join(schema.names)[:200]}")


def labels_by_number(task: Task, path: Path, schema: pyarrow.Schema) -> dict[int, str]:
    """The number of a class in a parquet file → the label that stands for it in the classic file.

    The file's metadata has the names of the classes, in an order of its own. Raises UserError if it has
    none, or others than the task.
    """
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        names = None
    labels = {name: label for label, name in task.classes.items()}
    if names is None or sorted(map(str, names)) != sorted(labels):
        raise UserError(f"{path} names the classes {names}; those of {task.name} are {list(labels)}")
    return {number: labels[name] for number, name in enumerate(names)}


def read_test(task: Task, path: Path) -> list[Any]:
    """The sentences of one of GLUE's test files, or the pairs as tuples, one for every row: none is left
    out, since each wants an answer.

    Raises UserError as `read_lines`, `find_columns` and `read_columns` do, and for a wrong number of fields.
    """
    if path.suffix == ".parquet":
        columns = read_columns(path, dict.fromkeys(task.hub, pyarrow.string()))[1]
        texts = [[(text or "").strip() for text in row] for row in zip(*columns, strict=True)]
    else:
        (_, header), *rows = split_tabs(path)
        places = find_columns(path, header, task.hub if task.fields else task.columns)
        for line, row in rows:
            if len(row) != len(header):
                raise UserError(f"{path}, line {line}: {len(row)} fields instead of {len(header)}")
        texts = [[row[place].strip() for place in places] for _, row in rows]
    return [text[0] if task.second is None else tuple(text) for text in texts]


READERS = {".csv": read_agnews, ".parquet": read_parquet}  # everything else is tab-separated
