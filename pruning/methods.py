"""Names of pruning methods, and the step that models share: score, choose, gather.

`BERT_METHODS` and `LSTM_METHODS` hold every name that `pruning_methods` may hold: the pruners, the teachers
and a student of each teacher.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pruning.pruners import BERT_ONLY, PRUNERS, Pruner, TeacherPruner, ThresholdPruner
from pruning.selection import TokenFusion, count_kept
from pruning.student import StudentPruner
from pruning.teachers import BERT_TEACHERS, LSTM_TEACHERS

STUDENT = " student"
NO_PRUNING = "no pruning"  # the name of a run in which nothing is pruned, by whatever method


def table_of(pruner_names: Iterable[str], teachers: Iterable[str]) -> dict[str, Callable[..., Pruner]]:
    """Method → class, for a model with these pruners and teachers."""
    table = {name: PRUNERS[name] for name in pruner_names}
    for teacher in teachers:
        table.setdefault(teacher, TeacherPruner)  # "column mean" is a pruner too, which needs no full pass
        table[teacher + STUDENT] = StudentPruner
    return table


BERT_METHODS = table_of(PRUNERS, BERT_TEACHERS)
LSTM_METHODS = table_of([name for name in PRUNERS if name not in BERT_ONLY], LSTM_TEACHERS)


def check_method(method: str, methods: Collection[str]) -> None:
    """Raises ValueError for a name that is not in `methods`."""
    if method not in methods:
        raise ValueError(f"unknown pruning method {method!r}; known are: {', '.join(methods)}")


def methods_by_layer(methods: str | Sequence[str], layers: int) -> list[str]:
    """BERT's methods, one for each layer. Raises ValueError for a wrong length or an unknown name."""
    by_layer = [methods] * layers if isinstance(methods, str) else list(methods)
    if len(by_layer) != layers:
        wanted = f"one for each of the {layers} layers"
        raise ValueError(f"a list of pruning methods needs {wanted}, not {len(by_layer)}")
    for method in by_layer:
        check_method(method, BERT_METHODS)
    return by_layer


def is_teacher(method: str) -> bool:
    """Whether a method prunes by what deployment does not have: an upper bound."""
    return (BERT_METHODS | LSTM_METHODS).get(method) is TeacherPruner


def teacher_of(method: str) -> str | None:
    """The teacher whose scores a method needs (a teacher itself, or a student in training)."""
    return method.removesuffix(STUDENT) if method.endswith(STUDENT) or is_teacher(method) else None


def prune(
    pruner: Pruner,
    tokens: Any,
    rate: float,
    *,
    layer: Any = None,
    teacher_scores: Tensor | None = None,
    fusion: TokenFusion | None = None,
) -> tuple[Any, Tensor | None]:
    """Scores, chooses, gathers: the tokens that stay and, in training, the loss of a student.

    Args:
        tokens: Tokens or FlatTokens; the same comes back. Where it `keeps_first`, as BERT's do, the first
            one ([CLS]) stays whatever its score.
        layer, fusion: see `Pruner.score` and `Tokens.keep`.
        teacher_scores: (B, T₀) of the whole sentences, by position; teachers always need them, students
            while they train.
    """
    if tokens.keeps_first and pruner.keeps_by_rate and not pruner.training:
        lengths = [count_kept(length, rate) for length in tokens.lengths]
        if max(lengths) == min(lengths) == 1:
            return tokens.keep(None, lengths, fusion=fusion), None  # the first token alone stays
    seen, teacher_scores = tokens.seen_by(pruner, teacher_scores)
    aligned = None if teacher_scores is None else teacher_scores.gather(1, seen.positions)
    scores = pruner.score(seen, layer, aligned)
    loss = None
    if aligned is not None and pruner.training:
        # nothing is to be learned of a first token that stays in any case
        ranked = seen.mask & (seen.positions > 0) if tokens.keeps_first else seen.mask
        loss = pruner.loss(scores, aligned, ranked)
    return tokens.keep(scores, pruner.kept_lengths(scores, seen, rate), fusion=fusion), loss


def set_frequencies(model: nn.Module, counts: Tensor) -> None:
    """Tells a model's pruners how often each word stands in the training text. counts: (V',)."""
    for module in model.modules():
        if isinstance(module, Pruner):
            module.set_frequencies(counts)


def thresholds_of(model: nn.Module) -> list[ThresholdPruner]:
    """A model's pruners that have a threshold."""
    return [module for module in model.modules() if isinstance(module, ThresholdPruner)]


@torch.no_grad()
def calibrate(model: nn.Module, batch: dict[str, Any]) -> None:
    """Sets each threshold so that a batch, of many examples drawn at random, loses as many tokens as by the
    schedule. Leaves the model in evaluation mode."""
    model.eval()
    for pruner in thresholds_of(model):
        pruner.train()
    model(**batch)
    model.eval()
