"""How the tokens of a padded batch lie while layers work on them: end to end, without padding.

Shapes: B sequences, T positions of the longest, N tokens of all sequences together, H units.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

# What one more call of the attention costs, in tokens that a layer processes in the same time. On a GPU
# launches are dear and tokens cheap: there a little padding is the smaller waste.
TOKENS_PER_CALL = {"cpu": 4}
TOKENS_PER_CALL_ELSEWHERE = 256

Groups = list[tuple[int, int, int]]


@dataclass
class Unpadding:
    """How the tokens of a padded batch (B, T) lie while layers work on them.

    In a flat tensor (N, H). Either padding stays (`index` is None), or only real tokens are left and longer
    sequences come first, so that sequences of one length are neighbours.

    Attributes:
        shape: (B, T) of the padded batch.
        groups: neighbours of one length: (how many sequences, tokens of each, of them updated).
        index: (N,) int64, each flat token's place in the padded batch, b · T + t.
        back: (B,) int64, which flat sequence is the b-th of the batch.
        first: (B,) int64, the first real token of each sequence as it lies now.
        mask: (B, 1, 1, T) bool for the attention, True at real tokens; None where no padding is left.
        typical: stands for `groups` where it is to be decided what pays, in a graph that leaves sizes free.
    """

    shape: tuple[int, int]
    groups: Groups
    first: Tensor
    index: Tensor | None = None
    back: Tensor | None = None
    mask: Tensor | None = None
    typical: Groups | None = None

    @classmethod
    def of(
        cls,
        mask: Tensor,
        lengths: Sequence[int],
        unpad: bool = True,
        updated: Sequence[int] | None = None,
    ) -> "Unpadding":
        """The cheaper way for a batch to lie.

        Args:
            mask: (B, T) bool, True at real tokens, wherever they stand.
            lengths: the sums of `mask`, known to the host without asking the device.
            unpad: False leaves padding where it is.
            updated: how many tokens of each sequence the layers update, the others being only read: then no
                padding stays. None: all.
        """
        rows, width = mask.shape
        row_starts = torch.arange(0, rows * width, width, device=mask.device)
        sizes = list(zip(lengths, updated or lengths, strict=True))
        order = sorted(range(rows), key=lambda row: sizes[row], reverse=True)
        groups = [(len(list(run)), *size) for size, run in groupby(sizes[row] for row in order)]
        if len(groups) == 1 and groups[0][1] == width:
            return cls((rows, width), groups, row_starts)
        call = TOKENS_PER_CALL.get(mask.device.type, TOKENS_PER_CALL_ELSEWHERE)
        padding = rows * width - sum(lengths)
        keep_padding = not unpad or padding < call * (len(groups) - 1) or not min(lengths)
        if updated is None and keep_padding:
            first = row_starts + mask.int().argmax(dim=1)
            return cls((rows, width), [(rows, width, width)], first, mask=mask[:, None, None, :])
        by_length = torch.tensor(order)
        starts = torch.tensor([0, *(lengths[row] for row in order[:-1])]).cumsum(0)
        by_length, starts = by_length.to(mask.device), starts.to(mask.device)
        slots = torch.arange(rows * width, device=mask.device).view(rows, width)
        index = slots[by_length][mask[by_length]]
        return cls((rows, width), groups, starts, index, by_length.argsort())

    def flatten(self, states: Tensor) -> Tensor:
        """Padded (B, T, H) to how the tokens lie, (N, H)."""
        flat = states.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unflatten(self, states: Tensor) -> Tensor:
        """The inverse of `flatten`, 0 at padding."""
        rows, width = self.shape
        if self.index is None:
            return states.view(rows, width, -1)
        padded = states.new_zeros(rows * width, states.shape[-1])
        return padded.index_copy(0, self.index, states).view(rows, width, -1)

    def places(self, positions: Tensor, mask: Tensor) -> Tensor:
        """(Q,) where the tokens at `positions` (B, K) of their sequences lie, of those in `mask` (B, K)."""
        if self.back is None:
            return (self.first[:, None] + positions)[mask]
        order = self.back.argsort()
        return (self.first[:, None] + positions[order])[mask[order]]

    def asking_first(self) -> "Unpadding":
        """The same tokens to read, of which one of each sequence is updated."""

        def alone(groups: Groups) -> Groups:
            return [(rows, width, 1) for rows, width, _ in groups]

        return replace(self, groups=alone(self.groups), typical=alone(self.typical or self.groups))

    def spans(self) -> Iterator[tuple[int, slice, slice]]:
        """For each group: its sequences, where the tokens lie that it updates, and those that it reads."""
        if len(self.groups) == 1:
            yield self.groups[0][0], slice(None), slice(None)
            return
        start, first = 0, 0
        for rows, width, updated in self.groups:
            yield rows, slice(first, first + rows * updated), slice(start, start + rows * width)
            start, first = start + rows * width, first + rows * updated

    def in_order(self, rows: Tensor) -> Tensor:
        """(B, H) as sequences lie → (B, H) as the batch has them."""
        return rows if self.back is None else rows.index_select(0, self.back)
