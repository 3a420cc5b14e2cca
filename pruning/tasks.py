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

    def is_there(self, data: Path = DATA) -> bool:
        """Whether the task has a folder; its files may still be missing."""
        return (data / self.folder).is_dir()

    def parse_label(self, text: str) -> float:
        """The number of a class, or a score. Raises ValueError with the reason."""
        if not self.is_regression:
            if text not in self.classes:
                raise ValueError(f"unknown label {text[:40]!r}")
            return float(list(self.classes).index(text))
        low, high = self.score_range
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
    "agnews", "ag_news_csv", 1, None, 0,  # the text: title and description, fields 1 and 2
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


def available(tasks: Iterable[Task], data: Path = DATA) -> list[Task]:
    """The tasks whose folder is there; says of every other where it was looked for.

    Raises:
        UserError: if none is there, or a folder lacks one of the files it should hold.
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
