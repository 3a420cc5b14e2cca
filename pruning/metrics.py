"""How answers are judged: GLUE's metrics, from scikit-learn and scipy, and the loss to train with."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy import stats
from sklearn import metrics as sklearn_metrics
from torch import Tensor, nn

from pruning.tasks import Task

QUINTILES = 5
TEMPERATURE = 2.0  # of distillation


def _correlation(correlate: Callable) -> Callable[[np.ndarray, np.ndarray], float]:
    """A correlation that is 0, not NaN, where predictions or labels are all the same."""

    def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
            return 0.0
        return float(correlate(labels, predictions).statistic)

    return metric


def _f1(labels: np.ndarray, predictions: np.ndarray) -> float:
    return float(sklearn_metrics.f1_score(labels, predictions, zero_division=0))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": _f1,
    "matthews": sklearn_metrics.matthews_corrcoef,
    "pearson": _correlation(stats.pearsonr),
    "spearman": _correlation(stats.spearmanr),
}


def predictions_of(task: Task, logits: Tensor) -> list[float]:
    """The class with the largest logit, or the score. Logits (N, C)."""
    return (logits[:, 0] if task.is_regression else logits.argmax(dim=1).float()).tolist()


def judge(task: Task, labels: Sequence[float], predictions: Sequence[float]) -> dict[str, float]:
    """Every metric of the task, GLUE's primary one first. Fractions, not percent."""
    true, predicted = np.asarray(labels), np.asarray(predictions)
    return {name: float(METRICS[name](true, predicted)) for name in task.metrics}


def paired_differences(
    task: Task,
    labels: Sequence[float],
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]],
    draws: int,
    seed: int = 0,
) -> np.ndarray:
    """What the difference of the primary metric between two models would be on other examples and seeds.

    A paired bootstrap: every draw takes examples and seeds with replacement, the same for both models.

    Args:
        labels: of the N examples.
        pairs: for each seed the N predictions of the one model and of the other.

    Returns:
        (draws,) the one's metric less the other's, each the mean over the seeds drawn.
    """
    rng = np.random.default_rng(seed)
    true, metric = np.asarray(labels), METRICS[task.metrics[0]]
    answers = np.asarray(pairs)  # (seeds, 2, N)
    found = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(len(true), size=len(true))
        chosen = answers[rng.integers(len(answers), size=len(answers))][:, :, rows]
        found[draw] = np.mean([metric(true[rows], a) - metric(true[rows], b) for a, b in chosen])
    return found


def judge_by_length(
    task: Task, labels: Sequence[float], predictions: Sequence[float], lengths: Tensor
) -> list[dict[str, float]]:
    """The primary metric in each fifth of the examples, from the shortest to the longest.

    Returns five dictionaries: shortest, longest (tokens), examples, and the metric.
    """
    true, predicted = np.asarray(labels), np.asarray(predictions)
    name = task.metrics[0]
    rows = []
    for part in np.array_split(lengths.argsort(stable=True).numpy(), QUINTILES):
        if len(part) == 0:
            continue
        score = float(METRICS[name](true[part], predicted[part]))
        rows.append(
            {
                "shortest": int(lengths[part[0]]),
                "longest": int(lengths[part[-1]]),
                "examples": len(part),
                name: 0.0 if math.isnan(score) else score,
            }
        )
    return rows


def task_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error for one output, cross-entropy for more. Logits (B, C), labels (B,)."""
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits.squeeze(1).float(), labels.float())
    return nn.functional.cross_entropy(logits.float(), labels.long())


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """How far the answers (B, C) are from a teacher's: for classes T² times the divergence at the
    temperature T = 2 (Hinton et al., 2015), for scores the mean squared error."""
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits.float(), teacher_logits.float())
    student, teacher = (
        (values.float() / TEMPERATURE).log_softmax(dim=1) for values in (logits, teacher_logits)
    )
    divergence = nn.functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence


def answer_margin(logits: Tensor, answers: Tensor | None = None) -> Tensor:
    """(B,) how far a model's own answer is ahead: of its class, or the score it predicts.

    For classes this is z_c - logsumexp of the other logits, c the predicted class, or `answers` (B,). The
    gradient of the cross-entropy of c is the margin's times -(1 - p_c): the same direction for every token
    of an example, but it does not vanish where the model is sure.
    """
    if logits.shape[1] == 1:
        return logits[:, 0]
    chosen = (logits.argmax(dim=1) if answers is None else answers)[:, None]
    others = logits.scatter(1, chosen, -torch.inf)
    return logits.gather(1, chosen).squeeze(1) - others.logsumexp(dim=1)
