"""The grid of a runner: for each task and seed the dense model, then every method from it.

An `Experiment` is one task and seed. It holds what BERT and the LSTM share; what is special to them comes
with its `builder`. The dense model is trained once: it is the baseline, the teacher and the start of every
method. It is kept in cache/, and so are its answers and its teachers' scores.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from tqdm import tqdm

from pruning import batches, caches, devices, distillation, methods, records, saved, teachers, training
from pruning.batches import Examples, Ragged
from pruning.bert import BertBuilder
from pruning.distillation import DistillationSet
from pruning.lstm import LstmBuilder
from pruning.records import BAG_OF_WORDS, DENSE
from pruning.store import Store, claim
from pruning.teachers import Place
from pruning.training import Arguments, Curve, Inputs, RatesAt

CALIBRATED_ON = 512  # training examples, for pruners with a threshold: one batch
MOST_PAIRS = 2**24  # of positions in it: one head's attention then takes 64 MiB
OF_DENSE = ("epochs", "batch_size", "learning_rate", "warmup_share", "weight_decay")  # arguments in its key

Method = str | list[str]
Builder = BertBuilder | LstmBuilder


class Trained(NamedTuple):
    """A model that was trained, the curve of its loss, and when that began, in seconds since the epoch."""

    method: Method
    model: Any
    curve: Curve
    started: float


class Experiment:
    """One task and seed. `train_examples` are the rows that every model of it learns from; `key_fields`
    everything that decides the outcome of the dense one; `settings` those of the task."""

    def __init__(self, builder: Builder, settings: Any, seed: int, accelerator: Accelerator):
        self.builder, self.data, self.settings, self.seed = builder, builder.data, settings, seed
        self.accelerator, data = accelerator, builder.data
        self.train_examples = batches.subset(data.splits["train"], settings.training_rows)
        self.dense_arguments = Arguments(settings.dense_epochs, settings.batch_size, settings.learning_rate)
        self.pruned_arguments = Arguments.of_pruned(settings)
        self.key_fields: dict[str, Any] = {
            "task": data.task.name,
            "method": DENSE,
            "seed": seed,
            "cache": data.fingerprint,
            "training_rows": len(self.train_examples),
            "training": {name: getattr(self.dense_arguments, name) for name in OF_DENSE},
            "precision": devices.precision_name(accelerator),
            "processes": accelerator.num_processes,
            **builder.key_fields,
        }
        # arguments of `training.predict` and `distillation.score_examples`
        self.in_batches: Any = {"batch_size": settings.evaluation_batch_size, "device": accelerator.device}
        name = f"{data.task.name}-seed{seed}"
        self.store = Store(caches.CACHE / builder.name.lower(), name, accelerator.is_main_process)
        self._dense: Any = None
        self._distillation_set: DistillationSet | None = None

    def key_fields_of(self, method: Method) -> dict[str, Any]:
        """Everything that decides the outcome of a run."""
        if method == DENSE:
            return self.key_fields
        if method == BAG_OF_WORDS:
            return {**self.key_fields, "method": BAG_OF_WORDS, "seed": 0}
        return {
            "task": self.data.task.name,
            "method": self.name_of(method),
            "methods": method,
            "seed": self.seed,
            "dense": {name: value for name, value in self.key_fields.items() if name != "seed"},
            **self.builder.pruning_fields,
            "training": asdict(self.pruned_arguments),
        }

    def folder_of(self, method: Method) -> Path:
        """Where the record of a run lies."""
        return records.folder_of(self.builder.name, self.key_fields_of(method))

    def saves(self, method: Method) -> bool:
        """Whether the model of a run is kept: an upper bound cannot be deployed."""
        return self.settings.save_models and method != BAG_OF_WORDS and not self.is_upper_bound(method)

    def name_of(self, method: Method) -> str:
        """A method's name in records and tables: of a list, the methods of the layers that prune."""
        used = [*self.builder.methods_used(method).values()]
        return " + ".join(used[:1] if isinstance(method, str) else used) or methods.NO_PRUNING

    def is_upper_bound(self, method: Method) -> bool:
        """Whether a run cannot be deployed, because a teacher prunes."""
        return any(map(methods.is_teacher, self.builder.methods_used(method).values()))

    def train_dense(self) -> Trained:
        """The dense model, by training it or from cache/. The caller has claimed its run."""
        started = time.time()
        stored = self.store.load("dense", self.key_fields)
        if stored is None or "curve" not in stored:  # earlier versions kept the weights alone
            set_seed(self.seed)
            model: Any = self.builder.build(None, self.seed)
            if self.data.task.is_regression:  # a head that starts at 0 needs an epoch to get here
                model.classifier.bias.data.fill_(float(self.train_examples.labels.mean()))
            data, title = Inputs(self.train_examples), self.title(DENSE)
            with self.store.clock("dense"):
                curve = training.train(model, data, self.dense_arguments, title, self.accelerator, self.seed)
            stored = {"state": training.state_on_cpu(model), "curve": curve}
            self.store.keep("dense", self.key_fields, stored)
        else:
            model = self.builder.build(None, self.seed, stored["state"]).to(self.accelerator.device)
        self._dense = model.eval()
        return Trained(DENSE, self._dense, stored["curve"], started)

    def train_pruned(self, method: Method, rates_at: RatesAt | None = None) -> Trained:
        """A pruned model that starts as the dense one and learns from its answers. rates_at: see
        `training.train`."""
        started, state = time.time(), self.dense().state_dict()
        scores = self.scores_for(method, self.train_examples, keep=True)
        data = self.distillation_set().with_scores(scores)
        set_seed(self.seed)
        model: Any = self.builder.build(method, self.seed, state)
        arguments, title = self.pruned_arguments, self.title(self.name_of(method))
        with self.store.clock("training"):
            curve = training.train(model, data, arguments, title, self.accelerator, self.seed, rates_at)
        set_thresholds(self, model, method)
        return Trained(method, model.eval(), curve, started)

    def title(self, name: str) -> str:
        """Of a run."""
        return f"{self.data.task.name}, {name}, seed {self.seed}"

    def dense(self) -> Any:
        """The dense model: from memory, from cache/, or by training it."""
        if self._dense is None:
            with claim(self.key_fields, wait=True):  # another process may be training it
                self.train_dense()
        return self._dense

    def fields_with_weights(self) -> dict[str, Any]:
        """What decides whatever is made with the dense model: its weights too, for a GPU does not train it
        twice alike."""
        weights = caches.fingerprint_of_tensors(training.state_on_cpu(self.dense()))
        return {**self.key_fields, "weights": weights}

    def forget(self) -> None:
        """Lets go of the dense model, which is in cache/."""
        self._dense = self._distillation_set = None

    def distillation_set(self) -> DistillationSet:
        """The training examples and their copies with the dense model's answers."""
        if self._distillation_set is None:
            originals, arguments, dense = self.train_examples, self.pruned_arguments, self.dense()
            special = [self.data.vocabulary.index(token) for token in self.builder.special_tokens]
            examples, present = distillation.with_copies(originals, arguments, special, self.seed)
            copies = {name: getattr(arguments, name) for name in ("augmented_copies", "word_dropout")}
            fields = self.fields_with_weights() | copies

            def ask() -> Tensor:
                return training.predict(dense, Inputs(examples), **self.in_batches).logits

            logits = self.store.made_once("answers", fields, ask)
            labelled = distillation.with_answers(self.data.task, examples, logits, len(originals))
            self._distillation_set = DistillationSet(labelled, logits, present)
        return self._distillation_set

    def scores_for(
        self, method: Method, examples: Examples, keep: bool = False
    ) -> dict[Place, Ragged] | None:
        """The teachers' scores of `examples`, or None where the method needs none. With `keep` they are
        computed once for a dense model and kept in cache/."""
        used = self.builder.methods_used(method).items()
        wanted = {place: teacher for place, name in used if (teacher := methods.teacher_of(name))}
        if not wanted:
            return None
        score = partial(teachers.score, self.dense(), wanted=wanted, teachers=self.builder.teachers)
        ask = partial(distillation.score_examples, examples, score, **self.in_batches)
        if not keep:
            return ask()
        fields = self.fields_with_weights() | {"teachers": {str(p): name for p, name in wanted.items()}}
        flat = self.store.made_once("scores", fields, lambda: {p: rows.flat for p, rows in ask().items()})
        return {p: Ragged(flat[p], distillation.sequences_of(examples, p).offsets) for p in wanted}


