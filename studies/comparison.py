"""Which tokens may go? The rules of the field head to head, on one fine-tuned BERT.

    cache/bert/<task>.pt, bert/  →  records/comparison/

    frozen     every rule prunes the dense model by what it sees in the whole sentence (an oracle), and so
               does a student of every rule; the dense model stays as it is
    retrained  the model is trained with its pruner, by the recipe of RunBert4Glue.py. What that has to beat:
               the dense model trained on for as long, attention that nobody trained (PoWER-BERT, LTP), [CLS]
               alone from some layer on, fewer layers

Run it without parameters, after PrepareGlue4Bert.py: `python -m studies.comparison`. It takes a night on two
cores, minutes on a GPU. It goes in pieces; finished ones are skipped, so it may be stopped at any time.
Change what is between the two rulers below.
"""

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Annotated, Any, Literal

from accelerate.utils import set_seed
from pydantic import Field

from pruning import bert, devices, plots, records, results, settings
from pruning.errors import run_script
from pruning.grid import Experiment
from pruning.tasks import GLUE
from pruning.training import Curve, TrainingSet
from studies import tables
from studies.rules import frozen, with_settings
from studies.tables import RECIPE, Record

# ----------------------------------------------------------------------------------------------
# Settings. Those of a training may differ by task
task_names = ["sst-2", "mrpc", "cola", "sts-b"]
seeds = [0, 1, 2]
training_rows = {"sst-2": 16_000, "mrpc": 3_301, "cola": 7_696, "sts-b": 5_174}  # the search uses the rest
dense_epochs = {"sst-2": 2, "mrpc": 3, "cola": 3, "sts-b": 3}
pruned_epochs = {"sst-2": 2, "mrpc": 4, "cola": 4, "sts-b": 4}
batch_size = 32
learning_rate = 1e-4
student_learning_rate = 1e-3
fusion_learning_rate = 1e-3
distillation_share = 0.5
ramp_share = 0.3
dropout = 0.0
augmented_copies = {"sst-2": 1, "mrpc": 3, "cola": 3, "sts-b": 3}
word_dropout = 0.15
removed_tokens = "fused"
layers = None  # all of the BERT's
evaluation_batch_size = 64

# Frozen: where the dense model is pruned (stretched for another depth), and what students learn from
frozen_schedules = {"46%": [0, 0.5, 0, 0.5, 0, 0], "34%": [0, 0.7, 0, 0.5, 0, 0]}
student_rows = 2_000
student_epochs = 5

# Retrained
pruning_schedule = "third"
pruning_methods = [RECIPE, "gradient x input student", "column mean", "column mean threshold", "random"]
recipe_schedules = ["half", "fifth"]  # at which the recipe is trained besides
only_cls_from = [3, 2]  # layers from which on [CLS] is alone
first_layers = [3, 2, 1]  # how many layers are left, of BERTs that are cut
bootstrap_draws = 500
# ----------------------------------------------------------------------------------------------

STUDY = "comparison"
LONGER = "dense, trained on"
OF_FROZEN = {"frozen_schedules", "student_rows", "student_epochs", "student_learning_rate"}  # in its key
Named = Literal["half", "third", "fifth"]
# One training, or one table of rules: everything that decides its outcome, and what makes its record
Piece = tuple[dict[str, Any], Callable[[], Record]]


class Settings(settings.BertTraining, settings.GlueTasks):
    """The block, for one task."""

    frozen_schedules: dict[str, list[Annotated[float, Field(ge=0, lt=1)]]]
    student_rows: settings.Count
    student_epochs: settings.Count
    pruning_schedule: Named
    pruning_methods: settings.BertMethods
    recipe_schedules: list[Named]
    only_cls_from: list[settings.Whole]
    first_layers: list[settings.Count]
    bootstrap_draws: settings.Count


def pieces_of(experiment: Experiment) -> list[Piece]:
    """All that there is to do for one task and seed."""
    chosen, fields, layers = experiment.settings, experiment.key_fields, range(experiment.builder.layers)
    rates, training = chosen.pruning_schedule, asdict(experiment.pruned_arguments)

    def piece(name: str, work: Callable[..., Record], *arguments: Any, **more: Any) -> Piece:
        own = {"task": fields["task"], "method": name, "seed": fields["seed"], "dense": fields}
        return own | more, partial(work, experiment, *arguments)

    pieces = [
        piece("frozen", frozen, **chosen.model_dump(include=OF_FROZEN)),
        (fields, lambda: trained(experiment, experiment.dense())),
        piece(LONGER, longer, epochs=chosen.pruned_epochs),
        *(retrained(experiment, method, method, rates) for method in chosen.pruning_methods),
        retrained(experiment, f"{RECIPE}, removed tokens gone", RECIPE, rates, removed_tokens="gone"),
        *(retrained(experiment, RECIPE, RECIPE, other) for other in chosen.recipe_schedules),
    ]
    for first in chosen.only_cls_from:
        alone, name = [int(layer == first) for layer in layers], f"[CLS] from layer {first}"
        pieces.append(retrained(experiment, name, "head", alone, removed_tokens="gone"))
    for depth in chosen.first_layers:
        pieces.append(piece(f"first {depth} layers", cut, depth, training=training))
    return pieces


