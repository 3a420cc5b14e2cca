"""The tasks: where their files lie, what a row holds, how an answer is judged.

One table instead of an if-chain; everything that differs between tasks stands in it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruning.errors import UserError

DATA = Path("data")
HOW_TO_GET_DATA = (
    "Run: python -m pruning.download data (or: make data). By hand: data/README.md "
    "says how. Or try everything on sample data first: make run"
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
    classes: dict[str, str]  # label in the file → name (the hub's), in the order of their numbers; or a score
    hub: tuple[str, ...] = ()  # columns of the sentence(s) in the hub's parquet; none: it has no such task
    metrics: tuple[str, ...] = ("accuracy",)  # names in `metrics.METRICS`; the first is the one in tables
    files: dict[str, str] = field(default_factory=lambda: _FILES)  # split → file
    fields: int | None = None  # in a row of a file without a header; otherwise the header tells
    escaped: bool = False  # whether texts hold entities, `#39;`, in place of some characters

    @property
    def is_regression(self) -> bool:
        return not self.classes

    @property
    def kind(self) -> str:
        """What an example is: "sentence" or "pair"."""
        return "sentence" if self.second is None else "pair"

    @property
    def columns(self) -> list[str | int]:
        """Those of the sentence(s) in the classic file."""
        return [self.first] if self.second is None else [self.first, self.second]

    @property
    def outputs(self) -> int:
        """Outputs of a classifier for this task."""
        return max(1, len(self.classes))

    @property
    def config_fields(self) -> dict[str, Any]:
        """What a saved model's config.json says of the task, in transformers' words where it has them."""
        names = dict(enumerate(self.classes.values())) or {0: "score"}
        return {
            "task": self.name,
            "kind": self.kind,
            "id2label": names,
            "label2id": {name: number for number, name in names.items()},
            "problem_type": "regression" if self.is_regression else "single_label_classification",
        }

    @property
    def dev_splits(self) -> tuple[str, ...]:
        return tuple(split for split in self.files if split != "train")

    @property
    def hub_files(self) -> dict[str, str]:
        """Split → file, as `pruning.download` names what the hub has."""
        return {split: Path(file).stem + ".parquet" for split, file in self.files.items() if self.hub}

    def paths(self, data: Path = DATA) -> dict[str, Path]:
        """Split → file: the classic ones, or the hub's where more of those are there.

        Never some of each: MRPC's classic training file holds the rows of the hub's dev set.
        """
        folder = data / self.folder
        forms = [{split: folder / file for split, file in f.items()} for f in (self.files, self.hub_files)]
        return max(forms, key=lambda paths: sum(path.is_file() for path in paths.values()))

    @property
    def test_files(self) -> dict[str, str]:
        """GLUE's test sets, which have no labels: what its server calls the answers → file."""
        names = {"dev.tsv": "", "dev_matched.tsv": "-m", "dev_mismatched.tsv": "-mm"}
        devs = [file for file in self.files.values() if self.hub and file in names]
        return {self.folder + names[file]: file.replace("dev", "test") for file in devs}

    def test_paths(self, data: Path = DATA) -> dict[str, Path]:
        """Of `test_files` those that are there, in their classic form or the hub's."""
        paths = {name: data / self.folder / file for name, file in self.test_files.items()}
        forms = [
            (name, path.with_suffix(end)) for end in (".parquet", ".tsv") for name, path in paths.items()
        ]
        return {name: path for name, path in forms if path.is_file()}

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
_QUESTIONS = ("question1", "question2")
_PARAPHRASE = {"0": "not_equivalent", "1": "equivalent"}
_DUPLICATE = {"0": "not_duplicate", "1": "duplicate"}
_ENTAILMENT = {name: name for name in ("entailment", "not_entailment")}
_F1 = ("f1", "accuracy")

GLUE = {
    task.name: task
    for task in (
        Task(
            "cola", "CoLA", 3, None, 1, {"0": "unacceptable", "1": "acceptable"}, ("sentence",),
            metrics=("matthews", "accuracy"), fields=4,
        ),
        Task("sst-2", "SST-2", "sentence", None, "label", {"0": "negative", "1": "positive"}, ("sentence",)),
        Task("mrpc", "MRPC", "#1 String", "#2 String", "Quality", _PARAPHRASE, _SENTENCES, metrics=_F1),
        Task("sts-b", "STS-B", *_SENTENCES, "score", {}, _SENTENCES, metrics=("pearson", "spearman")),
        Task("qqp", "QQP", *_QUESTIONS, "is_duplicate", _DUPLICATE, _QUESTIONS, metrics=_F1),
        Task(
            "mnli", "MNLI", *_SENTENCES, "gold_label",
            {name: name for name in ("contradiction", "entailment", "neutral")}, ("premise", "hypothesis"),
            files=_FILES | {"dev": "dev_matched.tsv", "dev_mismatched": "dev_mismatched.tsv"},
        ),
        Task("qnli", "QNLI", "question", "sentence", "label", _ENTAILMENT, ("question", "sentence")),
        Task("rte", "RTE", *_SENTENCES, "label", _ENTAILMENT, _SENTENCES),
        Task("wnli", "WNLI", *_SENTENCES, "label", {"0": "not_entailment", "1": "entailment"}, _SENTENCES),
    )
}  # fmt: skip

AGNEWS = Task(
    "agnews", "ag_news_csv", 1, None, 0,  # the text: title and description, fields 1 and 2
    {"1": "World", "2": "Sports", "3": "Business", "4": "Sci/Tech"}, ("text",),
    files={"train": "train.csv", "dev": "test.csv"}, fields=3, escaped=True,
)  # fmt: skip
TASKS = GLUE | {AGNEWS.name: AGNEWS}


def task_of(name: str) -> Task:
    """The task of this name. Raises UserError if none has it, or no longer."""
    if name not in TASKS:
        raise UserError(f"pruning/tasks.py knows no task {name!r}; it knows {', '.join(TASKS)}")
    return TASKS[name]


@dataclass
class Rows:
    """The rows of one file that could be read, and what was wrong with the others."""

    first: list[str]
    second: list[str] | None  # None for single sentences
    labels: list[float]  # the number of the class, or the score of a regression
    broken: list[tuple[int, str]]  # line number (parquet: row number) and reason

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
            raise UserError(
                f"{task.name}: {folder} is there, but not {', '.join(missing)}. {HOW_TO_GET_DATA}"
            )
        found.append(task)
    if not found:
        raise UserError(f"no data found. {HOW_TO_GET_DATA}")
    return found