def inputs_for(experiment: Experiment, method: Method, examples: Examples) -> Inputs:
    """What a trained model reads: examples, with scores where a teacher prunes. Labels are not looked at."""
    scores = experiment.scores_for(method, examples) if experiment.is_upper_bound(method) else None
    return Inputs(examples, scores)


def set_thresholds(experiment: Experiment, model: Any, method: Method) -> None:
    """Sets a pruned model's thresholds, if it has any, by training examples; see `methods.calibrate`."""
    if not methods.thresholds_of(model):
        return
    examples = experiment.train_examples
    fits = max(1, MOST_PAIRS // int(examples.lengths.max()) ** 2)
    few = batches.subset(examples, min(CALIBRATED_ON, fits))
    inputs = inputs_for(experiment, method, few)
    methods.calibrate(model, inputs.batch(torch.arange(len(few)), experiment.accelerator.device))


def methods_of(experiment: Experiment) -> list[Method]:
    """The methods of an experiment's runs. Of several with one name, which prune the same layers by the same
    pruners, only the first."""
    by_name: dict[str, Method] = {}
    for method in experiment.settings.pruning_methods:
        by_name.setdefault(experiment.name_of(method), method)
    return [DENSE, *by_name.values()]


def is_finished(experiment: Experiment, method: Method) -> bool:
    """Whether a run left all that it has to leave."""
    folder = experiment.folder_of(method)
    record = records.read(folder)
    if record is None:
        return False
    return not experiment.saves(method) or saved.is_whole(folder, record.get("model_files"))


def unfinished(experiments: Sequence[Experiment]) -> Iterator[tuple[Experiment, Method]]:
    """Every run that is not finished yet, held for this process while it is worked on. A bar says how many
    are done, and how much time is left.

    What another process works on is passed over. When nothing else is left it is waited for: a process that
    died leaves it undone.
    """
    for folder in (caches.CACHE, records.RECORDS):
        caches.remove_leftovers(folder)
    todo = [(experiment, method) for experiment in experiments for method in methods_of(experiment)]
    due = [(experiment, method) for experiment, method in todo if not is_finished(experiment, method)]
    kept = [e.builder.weight_bytes(method) for e, method in due if e.saves(method)]
    saved.check_room(records.RECORDS, kept)
    quiet = not due or not experiments[0].accelerator.is_main_process
    with tqdm(total=len(due), desc="runs", unit="run", smoothing=0, disable=quiet) as bar:
        wait = False
        while todo:
            busy: list[tuple[Experiment, Method]] = []
            for experiment, runs in groupby(todo, key=itemgetter(0)):
                for run in runs:
                    yield from _work_on(run, busy, wait and run is todo[0], bar)
                experiment.forget()
            wait = len(busy) == len(todo)
            todo = busy


def _work_on(
    run: tuple[Experiment, Method], busy: list[tuple[Experiment, Method]], wait: bool, bar: tqdm
) -> Iterator[tuple[Experiment, Method]]:
    """Yields a run that is to be done; adds it to those that are `busy` if another process works on it, or on
    the dense model that it starts from."""
    experiment, method = run
    if (experiment, DENSE) in busy:
        busy.append(run)
        return
    with claim(experiment.key_fields_of(method), wait) as held:
        folder = experiment.folder_of(method)
        if not held:
            devices.say(f"{folder}: another process works on it")
            busy.append(run)
        elif is_finished(experiment, method):
            devices.say(f"{folder} is there: finished before, skipped")
        else:
            yield run
            bar.update()
