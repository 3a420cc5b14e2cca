"""Finds pruning schedules for BERT, depth included: the best metric at every speed, by this machine's clock.

    cache/bert/<task>.pt, bert/  →  records/search/, and lists to paste into `pruning_schedule`

Run it without parameters, after PrepareGlue4Bert.py and `pip install -r requirements-studies.txt`:
`python -m studies.search`. For each task one model is fine-tuned over random schedules, so that it serves all
of them (a supernet). Sentences held out from its training set then evaluate some hundred schedules: the plain
shapes first, then random ones, then what Optuna proposes. A schedule of fewer rates than the BERT has layers
leaves the last ones out. The plain shapes are timed, the speed of all others is estimated from theirs, and
what is chosen for a speed is timed again. The dev set is asked once, at the end. Change what is between the
two rulers below; what was trained before is taken from cache/.
"""

import random
import statistics
import time
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import optuna
from pydantic import Field
from tqdm import tqdm

from pruning import bert, devices, methods, records, schedules, settings
from pruning.errors import UserError, run_script
from pruning.grid import Experiment
from pruning.tasks import GLUE
from studies import plots, tables
from studies.supernet import Schedule, Supernet
from studies.tables import RECIPE, Record

# ----------------------------------------------------------------------------------------------
# Settings. Those of a training may differ by task

# How many times as fast as stock transformers (length-sorted, padded per batch) the model has to be.
budgets = [2, 3, 4]
kept_budgets = {"half": 0.5, "third": 0.3, "fifth": 0.22}  # and at most this share of the token-layers
task_names = ["mrpc", "cola", "sts-b"]  # one schedule is sought that serves all of them
pruning_method = RECIPE
seeds = [0]  # the first one
training_rows = {"sst-2": 16_000, "mrpc": 3_301, "cola": 7_696, "sts-b": 5_174}  # the rest is held out
held_out_rows = 1_000  # of the rest, at most: they evaluate the schedules
dense_epochs = {"sst-2": 2, "other": 3}
pruned_epochs = {"sst-2": 2, "other": 4}
batch_size = 32
learning_rate = 1e-4
student_learning_rate = 1e-3
fusion_learning_rate = 1e-3
distillation_share = 0.5
ramp_share = 0.5  # of the training, in which schedules get as hard as `kept_shares` says
kept_shares = [0.15, 0.7]  # of the token-layers, that schedules keep while the model is trained
dropout = 0.0
augmented_copies = {"sst-2": 1, "other": 3}
word_dropout = 0.15
removed_tokens = "readable"
layers = None  # the most that a schedule may have; None: all of the BERT's
fewest_layers = 2  # the fewest; None: as many
evaluations = 120  # schedules that are evaluated
evaluation_batch_size = 64
timing_examples = 64
timing_passes = 3
# ----------------------------------------------------------------------------------------------

DEPTH = "layers"  # Optuna's name of it
STEP = 0.05  # rates are multiples of it
FIRST = 0.4  # of the evaluations go to plain shapes, and to schedules drawn at random
SHAPED = 3  # schedules of each plain shape and depth
DEPTHS = (1, 2 / 3, 1 / 2)  # of the most layers, which plain shapes have
CORRECTIONS = 3  # how often a choice that the clock refuses is made again


class Settings(settings.BertTraining, settings.GlueTasks):
    """The block, for one task."""

    budgets: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]
    kept_budgets: dict[str, settings.Share]
    pruning_method: settings.BertMethod
    held_out_rows: settings.Count
    fewest_layers: settings.Count | None
    kept_shares: Annotated[list[settings.Share], Field(min_length=2, max_length=2)]
    evaluations: settings.Count
    timing_examples: settings.Count
    timing_passes: settings.Count


class Point(NamedTuple):
    """What the held-out sentences say of a schedule: means over the tasks."""

    metric: float
    speedup: float  # against stock, estimated
    kept: float  # share of the token-layers


Points = dict[Schedule, Point]


# --- The search --------------------------------------------------------------------------------


