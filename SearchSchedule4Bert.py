"""Finds pruning schedules for BERT: the best metric at every speed, by the clock of this machine.

    cache/bert/<task>.pt, bert/  →  records/search/, and lists to paste into `pruning_schedule`

Run it without parameters, after PrepareGlue4Bert.py. For each task one model is fine-tuned once over random
schedules, so that it serves any of them. Sentences held out from its training set then judge a few hundred
schedules: the plain shapes first, then random ones, then an evolutionary search proposes the next. How long a
schedule takes is read from a table of seconds by layer and length, and the schedules chosen for a speed are
timed. The dev set is asked once, at the end.
Change what is between the two rulers below; what was trained before is taken from cache/.
"""

import copy
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from torch import nn
from tqdm import tqdm

import RunBert4Glue
from pruning import batches, plots, records, runs, schedules, timing, training
from pruning.batches import Examples, bert_batch
from pruning.errors import UserError
from pruning.layers import FastPaths, run_layers
from pruning.pruners import Tokens
from pruning.runs import Plan, TaskData, TaskRun

# ----------------------------------------------------------------------------------------------
# Settings

# How many times as fast as stock transformers (length-sorted, padded per batch) the model has to be.
budgets = [1.5, 2, 2.5, 3.5]
kept_budgets = {"half": 0.5, "third": 0.34, "fifth": 0.2}  # and at most this share of the token-layers
task_names = ["sst-2"]  # one schedule is sought that serves all of them; any that RunBert4Glue knows
pruning_method = "ideal gradients student"
seeds = [0]  # the first one
# How many training rows teach, for every task in `task_names`; the rest is held out.
training_rows = {"sst-2": 16_000, "mrpc": 3_301, "cola": 7_696, "sts-b": 5_174}
held_out_rows = 1_000  # of the rest, at most: they judge the schedules
dense_epochs = {"sst-2": 2, "mrpc": 3, "cola": 3, "sts-b": 3}  # or one number for all tasks
pruned_epochs = {"sst-2": 2, "mrpc": 3, "cola": 3, "sts-b": 3}
batch_size = 32
learning_rate = 1e-4
student_learning_rate = 1e-3
residue_learning_rate = 1e-3
dropout = 0.0
copies = {"sst-2": 1, "mrpc": 2, "cola": 2, "sts-b": 2}
distillation_share = 0.5
ramp_share = 0.5  # of the training, in which schedules get as hard as `kept_shares` says
kept_shares = [0.15, 0.7]  # of the token-layers, that schedules keep while the model is trained
evaluations = 150  # schedules that are judged
evaluation_batch_size = 64
timing_examples = 128
timing_passes = 5
# ----------------------------------------------------------------------------------------------

STEP = 0.05  # rates are multiples of it
LENGTHS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)  # tokens, in the latency table
FIRST = 0.4  # of the evaluations go to plain shapes, and to schedules drawn at random
SHAPED = 5  # schedules of each plain shape
PARTS = ("ends", "layer", "last", "prune")  # of a model, each with its column in the table
CORRECTIONS = 3  # how often a choice that the clock refuses is made again

Schedule = tuple[float, ...]


class Point(NamedTuple):
    """What the held-out sentences say of a schedule: means over the tasks."""

    metric: float
    speedup: float  # against stock, by the table
    kept: float  # share of the token-layers


Points = dict[Schedule, Point]


@dataclass
class Searched:
    """A task, its models, and the sentences that judge and time schedules."""

    run: TaskRun
    model: Any
    stock: nn.Module
    held_out: Examples
    latency: "LatencyTable"
    stock_seconds: float

    def judge(self, schedule: Schedule | None, examples: Examples) -> tuple[float, float]:
        """The task's metric, and the share of the token-layers kept; None: of the dense model."""
        model = self.run.dense() if schedule is None else self.model
        if schedule is not None:
            model.set_schedule(list(schedule))
        found = self.run.judge(model, examples)
        return found["metrics"][self.run.data.task.metrics[0]], found["token_layers_kept"]

    @property
    def dev(self) -> Examples:
        return self.run.data.splits["dev"]

    def speedup(self, schedule: Schedule) -> float:
        """Against stock, as the table has it."""
        return self.stock_seconds / self.latency.seconds(schedule)


# --- Seconds -----------------------------------------------------------------------------------


