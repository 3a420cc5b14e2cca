"""Which tokens stay: counting, choosing and gathering, as pure functions on tensors.

Nothing here knows of a model. Shapes: B examples, T positions (padding included), K positions kept.
"""

from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor, nn


def check_rate(rate: float) -> None:
    """Raises ValueError unless `rate`, the share of tokens to remove, lies in [0, 1]."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ValueError(f"a pruning rate must be a number between 0 and 1, not {rate!r}")


@lru_cache
def _share(rate: float) -> Fraction:
    """The rate as the user wrote it: in floating point 100 · 0.29 is 28.999999999999996."""
    return Fraction(rate).limit_denominator(10**6)


def count_kept(length: int, rate: float) -> int:
    """Of n tokens alive, n - floor(n · rate) stay, and at least one (where there is one).

    It never falls as n grows: the longest example of a batch gives the width of the gathered batch.

    Args:
        length: n, the real tokens of one example.
        rate: share to remove, in [0, 1], read to six decimals.
    """
    removed = length * _share(rate).numerator // _share(rate).denominator
    return min(max(1, length - removed), length)


def choose(
    scores: Tensor, mask: Tensor, kept: Tensor | None, width: int, keep_first: bool
) -> tuple[Tensor, Tensor]:
    """The positions of each example's `kept` best real tokens, in their old order.

    Scores are compared in fp32; of equal scores the earlier token stays. Padding is never chosen
    before a token.

    Args:
        scores: (B, T) floats, higher = kept.
        mask: (B, T) bool, True at real tokens.
        kept: (B,) how many tokens each example keeps, at most its real tokens; None where there is no
            padding and each keeps `width`.
        width: K, the largest of `kept`.
        keep_first: whether the first real token stays whatever its score ([CLS] in BERT).

    Returns:
        indices: (B, K) int64 into T, ascending; where an example keeps fewer, the rest is filler.
        mask: (B, K) bool, False at the filler.
    """
    positions = scores.shape[1]
    if kept is None:
        scores = scores.float()
        if keep_first:
            scores = nn.functional.pad(scores[:, 1:], (1, 0), value=torch.inf)
        best = scores.argsort(dim=1, descending=True, stable=True)[:, :width]
        return best.sort(dim=1).values, mask[:, :width]
    scores = scores.float().masked_fill(~mask, -torch.inf)
    if keep_first:
        first = mask.int().argmax(dim=1, keepdim=True)
        scores = scores.scatter(1, first, torch.inf)
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :width]  # (B, K)
    chosen = torch.arange(width, device=scores.device) < kept[:, None]  # (B, K)
    indices = best.masked_fill(~chosen, positions).sort(dim=1).values
    return indices.clamp(max=positions - 1), chosen


def left_out(mask: Tensor, indices: Tensor, chosen: Tensor) -> Tensor:
    """(B, T) bool, the real tokens of `mask` that are not among the `indices` (B, K) that `choose` gave with
    the mask `chosen` (B, K)."""
    positions = mask.shape[1]
    kept = mask.new_zeros(len(mask), positions + 1)  # one more for the filler
    return mask & ~kept.scatter(1, indices.masked_fill(~chosen, positions), True)[:, :positions]


def gather(aligned: Tensor, indices: Tensor) -> Tensor:
    """Takes `indices` (B, K) from `aligned` (B, T) or (B, T, H) along T."""
    if aligned.dim() == 2:
        return aligned.gather(1, indices)
    return aligned.gather(1, indices[..., None].expand(-1, -1, aligned.shape[2]))
