"""Which tokens stay: count, choose, gather. What the removed ones leave behind.

Pure functions on tensors, `Tokens`, which carries a batch from layer to layer, and `TokenFusion`, the only
part with weights. Nothing here knows what kind of model it serves.

Shapes: B examples, T positions (padding included), K positions kept, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

N = TypeVar("N", int, Tensor)


def check_rate(rate: float) -> None:
    """Raises ValueError unless `rate`, the share of tokens to remove, lies in [0, 1]."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ValueError(f"a pruning rate must be a number between 0 and 1, not {rate!r}")


def check_schedule(schedule: Sequence[float], layers: int) -> None:
    """Raises ValueError unless `schedule` holds one rate in [0, 1] for each of `layers` layers."""
    if len(schedule) != layers:
        raise ValueError(f"pruning_schedule has {len(schedule)} rates, but the model has {layers} layers")
    for layer, rate in enumerate(schedule):
        try:
            check_rate(rate)
        except ValueError as error:
            raise ValueError(f"pruning_schedule, layer {layer}: {error}") from None


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
    return min(max(1, length - count_removed(length, rate)), length)


def count_removed(length: N, rate: float) -> N:
    """floor(n · rate), of an int, a size that a traced graph leaves free, or each number in a tensor."""
    share = _share(rate)
    return length * share.numerator // share.denominator


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


def removed(mask: Tensor, indices: Tensor, chosen: Tensor) -> Tensor:
    """(B, T) bool, the real tokens of `mask` that are not among the `indices` (B, K) that `choose` gave with
    the mask `chosen` (B, K)."""
    positions = mask.shape[1]
    kept = mask.new_zeros(mask.shape[0], positions + 1)  # one more column for the filler
    return mask & ~kept.scatter(1, indices.masked_fill(~chosen, positions), True)[:, :positions]


def gather(aligned: Tensor, indices: Tensor) -> Tensor:
    """Takes `indices` (B, K) from `aligned` (B, T) or (B, T, H) along T."""
    if aligned.dim() == 2:
        return aligned.gather(1, indices)
    rows, width, size = aligned.shape  # whole rows of a flat tensor are copied ten times as fast
    flat = indices + torch.arange(rows, device=indices.device)[:, None] * width
    return aligned.flatten(0, 1).index_select(0, flat.flatten()).view(rows, indices.shape[1], size)


def positions_of(mask: Tensor) -> Tensor:
    """(B, T) the position of each real token in its sentence, padding not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


class TokenFusion(nn.Module):
    """What removed tokens leave behind: one fused token. Their mean, through a matrix, joins [CLS].

    One removal costs one product of a vector and a matrix. The matrix starts at 0, where nothing is left
    behind. (EViT, Liang et al., ICLR 2022, keeps the fused token as a token of its own.)
    """

    zero_at_start = ("weight",)

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, hidden_size))

    def forward(self, states: Tensor, removed: Tensor) -> Tensor:
        """(B, H), 0 where nothing was removed. states: (B, T, H); removed: (B, T) bool."""
        share = removed / removed.sum(dim=1, keepdim=True).clamp(min=1)  # (B, T)
        mean = (share[:, None].to(states.dtype) @ states).squeeze(1)
        return nn.functional.linear(mean, self.weight)


@dataclass
class Tokens:
    """A batch on its way through a model, with all that is aligned with its tokens.

    Attributes:
        states: (B, T, H) the input of the next layer; None where nobody looks at it.
        mask: (B, T) bool, True at real tokens.
        positions: (B, T) int64, each token's position in its whole sentence, padding not counted.
        ids: (B, T) int64 ids of the vocabulary; None where the model was given embeddings.
        whole: ids and mask of the whole examples, before anything was removed; None like `ids`.
        lengths: the B sums of `mask`, known to the host.
    """

    keeps_first: ClassVar[bool] = False

    states: Tensor | None
    mask: Tensor
    positions: Tensor
    ids: Tensor | None
    whole: tuple[Tensor, Tensor] | None
    lengths: list[int]

    @classmethod
    def start(cls, states: Tensor | None, mask: Tensor, ids: Tensor | None) -> "Tokens":
        """The tokens of a batch before anything is removed."""
        whole = None if ids is None else (ids, mask)
        return cls(states, mask, positions_of(mask), ids, whole, mask.sum(dim=1).tolist())

    @property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return min(self.lengths) == self.mask.shape[1]

    def seen_by(self, _pruner: Any, teacher_scores: Tensor | None) -> tuple["Tokens", Tensor | None]:
        """What a pruner reads: these tokens as they are."""
        return self, teacher_scores

    def kept_positions(self) -> Tensor:
        """(B, T) `positions`, and -1 at padding."""
        return self.positions.masked_fill(~self.mask, -1)

    def keep(self, scores: Tensor, lengths: list[int], fusion: TokenFusion | None = None) -> "Tokens":
        """The `lengths[b]` best real tokens of example b by `scores` (B, T), in their old order. fusion:
        through it the mean of those that go joins the first one."""
        alike = self.is_full and len(set(lengths)) == 1
        kept = None if alike else torch.tensor(lengths, device=scores.device)
        chosen = choose(scores, self.mask, kept, max(lengths), self.keeps_first)
        return self.take(*chosen, lengths, fusion)

    def take(
        self, indices: Tensor, mask: Tensor, lengths: list[int], fusion: TokenFusion | None = None
    ) -> "Tokens":
        """Only what `choose` chose: `indices` (B, K) with `mask` (B, K), the sums of which are `lengths`.
        fusion: see `keep`."""
        states = None if self.states is None else gather(self.states, indices)
        if fusion is not None and states is not None:
            fused = fusion(self.states, removed(self.mask, indices, mask))
            states = torch.cat([states[:, :1] + fused[:, None], states[:, 1:]], dim=1)
        return replace(
            self,
            states=states,
            mask=mask,
            positions=gather(self.positions, indices),
            ids=None if self.ids is None else gather(self.ids, indices),
            lengths=lengths,
        )
