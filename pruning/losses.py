"""What models and students are trained by.

Shapes: B examples, T positions, C classes (1: a score).
"""

import torch
from torch import Tensor, nn

TEMPERATURE = 2.0  # of distillation
SHARPNESS = 3.0  # standard deviation of the scores that a student learns


def task_loss(logits: Tensor, labels: Tensor, problem_type: str | None = None) -> Tensor:
    """Mean squared error for one output, cross-entropy for more. Logits (B, C), labels (B,) or (B, 1). With
    labels (B, C) the loss that transformers' `problem_type` names; without that, as for several labels."""
    several = problem_type is None and labels.is_floating_point() and labels.shape == logits.shape
    if problem_type == "multi_label_classification" or (several and logits.shape[1] > 1):
        return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels.float())
    if logits.shape[1] == 1 or problem_type == "regression":
        return nn.functional.mse_loss(logits.flatten().float(), labels.flatten().float())
    return nn.functional.cross_entropy(logits.float(), labels.flatten().long())


def distillation_loss(logits: Tensor, dense_logits: Tensor) -> Tensor:
    """How far the answers (B, C) are from the dense model's: for classes T² times the divergence at the
    temperature T = 2 (Hinton et al., 2015), for scores the mean squared error."""
    if logits.shape[1] == 1:
        return nn.functional.mse_loss(logits.float(), dense_logits.float())
    pair = (logits, dense_logits)
    own, wanted = ((values.float() / TEMPERATURE).log_softmax(dim=1) for values in pair)
    divergence = nn.functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
    return TEMPERATURE**2 * divergence


def ranking_loss(scores: Tensor, teacher_scores: Tensor, mask: Tensor) -> Tensor:
    """ListNet's top-one loss (Cao et al., ICML 2007), the mean over the examples.

    Cross-entropy between the softmax of the student's scores and a target, less the target's entropy. Of a
    teacher's scores only the ranking counts, whatever their sign and spread: the target is the softmax of
    the ranks, spread evenly to a standard deviation of SHARPNESS, so most weight lies on what is to stay.

    Args:
        scores, teacher_scores: (B, T).
        mask: (B, T) bool, the tokens to rank.
    """
    counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
    order = teacher_scores.float().masked_fill(~mask, -torch.inf).argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1) - (mask.shape[1] - counts)  # 0 for the lowest score in the mask
    spread_evenly = (2 * ranks + 1) / counts - 1  # in (-1, 1), standard deviation 1 / √3
    target, student = (  # finite (and meaningless) outside of the mask
        values.masked_fill(~mask, -1e4).log_softmax(dim=1)
        for values in (SHARPNESS * 3**0.5 * spread_evenly, scores.float())
    )
    return (target.exp() * (target - student) * mask).sum(dim=1).mean()


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