def rounded(schedule: Sequence[float]) -> Schedule:
    """To multiples of STEP."""
    return tuple(round(round(rate / STEP) * STEP, 2) for rate in schedule)


def plain(layers: int, fewest: int, kept_shares: Sequence[float]) -> list[Schedule]:
    """Schedules that anyone would try, of up to `layers` layers: nothing pruned, the last layers left out;
    [CLS] alone from a layer on; and, at some depths, the same rate everywhere, everywhere but before the
    first layer or the first two, and once only, before the first layer or the second."""
    found = [(0.0,) * depth for depth in range(fewest, layers)]
    found += [(0.0,) * whole + (1.0,) + (0.0,) * (layers - whole - 1) for whole in range(1, layers)]
    low, high = kept_shares
    for depth in sorted({max(fewest, round(share * layers)) for share in DEPTHS}):
        shapes = [[0] * late + [1] * (depth - late) for late in range(min(3, depth))]
        shapes += [[int(layer == once) for layer in range(depth)] for once in range(min(2, depth))]
        shares = [low + (high - low) * i / (SHAPED - 1) for i in range(SHAPED)]
        of_depth = [share * layers / depth for share in shares if share * layers < depth]
        found += [rounded(schedules.shaped(shape, share)) for share in of_depth for shape in shapes]
    return [*dict.fromkeys(found)]


def search(supernets: list[Supernet]) -> tuple[Points, list[Schedule]]:
    """Evaluates schedules on the held-out sentences of every task.

    Returns:
        What is known of each, and the front: those that no other one beats in both metric and speed-up,
        slowest first.
    """
    experiment, points = supernets[0].experiment, Points()
    chosen, layers, rng = experiment.settings, experiment.builder.layers, random.Random(experiment.seed)
    names, fewest = [f"layer {layer}" for layer in range(layers)], min(layers, chosen.fewest_layers or layers)
    first, starts = round(FIRST * chosen.evaluations), plain(layers, fewest, chosen.kept_shares)
    for part in supernets:
        part.learn_costs([(0.0,) * layers, *starts])
    while len(starts) < first:
        starts.append(rounded(schedules.draw(layers, rng.uniform(*chosen.kept_shares), rng, fewest)))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(n_startup_trials=first, seed=experiment.seed)
    study = optuna.create_study(directions=["maximize", "maximize"], sampler=sampler)
    for schedule in starts[:first]:
        study.enqueue_trial({DEPTH: len(schedule)} | dict(zip(names, schedule, strict=False)))
    bar = tqdm(total=chosen.evaluations, desc="schedules")
    while len(points) < chosen.evaluations:
        trial = study.ask()
        depth = trial.suggest_int(DEPTH, fewest, layers)
        schedule = rounded([trial.suggest_float(name, 0, 1, step=STEP) for name in names[:depth]])
        if schedule not in points:
            answers = [part.evaluate(schedule, part.held_out) for part in supernets]
            metric, kept = map(statistics.mean, zip(*answers, strict=True))
            speedup = statistics.geometric_mean(part.speedup(schedule) for part in supernets)
            points[schedule] = Point(metric, speedup, kept)
            bar.update()
        study.tell(trial, points[schedule][:2])
    front = {rounded([trial.params[n] for n in names if n in trial.params]) for trial in study.best_trials}
    return points, sorted(front, key=lambda schedule: points[schedule].speedup)


def choose(points: Points, *, at_least: float = 0.0, at_most: float = 1.0) -> Schedule | None:
    """The schedule with the best metric, at least this fast and with at most this share kept; else None."""
    able = {s: p for s, p in points.items() if p.speedup >= at_least and p.kept <= at_most}
    return max(able, key=lambda schedule: able[schedule]) if able else None


def choose_by_clock(
    supernets: list[Supernet], points: Points, budget: float
) -> tuple[Schedule | None, float | None]:
    """The best schedule that is so fast by the clock, and its speed-up; where none is, the last tried."""
    asked, found, speedup = budget, None, None
    for _ in range(CORRECTIONS):
        schedule = choose(points, at_least=asked)
        if schedule is None:
            break
        found, speedup = schedule, statistics.geometric_mean(part.clock([schedule])[0] for part in supernets)
        if speedup >= budget:
            break
        asked = points[schedule].speedup * budget / speedup  # the estimate promised more than the clock shows
    return found, speedup


