"""BERT's tokens, flat from the embeddings to the classifier, and one plan a pass.

The host knows how many tokens every example has and how many of them stay. So it knows every index but those
that scores decide: it makes all tables ahead, sends them in one copy, and never asks a GPU for anything.

Two sentences, "[CLS] a film [SEP]" and "[CLS] dull [SEP]", of which half go (- is padding):

    batch     C a f S / C d S -    (2, 4)
    Layout    C a f S C d S        where they lie flat, in slots 0 to 6: no padding, rows start at 0 and 4
    Step      2 and 2 stay         a plan, made before scores are known: the layout of what stays
    Trail     C f C S              what stayed, by its slots at the start: 0 2 4 6
    queries   0 2 4 6              of readable tokens: all seven states stay, these are updated

Shapes: B examples, R = B rows as they lie, W columns of the longest, N slots of a flat tensor, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pruning.selection import TokenFusion, Tokens, count_kept
from pruning.unpadding import Layout, Step, Unpadding, keeps_padding, send


@dataclass(frozen=True)
class Ways:
    """How tokens may lie.

    Attributes:
        device: of the batch.
        call_cost: of one more call of the attention, in tokens; None: one serves all lengths (varlen).
        unpad: False leaves padding where it is.
        readable: whether removed tokens are still read.
        filled: if they are, whether rows may be padded to one width; what fills up a row of updated tokens
            then points at its padding.
    """

    device: torch.device
    call_cost: int | None
    unpad: bool
    readable: bool
    filled: bool

    def pads(self, lengths: Sequence[int], width: int) -> bool:
        """Whether rows of these lengths are filled up to `width`."""
        if not self.unpad or not min(lengths):
            return True
        return self.call_cost is not None and keeps_padding(lengths, width, self.call_cost)


class Start:
    """A batch before anything is removed.

    Attributes:
        real: (B, T) bool, its mask on the host.
        layout, tables: how it lies, and the tables of that on the device.
        order: (R,) the example of each row.
        places: (N,) where each slot is in the padded batch, b · T + t; None: in the same place.
        ids: (B, T) or None.
    """

    def __init__(self, real: np.ndarray, ids: Tensor | None, ways: Ways):
        self.real, self.ids, self.ways = real, ids, ways
        lengths, self.order = real.sum(axis=1), np.arange(len(real))
        is_right = not (real[:, 1:] > real[:, :-1]).any()
        if ways.readable and ways.unpad:
            padded = bool(real.all()) or (ways.filled and is_right)
        else:
            padded = bool(real.all()) or ways.pads(lengths.tolist(), real.shape[1])
        self.tables: dict[str, Any] = {}
        self.places: np.ndarray | None = None
        if padded:
            self.layout = Layout(real, True)
        else:
            if ways.call_cost is not None:  # sequences of one length side by side
                self.order = (-lengths).argsort(kind="stable")
            places = np.arange(real.size).reshape(real.shape)
            self.places = self.tables["index"] = places[self.order][real[self.order]]
            self.layout = Layout(np.arange(lengths.max()) < lengths[self.order, None], False)
        if (self.order[1:] < self.order[:-1]).any():
            self.tables["back"] = self.order.argsort()
        self.tables |= self.layout.arrays(ways.call_cost is None)

    @cached_property
    def positions(self) -> Tensor:
        """(N,) the position of the token in each slot, padding not counted."""
        rows = (self.real.cumsum(axis=1) - 1).clip(0)
        flat = rows.ravel() if self.layout.padded else rows[self.order][self.real[self.order]]
        return send([flat], self.ways.device)[0]

    def in_rows(self, aligned: Tensor) -> Tensor:
        """(B, …) as the batch has it → (R, …)."""
        if "back" not in self.tables:
            return aligned
        return aligned.index_select(0, send([self.order], self.ways.device)[0])

    def step(self, before: Layout, lengths: Sequence[int]) -> Step:
        ways = self.ways
        if ways.readable:  # on a grid only where padding takes what is filled in
            padded = ways.unpad and ways.filled and self.layout.padded
        else:
            padded = ways.pads(lengths, max(lengths))
        return Step(before, lengths, padded, ways.call_cost is None)


class Trail:
    """Where the tokens that a layer updates come from; looked up when asked for."""

    def __init__(
        self, start: Start, layout: Layout, picked: Tensor | None = None, before: "Trail | None" = None
    ):
        self.start, self.layout, self._picked, self._before = start, layout, picked, before

    @cached_property
    def slots(self) -> Tensor | None:
        """(N,) the slots that they had at the start; None: the same."""
        earlier = self._before.slots if self._before else None
        picked = self._picked
        return picked if earlier is None or picked is None else earlier.index_select(0, picked)

    def of_start(self, aligned: Tensor) -> Tensor:
        """Of what is aligned with the slots of the start, what belongs to these tokens."""
        return aligned if self.slots is None else aligned.index_select(0, self.slots)

    def in_batch(self, aligned: Tensor, filler: float) -> Tensor:
        """(N, …) → (B, K, …), each example's tokens side by side; where it has fewer, `filler`."""
        start, layout = self.start, self.layout
        if layout is start.layout and start.places is not None:
            table = np.full(start.real.shape, layout.size)
            table.ravel()[start.places] = np.arange(layout.size)
        else:
            table = layout.table()[start.order.argsort()]
        return on_grid(aligned, table, filler)

    @cached_property
    def kept(self) -> Tensor:
        """(B, K) int64, the positions of the tokens in their sentences; -1 where an example has fewer."""
        return self.in_batch(self.of_start(self.start.positions), -1)


