"""What does pruning cost? Lists of rates, removed tokens and depths on one fine-tuned BERT, each trained.

    cache/bert/<task>.pt, bert/  →  records/comparison/

Each line of `lines` is one model, trained from the dense one by the recipe of RunBert4Glue.py. What it has to
beat: the dense model trained on for as long, the BERT cut to fewer layers, the rules of other papers.

Run it without parameters, after PrepareGlue4Bert.py: `python -m studies.comparison`. Each line of a task and
seed takes a minute on a GPU beside 15 others, 3 to 40 minutes on a core. Finished ones are skipped, so it may
be stopped at any time, and several processes may share the work. A published line is not trained again where
data, weights, settings and precision are the same. Change what is between the two rulers below.
"""

import copy
import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator
from accelerate.utils import set_seed

from pruning import batches, bert, devices, flops, records, results, settings, timing, training
from pruning.batches import Examples
from pruning.errors import UserError, run_script
from pruning.grid import Experiment, Method, set_thresholds
from pruning.records import DENSE
from pruning.store import claim
from pruning.tasks import GLUE
from pruning.training import Curve, Inputs
from studies import comparison_tables as compare
from studies import plots, tables
from studies.comparison_tables import GRID, LONGER, Record, Table

# ----------------------------------------------------------------------------------------------
# Settings. Those of a training may differ by task
task_names = ["sst-2", "mrpc", "cola", "sts-b"]
seeds = [0, 1, 2]
training_rows = {"sst-2": 16_000, "mrpc": 3_301, "cola": 7_696, "sts-b": 5_174}
held_out_rows = 1_000  # of the others, at most: settings are chosen by them
dense_epochs = {"sst-2": 2, "other": 6}
pruned_epochs = {"sst-2": 2, "other": 4}
batch_size = 32
learning_rate = {"mrpc": 1e-4, "sts-b": 1e-4, "other": 5e-5}
dense_grid = {  # learning rates and dense epochs; those above are the best on held-out rows
    "sst-2": [(5e-5, 2), (1e-4, 2)],
    "other": [(5e-5, 3), (1e-4, 3), (5e-5, 6), (1e-4, 6)],
}
student_learning_rate = 1e-3
fusion_learning_rate = 1e-3
distillation_share = 0.5
ramp_share = 0.3
dropout = 0.0
augmented_copies = {"sst-2": 1, "other": 3}
word_dropout = 0.15
removed_tokens = "readable"
evaluation_batch_size = 64
bootstrap_draws = 500

HEAD = {"pruning_methods": ["head"]}  # [CLS] alone, and nothing pruned, need no rule
HALF = {"layers": 6, "pruning_schedule": [0, 0.5, 0, 0, 0, 0]}
# Budget → line → the settings that it changes, for a BERT of 12 layers. The first of a budget is the recipe.
# A cut BERT has a budget's FLOPs; five layers are there for their speed at a third
lines = {
    "half": {
        "5 whole layers, then [CLS]": {"pruning_schedule": [0] * 5 + [1] + [0] * 6, **HEAD},
        "first 6 layers": {"layers": 6, "pruning_schedule": [0] * 6, **HEAD},
    },
    "third": {
        "6 layers, half updated": HALF,
        "3 whole layers, then [CLS]": {"pruning_schedule": [0] * 3 + [1] + [0] * 8, **HEAD},
        "first 4 layers": {"layers": 4, "pruning_schedule": [0] * 4, **HEAD},
        "first 5 layers": {"layers": 5, "pruning_schedule": [0] * 5, **HEAD},
        **{
            f"6 layers, half updated, {rule}": HALF | {"pruning_methods": [rule]}
            for rule in ("column mean", "column mean threshold", "random")
        },
    },
    "fifth": {
        "5 layers, 40% updated": {"layers": 5, "pruning_schedule": [0, 0.6, 0, 0, 0]},
        "2 whole layers, then [CLS]": {"pruning_schedule": [0] * 2 + [1] + [0] * 9, **HEAD},
        "first 3 layers": {"layers": 3, "pruning_schedule": [0] * 3, **HEAD},
    },
}
# What a line does not change
pruning_methods = ["ideal gradients student"]
pruning_schedule = "third"
layers = None
# ----------------------------------------------------------------------------------------------

