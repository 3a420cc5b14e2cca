"""Which tokens may go? The rules of the field head to head, on one fine-tuned BERT and by one recipe.

    cache/bert/<task>.pt, bert/  →  records/rules/

    oracles    every rule prunes the dense model by what it sees in the whole sentence; nothing is trained
    students   a student of every rule, trained on the frozen dense model, prunes that model
    retrained  the model is trained with its pruner: some rules at one schedule, the recipe of RunBert4Glue.py
               at all, and once without what removed tokens leave; what they have to beat: the dense model
               trained as long, attention that nobody trained (PoWER-BERT, LTP), fewer layers, only [CLS]

Run it without parameters, after PrepareGlue4Bert.py: a night on two cores, minutes on a GPU. It goes in
pieces; finished ones are skipped, so it may be stopped at any time. Change what is between the two rulers.
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from tqdm import tqdm

import RunBert4Glue
from ModifiedModelingBert import PrunedBertForSequenceClassification
from pruning import batches, metrics, plots, pruners, records, schedules, teachers, training
from pruning.batches import bert_batch, shuffled_batches
from pruning.pruners import StudentPruner, ranking_loss
from pruning.records import DENSE
from pruning.runs import Plan, TaskRun
from pruning.tasks import GLUE, Task
from pruning.teachers import RULES

# ----------------------------------------------------------------------------------------------
# Settings
task_names = ["sst-2", "mrpc", "cola", "sts-b"]
seeds = [0, 1, 2]
training_rows = {"sst-2": 16_000, "mrpc": 3_301, "cola": 7_696, "sts-b": 5_174}  # the rest is held out
dense_epochs = {"sst-2": 2, "mrpc": 3, "cola": 3, "sts-b": 3}
pruned_epochs = {"sst-2": 2, "mrpc": 4, "cola": 4, "sts-b": 4}
batch_size = 32
learning_rate = 1e-4
student_learning_rate = 1e-3
residue_learning_rate = 1e-3
distillation_share = 0.5
dropout = 0.0
copies = {"sst-2": 1, "mrpc": 3, "cola": 3, "sts-b": 3}
ramp_share = 0.3

# Oracles and students: where the frozen model is pruned, and how many training sentences teach.
frozen_schedules = {"46%": [0, 0.5, 0, 0.5, 0, 0], "34%": [0, 0.7, 0, 0.5, 0, 0]}
student_rows = 2_000
student_epochs = 5

# Retrained.
schedules_by_name = schedules.FOR_SIX_LAYERS  # name → kind of example → schedule
compared_at = "third"  # the schedule of the other methods, and of the recipe without residue
recipe = "ideal gradients student"
other_methods = [
    "gradient x input student",
    "column mean",
    "column mean threshold",
    "random",
]
depths = [3, 2, 1]  # BERTs cut to their first layers
only_cls = {"[CLS] from layer 3": [0, 0, 0, 1, 0, 0], "[CLS] from layer 2": [0, 0, 1, 0, 0, 0]}
evaluation_batch_size = 64
draws = 500  # of the bootstrap
# ----------------------------------------------------------------------------------------------

FREE = ("random", "head", "tail", "frequency")  # rules that need no model
TEACHER, STUDENT = "ideal gradients", "ideal gradients student"  # any, to build a model that has pruners
LONGER = "dense, trained on"
MODEL = "rules"  # folder under records/


@dataclass
class Piece:
    """One training, or one table of a task and seed: what is recorded together."""

    name: str
    work: Callable[[TaskRun], dict[str, Any]]
    settings: tuple[str, ...]
    pruning: Any = None  # a schedule, or the name of one

    def affects(self, run: TaskRun) -> dict[str, Any]:
        task = run.data.task
        chosen = {name: globals()[name] for name in self.settings}
        named = {"task": task.name, "method": self.name, "seed": run.seed}
        pruning = rates_of(self.pruning, task)
        return named | {"dense": run.dense_affects, "settings": chosen, "pruning": pruning}

    def go(self, run: TaskRun) -> None:
        """Does it, unless there is a record of it."""
        affects = self.affects(run)
        path = records.path_of(MODEL, affects)
        if path.is_file():
            return
        started = time.time()
        found = self.work(run)
        record = {
            "task": run.data.task.name,
            "method": self.name,
            "seed": run.seed,
            "key": records.key_of(affects),
            "affects": affects,
            "device": training.device_name(run.accelerator.device),
            "precision": training.precision_name(run.accelerator),
            "environment": records.environment(),
            "wall_seconds": round(time.time() - started, 1),
            **found,
        }
        records.write(path, record)
        print(f"{path}: {record['wall_seconds']:.0f} seconds", flush=True)


def rates_of(pruning: Any, task: Task) -> Any:
    """The rates of a schedule that is given by its name, else what is given."""
    return schedules_by_name[pruning][task.kind] if isinstance(pruning, str) else pruning


# --- Oracles and students ----------------------------------------------------------------------


def frozen(run: TaskRun) -> dict[str, Any]:
    """Every rule on the frozen dense model, as an oracle and as a student: schedule → rule → metric."""
    layers = [
        layer for layer in range(run.family.layers) if any(s[layer] > 0 for s in frozen_schedules.values())
    ]
    dev = run.data.splits["dev"]
    dense = run.dense()
    seen = teachers.score_examples(
        dev,
        bert_batch,
        lambda batch: flat(teachers.bert_rules(dense, batch, RULES, layers)),
        batch_size=evaluation_batch_size,
        device=run.accelerator.device,
    )
    students = train_students(run, layers)
    found: dict[str, Any] = {"oracles": {}, "students": {}, "token_layers_kept": {}}
    for name, schedule in frozen_schedules.items():
        oracles = {rule: judge(run, schedule, rule) for rule in FREE}
        learnt = dict(oracles)
        for rule in RULES:
            scores = {layer: seen[f"{rule}, {layer}"] for layer in layers}
            oracles[rule] = judge(run, schedule, TEACHER, scores=scores)
            learnt[rule] = judge(run, schedule, STUDENT, students=students[rule])
        found["oracles"][name] = {rule: value for rule, (value, _) in oracles.items()}
        found["students"][name] = {rule: value for rule, (value, _) in learnt.items()}
        found["token_layers_kept"][name] = oracles["head"][1]
    found["dense"] = metric_of(run, run.judge(dense, dev))
    return found


def flat(scores: dict[str, dict[int, Tensor]]) -> dict[teachers.Place, Tensor]:
    return {f"{rule}, {layer}": part for rule, parts in scores.items() for layer, part in parts.items()}


def train_students(run: TaskRun, layers: list[int]) -> dict[str, dict[int, StudentPruner]]:
    """Students of all rules side by side, from one pass of the dense model over some training sentences."""
    dense, device = run.dense(), run.accelerator.device
    examples = batches.subset(run.train_examples, student_rows)
    passed = []
    for rows in tqdm(shuffled_batches(examples.lengths, batch_size, run.seed), desc="teachers"):
        batch = batches.to_device(bert_batch(examples, rows), device)
        with torch.no_grad():
            states = dense(**batch, output_hidden_states=True).hidden_states
        mask = batch["attention_mask"].bool()
        ranked = mask & (pruners.places_of(mask) > 0)
        scores = teachers.bert_rules(dense, batch, RULES, layers)
        passed.append(({layer: states[layer] for layer in layers}, mask, ranked, scores))
    set_seed(run.seed)
    width = run.family.config.hidden_size
    students = {rule: {layer: StudentPruner(width, 64, 1).to(device) for layer in layers} for rule in RULES}
    everyone = nn.ModuleList([student for by_layer in students.values() for student in by_layer.values()])
    optimizer = torch.optim.AdamW(everyone.parameters(), lr=student_learning_rate)
    steps = student_epochs * len(passed)
    falling = transformers.get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for step in tqdm(range(steps), desc="students"):
        states, mask, ranked, scores = passed[step % len(passed)]
        losses = []
        for layer in layers:
            tokens = pruners.Tokens.start(states[layer], mask, None)
            losses += [
                ranking_loss(by_layer[layer](tokens), scores[rule][layer], ranked)
                for rule, by_layer in students.items()
            ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        falling.step()
    return students


def judge(
    run: TaskRun,
    schedule: list[float],
    method: str,
    *,
    scores: dict[teachers.Place, batches.Ragged] | None = None,
    students: dict[int, StudentPruner] | None = None,
) -> tuple[float, float]:
    """The frozen dense model, pruned: its metric and the token-layers kept."""
    family = run.family.pruned_by(schedule, run.data.task)
    model: Any = family.build(run.data, method, run.seed, run.dense().state_dict())
    for layer, student in (students or {}).items():
        model.bert.encoder.pruners[str(layer)] = copy.deepcopy(student)
    found = run.judge(model, run.data.splits["dev"], scores)
    return metric_of(run, found), found["token_layers_kept"]


def metric_of(run: TaskRun, found: dict[str, Any]) -> float:
    return found["metrics"][run.data.task.metrics[0]]


# --- Retrained ---------------------------------------------------------------------------------


def with_family(run: TaskRun, family: RunBert4Glue.BertFamily) -> TaskRun:
    """The same run, and the same dense model with its answers, with another family."""
    run.lessons()  # which the copy then has too
    run = copy.copy(run)
    run.family = family
    return run


def retrained(name: str, method: str, pruning: str | list[float], residue: bool = True) -> Piece:
    """The model trained with its pruner.

    Args:
        pruning: one rate for each layer, or the name in `schedules_by_name`.
    """

    def work(run: TaskRun) -> dict[str, Any]:
        task = run.data.task
        schedule = pruning if isinstance(pruning, str) else ""
        family = run.family.pruned_by(rates_of(pruning, task), task)
        family.residue = residue
        run = with_family(run, family)
        model, curve = run.train_pruned(method)
        return {"dev": {schedule: short(run.judge(model, run.data.splits["dev"]))}, "loss_curve": curve}

    return Piece(name, work, OF_RESIDUE if residue else OF_TRAINING, pruning)


def cut(layers: int) -> Callable[[TaskRun], dict[str, Any]]:
    """The first layers of the dense model, trained on as a pruned model is."""

    def work(run: TaskRun) -> dict[str, Any]:
        dense = run.dense()
        config = copy.deepcopy(dense.config)
        config.num_hidden_layers = layers
        set_seed(run.seed)
        state = RunBert4Glue.own_copy(dense.state_dict())
        model = PrunedBertForSequenceClassification.from_pretrained(None, config=config, state_dict=state)
        name = f"first {layers} layers"
        curve = run.train(model, run.plan.pruned, name, run.lessons())
        found = short(run.judge(model.eval(), run.data.splits["dev"]))
        return {"dev": {"": found | {"token_layers_kept": layers / run.family.layers}}, "loss_curve": curve}

    return work


def as_usual(run: TaskRun) -> dict[str, Any]:
    """The dense model."""
    return {"dev": {"": short(run.judge(run.dense(), run.data.splits["dev"]))}}


def longer(run: TaskRun) -> dict[str, Any]:
    """The dense model, trained for a pruned model's epochs more, otherwise as it was."""
    model = copy.deepcopy(run.dense())
    set_seed(run.seed)
    curve = run.train(model, replace(run.plan.dense, epochs=run.plan.pruned.epochs), LONGER)
    return {"dev": {"": short(run.judge(model.eval(), run.data.splits["dev"]))}, "loss_curve": curve}