# --- A run -------------------------------------------------------------------------------------


def chosen_rows(supernets: list[Supernet], points: Points) -> list[Record]:
    """What there is to say of every budget's schedule; the dev sets are asked here, once."""
    chosen, rows = supernets[0].experiment.settings, []
    found: dict[Any, tuple[Schedule | None, float | None]] = {
        **{budget: choose_by_clock(supernets, points, budget) for budget in chosen.budgets},
        **{name: (choose(points, at_most=share), None) for name, share in chosen.kept_budgets.items()},
    }
    for budget, (schedule, speedup) in found.items():
        if schedule is None:
            continue
        metrics, kept = zip(*(part.evaluate(schedule, part.dev) for part in supernets), strict=True)
        rows.append(
            {
                "budget": budget,
                "schedule": list(schedule),
                "speedup": speedup,
                "speedup_promised": points[schedule].speedup,
                "held_out": points[schedule].metric,
                "dev": statistics.mean(metrics),
                "dev_by_task": dict(zip((part.task for part in supernets), metrics, strict=True)),
                "token_layers_kept": statistics.mean(kept),
            }
        )
    return rows


def report(supernets: list[Supernet], points: Points, front: list[Schedule], header: Record) -> None:
    """Prints what to paste; writes the record, the table and the picture."""
    record = {
        "dense": {part.task: part.evaluate(None, part.dev)[0] for part in supernets},
        "dense_held_out": statistics.mean(part.evaluate(None, part.held_out)[0] for part in supernets),
        "chosen": chosen_rows(supernets, points),
        "front": [list(schedule) for schedule in front],
        "points": [[list(schedule), *point] for schedule, point in points.items()],
        "costs": {part.task: part.costs.tolist() for part in supernets},
        **header,
    }
    dense = [part.experiment.key_fields for part in supernets]
    key = records.key_of({"settings": header["settings"], "dense": dense})
    path = records.RECORDS / "search" / f"{'-'.join(record['dense'])}-{key}.json"
    text = records.markdown(*tables.search_table(record))
    records.write(path, record)
    records.write_text(path.with_suffix(".md"), text + "\n")
    plots.write_search(path.with_suffix(".png"), record)
    print(f"\n{text}\n\nMetrics × 100. Paste a list into pruning_schedule of RunBert4Glue.py.")
    print(f"Record and picture: {path.with_suffix('')}.*")


def main() -> None:
    started, accelerator = time.time(), devices.pick_device(in_several_processes=False)
    block = settings.Block.read(globals(), Settings)
    chosen = {name: block.for_task(name) for name in block.task_names()}
    if methods.is_teacher(pruning_method):
        raise UserError(f"pruning_method in {block.script}: {pruning_method!r} cannot be deployed")
    pretrained = bert.Pretrained.read()
    experiments = []
    for data in bert.open_tasks(pretrained, [GLUE[name] for name in chosen]):
        values, rows = chosen[data.task.name], len(data.splits["train"])
        if values.training_rows is None or values.training_rows >= rows:
            raise UserError(
                f"training_rows in {block.script} leaves nothing to evaluate schedules by: "
                f"{data.task.name} has {rows} rows, name fewer"
            )
        everywhere = [0.5] * (values.layers or pretrained.layers)  # a pruner in each layer
        changed: Any = values.model_copy(
            update={"pruning_schedule": everywhere, "pruning_methods": [pruning_method]}
        )
        builder = bert.BertBuilder(pretrained, data, changed, block.script)
        experiments.append(Experiment(builder, values, values.seeds[0], accelerator))
    supernets = [Supernet(experiment) for experiment in experiments]
    points, front = search(supernets)
    precision = devices.precision_name(accelerator)
    header = records.header(accelerator.device, precision, started, block.values)
    report(supernets, points, front, header)


if __name__ == "__main__":
    run_script(main)
