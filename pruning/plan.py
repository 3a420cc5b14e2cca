"""The plan of a pass: where the tokens of a batch lie, before and after each removal.

The host knows how many tokens every example has and how many of them stay. So it knows every index but those
that scores decide: it makes all tables ahead, with NumPy, and sends them in one copy. Of a GPU it asks only
the lengths, where a caller gave none, and how many tokens pass a threshold. The entry is `WholeBatch`, below.

Two sentences, "[CLS] a film [SEP]" and "[CLS] dull [SEP]", of which half go (- is padding):

    batch     C a f S / C d S -    (2, 4)
    Layout    C a f S C d S        where they lie flat, in slots 0 to 6: no padding, rows start at 0 and 4
    Step      2 and 2 stay         made before scores are known: the layout of what stays
    ranks     0 1 4 5 / 2 3 6 7    `destination`: each row's best two go first, the others behind; 7: none
    Trail     C f C S              what stayed (`tokens`), by its slots at the start: 0 2 4 6
    queries   0 2 4 6              of readable tokens: all seven states stay, these are updated

Shapes: B examples, R = B rows as they lie, W columns of the longest, N slots of a flat tensor.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pruning.selection import count_kept

Groups = list[tuple[int, int, int]]

ALIGNED = 16  # bytes
PINNED = ("cuda",)  # devices that read page-locked memory while the host goes on; others may read too late


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device. (Here: a saved model's code has to do without `devices`.)"""
    if device.type in PINNED:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays on a device, by one copy of all. Each may be changed in place: `.data` hides from autograd that
    they share memory. Each begins at a multiple of 16 bytes: a GPU's attention reads so many of a mask at
    once."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    words = [-(-array.nbytes // ALIGNED) * ALIGNED // 8 for array in arrays]
    buffer = np.zeros(sum(words), np.int64)
    for array, end, count in zip(arrays, np.cumsum(words), words, strict=True):
        buffer[end - count : end].view(np.uint8)[: array.nbytes] = array.reshape(-1).view(np.uint8)
    parts = zip(arrays, move(torch.from_numpy(buffer), device).split(words), strict=True)
    types = [torch.from_numpy(array.reshape(-1)[:0]).dtype for array in arrays]
    return [
        part.data.view(dtype)[: array.size].view(array.shape)
        for (array, part), dtype in zip(parts, types, strict=True)
    ]


def send_tables(tables: Sequence[dict[str, Any]], device: torch.device) -> None:
    """Moves all tables to the device, in place."""
    sent = iter(send([array for each in tables for array in each.values()], device))
    for each in tables:
        each.update({name: next(sent) for name in each})


class Layout:
    """Where the tokens of a batch lie: in the cells of a grid, padding included, or end to end.

    Attributes:
        real: (R, W) bool, True at real tokens.
        lengths: (R,) its sums.
        padded: whether slots are the cells of the grid.
        starts: (R,) the slot of column 0 of each row.
        size: N.
    """

    def __init__(self, real: np.ndarray, padded: bool):
        self.real, self.padded, self.lengths = real, padded, real.sum(axis=1)
        per_row = np.full(len(real), real.shape[1]) if padded else self.lengths
        self.size = int(per_row.sum())
        self.starts = per_row.cumsum() - per_row

    @property
    def first(self) -> np.ndarray:
        """(R,) the slot of each row's first token."""
        return self.starts + self.real.argmax(axis=1) if self.padded else self.starts.clip(max=self.size - 1)

    @property
    def last(self) -> np.ndarray:
        """(R,) each row's last slot."""
        return self.starts + (self.real.shape[1] if self.padded else self.lengths) - 1

    @cached_property
    def cells(self) -> np.ndarray:
        """(N,) the cell of each slot in the grid, R · W at padding."""
        if not self.padded:
            return self.real.ravel().nonzero()[0]
        return np.where(self.real, np.arange(self.size).reshape(self.real.shape), self.size).ravel()

    def table(self) -> np.ndarray:
        """(R, W) the slot of each real token, N at padding."""
        if self.padded:
            return self.cells.reshape(self.real.shape)
        table = np.full(self.real.shape, self.size)
        table[self.real] = np.arange(self.size)
        return table

    def arrays(self, varlen: bool) -> dict[str, np.ndarray]:
        """What the attention needs; with varlen, where one call serves all lengths, `ends` of all tokens, and
        of one of each row."""
        found = {"first": self.first}
        if self.padded and not self.real.all():
            found["mask"] = np.where(self.real, np.float32(0), np.float32(-np.inf))[:, None, None]
        elif varlen:
            counts = [self.lengths, np.ones_like(self.lengths)]
            found["ends"] = np.pad(np.cumsum(counts, axis=1), ((0, 0), (1, 0))).astype(np.int32)
        return found