def short(found: dict[str, Any]) -> dict[str, Any]:
    """Of a judgement what the tables and intervals need."""
    digits = [round(value, 2) for value in found["predictions"]]
    kept = {name: found[name] for name in ("metrics", "token_layers_kept")}
    return kept | {"predictions": [int(v) if v == int(v) else v for v in digits]}


# --- Tables ------------------------------------------------------------------------------------


def percent(values: list[float]) -> str:
    return records.mean_sd(values, scale=100)


def frozen_table(found: list[dict[str, Any]], kind: str, schedule: str) -> str:
    """One line for each rule, best first: metrics of the tasks, mean ± sd over seeds, and their mean."""
    by_rule: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in found:
        by_rule["dense"][record["task"]].append(record["dense"])
        for rule, value in record[kind][schedule].items():
            by_rule[rule][record["task"]].append(value)
    tasks = [name for name in task_names if any(r["task"] == name for r in found)]

    def mean(rule: str) -> float:
        return statistics.mean(statistics.mean(by_rule[rule][task]) for task in tasks)

    order = sorted(by_rule, key=mean, reverse=True)
    rows = [[rule, *(percent(by_rule[rule][t]) for t in tasks), f"{100 * mean(rule):.1f}"] for rule in order]
    return records.markdown(["rule", *headings(tasks), "mean"], rows)


