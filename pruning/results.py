"""What a trained model is worth: its answers to the dev sets, its speed, its record."""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pruning import devices, lstm, metrics, pages, plots, records, timing, training
from pruning.batches import Examples
from pruning.errors import UserError
from pruning.grid import Experiment, Method, Trained, claim, methods_of
from pruning.methods import is_teacher
from pruning.records import BAG_OF_WORDS, DENSE
from pruning.training import TrainingSet

Evaluation = dict[str, Any]


def is_upper_bound(method: Method) -> bool:
    """Whether a method needs a teacher to prune, so that it cannot be deployed."""
    names = [method] if isinstance(method, str) else method
    return any(is_teacher(name) for name in names)


# --- Evaluation ------------------------------------------------------------------------------


def evaluate(experiment: Experiment, trained: Trained) -> dict[str, Evaluation]:
    """The model's answers to every dev split, in fp32: split → see `evaluation`."""
    return {
        split: evaluate_on(experiment, trained.model, _test_set(experiment, trained.method, split))
        for split in experiment.data.task.dev_splits
    }


def evaluate_on(experiment: Experiment, model: Any, data: TrainingSet) -> Evaluation:
    """A model's answers, their metrics, and the token-layers that they cost. Raises UserError for NaN."""
    batch_size, device = experiment.settings.evaluation_batch_size, experiment.accelerator.device
    answers = training.predict(model, data, batch_size=batch_size, device=device)
    task, lengths = experiment.data.task, data.examples.lengths
    if not answers.logits.isfinite().all():
        raise UserError(f"{task.name}: the model's answers are no numbers; a lower learning rate may help")
    kept = answers.kept
    if kept is None:
        kept = lengths[:, None].expand(-1, experiment.models.layers)
    predictions = metrics.predictions_of(task, answers.logits)
    return evaluation(experiment, data.examples, predictions, kept)


def evaluation(
    experiment: Experiment, examples: Examples, predictions: list[float], kept: Tensor | None
) -> Evaluation:
    """Metrics and token-layers of one split.

    Args:
        kept: (N, L) tokens that each layer processed, None where tokens do not count.
    """
    task, labels = experiment.data.task, examples.labels.tolist()
    dense = int(examples.lengths.sum()) * experiment.models.layers
    return {
        "examples": len(examples),
        "metrics": metrics.evaluate(task, labels, predictions),
        "metrics_by_length": metrics.evaluate_by_length(task, labels, predictions, examples.lengths),
        "token_layers_dense": dense,
        "token_layers": None if kept is None else int(kept.sum()),
        "token_layers_kept": None if kept is None else int(kept.sum()) / dense,
        "tokens_by_layer": None if kept is None else kept.sum(dim=0).tolist(),
        "predictions": predictions,
    }


def _test_set(experiment: Experiment, method: Method, split: str, rows: Tensor | None = None) -> TrainingSet:
    """A dev split, or some rows of it; with scores where a teacher prunes. Labels are not looked at."""
    examples = experiment.data.splits[split]
    if rows is not None:
        examples = examples.take(rows)
    scores = experiment.teacher_scores(method, examples) if is_upper_bound(method) else None
    return TrainingSet(examples, scores)


# --- Speed -----------------------------------------------------------------------------------


def timing_subset(examples: Examples, count: int) -> Examples:
    """The fixed subset that is timed: examples at even distances."""
    rows = torch.linspace(0, len(examples) - 1, min(count, len(examples))).long()
    return examples.take(rows)


def time_beside_dense(experiment: Experiment, trained: Trained) -> dict[str, Any] | None:
    """The model and the dense variants in turns, see `timing.time_models`; None for an upper bound."""
    if is_upper_bound(trained.method):
        return None
    models = experiment.models.dense_variants(experiment.dense())
    if trained.method != DENSE:
        models["pruned"] = trained.model
    settings = experiment.settings
    return timing.time_models(
        models,
        experiment.models.flops_of,
        timing_subset(experiment.data.splits["dev"], settings.timing_examples),
        batch_size=settings.evaluation_batch_size,
        fair=[name for name in records.FAIR if name in models],
        dense="dense, ours",
        device=experiment.accelerator.device,
        dtype=torch.bfloat16 if devices.precision_name(experiment.accelerator) == "bf16" else torch.float32,
        passes=settings.timing_passes,
    )


# --- The record ------------------------------------------------------------------------------


