"""A model that serves every pruning schedule, and how fast it is under each. A part of the search."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.optimize import nnls
from torch import Tensor

from pruning import batches, bert, devices, results, schedules, timing
from pruning.batches import Examples
from pruning.grid import Experiment
from pruning.training import Inputs, state_on_cpu
from studies.comparison_tables import metric_of

Schedule = tuple[float, ...]
STOCK = "dense, stock"


def trained(experiment: Experiment) -> Any:
    """A model trained over random schedules, so that it serves any: from cache/, or by training it."""
    chosen, builder, seed = experiment.settings, experiment.builder, experiment.seed
    drawn = {"kept_shares": chosen.kept_shares, "fewest_layers": chosen.fewest_layers}
    pruned = experiment.key_fields_of(chosen.pruning_method)
    fields = pruned | drawn | {"dense": experiment.fields_with_weights()}

    def train() -> dict[str, Tensor]:
        shares, ramp, fewest = chosen.kept_shares, chosen.ramp_share, chosen.fewest_layers
        rates_at = schedules.at_random(builder.layers, shares, ramp, seed, fewest)
        return state_on_cpu(experiment.train_pruned(chosen.pruning_method, rates_at).model)

    state = experiment.store.made_once("supernets", fields, train)
    model = builder.build(chosen.pruning_method, seed, state)
    return model.to(experiment.accelerator.device).eval()


class Supernet:
    """A task's supernet, with the sentences that evaluate and time schedules.

    Attributes:
        held_out: examples of the training set that no model was trained on.
        costs: what speed-ups are estimated by, see `learn_costs`.
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
        self.inputs = batches.on_device(timed, rows, device)
        dtype = devices.weights_type(experiment.accelerator)
        stock = bert.stock_copy(experiment.dense())
        self.timed: list[Any] = [timing.with_weights(model, device, dtype) for model in (stock, self.model)]
        self.costs = np.zeros(0)

    def evaluate(self, schedule: Schedule | None, examples: Examples) -> tuple[float, float]:
        """The task's metric (0 if undefined), and the share of the token-layers kept; None: of the dense
        model."""
        model = self.experiment.dense() if schedule is None else self.model
        if schedule is not None:
            model.bert.encoder.schedule = list(schedule)
        found = results.evaluate_examples(self.experiment, model, Inputs(examples)).figures
        return metric_of(found) or 0.0, found["token_layers_kept"]

    def clock(self, chosen: Sequence[Schedule]) -> list[float]:
        """Speed-ups against stock transformers, all taking turns on the same sentences."""
        stock, ours = self.timed
        device, passes = self.experiment.accelerator.device, self.experiment.settings.timing_passes

        def run(schedule: Schedule) -> None:
            ours.bert.encoder.schedule = list(schedule)
            timing.pass_over(ours, self.inputs)

        variants = {STOCK: timing.Variant(partial(timing.pass_over, stock, self.inputs), 1)}
        variants |= {str(schedule): timing.Variant(partial(run, schedule), 1) for schedule in chosen}
        rows = timing.measure(variants, fair=[STOCK], dense=STOCK, device=device, passes=passes)
        return [rows[str(schedule)]["speedup"] for schedule in chosen]

    def learn_costs(self, chosen: Sequence[Schedule]) -> None:
        """Times some schedules, to estimate the speed of every other one. Errors count relatively."""
        rows = [speedup * parts_of(s) for s, speedup in zip(chosen, self.clock(chosen), strict=True)]
        self.costs, _ = nnls(np.array(rows), np.ones(len(rows)))

    def speedup(self, schedule: Schedule) -> float:
        """Against stock transformers, as `learn_costs` has it."""
        return 1 / float(parts_of(schedule) @ self.costs)


def parts_of(schedule: Schedule) -> np.ndarray:
    """What a pass under a schedule consists of, each at a cost of its own that is not negative: the pass
    itself, the layers, the tokens of all layers but the last, those of the last (which owes [CLS] alone),
    prunings."""
    *alive, last = schedules.alive(schedule)
    return np.array([1.0, len(schedule), sum(alive), last, sum(rate > 0 for rate in schedule)])