def headings(tasks: list[str]) -> list[str]:
    return [f"{task} {GLUE[task].metrics[0]}" for task in tasks]


Answers = dict[str, dict[int, dict[str, Any]]]  # task → seed → judgement


def collect(found: list[dict[str, Any]]) -> dict[tuple[str, str], Answers]:
    """Method and schedule → task → seed → judgement."""
    collected: dict[tuple[str, str], Answers] = defaultdict(lambda: defaultdict(dict))
    for record in found:
        for schedule, judgement in record.get("dev", {}).items():
            collected[record["method"], schedule][record["task"]][record["seed"]] = judgement
    return collected


def mean_metric(answers: Answers, part: str = "metrics") -> float:
    """Mean over the tasks of the mean over the seeds."""

    def value(judgement: dict[str, Any]) -> float:
        return next(iter(judgement["metrics"].values())) if part == "metrics" else judgement[part]

    return statistics.mean(
        statistics.mean(value(j) for j in by_seed.values()) for by_seed in answers.values()
    )


def in_common(ours: Answers, theirs: Answers) -> Answers:
    """`ours`, the seeds that `theirs` has too."""
    return {
        task: {seed: judged for seed, judged in by_seed.items() if seed in theirs[task]}
        for task, by_seed in ours.items()
    }


