"""The grid that the three runners share: for each task and seed a dense model, then every method from it.

A runner brings a `Family` (what is special about BERT or the LSTM) and a `Plan` (its settings). The dense
model of a task and seed is trained once: it is the baseline, the teacher and the start of every method.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from pruning import (
    batches,
    caches,
    metrics,
    plots,
    preparing,
    pruners,
    records,
    schedules,
    teachers,
    timing,
    training,
)
from pruning.batches import Examples, Ragged
from pruning.errors import UserError
from pruning.records import BAG_OF_WORDS, DENSE
from pruning.tasks import Task
from pruning.teachers import Batch, Place
from pruning.training import Schedule

PADDED = 128  # the length that the first code, and most papers, pad every input to
SINGLES = 8  # examples that are timed one by one
OF_PRUNED = (  # settings of how pruned models are trained; a runner lacks what its models do not need
    "ramp_share",
    "student_learning_rate",
    "residue_learning_rate",
    "distillation_share",
    "dropout",
    "copies",
)
OF_PRUNED_ONLY = {*OF_PRUNED, "words_left_out"} - {"ramp_share"}  # in no dense model's key

Method = str | list[str]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Plan:
    """What the settings block of a runner says.

    Attributes:
        methods: what to compare; an entry may be a list.
        seeds: one run of everything for each.
        training_rows: rows drawn from the training set, None for all.
        dense, pruned: how the dense model is trained, and every pruned one from it.
        evaluation_batch_size: rows of a batch when no gradient is needed.
        timing_examples, timing_passes: the subset of the dev set that is timed, and how often.
        shown_examples: sentences on the page.
        settings: the whole block, for the record.
    """

    methods: Sequence[Method]
    seeds: Sequence[int]
    training_rows: int | None
    dense: Schedule
    pruned: Schedule
    evaluation_batch_size: int
    timing_examples: int
    timing_passes: int
    shown_examples: int
    settings: dict[str, Any]

    @classmethod
    def from_settings(cls, settings: dict[str, Any], task: str) -> "Plan":
        """For one task, from a runner's settings block as `records.settings_block` gives it. Rows, epochs and
        what is in OF_PRUNED may be dictionaries, task → value. Raises UserError if one lacks the task."""

        common = {name: settings[name] for name in ("batch_size", "learning_rate")}
        return cls(
            methods=settings["pruning_methods"],
            seeds=settings["seeds"],
            training_rows=of_task(settings, "training_rows", task),
            dense=Schedule(epochs=of_task(settings, "dense_epochs", task), **common),
            pruned=Schedule(
                epochs=of_task(settings, "pruned_epochs", task),
                **common,
                **{name: of_task(settings, name, task) for name in OF_PRUNED if name in settings},
            ),
            evaluation_batch_size=settings["evaluation_batch_size"],
            timing_examples=settings["timing_examples"],
            timing_passes=settings["timing_passes"],
            shown_examples=settings["shown_examples"],
            settings=settings,
        )


def of_task(settings: dict[str, Any], name: str, task: str) -> Any:
    """A setting's value for a task. Raises UserError if it is a dictionary that lacks the task."""
    value = settings[name]
    if not isinstance(value, dict):
        return value
    if task not in value:
        raise UserError(f"{name} says nothing of {task}: add it at the top of the script")
    return value[task]


@dataclass
class TaskData:
    """A task's cache, opened."""

    task: Task
    splits: dict[str, Examples]
    vocabulary: list[str]
    counts: Tensor
    settings: dict[str, Any]
    identity: str
    sample: bool

    @classmethod
    def from_cache(cls, task: Task, cache: dict[str, Any]) -> "TaskData":
        splits = {name: Examples.from_columns(part) for name, part in cache["splits"].items()}
        return cls(
            task,
            splits,
            cache["vocabulary"],
            cache["counts"],
            cache["settings"],
            caches.identity(cache),
            cache["sample"],
        )


@dataclass
class Lessons:
    """What a model that is trained from a dense one learns from.

    Attributes:
        examples: the training examples, then their copies.
        logits: (N, C) what the dense model answers to them.
        kept: for every copy, which tokens of the originals it has; see `batches.leave_words_out`.
    """

    examples: Examples
    logits: Tensor
    kept: list[Tensor]

    def scores(self, of_originals: Ragged) -> Ragged:
        """The scores of all tokens: of a copy's, those that they have in the whole sentence."""
        return Ragged.joined([of_originals, *(of_originals.only(kept) for kept in self.kept)])