STUDY = "comparison"
OF_THE_STUDY = {"lines", "dense_grid", "bootstrap_draws"}  # settings that no training reads
CLOCK, STOCK = "clock", "dense, stock"
TIMED, BATCHES, PASSES = 128, (1, 32), 5  # examples of the dev set, examples at once, passes over all of them


class Settings(settings.BertTraining, settings.GlueTasks):
    """The block, for one task and line."""

    held_out_rows: settings.Whole
    pruning_schedule: settings.Schedule
    pruning_methods: settings.BertMethods
    dense_grid: list[tuple[settings.LearningRate, settings.Epochs]]
    lines: dict[str, dict[str, dict[str, Any]]]
    bootstrap_draws: settings.Count


class Piece(NamedTuple):
    """One training."""

    experiment: Experiment
    method: Method  # of the grid, or LONGER
    name: str
    budget: str  # "" of dense models, GRID of those whose settings were not chosen

    @property
    def is_dense(self) -> bool:
        """Whether it is the dense model that the lines start from."""
        return self.name == DENSE and self.budget != GRID

    @property
    def fields(self) -> dict[str, Any]:
        """Everything that decides its outcome."""
        if self.method == LONGER:
            own = {"method": LONGER, "epochs": self.experiment.settings.pruned_epochs}
            return self.experiment.key_fields | own
        return self.experiment.key_fields_of(self.method) | {"method": self.name}

    @property
    def record(self) -> Record | None:
        """Of this machine, or the published one: what is committed is not trained again."""
        fields = self.fields
        made_here = records.read(records.folder_of(STUDY, fields))
        found = made_here or published_by_key().get(records.key_of(fields))
        return found and found | {"schedule": self.budget}  # a dense model of the grid may be chosen later


def published_by_key() -> dict[str, Record]:
    """Key → record of the study as it is published."""
    if not (tables.PUBLISHED / f"{STUDY}.json").is_file():
        return {}
    return {record["key"]: record for record in tables.published(STUDY)["records"]}


def all_pieces() -> list[Piece]:
    """All that there is to do: all tasks of the first seed first. Raises UserError for a setting that cannot
    work."""
    block = settings.Block.read(globals(), Settings)
    accelerator = devices.pick_device(in_several_processes=False)
    pretrained = bert.Pretrained.read()
    pieces = [
        piece for name in block.task_names() for piece in pieces_of(name, block, pretrained, accelerator)
    ]
    return sorted(pieces, key=lambda piece: piece.experiment.seed)


def pieces_of(
    task: str, block: settings.Block[Settings], pretrained: bert.Pretrained, accelerator: Accelerator
) -> list[Piece]:
    """All that there is to do for one task. Raises UserError for a line that cannot work."""
    [data] = bert.open_tasks(pretrained, [GLUE[task]])

    def piece(seed: int, name: str, budget: str, changed: dict[str, Any]) -> Piece:
        if unknown := changed.keys() - Settings.model_fields:
            raise UserError(f"lines in {block.script}, {name}: {min(unknown)} is not a setting")
        values: Any = replace(block, values=block.values | changed).for_task(task)
        builder = bert.BertBuilder(pretrained, data, values, block.script)
        experiment = Experiment(builder, values, seed, accelerator)
        [method, *others] = values.pruning_methods or [name]
        if others:
            raise UserError(f"pruning_methods in {block.script}, {name}: a line has one method")
        return Piece(experiment, method, name, budget)

    chosen = block.for_task(task)
    dense = {"pruning_methods": [], "pruning_schedule": [0] * pretrained.layers}
    budgets = {"": {DENSE: dense, LONGER: dense}} | block.values["lines"]
    todo = [(name, budget, own) for budget, by_name in budgets.items() for name, own in by_name.items()]
    for rate, epochs in chosen.dense_grid:
        if (rate, epochs) != (chosen.learning_rate, chosen.dense_epochs):
            todo.append((DENSE, GRID, dense | {"learning_rate": rate, "dense_epochs": epochs}))
    return [piece(seed, *line) for seed in chosen.seeds for line in todo]


# --- A training --------------------------------------------------------------------------------


