"""BERT's tokens, flat from the embeddings to the classifier: `plan` has an example. The entry is
`FlatTokens.start`.

Shapes: B examples, R = B rows as they lie, W columns of the longest, N slots of a flat tensor, H units, T
positions and K of them kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pruning.plan import Groups, Layout, LayoutOptions, Step, WholeBatch, groups_of, send, send_tables
from pruning.selection import TokenFusion, Tokens


class Ends(NamedTuple):
    """(R + 1,) int32 each, where sequences end: of the tokens that are updated, of those that are read, and
    of one token of each."""

    updated: Tensor
    read: Tensor
    first: Tensor


@dataclass
class Unpadding:
    """How tokens lie in a flat tensor (N, H) while layers work on them, and which of them are updated.

    Either padding stays, or only real tokens are left and longer sequences come first, so that sequences of
    one length are neighbours.

    Attributes:
        groups: neighbours of one length: (how many sequences, tokens of each, of them updated).
        first: (R,) int64, the first real token of each sequence.
        mask: (R, 1, 1, W) for the attention, 0 at real tokens and -∞ elsewhere (of booleans it would make
            numbers in each layer), or in a traced graph bool, True at real tokens; None without padding.
        ends: where one call of the attention serves all lengths (varlen).
        queries: (Q,) int64, the slots of the tokens that are updated, where others are read too; None: all.
        typical: stands for `groups` where it is to be decided what pays, in a graph that leaves sizes free.
    """

    groups: Groups
    first: Tensor
    mask: Tensor | None = None
    ends: Ends | None = None
    queries: Tensor | None = None
    typical: Groups | None = None

    @classmethod
    def of(cls, layout: Layout, tables: dict[str, Tensor], dtype: torch.dtype) -> "Unpadding":
        """tables: `Layout.arrays` on the device. dtype: of the states."""
        mask, ends = tables.get("mask"), tables.get("ends")
        mask = None if mask is None else mask.to(dtype)
        of_all = None if ends is None else Ends(ends[0], ends[0], ends[1])
        return cls(groups_of(layout, layout), tables["first"], mask, of_all)

    def with_first_as_query(self) -> "Unpadding":
        """The same tokens to read, of which one of each sequence is updated."""

        def alone(groups: Groups) -> Groups:
            return [(rows, width, 1) for rows, width, _ in groups]

        ends = None if self.ends is None else self.ends._replace(updated=self.ends.first)
        return replace(self, groups=alone(self.groups), typical=alone(self.typical or self.groups), ends=ends)

    def spans(self) -> Iterator[tuple[int, slice, slice]]:
        """For each group: its sequences, where the tokens lie that it reads, and those that it updates."""
        if len(self.groups) == 1:
            yield self.groups[0][0], slice(None), slice(None)
            return
        start, first = 0, 0
        for rows, width, updated in self.groups:
            yield rows, slice(start, start + rows * width), slice(first, first + rows * updated)
            start, first = start + rows * width, first + rows * updated


@dataclass(eq=False)
class Trail:
    """Where the tokens that a layer updates come from; looked up when asked for.

    Attributes:
        layout: of these tokens.
        picked: (N,) their slots in the layout `before`; None at the start.
    """

    whole: WholeBatch
    layout: Layout
    picked: Tensor | None = None
    before: "Trail | None" = None

    @cached_property
    def slots(self) -> Tensor | None:
        """(N,) the slots that they had at the start; None: the same."""
        earlier = self.before.slots if self.before else None
        picked = self.picked
        return picked if earlier is None or picked is None else earlier.index_select(0, picked)

    def of_whole(self, aligned: Tensor) -> Tensor:
        """From a tensor aligned with the slots at the start, the rows of these tokens."""
        return aligned if self.slots is None else aligned.index_select(0, self.slots)

    def in_batch(self, aligned: Tensor, filler: float) -> Tensor:
        """(N, …) → (B, K, …), each example's tokens side by side; where it has fewer, `filler`."""
        whole, layout = self.whole, self.layout
        if layout is whole.layout and whole.places is not None:
            table = np.full(whole.real.shape, layout.size)
            table.ravel()[whole.places] = np.arange(layout.size)
        else:
            table = layout.table()[whole.order.argsort()]
        return to_grid(aligned, table, filler)

    @cached_property
    def kept(self) -> Tensor:
        """(B, K) int64, the positions of the tokens in their sentences; -1 where an example has fewer."""
        return self.in_batch(self.of_whole(self.whole.positions), -1)


class Kept(Sequence):
    """Each layer's `Trail.kept`."""

    def __init__(self, trails: Sequence[Trail]):
        self._trails = trails

    def __len__(self) -> int:
        return len(self._trails)

    def __getitem__(self, layer: Any) -> Any:
        found = self._trails[layer]
        return found.kept if isinstance(found, Trail) else tuple(trail.kept for trail in found)


def to_grid(flat: Tensor, table: np.ndarray, filler: float) -> Tensor:
    """(N, …) → (R, W, …): the slots in `table` (R, W), `filler` where it says N."""
    padded = nn.functional.pad(flat, (0, 0) * (flat.dim() - 1) + (0, 1), value=filler)
    index = send([table.ravel()], flat.device)[0]
    return padded.index_select(0, index).view(*table.shape, *flat.shape[1:])


