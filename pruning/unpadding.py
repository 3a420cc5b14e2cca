"""How the tokens of a batch lie while layers work on them: in one flat tensor, best without padding.

Shapes: B sequences, T positions of the longest, N slots of a flat tensor, H units.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pruning.plan import Groups, Layout, groups_of


@dataclass
class Unpadding:
    """How the tokens of a padded batch (B, T) lie while layers work on them.

    In a flat tensor (N, H). Either padding stays, or only real tokens are left and longer sequences come
    first, so that sequences of one length are neighbours.

    Attributes:
        shape: (B, T) of the batch, where padding stays.
        groups: neighbours of one length: (how many sequences, tokens of each, of them updated).
        first: (B,) int64, the first real token of each sequence as it lies now.
        index: (N,) int64, each flat token's place in the padded batch, b · T + t; None where padding stays,
            or tokens were removed.
        back: (B,) int64, which flat sequence is the b-th of the batch; None: they lie in its order.
        mask: (B, 1, 1, T) for the attention, 0 at real tokens and -∞ elsewhere (of booleans it would make
            numbers in each layer), or in a traced graph bool, True at real tokens; None without padding.
        ends: (B + 1,) int32, where sequences end, of the tokens that are updated, of those that are read, and
            of one token of each; where one call of the attention serves all lengths (varlen).
        typical: stands for `groups` where it is to be decided what pays, in a graph that leaves sizes free.
    """

    shape: tuple[int, int]
    groups: Groups
    first: Tensor
    index: Tensor | None = None
    back: Tensor | None = None
    mask: Tensor | None = None
    ends: tuple[Tensor, Tensor, Tensor] | None = None
    typical: Groups | None = None

    @classmethod
    def of(cls, layout: Layout, tables: dict[str, Tensor], dtype: torch.dtype) -> "Unpadding":
        """tables: `Layout.arrays` on the device; perhaps `index` and `back`. dtype: of the states."""
        mask, ends = tables.get("mask"), tables.get("ends")
        return cls(
            layout.real.shape,
            groups_of(layout, layout),
            tables["first"],
            tables.get("index"),
            tables.get("back"),
            None if mask is None else mask.to(dtype),
            None if ends is None else (ends[0], ends[0], ends[1]),
        )

    def flatten(self, states: Tensor) -> Tensor:
        """Padded (B, T, H) to how the tokens lie, (N, H)."""
        flat = states.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unflatten(self, states: Tensor) -> Tensor:
        """The inverse of `flatten` where padding stays."""
        return states.view(*self.shape, -1)

    def with_queries(self, read: Layout, updated: Layout, ends: Tensor | None) -> "Unpadding":
        """The same tokens to read, of which those of `updated` are updated. ends: of those."""
        both = self.ends if self.ends is None or ends is None else (ends[0], *self.ends[1:])
        return replace(self, groups=groups_of(read, updated), ends=both)

    def with_first_as_query(self) -> "Unpadding":
        """The same tokens to read, of which one of each sequence is updated."""

        def alone(groups: Groups) -> Groups:
            return [(rows, width, 1) for rows, width, _ in groups]

        ends = None if self.ends is None else (self.ends[2], *self.ends[1:])
        return replace(self, groups=alone(self.groups), typical=alone(self.typical or self.groups), ends=ends)

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
