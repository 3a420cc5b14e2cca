"""The tasks: where their files lie, what a row holds, how an answer is judged.

One table instead of an if-chain; everything that differs between tasks stands in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pruning.errors import UserError

DATA = Path("data")
HOW_TO_GET_DATA = (
    'Download the GLUE and AG News files as README says ("The manual, step by step") and unzip them '
    "into data/, one folder a task; or try everything on sample data first: make run"
)
SCORES = (0.0, 5.0)  # the lowest and the highest score of a regression
_FILES = {"train": "train.tsv", "dev": "dev.tsv"}


@dataclass(frozen=True)
class Task:
    """One task.

    `first`, `second` and `label` are the columns that hold the sentence(s) and the answer: a name in the
    header, or a number where the file has no header. `second` is None for single sentences.
    """

    name: str  # as in `task_names` and in the cache's file name
    folder: str  # under data/
    first: str | int
    second: str | int | None
    label: str | int
    classes: dict[str, str]  # label in the file → name, in the order of their numbers; empty for a score
    metrics: tuple[str, ...] = ("accuracy",)  # names in `metrics.METRICS`; the first is the one in tables
    files: dict[str, str] = field(default_factory=lambda: _FILES)  # split → file
    fields: int | None = None  # in a row of a file without a header; otherwise the header tells

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

    def is_there(self, data: Path = DATA) -> bool:
        """Whether the task has a folder; its files may still be missing."""
        return (data / self.folder).is_dir()

    def parse_label(self, text: str) -> float:
        """The number of a class, or a score. Raises ValueError with the reason."""
        if not self.is_regression:
            if text not in self.classes:
                raise ValueError(f"unknown label {text[:40]!r}")
            return float(list(self.classes).index(text))
        low, high = SCORES
        try:
            score = float(text)
        except ValueError:
            raise ValueError(f"no score: {text[:40]!r}") from None
        if not low <= score <= high:
            raise ValueError(f"score {text[:40]} outside [{low:g}, {high:g}]")
        return score

    def label_name(self, label: float) -> str:
        """How a label is shown: the class's name, or the score."""
        return f"{label:g}" if self.is_regression else list(self.classes.values())[int(label)]


_SENTENCES = ("sentence1", "sentence2")
_PARAPHRASE = {"0": "different", "1": "same"}
_ENTAILMENT = {name: name for name in ("entailment", "not_entailment")}
_F1 = ("f1", "accuracy")

GLUE = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", 3, None, 1, {"0": "unacceptable", "1": "acceptable"},
            metrics=("matthews", "accuracy"), fields=4,
        ),
        Task("sst-2", "SST-2", "sentence", None, "label", {"0": "negative", "1": "positive"}),
        Task("mrpc", "MRPC", "#1 String", "#2 String", "Quality", _PARAPHRASE, metrics=_F1),
        Task("sts-b", "STS-B", *_SENTENCES, "score", {}, metrics=("pearson", "spearman")),
        Task("qqp", "QQP", "question1", "question2", "is_duplicate", _PARAPHRASE, metrics=_F1),
        Task(
            "mnli", "MNLI", *_SENTENCES, "gold_label",
            {name: name for name in ("contradiction", "entailment", "neutral")},
            files=_FILES | {"dev": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"},
        ),
        Task("qnli", "QNLI", "question", "sentence", "label", _ENTAILMENT),
        Task("rte", "RTE", *_SENTENCES, "label", _ENTAILMENT),
        Task("wnli", "WNLI", *_SENTENCES, "label", {"0": "no", "1": "yes"}),
    )
}  # fmt: skip

AGNEWS = Task(
    "agnews", "ag_news_csv", 1, None, 0,  # the text: title and description, fields 1 and 2
    {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"},
    files={"train": "train.csv", "dev": "test.csv"}, fields=3,
)  # fmt: skip


@dataclass
class Rows:
    """The rows of one file that could be read, and what was wrong with the others."""

    first: list[str]
    second: list[str] | None  # None for single sentences
    labels: list[float]  # the number of the class, or the score of a regression
    broken: list[tuple[int, str]]  # line number and reason

    def __len__(self) -> int:
        return len(self.labels)


def available(tasks: Iterable[Task], data: Path = DATA) -> list[Task]:
    """The tasks whose folder is there; says of every other where it was looked for.

    Raises UserError if none is there, or a folder lacks one of the files it should hold.
    """
    found = []
    for task in tasks:
        folder = data / task.folder
        if not task.is_there(data):
            print(f"{task.name}: skipped, no folder {folder.absolute()}")
            continue
        missing = [str(path) for path in task.paths(data).values() if not path.is_file()]
        if missing:
            raise UserError(f"{task.name}: {folder} is there, but not {', '.join(missing)}")
        found.append(task)
    if not found:
        raise UserError(f"no data found. {HOW_TO_GET_DATA}")
    return found