def finished(experiment: Experiment, fields: dict[str, Any], work: Callable[[], Record]) -> Record:
    """A piece's record: read, or made and written."""
    folder = records.folder_of(STUDY, fields)
    record = records.read(folder)
    if record is not None:
        return record
    started, content, accelerator = time.time(), work(), experiment.accelerator
    device, precision = devices.device_name(accelerator.device), devices.precision_name(accelerator)
    record = {
        **{name: fields[name] for name in ("task", "method", "seed")},
        "key": records.key_of(fields),
        "key_fields": fields,
        "training_rows": len(experiment.train_examples),
        **records.header(device, precision, time.time() - started, experiment.settings.model_dump()),
        **content,
    }
    records.write(folder / records.RECORD, record)
    print(f"{folder}: {record['wall_seconds']:.0f} seconds", flush=True)
    return record


# --- Models ------------------------------------------------------------------------------------


def retrained(
    experiment: Experiment, name: str, method: str, schedule: str | list[int], **changed: str
) -> Piece:
    """The model trained with its pruner. `name`: of the piece; `changed`: settings."""
    pruned = partial(with_settings, experiment, pruning_schedule=schedule, **changed)

    def work() -> Record:
        experiment.distillation_set()  # made before `pruned` copies the experiment: all pieces share it
        model, curve = pruned().train_pruned(method)
        return trained(experiment, model, curve, schedule if isinstance(schedule, str) else "")

    return pruned().key_fields_of(method) | {"method": name}, work


def longer(experiment: Experiment) -> Record:
    """The dense model, trained for a pruned model's epochs more, otherwise as it was."""
    model, data = copy.deepcopy(experiment.dense()), TrainingSet(experiment.train_examples)
    arguments = replace(experiment.dense_arguments, epochs=experiment.settings.pruned_epochs)
    set_seed(experiment.seed)
    return trained(experiment, model, experiment.fit(model, data, arguments, LONGER))


def cut(experiment: Experiment, depth: int) -> Record:
    """The first layers of the dense model, trained on as a pruned model is."""
    builder: Any = with_settings(experiment, layers=depth, pruning_schedule=[0] * depth).builder
    set_seed(experiment.seed)
    model = builder.build("head", experiment.seed, experiment.dense().state_dict())
    data = experiment.distillation_set().with_scores(None)
    curve = experiment.fit(model, data, experiment.pruned_arguments, f"first {depth} layers")
    return trained(experiment, model, curve)


def trained(experiment: Experiment, model: Any, curve: Curve | None = None, schedule: str = "") -> Record:
    """What is recorded of a model: its schedule's name, metrics (0 where one is undefined) and predictions
    (to two digits) on the dev set, the share of the token-layers that it keeps, the curve of its loss."""
    found = results.evaluate_examples(experiment, model, TrainingSet(experiment.data.splits["dev"]))
    digits = [round(value, 2) for value in found["predictions"]]
    dev = {
        "metrics": {name: value or 0.0 for name, value in found["metrics"].items()},
        "token_layers_kept": found["token_layers_kept"],
        "predictions": [int(value) if value == int(value) else value for value in digits],
    }
    return {"schedule": schedule, "dev": dev, "loss_curve": curve or []}


# --- A run -------------------------------------------------------------------------------------


def report(all_records: list[Record], labels: dict[str, list[float]], draws: int) -> None:
    """Prints and writes the tables, and writes the picture and the study as it is published.

    Args:
        labels: of each task's dev set.
    """
    rules, models = ([r for r in all_records if kind in r] for kind in ("oracles", "dev"))
    intervals = tables.intervals(models, labels, draws)
    parts = {name: tables.rules_table(rules, name) for name in rules[0]["oracles"]}
    parts |= {"retrained": tables.comparison_table(models, intervals)}
    parts |= {"against each other": tables.pairs_table(models, intervals)}
    text = "\n\n".join(f"{name}\n\n{records.markdown(*table)}" for name, table in parts.items())
    folder = records.RECORDS / STUDY
    study = {"study": STUDY, "command": f"python -m studies.{STUDY}", "records": all_records}
    records.write(folder / f"{STUDY}.json", study | {"intervals": intervals})
    records.write_text(folder / "tables.md", text + "\n")
    points = {
        line: (tables.mean_of(answers, tables.kept_of), tables.mean_of(answers))
        for line, answers in tables.lines_of(models).items()
    }
    plots.write_comparison(folder / f"{STUDY}.png", points, list(labels))
    print(f"\n{text}\n\nMetrics × 100, mean ± standard deviation over seeds. Records: {folder}")


def main() -> None:
    accelerator = devices.pick_device(in_several_processes=False)
    block = settings.Block.read(globals(), Settings)
    names = settings.task_names(task_names, GLUE, block.script)
    chosen = {name: block.for_task(name) for name in names}
    pretrained = bert.Pretrained.read()
    experiments = []
    for data in bert.open_tasks(pretrained, [GLUE[name] for name in names]):
        values: Any = chosen[data.task.name]
        builder = bert.Bert(pretrained, data, values, block.script)
        experiments += [Experiment(builder, data, values, seed, accelerator) for seed in values.seeds]
    all_records = []
    for experiment in sorted(experiments, key=lambda e: e.seed):  # all tasks of the first seed first
        all_records += [finished(experiment, *piece) for piece in pieces_of(experiment)]
        experiment.forget()
    labels = {e.data.task.name: e.data.splits["dev"].labels.tolist() for e in experiments}
    report(all_records, labels, bootstrap_draws)


if __name__ == "__main__":
    run_script(main)