class LatencyTable:
    """Seconds of one layer, of the last one (which owes [CLS] alone) and of pruning, by tokens of a
    sentence, in batches of `rows`; of a batch of mixed lengths the mean length counts."""

    def __init__(self, model: Any, lengths: Sequence[Sequence[int]], accelerator: Accelerator):
        """lengths: of the sentences of each batch that is to be timed."""
        self.layers = model.config.num_hidden_layers
        self.batches = [(len(batch), sum(batch) / len(batch)) for batch in lengths]
        longest = max(max(batch) for batch in lengths)
        self.grid = [n for n in LENGTHS if n < longest] + [longest]
        rows = max(len(batch) for batch in lengths)
        device = accelerator.device
        runs_of = {(part, n): self._runner(model, part, rows, n, device) for part in PARTS for n in self.grid}
        with torch.inference_mode(), accelerator.autocast():
            seconds = timing.interleaved(runs_of, device, passes=5)  # type: ignore[type-var]
        per_row = {key: statistics.median(times) / rows for key, times in seconds.items()}
        self.table = {part: [per_row[part, n] for n in self.grid] for part in PARTS}

    @staticmethod
    def _runner(model: Any, part: str, rows: int, length: int, device: torch.device) -> Any:
        encoder = model.bert.encoder
        ids = torch.full((rows, length), 5, device=device)
        mask = torch.ones(rows, length, dtype=torch.bool, device=device)
        states = torch.randn(rows, length, model.config.hidden_size, device=device)
        pruner, tokens = next(iter(encoder.pruners.values())), Tokens.start(states, mask, ids)
        residue = next(iter(encoder.residues.values()))
        lengths = [length] * rows
        return {
            "ends": lambda: model.classifier(model.bert.pooler(model.bert.embeddings(ids))),
            "layer": lambda: run_layers(encoder.layer[:1], states, mask, lengths, FastPaths(), False),
            "last": lambda: run_layers(encoder.layer[-1:], states, mask, lengths, FastPaths(), True),
            "prune": lambda: tokens.keep(pruner(tokens), 0.5, keep_first=True, residue=residue),
        }[part]

    def _look_up(self, part: str, length: float) -> float:
        """Seconds for one sentence, linear between the lengths of the table."""
        return float(np.interp(length, self.grid, self.table[part]))

    def scale_to(self, dense_seconds: float) -> None:
        """Makes the table right for the whole model without pruning: parts alone are timed hot."""
        factor = dense_seconds / self.seconds((0.0,) * self.layers)
        self.table = {part: [factor * seconds for seconds in column] for part, column in self.table.items()}

    def seconds(self, schedule: Schedule) -> float:
        """Of all batches under a schedule."""
        total = 0.0
        for rows, length in self.batches:
            alive, sentence = length, self._look_up("ends", length)
            for layer, rate in enumerate(schedule):
                if rate > 0:
                    sentence += self._look_up("prune", alive)
                    alive = max(1.0, alive * (1 - rate))
                sentence += self._look_up("last" if layer == len(schedule) - 1 else "layer", alive)
            total += rows * sentence
        return total


# --- The search --------------------------------------------------------------------------------


def rounded(schedule: Sequence[float]) -> Schedule:
    """To multiples of STEP, at most HIGHEST_RATE."""
    return tuple(round(min(schedules.HIGHEST_RATE, max(0.0, round(r / STEP) * STEP)), 2) for r in schedule)


def varied(parents: list[Schedule], rng: random.Random) -> Schedule:
    """A child of one or two parents: mixed, moved by a layer, or with some rates changed."""
    child = list(rng.choice(parents))
    if len(parents) > 1 and rng.random() < 0.3:
        child = [(a + b) / 2 for a, b in zip(child, rng.choice(parents), strict=True)]
    if rng.random() < 0.3:
        layer = rng.randrange(len(child) - 1)
        child[layer], child[layer + 1] = child[layer + 1], child[layer]
    changed = [rate + rng.gauss(0, 0.15) if rng.random() < 0.4 else rate for rate in child]
    return rounded([0 if rate < STEP else rate for rate in changed])


def front(points: Points) -> list[Schedule]:
    """The schedules that no other one beats in both metric and speed-up, slowest first."""
    best, found = -math.inf, []
    by_speed = sorted(points.items(), key=lambda item: (item[1].speedup, item[1].metric), reverse=True)
    for schedule, point in by_speed:
        if point.metric > best:
            best = point.metric
            found.append(schedule)
    return found[::-1]


def plain(layers: int) -> list[Schedule]:
    """Schedules that anyone would try: the same rate everywhere, everywhere but before the first layer or
    the first two, and once only, before the first layer."""
    once = [1] + [0] * (layers - 1)
    shapes = [once, *([0] * late + [1] * (layers - late) for late in range(min(3, layers)))]
    low, high = kept_shares
    shares = [low + (high - low) * i / (SHAPED - 1) for i in range(SHAPED)]
    return [rounded(schedules.shaped(shape, share)) for share in shares for shape in shapes]


