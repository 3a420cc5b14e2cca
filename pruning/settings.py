"""The settings block at the top of a script: read by name, checked before any work.

A setting is one value for all tasks, or `{task: value, "other": value}`.
"""

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pruning import caches, methods, schedules, selection, tasks
from pruning.errors import UserError

PLAIN = (bool, int, float, str, list, tuple, dict, type(None))
OTHER = "other"  # in {task: value}: every task that is not named


def _different(values: list) -> list:
    if any(value in values[:i] for i, value in enumerate(values)):
        raise ValueError("it should name nothing twice")
    return values


def _schedule(value: Any) -> Any:
    if isinstance(value, str):
        schedules.check_name(value)
    elif isinstance(value, list):
        selection.check_schedule(value, len(value))
    else:
        raise ValueError("it should be a list with one rate for each layer, or a name")
    return value


def _method(table: Mapping[str, Any], kinds: str) -> BeforeValidator:
    """Checks one entry of `pruning_methods` by the table of all methods. `kinds`: what an entry may be."""

    def check(value: Any) -> Any:
        names = value if isinstance(value, list) else [value]
        if not names or not all(isinstance(name, str) for name in names):
            raise ValueError(f"it should be {kinds}")
        for name in names:
            methods.check_method(name, table)
        return value

    return BeforeValidator(check)


Whole = Annotated[int, Field(ge=0, lt=2**31)]
Count = Annotated[int, Field(gt=0, lt=2**31)]
Epochs = Annotated[float, Field(gt=0, le=10_000)]
LearningRate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # NumPy takes no other
Seeds = Annotated[list[Seed], Field(min_length=1), AfterValidator(_different)]
Schedule = Annotated[str | list[int | float], BeforeValidator(_schedule)]
BertMethod = Annotated[
    str | list[str], _method(methods.BERT_METHODS, "the name of a method, or a list with one for each layer")
]
LstmMethod = Annotated[str, _method(methods.LSTM_METHODS, "the name of a method")]
BertMethods = Annotated[list[BertMethod], AfterValidator(_different)]  # [] compares nothing: dense alone
LstmMethods = Annotated[list[LstmMethod], AfterValidator(_different)]


class Strict(BaseModel):
    """Settings that take no other names, and no other types than they say."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Training(Strict):
    """What every training needs."""

    seeds: Seeds
    training_rows: Count | None
    dense_epochs: Epochs
    pruned_epochs: Epochs
    batch_size: Count
    learning_rate: LearningRate
    student_learning_rate: LearningRate
    distillation_share: Share
    ramp_share: Share
    evaluation_batch_size: Count


class GlueTasks(BaseModel):
    task_names: list[str] | None  # see `Block.task_names`


class Reports(BaseModel):
    """What a run leaves beside its metrics."""

    timing_examples: Count
    timing_passes: Count
    shown_examples: Whole
    save_models: bool


class BertTraining(Training):
    """What the training of a pruned BERT needs too."""

    layers: Count | None
    removed_tokens: Literal["fused", "readable", "gone"]
    fusion_learning_rate: LearningRate
    dropout: Dropout | None
    augmented_copies: Whole
    word_dropout: Dropout


class BertSettings(BertTraining, Reports, GlueTasks):
    """The block of RunBert4Glue.py, for one task."""

    pruning_schedule: Schedule
    pruning_methods: BertMethods


class LstmSettings(Training, Reports):
    """The block of RunLstm4Agnews.py."""

    target_prune_rate: Share
    pruning_methods: LstmMethods
    removed_tokens: Literal["fused", "gone"]


class LstmGlueSettings(LstmSettings, GlueTasks):
    """The block of RunLstm4Glue.py, for one task."""


S = TypeVar("S", bound=BaseModel)


@dataclass(frozen=True)
class Block(Generic[S]):
    """A script's settings block: its file name, the settings of one task, name → value as in the script."""

    script: str
    kind: type[S]
    values: dict[str, Any]

    @classmethod
    def read(cls, module: Mapping[str, Any], kind: type[S]) -> "Block[S]":
        """The block of a script, by the script's `globals()`: its plain values, constants in capitals aside.

        Raises UserError for a name that `kind` does not know, and for one that is missing.
        """
        script = module["__file__"].replace("\\", "/").rsplit("/", 1)[-1]
        known = kind.model_fields
        plain = [name for name, value in module.items() if isinstance(value, PLAIN) and not name.isupper()]
        unknown = [name for name in plain if name not in known and not name.startswith("_")]
        missing = [name for name in known if name not in module]
        if unknown:
            raise UserError(f"{unknown[0]} in {script} is not a setting; settings are: {', '.join(known)}")
        if missing:
            raise UserError(f"{script} has no setting {missing[0]}: add it to the block at the top")
        return cls(script, kind, {name: module[name] for name in known})

    def task_names(self) -> list[str]:
        """The GLUE tasks of the setting `task_names`, None being all. Raises UserError for another name, or
        none."""
        names, place = self.values["task_names"], f"task_names in {self.script}"
        if names is None:
            return list(tasks.GLUE)
        if not isinstance(names, list) or not names:
            raise UserError(f"{place}: it should be a list of tasks, or None for all; it is {_short(names)}")
        for i, name in enumerate(names):
            if not isinstance(name, str) or name not in tasks.GLUE:
                known = ", ".join(tasks.GLUE)
                raise UserError(f"{place}: there is no task {_short(name)}; known are: {known}")
            if name in names[:i]:
                raise UserError(f"{place} names {name} twice")
        return names

    def for_prepared_tasks(self, model: str) -> dict[str, S]:
        """Task → its settings, of those of `task_names` that are prepared for "bert" or "lstm"; of all where
        none is. Raises UserError for a value that cannot work."""
        names = self.task_names()
        prepared = [name for name in names if caches.path_of(model, name).exists()]
        return {name: self.for_task(name) for name in prepared or names}

    def for_task(self, task: str) -> S:
        """The settings of one task. Raises UserError for a value that cannot work."""
        fields = self.kind.model_fields
        try:
            return self.kind(**{name: self._of_task(name, task) for name in fields})
        except ValidationError as error:
            raise UserError(self._sentence(error.errors()[0])) from None

    def _of_task(self, name: str, task: str) -> Any:
        value = self.values[name]
        if not isinstance(value, dict) or get_origin(self.kind.model_fields[name].annotation) is dict:
            return value
        unknown = [key for key in value if key not in (*tasks.TASKS, OTHER)]
        if unknown:
            raise UserError(f"{name} in {self.script}: there is no task {unknown[0]!r}")
        if task not in value and OTHER not in value:
            raise UserError(f"{name} in {self.script} has no value for {task}: add it, or {OTHER!r}")
        return value.get(task, value.get(OTHER))

    def _sentence(self, error: ErrorDetails) -> str:
        """What is wrong, in one line."""
        name, *indices = error["loc"]
        place = f"{name} in {self.script}" + "".join(f", entry {index}" for index in indices)
        message = error["msg"].removeprefix("Value error, ").removeprefix(f"{name}, ")
        message = message.replace("Input should", "it should").replace("List should", "it should")
        return f"{place}: {message}; it is {_short(error['input'])}. Edit it at the top of the script"


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 200, placeholder=" …")