def record(
    experiment: Experiment,
    trained: Trained,
    evaluations: dict[str, Evaluation],
    timings: dict[str, Any] | None,
) -> None:
    """Writes the run's folder: its page, then the record, whole or not at all. Prints a line."""
    if not experiment.accelerator.is_main_process:
        return
    task, fields = experiment.data.task.name, experiment.key_fields_of(trained.method)
    pruning = experiment.models.pruning_text if trained.method not in (DENSE, BAG_OF_WORDS) else ""
    folder = experiment.folder_of(trained.method)
    device = devices.device_name(experiment.accelerator.device)
    precision = devices.precision_name(experiment.accelerator)
    seconds = time.time() - trained.started
    content = {
        "key": records.key_of(fields),
        "dense_key": None if trained.method == DENSE else records.key_of(experiment.key_fields),
        "model": experiment.models.name,
        "task": task,
        "method": fields["method"],
        "pruning": pruning,
        "seed": fields["seed"],
        "sample": experiment.data.sample,
        "training": f"{len(experiment.train_examples)} rows",
        **records.header(device, precision, seconds, experiment.settings.model_dump()),
        "key_fields": fields,
        "splits": evaluations,
        "timings": timings,
        "untimed": "upper bound" if is_upper_bound(trained.method) else "",
        "loss_curve": trained.curve,
        "pruned_layers": experiment.models.pruned_layers if pruning else [],
        "shown": _shown(experiment, trained, evaluations["dev"]["predictions"]) if trained.model else [],
    }
    if content["shown"]:
        records.write_text(folder / records.PAGE, pages.sentence_page(content))
    records.write(folder / records.RECORD, content)  # last: a run with a record is finished
    dev = evaluations["dev"]
    values = [f"{name} {'–' if v is None else f'{100 * v:.1f}'}" for name, v in dev["metrics"].items()]
    share = dev["token_layers_kept"]
    kept = "" if share is None else f"; token-layers {share:.0%}"
    print(f"{task}, {fields['method']}, seed {fields['seed']}: {', '.join(values)}{kept}", flush=True)
    records.write_summary(experiment.models.name)


@torch.no_grad()
def _shown(experiment: Experiment, trained: Trained, predictions: Sequence[float]) -> list[dict[str, Any]]:
    """The first examples of the dev set, with what was dropped of them."""
    task, data = experiment.data.task, experiment.data
    rows = torch.arange(min(experiment.settings.shown_examples, len(data.splits["dev"])))
    if len(rows) == 0:
        return []
    inputs = _test_set(experiment, trained.method, "dev", rows)
    kept = trained.model(**inputs.batch(rows, experiment.accelerator.device)).kept
    shown = []
    for row in rows.tolist():
        label, answer = float(inputs.examples.labels[row]), predictions[row]
        shown.append(
            {
                "sentences": experiment.models.sentences(inputs.examples, row, kept),
                "label": task.label_name(label),
                "answer": f"{answer:.2f}" if task.is_regression else task.label_name(answer),
                "right": abs(label - answer) < (1.0 if task.is_regression else 0.5),
            }
        )
    return shown


def record_bag_of_words(experiment: Experiment) -> None:
    """The record of a simple classifier, to compare an LSTM with; none for scores."""
    data, trained = experiment.data, Trained(BAG_OF_WORDS, None, [], time.time())
    if data.task.is_regression:
        return
    with claim(experiment, BAG_OF_WORDS, wait=True):
        if records.read(experiment.folder_of(BAG_OF_WORDS)) is not None:
            return
        answers = lstm.bag_of_words(data, experiment.train_examples)
        evaluations = {
            split: evaluation(experiment, data.splits[split], predictions, None)
            for split, predictions in answers.items()
        }
        record(experiment, trained, evaluations, None)


def summarize(experiments: Sequence[Experiment]) -> None:
    """Writes the summary and the pictures of all records, and prints the table of these experiments."""
    experiments[0].accelerator.wait_for_everyone()
    if not experiments[0].accelerator.is_main_process:
        return
    model = experiments[0].models.name
    records.write_summary(model)  # again: of processes that share a grid, one may have missed a record
    all_records = records.read_all(model)
    for task in dict.fromkeys(experiment.data.task.name for experiment in experiments):
        plots.write_plots(model, task, [r for r in all_records if r["task"] == task])
    runs = [(experiment, method) for experiment in experiments for method in methods_of(experiment)]
    keys = {records.key_of(experiment.key_fields_of(method)) for experiment, method in runs}
    records.print_table(model, keys)