def search(searched: list[Searched], layers: int, count: int, seed: int) -> Points:
    """Judges `count` schedules on the held-out sentences of every task."""
    rng = random.Random(seed)
    points: Points = {}
    first = round(FIRST * count)
    starts = plain(layers)
    for i in tqdm(range(count), desc="schedules"):
        candidate: Schedule | None = None
        while candidate is None or candidate in points:
            if i < first and starts:
                candidate = starts.pop(0)
            elif i < first:
                share = rng.uniform(*kept_shares)
                candidate = rounded(schedules.draw(layers, share, rng))
            else:
                candidate = varied(front(points), rng)
        answers = [part.judge(candidate, part.held_out) for part in searched]
        points[candidate] = Point(
            metric=statistics.mean(metric for metric, _ in answers),
            speedup=statistics.geometric_mean(part.speedup(candidate) for part in searched),
            kept=statistics.mean(kept for _, kept in answers),
        )
    return points


def choose(points: Points, *, at_least: float = 0.0, at_most: float = 1.0) -> Schedule | None:
    """The best metric of those at least so fast that keep at most such a share; None if none does."""
    able = {s: p for s, p in points.items() if p.speedup >= at_least and p.kept <= at_most}
    return max(able, key=lambda schedule: able[schedule]) if able else None


def clock(part: Searched, chosen: Sequence[Schedule]) -> list[float]:
    """Speed-ups of schedules against stock, all taking turns on the same sentences."""
    models: dict[str, Any] = {
        "dense, stock": part.stock,
        "dense, ours": part.run.dense(),
    }
    for schedule in chosen:
        models[str(schedule)] = copy.deepcopy(part.model)
        models[str(schedule)].set_schedule(list(schedule))
    seconds = seconds_of(models, part.run, runs.timing_subset(part.held_out, part.run.plan))
    return [seconds["dense, stock"] / seconds[str(schedule)] for schedule in chosen]


def seconds_of(models: dict[str, Any], run: TaskRun, examples: Examples) -> dict[str, float]:
    """Of the same sentences through every model, taking turns."""
    found = runs.time_variants(models, examples, bert_batch, RunBert4Glue.flops_of, run.plan, run.accelerator)
    return {name: len(examples) / timed["examples_per_second"] for name, timed in found.items()}


# --- A run -------------------------------------------------------------------------------------


def plan_of(data: TaskData) -> Plan:
    """A task's plan. Raises UserError if it leaves no sentences to judge by."""
    unused = {"pruning_methods": [pruning_method], "shown_examples": 0}
    plan = Plan.from_settings(records.settings_block(globals()) | unused, data.task.name)
    available = len(data.splits["train"])
    if plan.training_rows is None or plan.training_rows >= available:
        raise UserError(
            f"training_rows in SearchSchedule4Bert.py leaves nothing to judge schedules by: {data.task.name} "
            f"has {available} rows, name fewer"
        )
    return plan


def prepare(accelerator: Accelerator) -> list[Searched]:
    """Every task's models, from cache/ or trained, and its latency table."""
    family = RunBert4Glue.BertFamily()
    found = []
    for data in RunBert4Glue.open_caches(family.config, task_names):
        plan = plan_of(data)
        run = TaskRun(family, plan, data, plan.seeds[0], accelerator)
        model = run.any_schedule(pruning_method, kept_shares)
        held_out = batches.held_out(data.splits["train"], len(run.train_examples), held_out_rows)
        examples = runs.timing_subset(held_out, plan)
        in_batches = batches.sorted_batches(examples.lengths, plan.evaluation_batch_size)
        lengths = [examples.lengths[rows].tolist() for rows in in_batches]
        latency = LatencyTable(model, lengths, accelerator)
        stock = RunBert4Glue.stock_copy(run.dense())
        seconds = seconds_of({"dense, stock": stock, "dense, ours": run.dense()}, run, examples)
        latency.scale_to(seconds["dense, ours"])
        found.append(Searched(run, model, stock, held_out, latency, seconds["dense, stock"]))
    return found


def choose_all(searched: list[Searched], points: Points) -> dict[float, tuple[Schedule, float]]:
    """For every budget a schedule that is fast enough by the clock: budget → schedule, speed-up measured."""
    found: dict[float, tuple[Schedule, float]] = {}
    asked = {budget: budget for budget in budgets}
    for _ in range(CORRECTIONS):
        todo = [budget for budget in budgets if budget not in found or found[budget][1] < budget]
        chosen = {budget: choose(points, at_least=asked[budget]) for budget in todo}
        able = {budget: schedule for budget, schedule in chosen.items() if schedule is not None}
        if not able:
            break
        measured = zip(*(clock(part, list(able.values())) for part in searched), strict=True)
        for (budget, schedule), speedups in zip(able.items(), measured, strict=True):
            found[budget] = (schedule, statistics.geometric_mean(speedups))
            if found[budget][1] < budget:  # the table promised more than the clock shows
                asked[budget] = points[schedule].speedup * budget / found[budget][1]
    return found