def mask_on_host(states: Tensor, mask: Tensor | None, lengths: Sequence[int] | None) -> np.ndarray:
    """(B, T) bool, True at real tokens; a row without any counts as one token. Without `lengths` the device
    is asked for the mask."""
    rows, width = states.shape[:2]
    if lengths is not None:
        return np.arange(width) < np.maximum(lengths, 1)[:, None]
    real = np.ones((rows, width), bool) if mask is None else mask.bool().cpu().numpy().copy()
    real[:, 0] |= ~real.any(axis=1)  # servers fill a batch up with empty rows
    return real


@dataclass
class FlatTokens:
    """A batch on its way through BERT.

    Attributes:
        read: (N, H) the input of the next layer; of readable tokens, of all that are read.
        unpadding: how they lie, for the layers.
        trail: which tokens are updated.
        ahead: the steps to come.
    """

    keeps_first: ClassVar[bool] = True

    read: Tensor
    unpadding: Unpadding
    trail: Trail
    ahead: list[Step]

    @classmethod
    def start(
        cls,
        states: Tensor,
        real: np.ndarray,
        ids: Tensor | None,
        rates: Sequence[float],
        options: LayoutOptions,
    ) -> "FlatTokens":
        """
        Args:
            states: (B, T, H) embeddings.
            real: (B, T) bool, True at real tokens.
            ids: (B, T) or None.
            rates: of the layers, in their order.
        """
        whole = WholeBatch(real, ids, options)
        steps = whole.steps(rates)
        send_tables([whole.tables, *(step.tables for step in steps)], options.device)
        unpadding = Unpadding.of(whole.layout, whole.tables, states.dtype)
        return cls(whole.flat(states), unpadding, Trail(whole, whole.layout), steps)

    @property
    def lengths(self) -> list[int]:
        """(R,) how many tokens are updated, known to the host."""
        return self.trail.layout.lengths.tolist()

    @property
    def ids(self) -> Tensor | None:
        """(N,) of the tokens that are updated."""
        whole = self.trail.whole
        return None if whole.ids is None else self.trail.of_whole(whole.flat(whole.ids))

    @property
    def positions(self) -> Tensor:
        """(N,) of the tokens that are updated, in their sentences."""
        return self.trail.of_whole(self.trail.whole.positions)

    @cached_property
    def states(self) -> Tensor:
        """(N, H) of the tokens that are updated."""
        queries = self.unpadding.queries
        return self.read if queries is None else self.read.index_select(0, queries)

    def seen_by(self, pruner: Any, teacher_scores: Tensor | None) -> tuple[Any, Tensor | None]:
        """The tokens that are updated as a pruner reads them, and teacher scores (B, T) in the same rows. In
        training every pruner has them on the grid, at evaluation only one that `needs_grid`."""
        if not (pruner.training or pruner.needs_grid):
            return self, None
        aligned = None if teacher_scores is None else self.trail.whole.in_rows(teacher_scores)
        return self.on_grid(), aligned

    def on_grid(self) -> Tokens:
        """The tokens that are updated in rows and columns, as pruners that look at a whole sentence want."""
        whole, layout, ids, table = self.trail.whole, self.trail.layout, self.ids, self.trail.layout.table()
        mask, real = send([layout.real, whole.real], self.read.device)
        return Tokens(
            to_grid(self.states, table, 0),
            mask,
            to_grid(self.positions, table, 0),
            None if ids is None else to_grid(ids, table, 0),
            None if whole.ids is None else (whole.in_rows(whole.ids), whole.in_rows(real)),
            self.lengths,
        )

    def in_batch(self) -> Tensor:
        """(B, K, H) the states of the tokens that are updated; 0 where an example has fewer, except in
        padding that never left."""
        whole = self.trail.whole
        if self.trail.layout is whole.layout and whole.places is None:
            return self.states.view(*whole.real.shape, -1)
        return self.trail.in_batch(self.states, 0)

    def firsts_in_batch(self) -> Tensor:
        """(B, 1, H) where the last layer gave the states of first tokens alone."""
        return self.trail.whole.in_order(self.read)[:, None]

    def keep(
        self, scores: Tensor | None, lengths: list[int], fusion: TokenFusion | None = None
    ) -> "FlatTokens":
        """As `Tokens.keep`, by scores (N,), or (R, W) on the grid; the first token always stays. scores: None
        where it alone stays."""
        whole, layout = self.trail.whole, self.trail.layout
        step, ahead = (self.ahead[0], self.ahead[1:]) if self.ahead else (None, [])
        if step is None or step.layout.lengths.tolist() != lengths:  # by a threshold, which no plan knows
            step, ahead = whole.step(layout, lengths), []
            send_tables([step.tables], whole.options.device)
        picked, removed = step.pick(scores)
        trail = Trail(whole, step.layout, picked, self.trail)
        if whole.options.readable:
            groups, ends = groups_of(whole.layout, step.layout), self.unpadding.ends
            if ends is not None:
                ends = ends._replace(updated=step.tables["ends"][0])
            unpadding = replace(self.unpadding, groups=groups, ends=ends, queries=trail.slots)
            return FlatTokens(self.read, unpadding, trail, ahead)
        states = self.read.index_select(0, picked)
        if fusion is not None:
            starts = step.tables["removed_starts"]
            mean = nn.functional.embedding_bag(removed, self.read, starts, mode="mean")  # (R, H)
            left = nn.functional.linear(mean, fusion.weight).to(states.dtype)
            states = states.index_add(0, step.tables["first"], left)
        return FlatTokens(states, Unpadding.of(step.layout, step.tables, states.dtype), trail, ahead)