class Family(ABC):
    """What a kind of model brings to the grid.

    Attributes:
        marks: tokens that are no words, and stay when words are left out.
        name: folder under records/.
        cache_folder: folder under cache/.
        layers: how many layers process tokens.
        make_batch: rows of examples → the model's arguments.
        affects: whatever else decides the outcome of every run (a hash of the weights, sizes).
    """

    name: str
    cache_folder: str
    layers: int
    make_batch: Callable[[Examples, Tensor], Batch]
    affects: dict[str, Any]
    marks: tuple[str, ...] = ()

    @abstractmethod
    def build(self, data: TaskData, method: Method | None, seed: int, start: State | None) -> nn.Module:
        """A model for the task; dense for no method; fresh or, for the method, from a dense `start`."""

    @abstractmethod
    def teachers_of(self, method: Method, data: TaskData) -> dict[Place, str]:
        """Where `method` needs a teacher's scores, and which teacher's."""

    @abstractmethod
    def score(self, dense: nn.Module, batch: Batch, wanted: dict[Place, str]) -> dict[Place, Tensor]:
        """The teachers' scores of a batch."""

    @abstractmethod
    def pruning(self) -> Any:
        """The setting that says how much is removed: a schedule, or a rate."""

    def affects_pruned(self) -> dict[str, Any]:
        """Whatever else decides the outcome of pruned runs."""
        return {}

    @abstractmethod
    def method_name(self, method: Method) -> str:
        """A method's name in records and tables."""

    @abstractmethod
    def stages(self, data: TaskData) -> list[str]:
        """The pruning points, by the name of what follows them."""

    @abstractmethod
    def sentences(
        self, data: TaskData, examples: Examples, row: int, kept: tuple[Tensor, ...] | None
    ) -> list[dict[str, list]]:
        """One example for the page: for each sentence its words, and the stage before which each was
        dropped (None: never). `kept` is what the model returned, its row `row` being the example."""

    @abstractmethod
    def time(
        self, data: TaskData, dense: nn.Module, pruned: nn.Module | None, plan: Plan, accelerator: Accelerator
    ) -> dict[str, Any]:
        """DESIGN's four variants side by side; see `timing.compare`."""

    def after_training(self, model: nn.Module, examples: Examples) -> None:
        """Whatever a pruned model still needs from its training examples."""
        return

    def reference(self, data: TaskData, training: Examples) -> dict[str, Any] | None:
        """Answers of a simple classifier to compare with: its name and predictions by split."""
        return None


def is_upper_bound(method: Method) -> bool:
    """Whether a method needs a teacher to prune, so that it can't be deployed."""
    names = [method] if isinstance(method, str) else method
    return any(pruners.is_teacher(name) for name in names)


def run(
    settings: dict[str, Any], prepared: Sequence[tuple[Family, TaskData]], accelerator: Accelerator
) -> None:
    """Does every run of the grid that has no record yet, and prints the summary.

    Args:
        settings: a runner's block, see `Plan.from_settings`.
        prepared: every task, with the kind of model for it.
    """
    plans = [Plan.from_settings(settings, data.task.name) for _, data in prepared]
    for plan, (family, data) in zip(plans, prepared, strict=True):
        for seed in plan.seeds:
            TaskRun(family, plan, data, seed, accelerator).go()
        if accelerator.is_main_process:
            found = [r for r in records.read_all(family.name) if r["task"] == data.task.name]
            plots.write_plots(family.name, data.task.name, found)
            records.write_summary(family.name)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        table = records.write_summary(family.name)
        print(f"\n{table}\n\n{records.LEGEND}\nRecords: {records.RECORDS / family.name}")