def interval(ours: Answers, theirs: Answers, labels: dict[str, list[float]]) -> str:
    """The change of the tasks' mean over the seeds that both have, with its 95% interval over examples and
    seeds."""
    ours, theirs = in_common(ours, theirs), in_common(theirs, ours)
    differences = []
    for task, by_seed in ours.items():
        pairs = [
            (judged["predictions"], theirs[task][seed]["predictions"]) for seed, judged in by_seed.items()
        ]
        differences.append(metrics.paired_differences(GLUE[task], labels[task], pairs, draws))
    low, high = np.percentile(np.mean(differences, axis=0), [2.5, 97.5])
    change = mean_metric(ours) - mean_metric(theirs)
    return f"{100 * change:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def retrained_table(collected: dict[tuple[str, str], Answers], labels: dict[str, list[float]]) -> str:
    """One line for each method and schedule, by token-layers; changes against the better dense model."""
    dense = max(
        (collected[name, ""] for name in ("dense", LONGER) if collected.get((name, ""))), key=mean_metric
    )
    tasks = [name for name in task_names if name in dense]
    rows = []
    for (method, schedule), answers in collected.items():
        if set(answers) != set(dense):
            continue  # not yet run on every task
        values = [[next(iter(j["metrics"].values())) for j in answers[t].values()] for t in tasks]
        kept = mean_metric(answers, "token_layers_kept")
        change = "" if answers is dense else interval(answers, dense, labels)
        mean = mean_metric(answers)
        cells = [method, schedule, f"{kept:.0%}", *map(percent, values), f"{100 * mean:.1f}", change]
        rows.append(((-round(kept, 1), -mean), cells))
    header = ["method", "schedule", "token-layers", *headings(tasks), "mean", "against the better dense"]
    return records.markdown(header, [cells for _, cells in sorted(rows, key=lambda row: row[0])])


