"""The LSTM's steps at evaluation on a CPU, with what depends on no sentence computed once.

Gates as in PyTorch: i input, f forget, g cell, o output.

Shapes: B sentences, T words of the longest, V words of the vocabulary, E units of embeddings, H of the LSTM.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

MOST_TABLE_BYTES = 2**29  # in fp32 74,565 words of 300 units
ROWS = 4_096  # of a table that are computed at once

T = TypeVar("T")


class Tables(NamedTuple):
    """What is known of each word alone."""

    gates: Tensor  # (V, 4H) what it adds to them
    first: Tensor  # (V, 2H) state and cell after it, where it is the first word


class DerivedTensors:
    """What evaluation computes from weights once, and again when one of them has changed."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[tuple[int, int]], Any, list[Tensor]]] = {}

    def __reduce__(self) -> tuple:
        return DerivedTensors, ()  # a copy, or a model loaded, has weights of its own

    @staticmethod
    def may_hold(*weights: Tensor) -> bool:
        """Whether anything tells when these weights change: not if they were made in inference mode."""
        return not any(weight.is_inference() for weight in weights)

    def get(self, name: str, compute: Callable[[], T], *weights: Tensor) -> T:
        """What `compute` makes of `weights`. (A change that PyTorch does not count, through `.data` or by a
        fused optimizer, is noticed after `clear` only.) Raises RuntimeError if they `may_hold` not."""
        now = [(weight.data_ptr(), weight._version) for weight in weights]
        kept = self._kept.get(name)  # looked up once: another thread may clear
        if kept is None or kept[0] != now:
            held = [weight.detach() for weight in weights]  # so that no other tensor gets their address
            kept = self._kept[name] = (now, compute(), held)
        return kept[1]

    def clear(self) -> None:
        self._kept.clear()


