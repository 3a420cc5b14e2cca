"""How the tokens of a batch lie while layers work on them: in one flat tensor, best without padding.

What follows from lengths is made on the host, with NumPy, and sent to the device in one copy.

Shapes: B sequences, R = B rows as they lie, T positions of the longest, W columns, N slots of a flat tensor,
H units.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

PINNED = ("cuda",)  # devices that read page-locked memory while the host goes on; others may read too late

Groups = list[tuple[int, int, int]]


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A host's tensor on a device."""
    if device.type in PINNED:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def send(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Arrays on a device, by one copy of all. Each may be changed in place: `.data` parts what autograd knows
    of them."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    words = [-(-array.nbytes // 8) for array in arrays]
    buffer = np.zeros(sum(words), np.int64)
    for array, end, count in zip(arrays, np.cumsum(words), words, strict=True):
        buffer[end - count : end].view(np.uint8)[: array.nbytes] = array.reshape(-1).view(np.uint8)
    parts = zip(arrays, move(torch.from_numpy(buffer), device).split(words), strict=True)
    types = [torch.from_numpy(array.reshape(-1)[:0]).dtype for array in arrays]
    return [
        part.data.view(dtype)[: array.size].view(array.shape)
        for (array, part), dtype in zip(parts, types, strict=True)
    ]


def keeps_padding(lengths: Sequence[int], width: int, call_cost: int) -> bool:
    """Whether removing padding costs more than it saves. call_cost: of one call, in tokens."""
    return len(lengths) * width - sum(lengths) < call_cost * (len(set(lengths)) - 1)


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
        """What the attention needs, as `Unpadding` has it. varlen: whether one call serves all lengths."""
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
        gone: how many tokens go.
        tables: by name, on the host and then on the device: those of `layout`, and
            picked         where nothing has to be ranked: the slots that stay, then those that go
            scores, cells  (R · W + 1,) the scores' grid, ∞ at first tokens, -∞ at padding; (N,) where each
                           slot's score goes, the last cell being for what is not ranked
            begin, target  slots are `begin` plus, at `target` (R · W,), columns from best to worst
            bags           (R,) where those that go begin, of each row
    """

    def __init__(self, before: Layout, lengths: Sequence[int], padded: bool, varlen: bool):
        stay = np.asarray(lengths)
        go = before.lengths - stay
        self.gone = int(go.sum())
        self.layout = Layout(np.arange(max(1, stay.max())) < stay[:, None], padded)
        self.tables: dict[str, Any] = {"bags": go.cumsum() - go, **self.layout.arrays(varlen)}
        if stay.min() == stay.max() == 1:
            others = before.real.copy()
            others[np.arange(len(stay)), before.real.argmax(axis=1)] = False
            self.tables["picked"] = np.concatenate([before.first, before.table()[others]])
        else:
            self._rank(before, stay, go)

    def _rank(self, before: Layout, stay: np.ndarray, go: np.ndarray) -> None:
        rows, width = before.real.shape
        scores = np.where(before.real, np.float32(0), np.float32(-np.inf))
        scores[np.arange(rows), before.real.argmax(axis=1)] = np.inf
        cells = before.cells.copy()
        cells[before.first[before.lengths > 0]] = rows * width
        size, columns = self.layout.size, np.arange(width)
        after = size + self.tables["bags"] - stay  # of those that go, ranked behind those that stay
        target = np.where(columns < stay[:, None], self.layout.starts[:, None], after[:, None]) + columns
        target[columns >= before.lengths[:, None]] = size + self.gone
        per_row = self.layout.real.shape[1] if self.layout.padded else stay
        begin = np.concatenate([np.repeat(before.starts, part) for part in (per_row, go)] + [[0]])
        if self.layout.padded:  # what fills a row up sorts behind its tokens
            filler = ~self.layout.real
            begin[:size].reshape(filler.shape)[filler] = np.repeat(before.last, filler.sum(axis=1))
        self.tables |= {"scores": np.append(scores, np.float32(0)), "cells": cells}
        self.tables |= {"begin": begin, "target": target.ravel()}

    def pick(self, scores: Tensor | None) -> tuple[Tensor, Tensor]:
        """The slots that stay, in their order, and those that go. scores: (N,), or (R, W) on the grid."""
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
        picked = tables["begin"].index_add_(0, tables["target"], order.flatten())
        return picked[:size].sort().values, picked[size : size + self.gone]


@dataclass
class Unpadding:
    """How the tokens of a padded batch (B, T) lie while layers work on them.

    In a flat tensor (N, H). Either padding stays (`index` is None), or only real tokens are left and longer
    sequences come first, so that sequences of one length are neighbours.

    Attributes:
        shape: (B, T) of the batch, where padding stays.
        groups: neighbours of one length: (how many sequences, tokens of each, of them updated).
        first: (B,) int64, the first real token of each sequence as it lies now.
        index: (N,) int64, each flat token's place in the padded batch, b · T + t.
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