class TaskRun:
    """One task and seed: dense, then every method."""

    def __init__(self, family: Family, plan: Plan, data: TaskData, seed: int, accelerator: Accelerator):
        self.family, self.plan, self.data, self.seed = family, plan, data, seed
        self.accelerator = accelerator
        self.train_examples = batches.subset(data.splits["train"], plan.training_rows)
        self.dense_affects = {
            "task": data.task.name,
            "method": DENSE,
            "seed": seed,
            "cache": data.identity,
            "training_rows": len(self.train_examples),
            "training": {k: v for k, v in vars(plan.dense).items() if k not in OF_PRUNED_ONLY},
            **family.affects,
        }
        self.dense_key = records.key_of(self.dense_affects)
        self._dense: nn.Module | None = None
        self._lessons: Lessons | None = None

    def affects_of(self, method: Method) -> dict[str, Any]:
        """Everything that decides the outcome of a pruned run."""
        return {
            "task": self.data.task.name,
            "method": self.family.method_name(method),
            "methods": method,
            "seed": self.seed,
            "dense": {k: v for k, v in self.dense_affects.items() if k != "seed"},
            "pruning": self.family.pruning(),
            **self.family.affects_pruned(),
            "training": vars(self.plan.pruned),
            "timing": [self.plan.timing_examples, self.plan.timing_passes],
        }

    def go(self) -> None:
        self._run_reference()
        if not self._finished(self.dense_affects):
            self._run_dense()
        for method in self.plan.methods:
            if not self._finished(self.affects_of(method)):
                self._run_method(method)
        self.forget()

    def forget(self) -> None:
        """Lets go of the dense model, which is in cache/."""
        self._dense = self._lessons = None

    def _finished(self, affects: dict[str, Any]) -> bool:
        path = records.path_of(self.family.name, affects)
        if path.is_file():
            self._say(f"{path} is there: finished before, skipped")
            return True
        return False

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            print(text, flush=True)

    # --- Dense ---------------------------------------------------------------------------------

    def _weights_path(self) -> Path:
        name = f"{self.data.task.name}-dense-seed{self.seed}-{self.dense_key}.pt"
        return caches.CACHE / self.family.cache_folder / "models" / name

    def dense(self) -> nn.Module:
        """The dense model, trained: from memory, from cache/, or by training it."""
        if self._dense is None:
            path = self._weights_path()
            if path.is_file():
                saved = caches.load(path, "this script again, after deleting that file")
                self._dense = self.family.build(self.data, None, self.seed, saved["state"])
                self._dense.to(self.accelerator.device).eval()
            else:
                self._train_dense()
        assert self._dense is not None
        return self._dense

    def _train_dense(self) -> list[tuple[int, float]]:
        set_seed(self.seed)
        model: Any = self.family.build(self.data, None, self.seed, None)
        if self.data.task.is_regression:  # a head that starts at 0 needs an epoch to get here
            model.classifier.bias.data.fill_(float(self.data.splits["train"].labels.mean()))
        curve = self.train(model, self.plan.dense, DENSE)
        self._dense = model.eval()
        if self.accelerator.is_main_process:
            state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
            caches.save(self._weights_path(), {"state": state})
        return curve

    def _run_dense(self) -> None:
        started = time.time()
        curve = self._train_dense()
        timings = self.family.time(self.data, self.dense(), None, self.plan, self.accelerator)
        self._finish(self.dense_affects, DENSE, self.dense(), None, curve, timings, started)

    # --- Pruned --------------------------------------------------------------------------------

    def _run_method(self, method: Method) -> None:
        started = time.time()
        dense = self.dense()
        model, curve = self.train_pruned(method)
        upper_bound = is_upper_bound(method)
        timings = None
        if not upper_bound:
            timings = self.family.time(self.data, dense, model, self.plan, self.accelerator)
        self._finish(
            self.affects_of(method),
            self.family.method_name(method),
            model,
            method if upper_bound else None,
            curve,
            timings,
            started,
        )

    def lessons(self) -> Lessons:
        """The training examples with the dense model's answers, and copies of them, as many as the plan says,
        from which words are left out. The label of a copy is the dense model's answer: left-out words may
        change what is true (TinyBERT, Jiao et al., 2020, learns from altered sentences in the same way)."""
        if self._lessons is None:
            dense, originals, schedule = self.dense(), self.train_examples, self.plan.pruned
            never = [self.data.vocabulary.index(mark) for mark in self.family.marks]
            parts, answers, all_kept = [originals], [self._predict(dense, originals).logits], []
            for number in range(1, 1 + schedule.copies):
                seed = 1_000 * self.seed + number
                copy, kept = batches.leave_words_out(originals, schedule.words_left_out, never, seed)
                logits = self._predict(dense, copy).logits
                labels = torch.tensor(metrics.predictions_of(self.data.task, logits), dtype=torch.float32)
                parts.append(replace(copy, labels=labels))
                answers.append(logits)
                all_kept.append(kept)
            examples = batches.joined(parts) if all_kept else originals
            self._lessons = Lessons(examples, torch.cat(answers), all_kept)
        return self._lessons

    def train_pruned(
        self, method: Method, rates_at: Callable[[float], Sequence[float]] | None = None
    ) -> tuple[Any, list[tuple[int, float]]]:
        """A pruned model that starts as the dense one and learns from its answers, and the curve of its loss.

        Args:
            rates_at: see `training.train`; None: the family's schedule.
        """
        dense = self.dense()
        scores = self._teacher_scores(method, self.train_examples, keep=True)
        lessons = self.lessons()
        set_seed(self.seed)
        model = self.family.build(self.data, method, self.seed, dense.state_dict())
        name = self.family.method_name(method)
        curve = self.train(model, self.plan.pruned, name, lessons, scores, rates_at)
        self.family.after_training(model, self.train_examples)
        return model.eval(), curve

    def any_schedule(self, method: Method, kept_shares: Sequence[float]) -> Any:
        """A model trained over random schedules, so that it serves any (`set_schedule`): from cache/, or by
        training it as the plan says, with a pruner before every layer of the family's own schedule.

        Args:
            kept_shares: see `schedules.at_random`.
        """
        affects = self.affects_of(method) | {"kept_shares": list(kept_shares), "timing": None}
        name = f"{self.data.task.name}-any-schedule-seed{self.seed}-{records.key_of(affects)}.pt"
        path = caches.CACHE / self.family.cache_folder / "models" / name
        if path.is_file():
            saved = caches.load(path, "this script again, after deleting that file")
            model: Any = self.family.build(self.data, method, self.seed, saved["state"])
            return model.to(self.accelerator.device).eval()
        rates_at = schedules.at_random(
            self.family.layers, kept_shares, self.plan.pruned.ramp_share, self.seed
        )
        model, _ = self.train_pruned(method, rates_at)
        if self.accelerator.is_main_process:
            caches.save(path, {"state": {name: part.cpu() for name, part in model.state_dict().items()}})
        return model.eval()

    def train(
        self,
        model: nn.Module,
        schedule: Schedule,
        name: str,
        lessons: Lessons | None = None,
        scores: dict[Place, Ragged] | None = None,
        rates_at: Callable[[float], Sequence[float]] | None = None,
    ) -> list[tuple[int, float]]:
        """See `training.train`.

        Args:
            lessons: None: the training examples and their labels alone.
            scores: of the training examples' tokens, by the teachers.
        """
        taught = None
        if lessons is not None and scores is not None:
            taught = {place: lessons.scores(ragged) for place, ragged in scores.items()}
        return training.train(
            model,
            self.train_examples if lessons is None else lessons.examples,
            self.family.make_batch,
            schedule,
            seed=self.seed,
            accelerator=self.accelerator,
            teacher_scores=taught,
            teacher_logits=None if lessons is None else lessons.logits,
            rates_at=rates_at,
            name=f"{self.data.task.name}, {name}, seed {self.seed}",
        )

    def _teacher_scores(self, method: Method, examples: Examples, keep: bool) -> dict[Place, Ragged] | None:
        """The teachers' scores of `examples`, or None where the method needs none.

        With `keep` they are computed once for a dense model and kept in cache/.
        """
        wanted = self.family.teachers_of(method, self.data)
        if not wanted:
            return None
        affects = {"dense": self.dense_affects, "teachers": {str(k): v for k, v in wanted.items()}}
        name = f"{self.data.task.name}-seed{self.seed}-{records.key_of(affects)}.pt"
        path = caches.CACHE / self.family.cache_folder / "teachers" / name
        if keep and path.is_file():
            flats = caches.load(path, "this script again, after deleting that file")["scores"]
            return {
                place: Ragged(flat, teachers.sequences_of(examples, place).offsets)
                for place, flat in flats.items()
            }
        dense = self.dense()
        scores = teachers.score_examples(
            examples,
            self.family.make_batch,
            lambda batch: self.family.score(dense, batch, wanted),
            batch_size=self.plan.evaluation_batch_size,
            device=self.accelerator.device,
            quiet=not self.accelerator.is_main_process,
        )
        if keep and self.accelerator.is_main_process:
            caches.save(path, {"scores": {place: ragged.flat for place, ragged in scores.items()}})
        return scores

    # --- Records -------------------------------------------------------------------------------

    def _run_reference(self) -> None:
        """The simple classifier's record, where the family has one."""
        affects = {**self.dense_affects, "method": BAG_OF_WORDS, "seed": 0}
        if records.path_of(self.family.name, affects).is_file():
            return
        started = time.time()
        found = self.family.reference(self.data, self.train_examples)
        if found is None:
            return
        splits = {
            split: self._judged(self.data.splits[split], predictions, None)
            for split, predictions in found["predictions"].items()
        }
        self._write(affects, found["name"], splits, [], None, [], started, "")

    def _finish(
        self,
        affects: dict[str, Any],
        name: str,
        model: nn.Module,
        teacher_method: Method | None,
        curve: list[tuple[int, float]],
        timings: dict[str, Any] | None,
        started: float,
    ) -> None:
        """Evaluates on every dev split and writes the record and its page."""
        splits = {}
        for split in self.data.task.dev_splits:
            examples = self.data.splits[split]
            scores = self._teacher_scores(teacher_method, examples, keep=False) if teacher_method else None
            splits[split] = self.judge(model, examples, scores)
        shown = self._shown(model, teacher_method, splits["dev"]["predictions"])
        pruning = "" if name == DENSE else str(self.family.pruning())
        self._write(affects, name, splits, curve, timings, shown, started, pruning)
        values = ", ".join(f"{m} {100 * v:.1f}" for m, v in splits["dev"]["metrics"].items())
        share = splits["dev"]["token_layers_kept"]
        self._say(f"{self.data.task.name}, {name}, seed {self.seed}: {values}; token-layers {share:.0%}")

    def judge(
        self, model: nn.Module, examples: Examples, scores: dict[Place, Ragged] | None = None
    ) -> dict[str, Any]:
        """A model's answers, their metrics, and the token-layers that they cost. `scores` is for teachers."""
        said = self._predict(model, examples, scores)
        kept = said.kept
        if kept is None:
            kept = examples.lengths[:, None].expand(-1, self.family.layers)
        return self._judged(examples, metrics.predictions_of(self.data.task, said.logits), kept)

    def _predict(
        self, model: nn.Module, examples: Examples, scores: dict[Place, Ragged] | None = None
    ) -> training.Predictions:
        return training.predict(
            model,
            examples,
            self.family.make_batch,
            batch_size=self.plan.evaluation_batch_size,
            accelerator=self.accelerator,
            teacher_scores=scores,
        )

    def _judged(self, examples: Examples, predictions: list[float], kept: Tensor | None) -> dict[str, Any]:
        """Metrics and token-layers of one dev split. `kept` is (N, L), None where tokens don't count."""
        task, labels = self.data.task, examples.labels.tolist()
        dense = int(examples.lengths.sum()) * self.family.layers
        return {
            "examples": len(examples),
            "metrics": metrics.judge(task, labels, predictions),
            "metrics_by_length": metrics.judge_by_length(task, labels, predictions, examples.lengths),
            "token_layers_dense": dense,
            "token_layers": None if kept is None else int(kept.sum()),
            "token_layers_kept": None if kept is None else int(kept.sum()) / dense,
            "tokens_by_layer": None if kept is None else kept.sum(dim=0).tolist(),
            "predictions": predictions,
        }

    @torch.no_grad()
    def _shown(
        self, model: nn.Module, teacher_method: Method | None, predictions: list[float]
    ) -> list[dict[str, Any]]:
        """The first examples of the dev set, with what was dropped of them."""
        task = self.data.task
        count = min(self.plan.shown_examples, len(self.data.splits["dev"]))
        rows = torch.arange(count)
        examples = self.data.splits["dev"].take(rows)
        scores = self._teacher_scores(teacher_method, examples, keep=False) if teacher_method else None
        device = self.accelerator.device
        batch = training.full_batch(examples, rows, self.family.make_batch, scores, device)
        with self.accelerator.autocast():
            kept = model(**batch).kept
        shown = []
        for row in range(count):
            label, answer = float(examples.labels[row]), predictions[row]
            shown.append(
                {
                    "sentences": self.family.sentences(self.data, examples, row, kept),
                    "label": preparing.label_name(task, label),
                    "answer": f"{answer:.2f}" if task.is_regression else preparing.label_name(task, answer),
                    "right": abs(label - answer) < (1.0 if task.is_regression else 0.5),
                }
            )
        return shown

    def _write(
        self,
        affects: dict[str, Any],
        name: str,
        splits: dict[str, Any],
        curve: list[tuple[int, float]],
        timings: dict[str, Any] | None,
        shown: list[dict[str, Any]],
        started: float,
        pruning: str,
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        path = records.path_of(self.family.name, affects)
        record = {
            "key": records.key_of(affects),
            "dense_key": None if name == DENSE else self.dense_key,
            "model": self.family.name,
            "task": self.data.task.name,
            "method": name,
            "pruning": pruning,
            "seed": affects["seed"],
            "sample": self.data.sample,
            "training": f"{len(self.train_examples)} rows",
            "device": training.device_name(self.accelerator.device),
            "precision": training.precision_name(self.accelerator),
            "wall_seconds": round(time.time() - started, 1),
            "settings": self.plan.settings,
            "affects": affects,
            "environment": records.environment(),
            "splits": splits,
            "timings": timings,
            "untimed": "upper bound" if timings is None and curve else "",
            "loss_curve": curve,
            "stages": self.family.stages(self.data) if pruning else [],
            "shown": shown,
        }
        if shown:
            records.write_text(path.with_suffix(".html"), records.sentence_page(record))
        records.write(path, record)  # last: a record that is there is finished


def open_cache(folder: str, task: Task, prepared_by: str) -> TaskData:
    """The cache of a task in `task_names`.

    Raises UserError, naming the script to run, if it is missing or stale.
    """
    path = caches.path_of(folder, task.name)
    cache = caches.load(path, prepared_by)
    caches.check_sources(cache, path, prepared_by)
    return TaskData.from_cache(task, cache)


def timing_subset(examples: Examples, plan: Plan) -> Examples:
    """The fixed subset of a dev set that is timed: examples at even distances."""
    count = min(plan.timing_examples, len(examples))
    return examples.take(torch.linspace(0, len(examples) - 1, count).long())


def time_variants(
    models: dict[str, nn.Module],
    examples: Examples,
    make_batch: Callable[[Examples, Tensor, int | None], Batch],
    flops_of: Callable[[Any, Batch], int],
    plan: Plan,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """The same examples through every model, in length-sorted batches and one by one.

    Args:
        models: variant → model; "dense, padded to 128" is given batches of that width, every other
            variant batches as wide as their longest example.
        make_batch: examples, rows and a width (None: the longest) to arguments of a model.
        flops_of: a model and a batch to its FLOPs.

    Returns:
        As `timing.compare`, speed-ups against "dense, stock".
    """
    device = accelerator.device
    in_batches = batches.sorted_batches(examples.lengths, plan.evaluation_batch_size)
    one_by_one = torch.linspace(0, len(examples) - 1, min(SINGLES, len(examples))).long().split(1)

    def prepared(name: str, groups: Sequence[Tensor]) -> list[Batch]:
        width = PADDED if "padded" in name else None
        return [batches.to_device(make_batch(examples, rows, width), device) for rows in groups]

    def runner(model: nn.Module, todo: list[Batch]) -> Callable[[], Any]:
        def go() -> list[Tensor]:
            with accelerator.autocast():
                return [model(**batch).logits for batch in todo]

        return go

    for model in models.values():
        model.to(device).eval()
    todo = {name: prepared(name, in_batches) for name in models}
    return timing.compare(
        {name: runner(model, todo[name]) for name, model in models.items()},
        {name: runner(model, prepared(name, one_by_one)) for name, model in models.items()},
        {name: sum(flops_of(model, b) for b in todo[name]) for name, model in models.items()},
        examples=len(examples),
        singles=len(one_by_one),
        device=device,
        passes=plan.timing_passes,
        fair="dense, stock",
        ours="dense, ours",
    )
