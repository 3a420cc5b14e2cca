"""What a trained model is worth: its answers to the dev sets, its speed, its record."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from pruning import batches, devices, flops, lstm, metrics, pages, plots, records, saved, timing, training
from pruning.batches import Examples, Ragged
from pruning.errors import UserError
from pruning.grid import Experiment, Trained, inputs_for, methods_of
from pruning.records import BAG_OF_WORDS, DENSE
from pruning.store import claim
from pruning.timing import Variant
from pruning.training import Inputs

OUTCOMES = ("pruned wrong, dense right", "pruned right, dense wrong", "both right or both wrong")
DENSE_OUTCOMES = ("wrong", "right")
SINGLES = 8  # examples that are timed one by one


class Evaluation(NamedTuple):
    """What a model's answers to one split are worth. figures: as a record holds them; kept: see
    `training.Predictions`."""

    figures: dict[str, Any]
    kept: list[Ragged] | None


# --- Evaluation ------------------------------------------------------------------------------


def evaluate(experiment: Experiment, trained: Trained) -> dict[str, Evaluation]:
    """The model's answers to every dev split, in fp32."""
    splits = {name: experiment.data.splits[name] for name in experiment.data.task.dev_splits}
    return {
        name: evaluate_examples(experiment, trained.model, inputs_for(experiment, trained.method, examples))
        for name, examples in splits.items()
    }


def evaluate_examples(experiment: Experiment, model: Any, data: Inputs) -> Evaluation:
    """A model's answers, their metrics, and the token-layers that they cost. Raises UserError for NaN."""
    logits, kept = training.predict(model, data, **experiment.in_batches)
    task = experiment.data.task
    if not logits.isfinite().all():
        what = f"{task.name}: the model's answers are NaN or infinite"
        raise UserError(f"{what}; a lower learning rate may help")
    layers = [data.examples] * len(model.schedule) if kept is None else kept
    tokens = [int(layer.lengths.sum()) for layer in layers]
    predictions = metrics.predictions_of(task, logits)
    return Evaluation(figures_of(experiment, data.examples, predictions, tokens), kept)


def figures_of(
    experiment: Experiment, examples: Examples, predictions: list[float], tokens: list[int] | None
) -> dict[str, Any]:
    """Metrics and token-layers of one split. tokens: how many each layer processed, or None."""
    task, labels = experiment.data.task, examples.labels.tolist()
    dense = int(examples.lengths.sum()) * experiment.builder.dense_layers
    total = None if tokens is None else sum(tokens)
    return {
        "examples": len(examples),
        "metrics": metrics.compute(task, labels, predictions),
        "metrics_by_length": metrics.compute_by_length(task, labels, predictions, examples.lengths),
        "token_layers_dense": dense,
        "token_layers": total,
        "token_layers_kept": None if total is None else total / dense,
        "tokens_by_layer": tokens,
        "predictions": predictions,
    }


# --- Speed -----------------------------------------------------------------------------------


def timing_subset(examples: Examples, count: int) -> Examples:
    """The fixed subset that is timed: at most `count` rows at even distances."""
    return examples.take(torch.linspace(0, len(examples) - 1, min(count, len(examples))).long())