class Kept(Sequence):
    """Each layer's `Trail.kept`."""

    def __init__(self, trails: Sequence[Trail]):
        self._trails = trails

    def __len__(self) -> int:
        return len(self._trails)

    def __getitem__(self, layer: Any) -> Any:
        found = self._trails[layer]
        return found.kept if isinstance(found, Trail) else tuple(trail.kept for trail in found)


def on_grid(flat: Tensor, table: np.ndarray, filler: float) -> Tensor:
    """(N, …) → (R, W, …): the slots in `table` (R, W), `filler` where it says N."""
    padded = nn.functional.pad(flat, (0, 0) * (flat.dim() - 1) + (0, 1), value=filler)
    index = send([table.ravel()], flat.device)[0]
    return padded.index_select(0, index).view(*table.shape, *flat.shape[1:])


def mask_on_host(states: Tensor, mask: Tensor | None, lengths: Sequence[int] | None) -> np.ndarray:
    """(B, T) bool, True at real tokens. Without `lengths` the device is asked for the mask."""
    rows, width = states.shape[:2]
    if lengths is not None:
        return np.arange(width) < np.asarray(lengths)[:, None]
    return np.ones((rows, width), bool) if mask is None else mask.bool().cpu().numpy()


@dataclass
class FlatTokens:
    """A batch on its way through BERT.

    Attributes:
        states: (N, H) the input of the next layer; of readable tokens, of all that are read.
        unpadding: how they lie, for the layers.
        trail: which tokens are updated.
        ahead: the steps to come.
        queries: (Q,) the slots of the tokens that are updated, where others are read too.
    """

    states: Tensor
    unpadding: Unpadding
    trail: Trail
    ahead: list[Step]
    queries: Tensor | None = None

    @classmethod
    def start(
        cls, states: Tensor, real: np.ndarray, ids: Tensor | None, rates: Sequence[float], ways: Ways
    ) -> "FlatTokens":
        """
        Args:
            states: (B, T, H) embeddings.
            real: (B, T) bool, True at real tokens.
            ids: (B, T) or None.
            rates: of the layers, in their order.
        """
        start = Start(real, ids, ways)
        steps: list[Step] = []
        before, lengths = start.layout, start.layout.lengths.tolist()
        for rate in (rate for rate in rates if rate > 0):
            lengths = [count_kept(length, rate) for length in lengths]
            steps.append(start.step(before, lengths))
            before = steps[-1].layout
        _send([start.tables, *(step.tables for step in steps)], ways.device)
        unpadding = Unpadding.of(start.layout, start.tables, states.dtype)
        return cls(unpadding.flatten(states), unpadding, Trail(start, start.layout), steps)

    @property
    def lengths(self) -> list[int]:
        """(R,) how many tokens are updated, known to the host."""
        return self.trail.layout.lengths.tolist()

    @property
    def ids(self) -> Tensor | None:
        """(N,) of the tokens that are updated."""
        start = self.trail.start
        if start.ids is None:
            return None
        ids, index = start.ids.flatten(), start.tables.get("index")
        return self.trail.of_start(ids if index is None else ids.index_select(0, index))

    @property
    def positions(self) -> Tensor:
        """(N,) of the tokens that are updated, in their sentences."""
        return self.trail.of_start(self.trail.start.positions)

    def updated(self) -> "FlatTokens":
        """With the states of the tokens that are updated alone."""
        if self.queries is None:
            return self
        return replace(self, states=self.states.index_select(0, self.queries), queries=None)

    def on_grid(self) -> Tokens:
        """The tokens that are updated in rows and columns, as pruners that look at a whole sentence want."""
        start, layout, ids, table = self.trail.start, self.trail.layout, self.ids, self.trail.layout.table()
        mask, real = send([layout.real, start.real], self.states.device)
        return Tokens(
            on_grid(self.updated().states, table, 0),
            mask,
            on_grid(self.positions, table, 0),
            None if ids is None else on_grid(ids, table, 0),
            None if start.ids is None else (start.in_rows(start.ids), start.in_rows(real)),
            self.lengths,
        )

    def in_batch(self) -> Tensor:
        """(B, K, H) the states of the tokens that are updated; 0 where an example has fewer, but in padding
        that never left."""
        start = self.trail.start
        if self.trail.layout is start.layout and start.places is None:
            return self.states.view(*start.real.shape, -1)
        return self.trail.in_batch(self.updated().states, 0)

    def firsts_in_batch(self) -> Tensor:
        """(B, 1, H) where the last layer gave the states of first tokens alone."""
        return self.unpadding.in_order(self.states)[:, None]

    def keep(
        self, scores: Tensor | None, lengths: list[int], fusion: TokenFusion | None = None
    ) -> "FlatTokens":
        """As `Tokens.keep`, by scores (N,), or (R, W) on the grid; the first token always stays."""
        start, layout = self.trail.start, self.trail.layout
        step, ahead = (self.ahead[0], self.ahead[1:]) if self.ahead else (None, [])
        if step is None or step.layout.lengths.tolist() != lengths:  # counts that nobody could know
            step, ahead = start.step(layout, lengths), []
            _send([step.tables], start.ways.device)
        kept, gone = step.pick(scores)
        trail = Trail(start, step.layout, kept, self.trail)
        new = replace(self, trail=trail, ahead=ahead)
        if start.ways.readable:
            unpadding = self.unpadding.with_queries(start.layout, step.layout, step.tables.get("ends"))
            return replace(new, queries=trail.slots, unpadding=unpadding)
        unpadding = Unpadding.of(step.layout, step.tables, self.states.dtype)
        states = self.states.index_select(0, kept)
        if fusion is not None:
            mean = nn.functional.embedding_bag(gone, self.states, step.tables["bags"], mode="mean")  # (R, H)
            left = nn.functional.linear(mean, fusion.weight).to(states.dtype)
            states = states.index_add(0, step.tables["first"], left)
        return replace(new, states=states, unpadding=replace(unpadding, back=self.unpadding.back))


def _send(tables: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Moves all tables to the device, in place."""
    sent = iter(send([array for each in tables for array in each.values()], device))
    for each in tables:
        each.update({name: next(sent) for name in each})