def judged(
    searched: list[Searched], points: Points, found: dict[float, tuple[Schedule, float]]
) -> list[dict[str, Any]]:
    """What there is to say of every budget's schedule; the dev sets are asked here, once."""
    wanted: list[tuple[Any, Schedule | None, float | None]] = [(b, *chosen) for b, chosen in found.items()]
    wanted += [(name, choose(points, at_most=share), None) for name, share in kept_budgets.items()]
    rows = []
    for budget, schedule, speedup in wanted:
        if schedule is None:
            continue
        by_task = {part.run.data.task.name: part.judge(schedule, part.dev) for part in searched}
        rows.append(
            {
                "budget": budget,
                "schedule": list(schedule),
                "speedup": speedup,
                "speedup_by_table": points[schedule].speedup,
                "held_out": points[schedule].metric,
                "dev": statistics.mean(value for value, _ in by_task.values()),
                "dev_by_task": {task: value for task, (value, _) in by_task.items()},
                "token_layers_kept": statistics.mean(share for _, share in by_task.values()),
            }
        )
    return rows


def table_of(rows: list[dict[str, Any]], dense: dict[str, float], held: float) -> str:
    """`judged` in Markdown, the dense model first."""
    header = ["budget", "measured", "by the table", "token-layers", "held out", "dev", "pruning_schedule"]
    mean = statistics.mean(dense.values())
    table = [["", "× 1 (stock)", "", "100%", f"{100 * held:.1f}", f"{100 * mean:.1f}", "dense"]]
    for row in rows:
        budget, speedup = row["budget"], row["speedup"]
        short = " (not reached)" if speedup and speedup < budget else ""
        table.append(
            [
                budget if isinstance(budget, str) else f"× {budget}{short}",
                f"× {speedup:.2f}" if speedup else "",
                f"× {row['speedup_by_table']:.2f}",
                f"{row['token_layers_kept']:.0%}",
                f"{100 * row['held_out']:.1f}",
                f"{100 * row['dev']:.1f}",
                str([int(rate) if rate == int(rate) else rate for rate in row["schedule"]]),
            ]
        )
    return records.markdown(header, table)


def report(searched: list[Searched], points: Points, found: dict[float, Any]) -> None:
    """Prints what to paste, writes the record and the picture."""
    dense = {part.run.data.task.name: part.judge(None, part.dev)[0] for part in searched}
    held = statistics.mean(part.judge(None, part.held_out)[0] for part in searched)
    rows = judged(searched, points, found)
    text = table_of(rows, dense, held)
    print(f"\n{text}\n")
    print("Metrics × 100, the mean of the tasks. Paste a list into pruning_schedule of RunBert4Glue.py.")
    settings = records.settings_block(globals())
    name = "-".join([*task_names, records.key_of(settings)])
    path = records.RECORDS / "search" / f"{name}.json"
    record = {
        "settings": settings,
        "device": training.device_name(searched[0].run.accelerator.device),
        "precision": training.precision_name(searched[0].run.accelerator),
        "processor": records.processor(),
        "environment": records.environment(),
        "dense": dense,
        "dense_held_out": held,
        "chosen": rows,
        "front": [list(schedule) for schedule in front(points)],
        "points": [[list(schedule), *point] for schedule, point in points.items()],
        "latency": {p.run.data.task.name: [p.latency.grid, p.latency.table] for p in searched},
    }
    records.write(path, record)
    records.write_text(path.with_suffix(".md"), text + "\n")
    chosen = [(row["schedule"], row["speedup"], row["held_out"]) for row in rows if row["speedup"]]
    on_front = [points[schedule][:2] for schedule in front(points)]
    judged_all = [point[:2] for point in points.values()]
    plots.write_search(path.with_suffix(".png"), judged_all, on_front, chosen, held, task_names)
    print(f"Record and picture: {path.with_suffix('')}.*")


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not budgets or min(budgets) <= 0:
        raise UserError(f"budgets in SearchSchedule4Bert.py: {budgets}; name at least one, greater than 0")
    searched = prepare(training.pick_device(in_several_processes=False))
    points = search(searched, searched[0].run.family.layers, evaluations, seeds[0])
    report(searched, points, choose_all(searched, points))


if __name__ == "__main__":
    main()