def time_beside_dense(
    experiment: Experiment, trained: Trained, evaluations: dict[str, Evaluation]
) -> dict[str, Any] | None:
    """The model and the dense variants in turns, on the same examples of the dev set, all with weights of
    the training's precision. evaluations: of the model in fp32, to compare with `in_half_precision`.

    Returns:
        As `timing.measure`, of length-sorted batches, and their batch_size (halved until it fits), and
        latency_ms (of one example alone, median); of the model itself `in_half_precision`, where weights are
        in bf16 or fp16. None for an upper bound.
    """
    if experiment.is_upper_bound(trained.method):
        return None
    settings, device = experiment.settings, experiment.accelerator.device
    models = experiment.builder.dense_variants(experiment.dense())
    if trained.method != DENSE:
        models[records.PRUNED] = trained.model
    fair = [name for name in records.FAIR if name in models]
    dtype = devices.weights_type(experiment.accelerator)
    # two variants share one stock model, which is converted once
    converted = {id(model): timing.with_weights(model, device, dtype) for model in models.values()}
    timed = {name: converted[id(model)] for name, model in models.items()}
    examples = timing_subset(experiment.data.splits["dev"], settings.timing_examples)
    width = min(timing.PADDED, experiment.builder.most_tokens)  # some BERTs read no more than 64
    width = max(width, *(int(part.lengths.max()) for part in examples.sentences()))

    @devices.halving
    def measured(some: Examples, *, batch_size: int) -> dict[str, dict[str, Any]]:
        groups, variants = batches.sorted_batches(some.lengths, batch_size), {}
        for name, model in timed.items():
            inputs = batches.on_device(some, groups, device, width if "padded" in name else None)
            run = partial(timing.pass_over, model, inputs)
            variants[name] = Variant(run, len(some), flops.of(model, inputs))
        passes = settings.timing_passes
        rows = timing.measure(variants, fair=fair, dense=records.OURS, device=device, passes=passes)
        return {name: row | {"batch_size": batch_size} for name, row in rows.items()}

    rows = measured(examples, batch_size=settings.evaluation_batch_size)
    singles = measured(timing_subset(examples, SINGLES), batch_size=1)
    rows = {name: row | {"latency_ms": singles[name]["ms"]} for name, row in rows.items()}
    if dtype != torch.float32:
        own = records.own_variant(timed)
        rows[own] |= in_half_precision(experiment, timed[own], evaluations["dev"].kept)
    return rows


def in_half_precision(experiment: Experiment, twin: Any, in_fp32: list[Ragged] | None) -> dict[str, Any]:
    """What a model's twin with weights in bf16 or fp16 answers to the dev set: its metric, and the share of
    the examples that keep other tokens than `in_fp32`; None of a dense model."""
    task, dev = experiment.data.task, experiment.data.splits["dev"]
    logits, kept = training.predict(twin, Inputs(dev), **experiment.in_batches)
    other_tokens = None
    if kept is not None and in_fp32 is not None:
        pairs, rows = list(zip(kept, in_fp32, strict=True)), range(len(dev))
        others = [row for row in rows if any(not a.row(row).equal(b.row(row)) for a, b in pairs)]
        other_tokens = len(others) / len(dev)
    metric = metrics.primary(task, dev.labels.tolist(), logits)
    return {"metric": metric, "other_tokens": other_tokens}


# --- The record ------------------------------------------------------------------------------


def write_record(
    experiment: Experiment,
    trained: Trained,
    evaluations: dict[str, Evaluation],
    timings: dict[str, Any] | None,
) -> None:
    """Writes the run's folder: model, page, and last the record, each whole or not at all. Prints a line."""
    if not experiment.accelerator.is_main_process:
        return
    task, fields = experiment.data.task.name, experiment.key_fields_of(trained.method)
    is_pruned = trained.method not in (DENSE, BAG_OF_WORDS)
    device, precision = experiment.accelerator.device, devices.precision_name(experiment.accelerator)
    dense = None if trained.method == DENSE else records.read(experiment.folder_of(DENSE))
    content = {
        "key": records.key_of(fields),
        "dense_key": None if trained.method == DENSE else records.key_of(experiment.key_fields),
        "model": experiment.builder.name,
        "task": task,
        "method": fields["method"],
        "pruning": "{pruning}, {removed_tokens}".format_map(fields) if is_pruned else "",
        "seed": fields["seed"],
        "sample": experiment.data.sample,
        "training": f"{len(experiment.train_examples)} rows",
        **records.header(device, precision, trained.started, experiment.settings.model_dump()),
        "key_fields": fields,
        "splits": {split: evaluation.figures for split, evaluation in evaluations.items()},
        "timings": timings,
        "untimed": "upper bound" if experiment.is_upper_bound(trained.method) else "",
        "loss_curve": trained.curve,
        "pruned_layers": experiment.builder.pruned_layers if is_pruned else [],
        **_shown(experiment, trained, evaluations["dev"], dense),
    }
    folder = experiment.folder_of(trained.method)
    if experiment.saves(trained.method):
        content["model_files"] = saved.write(folder, experiment.builder, trained.model, content)
    if content["shown"]:
        records.write_text(folder / records.PAGE, pages.sentence_page(content, dense))
    records.write(folder / records.RECORD, content)  # last: it says that all the rest is there
    dev = evaluations["dev"].figures
    values = [f"{name} {'–' if v is None else f'{100 * v:.1f}'}" for name, v in dev["metrics"].items()]
    kept = "" if dev["token_layers_kept"] is None else f"; token-layers {dev['token_layers_kept']:.0%}"
    devices.say(f"{task}, {fields['method']}, seed {fields['seed']}: {', '.join(values)}{kept}")
    records.write_summary(experiment.builder.name)
    pages.write_index()