def groups_of(read: Layout, updated: Layout) -> Groups:
    """As `Unpadding` has them, for tokens that are read and those of them that are updated."""
    if read.padded and updated.padded:
        return [(*read.real.shape, updated.real.shape[1])]
    sizes = zip(read.lengths.tolist(), updated.lengths.tolist(), strict=True)
    return [(len(list(run)), *size) for size, run in groupby(sizes)]


class Step:
    """What follows from lengths when tokens are removed.

    Attributes:
        layout: of the tokens that stay.
        removed_count: how many tokens go.
        tables: by name, on the host and then on the device: those of `layout`, and
            picked          where nothing has to be ranked: the slots that stay, then those that go
            scores          (R · W + 1,) a grid for the scores: ∞ at first tokens, -∞ at padding
            cells           (N,) the cell of each slot's score, the last one for what is not ranked
            row_starts      for each place of the result (tokens that stay, with padding on a grid; those that
                            go; one for the rest): the slot of column 0 in its row, at padding the last slot
            destination     (R · W,) the place of each row's best column, its second best, …
            removed_starts  (R,) where those that go begin, of each row
    """

    def __init__(self, before: Layout, lengths: Sequence[int], padded: bool, varlen: bool):
        kept = np.asarray(lengths)
        removed = before.lengths - kept
        self.removed_count = int(removed.sum())
        self.layout = Layout(np.arange(max(1, kept.max())) < kept[:, None], padded)
        self.tables: dict[str, Any] = self.layout.arrays(varlen)
        self.tables["removed_starts"] = removed.cumsum() - removed
        if kept.min() == kept.max() == 1:
            others = before.real.copy()
            others[np.arange(len(kept)), before.real.argmax(axis=1)] = False
            self.tables["picked"] = np.concatenate([before.first, before.table()[others]])
        else:
            self._make_ranking_tables(before, kept, removed)

    def _make_ranking_tables(self, before: Layout, kept: np.ndarray, removed: np.ndarray) -> None:
        """kept, removed: (R,) how many tokens of each row."""
        rows, width = before.real.shape
        scores = np.where(before.real, np.float32(0), np.float32(-np.inf))
        scores[np.arange(rows), before.real.argmax(axis=1)] = np.inf
        cells = before.cells.copy()
        cells[before.first[before.lengths > 0]] = rows * width
        size, columns = self.layout.size, np.arange(width)
        behind = size + self.tables["removed_starts"] - kept  # those that go are ranked behind
        starts = np.where(columns < kept[:, None], self.layout.starts[:, None], behind[:, None])
        destination = starts + columns
        destination[columns >= before.lengths[:, None]] = size + self.removed_count
        per_row = self.layout.real.shape[1] if self.layout.padded else kept
        row_starts = np.concatenate([np.repeat(before.starts, part) for part in (per_row, removed)] + [[0]])
        if self.layout.padded:  # what fills a row up sorts behind its tokens
            filler = ~self.layout.real
            row_starts[:size].reshape(filler.shape)[filler] = np.repeat(before.last, filler.sum(axis=1))
        self.tables |= {"scores": np.append(scores, np.float32(0)), "cells": cells}
        self.tables |= {"row_starts": row_starts, "destination": destination.ravel()}

    def pick(self, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """The slots that stay, in their order, and those that go. To be called once: it writes in the tables.
        scores: (N,), or (R, W) on the grid."""
        tables, size = self.tables, self.layout.size
        if "picked" in tables:
            return tables["picked"][:size], tables["picked"][size:]
        assert scores is not None
        scores, grid = scores.detach().float(), tables["scores"]
        if scores.dim() == 1:
            grid.index_copy_(0, tables["cells"], scores)
        rows = grid[:-1].view(len(self.layout.real), -1)
        if scores.dim() == 2:
            rows = torch.where(rows == 0, scores, rows)
        order = rows.argsort(dim=1, descending=True, stable=True)  # of equal scores the earlier stays
        picked = tables["row_starts"].index_add_(0, tables["destination"], order.flatten())
        return picked[:size].sort().values, picked[size : size + self.removed_count]


@dataclass(frozen=True)
class LayoutOptions:
    """How tokens may lie, by `layers.layout_options`.

    Attributes:
        device: of the batch.
        call_cost: of one more call of the attention, in tokens; None: one serves all lengths (varlen).
        unpad: False leaves padding where it is.
        readable: whether removed tokens are still read.
        filled: if they are, whether rows may be padded to one width; where a row updates fewer tokens than
            another, its own padding is updated too.
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
        padding, more_calls = len(lengths) * width - sum(lengths), len(set(lengths)) - 1
        return self.call_cost is not None and padding < self.call_cost * more_calls


class WholeBatch:
    """A batch before anything is removed.

    Attributes:
        real: (B, T) bool, its mask on the host.
        layout, tables: how it lies, and the tables of that, on the host until `send_tables`.
        order: (R,) the example of each row.
        places: (N,) where each slot is in the padded batch, b · T + t; None: in the same place.
        ids: (B, T) or None.
    """

    def __init__(self, real: np.ndarray, ids: Tensor | None, options: LayoutOptions):
        self.real, self.ids, self.options = real, ids, options
        lengths, self.order = real.sum(axis=1), np.arange(len(real))
        is_right = not (real[:, 1:] > real[:, :-1]).any()
        if options.readable and options.unpad:
            padded = bool(real.all()) or (options.filled and is_right)
        else:
            padded = bool(real.all()) or options.pads(lengths.tolist(), real.shape[1])
        self.tables: dict[str, Any] = {}
        self.places: np.ndarray | None = None
        if padded:
            self.layout = Layout(real, True)
        else:
            if options.call_cost is not None:  # sequences of one length side by side
                self.order = (-lengths).argsort(kind="stable")
            places = np.arange(real.size).reshape(real.shape)
            self.places = self.tables["index"] = places[self.order][real[self.order]]
            self.layout = Layout(np.arange(lengths.max()) < lengths[self.order, None], False)
        if (self.order[1:] < self.order[:-1]).any():
            self.tables["back"] = self.order.argsort()
        self.tables |= self.layout.arrays(options.call_cost is None)

    @cached_property
    def positions(self) -> Tensor:
        """(N,) the position of the token in each slot, padding not counted."""
        rows = (self.real.cumsum(axis=1) - 1).clip(0)
        flat = rows.ravel() if self.layout.padded else rows[self.order][self.real[self.order]]
        return send([flat], self.options.device)[0]

    def flat(self, aligned: Tensor) -> Tensor:
        """(B, T, …) as the batch has it → (N, …), by the tables on the device."""
        flat, index = aligned.flatten(0, 1), self.tables.get("index")
        return flat if index is None else flat.index_select(0, index)

    def in_rows(self, aligned: Tensor) -> Tensor:
        """(B, …) as the batch has it → (R, …)."""
        if "back" not in self.tables:
            return aligned
        return aligned.index_select(0, send([self.order], self.options.device)[0])

    def in_order(self, rows: Tensor) -> Tensor:
        """(R, …) → (B, …), the inverse."""
        back = self.tables.get("back")
        return rows if back is None else rows.index_select(0, back)

    def steps(self, rates: Sequence[float]) -> list[Step]:
        """The steps of a pass with these rates, where every count follows from lengths."""
        steps: list[Step] = []
        layout, lengths = self.layout, self.layout.lengths.tolist()
        for rate in (rate for rate in rates if rate > 0):
            lengths = [count_kept(length, rate) for length in lengths]
            steps.append(self.step(layout, lengths))
            layout = steps[-1].layout
        return steps

    def step(self, before: Layout, lengths: Sequence[int]) -> Step:
        """From one layout to `lengths` tokens that stay, of each row."""
        options = self.options
        if options.readable:  # on a grid only where padding takes what is filled in
            padded = options.unpad and options.filled and self.layout.padded
        else:
            padded = options.pads(lengths, max(lengths))
        return Step(before, lengths, padded, options.call_cost is None)