def report(current: list[dict[str, Any]], labels: dict[str, list[float]]) -> None:
    """Prints and writes the tables, and draws metric against token-layers."""
    parts = []
    rules = [record for record in current if "oracles" in record]
    for kind in ("oracles", "students"):
        for schedule in frozen_schedules if rules else ():
            parts.append(f"{kind}, {frozen_schedules[schedule]}\n\n{frozen_table(rules, kind, schedule)}")
    collected = collect(current)
    if ("dense", "") in collected:
        parts.append(f"retrained\n\n{retrained_table(collected, labels)}")
        points = {
            key: (mean_metric(answers, "token_layers_kept"), mean_metric(answers))
            for key, answers in collected.items()
            if set(answers) == set(collected["dense", ""])
        }
        plots.write_rules(records.RECORDS / MODEL / "retrained.png", points, list(collected["dense", ""]))
    text = "\n\n".join(parts)
    records.write_text(records.RECORDS / MODEL / "summary.md", text + "\n")
    print(f"\n{text}\n\nMetrics × 100, mean ± standard deviation over seeds. Records: records/{MODEL}")


# --- The grid ----------------------------------------------------------------------------------

OF_FROZEN = ("frozen_schedules", "student_rows", "student_epochs", "student_learning_rate")
OF_TRAINING = (
    "pruned_epochs",
    "distillation_share",
    "ramp_share",
    "student_learning_rate",
    "dropout",
    "copies",
)
OF_RESIDUE = (*OF_TRAINING, "residue_learning_rate")


def pieces() -> list[Piece]:
    others = [name for name in schedules_by_name if name != compared_at]
    return [
        Piece("frozen", frozen, OF_FROZEN),
        Piece(DENSE, as_usual, ()),
        Piece(LONGER, longer, ("pruned_epochs",)),
        *(retrained(method, method, compared_at) for method in (recipe, *other_methods)),
        retrained(f"{recipe}, no residue", recipe, compared_at, residue=False),
        *(retrained(recipe, recipe, name) for name in others),
        *(retrained(name, "head", rates, residue=False) for name, rates in only_cls.items()),
        *(Piece(f"first {depth} layers", cut(depth), OF_TRAINING) for depth in depths),
    ]


def plan_of(task: str) -> Plan:
    unused = {"pruning_methods": [], "timing_examples": 0, "timing_passes": 0, "shown_examples": 0}
    return Plan.from_settings(records.settings_block(globals()) | unused, task)


def task_runs(accelerator: Accelerator) -> list[TaskRun]:
    """Every seed of every task, all tasks of the first seed first."""
    family = RunBert4Glue.BertFamily()
    opened = RunBert4Glue.open_caches(family.config, task_names)
    return [
        TaskRun(family, plan_of(data.task.name), data, seed, accelerator) for seed in seeds for data in opened
    ]


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    accelerator = training.pick_device(in_several_processes=False)
    todo = task_runs(accelerator)
    for run in todo:
        for piece in pieces():
            piece.go(run)
        run.forget()
    wanted = {records.key_of(piece.affects(run)) for run in todo for piece in pieces()}
    labels = {run.data.task.name: run.data.splits["dev"].labels.tolist() for run in todo}
    report([record for record in records.read_all(MODEL) if record["key"] in wanted], labels)


if __name__ == "__main__":
    main()