def finish(piece: Piece) -> None:
    """Trains a model and writes its record, unless that is there, or another process works on it."""
    experiment = piece.experiment
    with claim(piece.fields | {"study": STUDY}, wait=False) as held:
        if not held or piece.record is not None:
            return
        started = time.time()
        model, curve = train(piece)
        content = judged(experiment, model)
        seconds = experiment.store.seconds
        if piece.name == DENSE:
            seconds = {"training": seconds["dense"]}
        if experiment.accelerator.device.type != "cpu":
            seconds = {}  # those of a host that waits
        content |= {"schedule": piece.budget, "processor_seconds": seconds, "loss_curve": curve}
        write(STUDY, experiment, piece.fields, started, content)


def write(
    study: str, experiment: Experiment, fields: dict[str, Any], started: float, content: Record
) -> Record:
    """Writes a record, says so, and returns it. started: in seconds since the epoch."""
    device, precision = experiment.accelerator.device, devices.precision_name(experiment.accelerator)
    record = {
        **{name: fields[name] for name in ("task", "method", "seed")},
        "key": records.key_of(fields),
        "key_fields": fields,
        "training_rows": len(experiment.train_examples),
        **records.header(device, precision, started, experiment.settings.model_dump(exclude=OF_THE_STUDY)),
        **content,
    }
    folder = records.folder_of(study, fields)
    records.write(folder / records.RECORD, record)
    print(f"{folder}: {record['wall_seconds']:.0f} seconds", flush=True)
    return record


def train(piece: Piece) -> tuple[Any, Curve]:
    """The model of a line and the curve of its loss."""
    experiment = piece.experiment
    if piece.name == DENSE:
        return experiment.dense(), []  # other lines and studies may have trained it
    if piece.method != LONGER:
        trained = experiment.train_pruned(piece.method)
        return trained.model, trained.curve
    model, data = copy.deepcopy(experiment.dense()), Inputs(experiment.train_examples)
    arguments = replace(experiment.dense_arguments, epochs=experiment.settings.pruned_epochs)
    set_seed(experiment.seed)
    with experiment.store.clock("training"):
        title = experiment.title(LONGER)
        curve = training.train(model, data, arguments, title, experiment.accelerator, experiment.seed)
    return model, curve


def judged(experiment: Experiment, model: Any) -> Record:
    """What is recorded of a model: metrics (0 where one is undefined) on held-out rows and on the dev set; of
    the dev set predictions and the shares of the dense model's token-layers and FLOPs."""
    used, most = len(experiment.train_examples), experiment.settings.held_out_rows
    held_out = batches.held_out(experiment.data.splits["train"], used, most)

    def answers(examples: Examples) -> Record:
        found = results.evaluate_examples(experiment, model, Inputs(examples)).figures
        return found | {"metrics": {name: value or 0.0 for name, value in found["metrics"].items()}}

    dev = answers(experiment.data.splits["dev"])
    content = {
        "dev": {name: dev[name] for name in ("metrics", "metrics_by_length", "token_layers_kept")}
        | {"flops_kept": counted(experiment, model) / counted(experiment, experiment.dense())}
        | {"predictions": compare.packed(dev["predictions"])}
    }
    if len(held_out):
        content["held_out"] = {"examples": len(held_out), "metrics": answers(held_out)["metrics"]}
    return content


def counted(experiment: Experiment, model: Any) -> int:
    """FLOPs of the dev set, as executed."""
    examples, size = experiment.data.splits["dev"], experiment.settings.evaluation_batch_size
    groups = batches.sorted_batches(examples.lengths, size)
    return flops.of(model, batches.on_device(examples, groups, experiment.accelerator.device))


# --- The clock ---------------------------------------------------------------------------------