def _shown(
    experiment: Experiment, trained: Trained, evaluation: Evaluation, dense: dict[str, Any] | None
) -> dict[str, Any]:
    """Examples of the dev set with what was dropped of them, and how many there are of each outcome in the
    whole set. Examples that only the dense model answers right come first. dense: the record of its run."""
    task, dev, builder = experiment.data.task, experiment.data.splits["dev"], experiment.builder
    names, predictions = OUTCOMES if dense else DENSE_OUTCOMES, evaluation.figures["predictions"]
    dense_predictions = dense["splits"]["dev"]["predictions"] if dense else predictions
    right, dense_right = _right(experiment, predictions), _right(experiment, dense_predictions)
    pairs = zip(right, dense_right, strict=True)
    outcomes = [2 if dense and own == other else own for own, other in pairs]  # places in `names`
    rows = sorted(range(len(dev)), key=lambda row: outcomes[row])[: experiment.settings.shown_examples]
    if not rows or trained.model is None:
        return {"outcomes": {}, "shown": []}
    answer = "{:.2f}".format if task.is_regression else task.label_name
    shown = [
        {
            "outcome": names[outcomes[row]],
            "sentences": builder.sentences(experiment.data.vocabulary, dev, row, evaluation.kept),
            "label": task.label_name(dev.labels[row].item()),
            "answer": answer(predictions[row]),
            "right": bool(right[row]),
            "dense_answer": answer(dense_predictions[row]) if dense else None,
            "dense_right": bool(dense_right[row]) if dense else None,
        }
        for row in rows
    ]
    return {"outcomes": {name: outcomes.count(i) for i, name in enumerate(names)}, "shown": shown}


def _right(experiment: Experiment, predictions: list[float]) -> list[int]:
    """For each answer to the dev set 1 if it is right, the class or less than 1 off the score; else 0."""
    off = np.abs(np.subtract(experiment.data.splits["dev"].labels.tolist(), predictions))
    return (off < (1.0 if experiment.data.task.is_regression else 0.5)).astype(int).tolist()


def record_bag_of_words(experiment: Experiment) -> None:
    """The record of a simple classifier, to compare an LSTM with; none for scores."""
    data, trained = experiment.data, Trained(BAG_OF_WORDS, None, [], time.time())
    if data.task.is_regression:
        return
    with claim(experiment.key_fields_of(BAG_OF_WORDS), wait=True):
        if records.read(experiment.folder_of(BAG_OF_WORDS)) is not None:
            return
        answers = lstm.bag_of_words(data, experiment.train_examples).items()
        evaluations = {
            name: Evaluation(figures_of(experiment, data.splits[name], predictions, None), None)
            for name, predictions in answers
        }
        write_record(experiment, trained, evaluations, None)


def summarize(experiments: Sequence[Experiment]) -> None:
    """Writes the summary, the index and the pictures of all records, and prints the table of these."""
    experiments[0].accelerator.wait_for_everyone()
    if not experiments[0].accelerator.is_main_process:
        return
    model = experiments[0].builder.name
    records.write_summary(model)  # again: of processes that share a grid, one may have missed a record
    pages.write_index()
    all_records = records.read_all(model)
    for task in dict.fromkeys(experiment.data.task.name for experiment in experiments):
        plots.write_plots(model, task, [r for r in all_records if r["task"] == task])
    runs = [(e, method) for e in experiments for method in (BAG_OF_WORDS, *methods_of(e))]
    keys = {records.key_of(experiment.key_fields_of(method)) for experiment, method in runs}
    records.print_table(model, keys)
