"""A model that serves every pruning schedule, and how long it takes under each. A part of the search."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning import batches, bert, devices, methods, results, schedules, timing
from pruning.batches import Examples
from pruning.grid import Experiment
from pruning.layers import FastPaths, run_layers
from pruning.selection import Tokens
from pruning.training import TrainingSet, state_on_cpu
from studies.tables import metric_of

Schedule = tuple[float, ...]
LENGTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens, in the table of seconds
PASSES = 5  # over the parts of a model
STOCK = "dense, stock"


def trained(experiment: Experiment) -> Any:
    """A model trained over random schedules, so that it serves any (`set_schedule`): from cache/, or by
    training it."""
    chosen, models, seed = experiment.settings, experiment.models, experiment.seed
    method = chosen.pruning_method
    fields = {**experiment.key_fields_of(method), "kept_shares": chosen.kept_shares}
    saved = experiment.store.load("models", fields)
    if saved is not None:
        return models.build(method, seed, saved["state"]).to(experiment.accelerator.device).eval()
    rates_at = schedules.at_random(models.layers, chosen.kept_shares, chosen.ramp_share, seed)
    model, _ = experiment.train_pruned(method, rates_at)
    experiment.store.keep("models", fields, {"state": state_on_cpu(model)})
    return model


class Supernet:
    """A task's supernet, with the sentences that evaluate and time schedules.

    Attributes:
        held_out: examples of the training set that no model was trained on.
        table: what speed-ups are estimated by.
    """

    def __init__(self, experiment: Experiment):
        self.experiment, chosen = experiment, experiment.settings
        self.task, self.dev = experiment.data.task.name, experiment.data.splits["dev"]
        self.model = trained(experiment)
        used = len(experiment.train_examples)
        self.held_out = batches.held_out(experiment.data.splits["train"], used, chosen.held_out_rows)
        timed = results.timing_subset(self.held_out, chosen.timing_examples)
        rows = batches.sorted_batches(timed.lengths, chosen.evaluation_batch_size)
        device = experiment.accelerator.device
        self.inputs = [batches.to_device(timed.batch(batch), device) for batch in rows]
        is_bf16 = devices.precision_name(experiment.accelerator) == "bf16"
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        stock = bert.stock_copy(experiment.dense())
        self.timed = [timing.with_weights(model, device, dtype) for model in (stock, self.model)]
        unpruned = (0.0,) * experiment.models.layers
        measured = self.measure([unpruned])
        self.table = SecondsTable.of(self.timed[1], [timed.lengths[batch] for batch in rows], device)
        self.table.scale_to(measured[str(unpruned)]["ms"] / 1_000, unpruned)
        self.stock_seconds = measured[STOCK]["ms"] / 1_000

    def evaluate(self, schedule: Schedule | None, examples: Examples) -> tuple[float, float]:
        """The task's metric (0 if undefined), and the share of the token-layers kept; None: of the dense
        model."""
        model = self.experiment.dense() if schedule is None else self.model
        if schedule is not None:
            model.set_schedule(list(schedule))
        found = results.evaluate_on(self.experiment, model, TrainingSet(examples))
        return metric_of(found) or 0.0, found["token_layers_kept"]

    def speedup(self, schedule: Schedule) -> float:
        """Against stock, as the table has it."""
        return self.stock_seconds / self.table.seconds(schedule)

    def clock(self, chosen: Sequence[Schedule]) -> list[float]:
        """Speed-ups against stock, all taking turns on the same sentences."""
        rows = self.measure(chosen)
        return [rows[str(schedule)]["speedup"] for schedule in chosen]

    def measure(self, chosen: Sequence[Schedule]) -> dict[str, dict[str, Any]]:
        """See `timing.measure`: of stock transformers, and of this model by each schedule."""

        def run(schedule: Schedule | None) -> list[Tensor]:
            model: Any = self.timed[0 if schedule is None else 1]
            if schedule is not None:
                model.set_schedule(list(schedule))
            return [model(**batch).logits for batch in self.inputs]

        examples = sum(len(batch["input_ids"]) for batch in self.inputs)
        runs = {STOCK: partial(run, None)} | {str(schedule): partial(run, schedule) for schedule in chosen}
        return timing.measure(
            {name: timing.Variant(each, examples) for name, each in runs.items()},
            fair=[STOCK],
            dense=STOCK,
            device=self.experiment.accelerator.device,
            passes=self.experiment.settings.timing_passes,
        )


@dataclass
class SecondsTable:
    """Seconds of the parts of a model for one sentence, by its tokens. Of a batch of mixed lengths the mean
    length counts.

    Attributes:
        batches: that are to be timed: how many sentences, their mean length.
        grid: tokens.
        parts: part (see `parts_of`) → seconds of one sentence at every length of the grid.
    """

    batches: list[tuple[int, float]]
    grid: list[int]
    parts: dict[str, list[float]]

    @classmethod
    @torch.inference_mode()
    def of(cls, model: Any, lengths: Sequence[Tensor], device: torch.device) -> "SecondsTable":
        """Times a model's parts. lengths: of the sentences of each batch."""
        rows, longest = max(map(len, lengths)), max(int(batch.max()) for batch in lengths)
        grid = [n for n in LENGTHS if n < longest] + [longest]
        runs = {f"{part} {n}": run for n in grid for part, run in parts_of(model, rows, n, device).items()}
        seconds = timing.interleaved(runs, device, PASSES)
        each = {name: statistics.median(times) / rows for name, times in seconds.items()}
        parts = {part: [each[f"{part} {n}"] for n in grid] for part in ("ends", "layer", "last", "prune")}
        return cls([(len(batch), float(batch.float().mean())) for batch in lengths], grid, parts)

    def scale_to(self, seconds: float, schedule: Schedule) -> None:
        """Makes the table right for the whole model under a schedule: parts alone are timed hot."""
        factor = seconds / self.seconds(schedule)
        self.parts = {part: [factor * each for each in column] for part, column in self.parts.items()}

    def seconds(self, schedule: Schedule) -> float:
        """Of one sentence under a schedule, the mean over the batches."""
        total = sum(rows * self._of_sentence(schedule, length) for rows, length in self.batches)
        return total / sum(rows for rows, _ in self.batches)

    def _of_sentence(self, schedule: Schedule, length: float) -> float:
        def look_up(part: str, tokens: float) -> float:  # linear between the lengths of the grid
            return float(np.interp(tokens, self.grid, self.parts[part]))

        alive, total = length, look_up("ends", length)
        for layer, rate in enumerate(schedule, start=1):
            if rate > 0:
                total += look_up("prune", alive)
                alive = max(1.0, alive * (1 - rate))
            total += look_up("last" if layer == len(schedule) else "layer", alive)
        return total


def parts_of(model: Any, rows: int, length: int, device: torch.device) -> dict[str, Callable[[], Any]]:
    """What runs each part of a model on a batch of `rows` sentences: its two ends, a layer, the last layer
    (which owes [CLS] alone), and pruning."""
    encoder, fast = model.bert.encoder, FastPaths()
    ids, lengths = torch.full((rows, length), 5, device=device), [length] * rows
    mask = torch.ones(rows, length, dtype=torch.bool, device=device)
    states = model.bert.embeddings(ids)
    pruner, tokens = encoder.pruners["0"], Tokens.start(states, mask, ids)
    fusion = encoder.fusions["0"] if encoder.fusions else None
    with_layer: dict[str, Any] = {"keep_first": True, "layer": encoder.layer[0], "fusion": fusion}
    return {
        "ends": lambda: model.classifier(model.bert.pooler(model.bert.embeddings(ids))),
        "layer": lambda: run_layers(encoder.layer[:1], states, mask, lengths, fast, False),
        "last": lambda: run_layers(encoder.layer[-1:], states, mask, lengths, fast, True),
        "prune": lambda: methods.prune(pruner, tokens, 0.5, **with_layer),
    }
