"""The tasks: where their files lie, what a row holds, how an answer is judged.

One table instead of an if-chain; everything that differs between tasks stands in it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.errors import UserError

DATA = Path("data")
HOW_TO_GET_DATA = (
    'Download the GLUE and AG News files as README says ("The manual, step by step") and unzip them '
    "into data/, one folder a task; or try everything on sample data first: make run"
)
BROKEN_SHARE = 0.01  # more broken rows than this, and the file is not what it should be


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as in `task_names` and in the cache's file name.
        folder: under data/.
        first, second, label: the columns that hold the sentence(s) and the answer; `second` is None
            for single sentences. A name in the header, or a number where the file has no header.
        classes: label in the file → name of the class, in the order of their numbers; empty for a
            score (regression).
        metrics: names in `metrics.METRICS`; the first is the one in tables.
        files: split → file.
        fields: fields in a row of a file without a header; otherwise the header tells.
        score_range: the lowest and highest score, for a regression.
    """

    name: str
    folder: str
    first: str | int
    second: str | int | None
    label: str | int
    classes: dict[str, str]
    metrics: tuple[str, ...] = ("accuracy",)
    files: dict[str, str] = field(default_factory=lambda: {"train": "train.tsv", "dev": "dev.tsv"})
    fields: int | None = None
    score_range: tuple[float, float] = (0.0, 5.0)

    @property
    def is_regression(self) -> bool:
        return not self.classes

    @property
    def kind(self) -> str:
        """What an example is: "sentence" or "pair"."""
        return "sentence" if self.second is None else "pair"

    @property
    def outputs(self) -> int:
        """Outputs of a classifier for this task."""
        return max(1, len(self.classes))

    @property
    def dev_splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.files if split != "train")

    def paths(self, data: Path = DATA) -> dict[str, Path]:
        """Split → file."""
        return {split: data / self.folder / file for split, file in self.files.items()}


_PARAPHRASE = {"0": "different", "1": "same"}
_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}

GLUE = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", 3, None, 1, {"0": "unacceptable", "1": "acceptable"},
            metrics=("matthews", "accuracy"), fields=4,
        ),
        Task("sst-2", "SST-2", "sentence", None, "label", {"0": "negative", "1": "positive"}),
        Task(
            "mrpc", "MRPC", "#1 String", "#2 String", "Quality", _PARAPHRASE,
            metrics=("f1", "accuracy"),
        ),
        Task(
            "sts-b", "STS-B", "sentence1", "sentence2", "score", {},
            metrics=("pearson", "spearman"),
        ),
        Task(
            "qqp", "QQP", "question1", "question2", "is_duplicate", _PARAPHRASE,
            metrics=("f1", "accuracy"),
        ),
        Task(
            "mnli", "MNLI", "sentence1", "sentence2", "gold_label",
            {name: name for name in ("contradiction", "entailment", "neutral")},
            files={
                "train": "train.tsv",
                "dev": "dev_matched.tsv",
                "dev_mismatched": "dev_mismatched.tsv",
            },
        ),
        Task("qnli", "QNLI", "question", "sentence", "label", _ENTAILMENT),
        Task("rte", "RTE", "sentence1", "sentence2", "label", _ENTAILMENT),
        Task("wnli", "WNLI", "sentence1", "sentence2", "label", {"0": "no", "1": "yes"}),
    )
}  # fmt: skip

AGNEWS = Task(
    "agnews", "ag_news_csv", 1, 2, 0,
    {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"},
    files={"train": "train.csv", "dev": "test.csv"}, fields=3,
)  # fmt: skip


@dataclass
class Rows:
    """The rows of one file that could be read, and what was wrong with the others.

    Attributes:
        first, second: the sentences; `second` is None for single sentences.
        labels: the number of the class, or the score of a regression.
        broken: line number and reason.
    """

    first: list[str]
    second: list[str] | None
    labels: list[float]
    broken: list[tuple[int, str]]

    def __len__(self) -> int:
        return len(self.labels)


def parse_label(task: Task, text: str) -> float:
    """The number of a class, or a score. Raises ValueError with the reason."""
    if task.is_regression:
        low, high = task.score_range
        score = float(text)  # its own ValueError says what it could not read
        if not low <= score <= high:
            raise ValueError(f"score {text} outside [{low:g}, {high:g}]")
        return score
    names = list(task.classes)
    if text not in task.classes:
        raise ValueError(f"unknown label {text!r}")
    return float(names.index(text))


def collect_rows(
    task: Task,
    path: Path,
    rows: Sequence[tuple[int, list[str]]],
    columns: tuple[Any, ...],
    fields: int,
    clean: Callable[[str], str] = str.strip,
) -> Rows:
    """Splits rows (line number, fields) into good ones and broken ones.

    Broken are a wrong number of fields, an unknown label, an empty sentence.

    Args:
        columns: where the first sentence, the second (None: there is none) and the label stand.
        fields: how many fields a good row has.
        clean: what is done to a sentence.

    Raises:
        UserError: if more than 1% of the rows are broken; it names the file and the first line.
    """
    first_column, second_column, label_column = columns
    result = Rows([], None if second_column is None else [], [], [])
    for line, row in rows:
        try:
            if len(row) != fields:
                raise ValueError(f"{len(row)} fields instead of {fields}")
            sentences = [clean(row[first_column])]
            if second_column is not None:
                sentences.append(clean(row[second_column]))
            if not all(sentences):
                raise ValueError("empty sentence")
            label = parse_label(task, row[label_column].strip())
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


def decode(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Raises UserError naming the line of the first byte that is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 text ({error.reason})") from None


def read_tsv(task: Task, path: Path) -> Rows:
    """Reads a GLUE file: tab-separated, no quoting (a quote is a character like any other).

    Raises:
        UserError: for a header without the task's columns, bytes that are not UTF-8, or more than
            1% broken rows.
    """
    lines = decode(path).split("\n")  # not splitlines: it also breaks at U+2028 and form feeds
    if lines[-1] == "":
        lines.pop()
    rows = [(number, line.rstrip("\r").split("\t")) for number, line in enumerate(lines, start=1)]
    columns: tuple[Any, ...] = (task.first, task.second, task.label)
    if task.fields is None:
        header = [name.strip() for name in rows.pop(0)[1]] if rows else []
        for column in columns:
            if column is not None and column not in header:
                raise UserError(
                    f"{path}, line 1: the header has no column {column!r}; it reads: " + " | ".join(header)
                )
        columns = tuple(None if c is None else header.index(c) for c in columns)
        fields = len(header)
    else:
        fields = task.fields
    return collect_rows(task, path, rows, columns, fields)


def available(tasks: Sequence[Task], data: Path = DATA) -> list[Task]:
    """The tasks whose folder is there; says of every other where it was looked for.

    Raises:
        UserError: if none is there, or a folder lacks one of the files it should hold.
    """
    found = []
    for task in tasks:
        folder = data / task.folder
        if not folder.is_dir():
            print(f"{task.name}: skipped, no folder {folder.absolute()}")
            continue
        missing = [str(path) for path in task.paths(data).values() if not path.is_file()]
        if missing:
            raise UserError(f"{task.name}: {folder} is there, but not {', '.join(missing)}")
        found.append(task)
    if not found:
        raise UserError(f"no data found. {HOW_TO_GET_DATA}")
    return found