class Recurrence(nn.LSTM):
    """PyTorch's LSTM of one layer, and at evaluation on a CPU the same by its equations, step by step.

    PyTorch's fused LSTM rearranges its weights in every call, and multiplies each occurrence of a word.
    Here one table has what each word adds to the gates, embedding · W_ihᵀ and both biases, exact to rounding,
    and another what the first step makes of it. Each further step is one product, of the states with W_hh.

    The tables take V · 6H numbers (30,000 words of 300 units in fp32: 216 MB, of which 144 MB are gates) and,
    once, the work of V words of text; the copies of W_ih and W_hh 12H² (4.3 MB). Models that share this
    module share all of it.
    """

    def __init__(self, embedding_size: int, hidden: int):
        super().__init__(embedding_size, hidden, batch_first=True)
        self.derived = DerivedTensors()

    @property
    def weights(self) -> list[Tensor]:
        """W_ih, W_hh and the biases of both."""
        return self._flat_weights  # type: ignore[return-value]

    def may_table(self, embeddings: Tensor) -> bool:
        """Whether there may be tables of the embeddings (V, E): on a CPU, if they are small enough."""
        size = len(embeddings) * 6 * self.hidden_size * embeddings.element_size()
        return embeddings.device.type == "cpu" and size <= MOST_TABLE_BYTES

    def tables(self, embeddings: Tensor) -> Tables:
        """The tables of the embeddings (V, E)."""
        return self.derived.get("tables", lambda: self._make_tables(embeddings), embeddings, *self.weights)

    def _make_tables(self, embeddings: Tensor) -> Tables:
        gates = self._multiplied(embeddings)
        return Tables(gates, torch.cat([_first_states(part) for part in gates.split(ROWS)]))

    def _multiplied(self, states: Tensor) -> Tensor:
        """(N, 4H) what words add to the gates, from their embeddings (N, E)."""
        from_word, _, *biases = self.weights
        by_word = self.derived.get("by word", lambda: _in_order(from_word).t().contiguous(), from_word)
        bias = self.derived.get("bias", lambda: _in_order(biases[0] + biases[1]), *biases)
        return torch.addmm(bias, states, by_word)

    def train(self, mode: bool = True) -> "Recurrence":
        self.derived.clear()  # a change through `.data` is not noticed otherwise
        return super().train(mode)

    def maximum(
        self, embeddings: Tensor, tables: Tables | None, ids: Tensor, lengths: Sequence[int]
    ) -> Tensor:
        """(B, H) the maximum over time of the states, 0 of a sentence without a word. No gradients.

        Every step computes the sentences that have a word left, and nothing else.

        Args:
            embeddings: (V, E).
            tables: of `tables`; None multiplies the words.
            ids: (B, T) int64, words first, then whatever fills.
            lengths: the words of each sentence; one at least has some.
        """
        rows, order = len(ids), sorted(range(len(ids)), key=lambda row: -lengths[row])
        is_sorted = order == list(range(rows))
        if not is_sorted:
            ids = ids[torch.tensor(order)]
        from_shortest = sorted(lengths)
        readings = [rows - bisect(from_shortest, step) for step in range(from_shortest[-1])]

        def gates_of(ids: Tensor) -> Tensor:
            if tables:
                return tables.gates.index_select(0, ids)
            return self._multiplied(embedding(ids, embeddings))

        start = ids[:, 0]
        first = tables.first.index_select(0, start) if tables else _first_states(gates_of(start))
        if readings[0] < rows:
            first[readings[0] :] = 0
        if rows == 1:
            most = self._most(first[0], gates_of(ids[0, 1:]).unbind(), readings, rows)[None]
        else:
            columns = zip(ids.t()[1:].contiguous(), readings[1:], strict=True)
            most = self._most(first, (gates_of(column[:n]) for column, n in columns), readings, rows)
        return most if is_sorted else most[torch.tensor(order).argsort()]

    def _most(self, first: Tensor, steps: Iterable[Tensor], readings: Sequence[int], rows: int) -> Tensor:
        """`maximum` of sentences, longest first.

        Args:
            first: (B, 2H) states and cells after the first step, of one row (2H,).
            steps: of each other step what the words add to the gates i, f, o, g, (n, 4H), of
                one row (4H,); they are overwritten.
            readings: n of each step: how many sentences have a word in it.
        """
        from_state, size, before = self.weights[1], self.hidden_size, rows
        by_state = self.derived.get("by state", lambda: _in_order(from_state), from_state)
        if rows > 1:  # MKL multiplies several rows fastest by a transposed copy, and one row by this
            by_state = self.derived.get("transposed", lambda: by_state.t().contiguous(), from_state)
        hidden, cell = first.chunk(2, dim=-1)
        most = hidden
        for gates, reading in zip(steps, readings[1:], strict=True):
            if reading < before:
                hidden, cell, before = hidden[:reading], cell[:reading], reading
            gates = gates.addmm_(hidden, by_state) if rows > 1 else gates.addmv_(by_state, hidden)
            i, f, o = gates[..., : 3 * size].sigmoid_().chunk(3, dim=-1)
            cell = gates[..., 3 * size :].tanh_().mul_(i).addcmul_(f, cell)
            hidden = cell.tanh().mul_(o)
            if reading == rows:
                most = torch.maximum(most, hidden)
            else:
                most[:reading] = torch.maximum(most[:reading], hidden)
        return most


def _first_states(gates: Tensor) -> Tensor:
    """(N, 2H) states and cells after a first step, from what words add to the gates (N, 4H)."""
    i, _, o, g = gates.chunk(4, dim=1)
    cell = i.sigmoid() * g.tanh()
    return torch.cat([cell.tanh() * o.sigmoid(), cell], dim=1)


def _in_order(weight: Tensor) -> Tensor:
    """The gates (4H, …) in PyTorch's order i, f, g, o with g last: those with a sigmoid side by side."""
    i, f, g, o = weight.chunk(4)
    return torch.cat([i, f, o, g])
