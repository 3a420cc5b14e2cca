"""GLUE's metrics, from scikit-learn and scipy. An undefined correlation of scores is None."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import Tensor

from pruning.tasks import Task

QUINTILES = 5


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": partial(sklearn_metrics.f1_score, zero_division=0),
    "matthews": sklearn_metrics.matthews_corrcoef,
    "pearson": stats.pearsonr,
    "spearman": stats.spearmanr,
}


def predictions_of(task: Task, logits: Tensor) -> list[float]:
    """The class with the largest logit, or the score. Logits (N, C)."""
    return (logits[:, 0] if task.is_regression else logits.argmax(dim=1).float()).tolist()


def compute(task: Task, labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float | None]:
    """Every metric of the task, GLUE's primary one first. Fractions, not percent."""
    return {name: _metric(name, np.asarray(labels), np.asarray(predictions)) for name in task.metrics}


def primary(task: Task, labels: Sequence[float], logits: Tensor) -> float | None:
    """GLUE's primary metric of the task. Logits (N, C)."""
    return _metric(task.metrics[0], np.asarray(labels), np.asarray(predictions_of(task, logits)))


def _metric(name: str, labels: np.ndarray, predictions: np.ndarray) -> float | None:
    """Where labels or predictions are all the same, a correlation of classes is 0, of scores undefined."""
    if name in ("matthews", "pearson", "spearman") and 0 in (np.ptp(labels), np.ptp(predictions)):
        return 0.0 if name == "matthews" else None
    found = METRICS[name](labels, predictions)
    value = float(getattr(found, "statistic", found))
    return value if math.isfinite(value) else None


def paired_differences(
    task: Task,
    labels: Sequence[float],
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    draws: int,
) -> np.ndarray:
    """What the difference of the primary metric between two models would be on other examples and seeds.

    A paired bootstrap: every draw takes examples and seeds with replacement, the same for both models.

    Args:
        labels: of the N examples.
        pairs: for each seed the N predictions of the one model and of the other.

    Returns (draws,), the one's metric less the other's, each the mean over the seeds drawn.
    """
    rng = np.random.default_rng(0)
    true, answers, name = np.asarray(labels), np.asarray(pairs), task.metrics[0]  # answers: (seeds, 2, N)
    differences = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(len(true), size=len(true))
        chosen = answers[rng.integers(len(answers), size=len(answers))][:, :, rows]
        values = [[_metric(name, true[rows], part) or 0.0 for part in pair] for pair in chosen]
        differences[draw] = np.diff(np.array(values)[:, ::-1]).mean()
    return differences


def compute_by_length(
    task: Task, labels: Sequence[float], predictions: Sequence[float], lengths: Tensor
) -> list[dict[str, float | None]]:
    """The primary metric in each fifth of the examples, from the shortest to the longest: five dictionaries
    of shortest, longest (tokens), examples, and the metric."""
    true, predicted, name = np.asarray(labels), np.asarray(predictions), task.metrics[0]
    parts = np.array_split(lengths.argsort(stable=True).numpy(), QUINTILES)
    return [
        {
            "shortest": int(lengths[part[0]]),
            "longest": int(lengths[part[-1]]),
            "examples": len(part),
            name: _metric(name, true[part], predicted[part]),
        }
        for part in parts
        if len(part) > 0
    ]