def timed(pieces: list[Piece]) -> Record:
    """The lines of one task and seed beside each other, by the clock: a record, read or made and written.
    Weights are the dense model's: training does not change speed. Thresholds are set as after training."""
    experiment, lines = pieces[0].experiment, [p for p in pieces if p.budget not in ("", GRID)]
    fields = experiment.key_fields | {"method": CLOCK, "lines": [piece.fields for piece in lines]}
    fields |= {"device": devices.device_name(experiment.accelerator.device), "on": records.processor()}
    record = records.read(records.folder_of(STUDY, fields))
    if record is not None:
        return record
    started, device, dense = time.time(), experiment.accelerator.device, experiment.dense()
    models = {STOCK: bert.stock_copy(dense), DENSE: dense}
    for piece in lines:
        built: Any = piece.experiment.builder.build(piece.method, experiment.seed, dense.state_dict())
        set_thresholds(piece.experiment, built.to(device), piece.method)
        models[compare.name_of((piece.name, piece.budget))] = built
    examples = results.timing_subset(experiment.data.splits["dev"], TIMED)
    dtype = devices.weights_type(experiment.accelerator)
    models = {name: timing.with_weights(model, device, dtype) for name, model in models.items()}
    rows: Record = {}
    for size in BATCHES:
        groups = batches.sorted_batches(examples.lengths, size)
        inputs = batches.on_device(examples, groups, device)
        variants = {
            name: timing.Variant(partial(timing.pass_over, model, inputs), len(examples))
            for name, model in models.items()
        }
        common: Any = {"device": device, "passes": PASSES}
        rows[str(size)] = timing.measure(variants, fair=[STOCK], dense=DENSE, **common)
    return write(STUDY, experiment, fields, started, {"timings": rows})


# --- A run -------------------------------------------------------------------------------------


def report(found: list[Record], clock: list[Record], labels: dict[str, list[float]]) -> None:
    """Prints and writes the tables, and writes the picture and the study as it is published.

    Args:
        clock: what `timed` returned.
        labels: of each task's dev set.
    """
    found, clock = rounded(found), rounded(clock)  # as it is published
    recipe = {budget: next(iter(by_name)) for budget, by_name in lines.items()}
    intervals = compare.intervals(found, labels, recipe, bootstrap_draws)
    parts = {
        "dense models": compare.grid_table(found),
        "lines": compare.comparison_table(found, intervals),
        "against each other": compare.pairs_table(found, intervals),
        "what was asked": compare.asked_table(found, recipe),
        "by length": compare.lengths_table(found, recipe),
        "processor seconds": compare.costs_table(found),
        "by the clock": compare.speed_table(clock),
    }
    picture = records.RECORDS / STUDY / f"{STUDY}.png"
    plots.write_comparison(picture, compare.series_of(found, recipe), list(labels))
    short = [{name: part for name, part in record.items() if name != "loss_curve"} for record in found]
    publish(STUDY, parts, recipe=recipe, records=short + clock, intervals=intervals)


def rounded(value: Any) -> Any:
    """Content of JSON with five digits behind the point: files that are published stay small."""
    if isinstance(value, dict):
        exact = ("key_fields", "settings")
        return {name: part if name in exact else rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [*map(rounded, value)]
    return round(value, 5) if isinstance(value, float) else value


def publish(study: str, parts: dict[str, Table], **content: Any) -> None:
    """Prints and writes a study's tables, and writes the study as it is published."""
    text = "\n\n".join(f"{name}\n\n{records.markdown(*table)}" for name, table in parts.items())
    folder = records.RECORDS / study
    records.write(
        folder / f"{study}.json", {"study": study, "command": f"python -m studies.{study}"} | content
    )
    records.write_text(folder / "tables.md", text + "\n")
    print(f"\n{text}\n\nMetrics × 100, mean ± standard deviation over seeds. Records: {folder}")


def main() -> None:
    pieces = all_pieces()
    for piece in pieces:
        finish(piece)
        piece.experiment.forget()
    found = [record for record in (piece.record for piece in pieces) if record is not None]
    clock: list[Record] = []
    if len(found) < len(pieces):
        print(f"{len(pieces) - len(found)} lines are left to another process that works on them")
        if not all(piece.record for piece in pieces if piece.is_dense):
            return
    else:  # nothing else runs
        first = [piece for piece in pieces if piece.experiment.seed == pieces[0].experiment.seed]
        for task in dict.fromkeys(piece.experiment.data.task.name for piece in first):
            clock.append(timed([piece for piece in first if piece.experiment.data.task.name == task]))
    labels = {p.experiment.data.task.name: p.experiment.data.splits["dev"].labels.tolist() for p in pieces}
    report(found, clock, labels)


if __name__ == "__main__":
    run_script(main)
