"""From a cache to batches: ragged columns, padded only as far as the longest row of a batch.

Shapes: N rows, B rows of a batch, T positions of the batch's longest row.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn


@dataclass
class Ragged:
    """Rows of different lengths in one flat tensor; row i is flat[offsets[i] : offsets[i + 1]].

    Attributes:
        flat: (total,) any dtype.
        offsets: (N + 1,) int64.
    """

    flat: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, flat: Any, lengths: Any, dtype: torch.dtype = torch.int32) -> "Ragged":
        """From the rows' items in one sequence, and the rows' lengths."""
        offsets = torch.zeros(len(lengths) + 1, dtype=torch.int64)
        offsets[1:] = torch.as_tensor(lengths, dtype=torch.int64).cumsum(0)
        return cls(torch.as_tensor(flat, dtype=dtype), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.offsets[1:] - self.offsets[:-1]

    def row(self, index: int) -> Tensor:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: Tensor) -> "Ragged":
        """A copy with only these rows, in this order."""
        lengths = self.lengths[rows]
        padded, mask = self.pad(rows)
        return Ragged.of(padded[mask], lengths, self.flat.dtype)

    def only(self, kept: Tensor) -> "Ragged":
        """A copy with only the items at which `kept` (total,) is True."""
        return Ragged(self.flat[kept], _kept_before(kept)[self.offsets])

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of all parts, one part after the other."""
        flats = [part.flat for part in parts]
        return cls.of(torch.cat(flats), torch.cat([part.lengths for part in parts]), flats[0].dtype)

    def pad(self, rows: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
        """These rows, zero on the right up to `width` (the longest of them by default).

        Returns:
            values: (B, T) of the flat tensor's dtype.
            mask: (B, T) bool, True at items.
        """
        lengths = self.lengths[rows]
        columns = torch.arange(width or int(lengths.max()))
        mask = columns < lengths[:, None]
        indices = (self.offsets[rows][:, None] + columns).clamp(max=max(0, len(self.flat) - 1))
        return self.flat[indices].masked_fill(~mask, 0), mask


@dataclass
class Examples(ABC):
    """One split of a task.

    Attributes:
        ids: the tokens; see the two kinds.
        labels: (N,) float32, the number of the class or the score.
    """

    ids: Ragged
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """(N,) real tokens of each example, both sentences together."""
        return self.ids.lengths

    @classmethod
    @abstractmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> Self:
        """From the plain tensors of a cache."""

    @abstractmethod
    def to_columns(self) -> dict[str, Tensor]:
        """The plain tensors that a cache holds."""

    @abstractmethod
    def take(self, rows: Tensor) -> Self:
        """A copy with only these rows, in this order."""

    @abstractmethod
    def sentences(self) -> list[Ragged]:
        """The tokens of each sentence that is pruned by itself."""

    @abstractmethod
    def batch(self, rows: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """A model's arguments for these rows, padded to the longest of them (or to `width`)."""


@dataclass
class BertExamples(Examples):
    """Joined sequences, [CLS] first [SEP] (second [SEP]), which BERT prunes as one.

    Attributes:
        second_starts: (N,) int32, the position at which the second segment starts.
    """

    second_starts: Tensor

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> "BertExamples":
        ids = Ragged(columns["ids"], columns["offsets"])
        return cls(ids, columns["labels"], columns["second_starts"])

    def to_columns(self) -> dict[str, Tensor]:
        flat = {"ids": self.ids.flat, "offsets": self.ids.offsets}
        return flat | {"labels": self.labels, "second_starts": self.second_starts}

    def take(self, rows: Tensor) -> "BertExamples":
        return BertExamples(self.ids.take(rows), self.labels[rows], self.second_starts[rows])

    def sentences(self) -> list[Ragged]:
        return [self.ids]

    def batch(self, rows: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """input_ids, attention_mask, token_type_ids: (B, T) int64."""
        ids, mask = self.ids.pad(rows, width)
        types = (torch.arange(ids.shape[1]) >= self.second_starts[rows][:, None]) & mask
        return {"input_ids": ids.long(), "attention_mask": mask.long(), "token_type_ids": types.long()}


@dataclass
class LstmExamples(Examples):
    """Words; of a pair, `ids` holds the first sentence.

    Attributes:
        second_ids: the words of the second sentence; None for single sentences.
    """

    second_ids: Ragged | None = None

    @property
    def lengths(self) -> Tensor:
        return sum(sentence.lengths for sentence in self.sentences())  # type: ignore[return-value]

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> "LstmExamples":
        second = None
        if "second_ids" in columns:
            second = Ragged(columns["second_ids"], columns["second_offsets"])
        return cls(Ragged(columns["ids"], columns["offsets"]), columns["labels"], second)

    def to_columns(self) -> dict[str, Tensor]:
        columns = {"ids": self.ids.flat, "offsets": self.ids.offsets, "labels": self.labels}
        if self.second_ids is not None:
            columns |= {"second_ids": self.second_ids.flat, "second_offsets": self.second_ids.offsets}
        return columns

    def take(self, rows: Tensor) -> "LstmExamples":
        second = None if self.second_ids is None else self.second_ids.take(rows)
        return LstmExamples(self.ids.take(rows), self.labels[rows], second)

    def sentences(self) -> list[Ragged]:
        return [self.ids] if self.second_ids is None else [self.ids, self.second_ids]

    def batch(self, rows: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """ids (B, T) int64 and mask (B, T) bool of the first sentence and, for pairs, second_ids and
        second_mask of the second, each as wide as its own longest."""
        ids, mask = self.ids.pad(rows, width)
        batch = {"ids": ids.long(), "mask": mask}
        if self.second_ids is not None:
            second, second_mask = self.second_ids.pad(rows, width)
            batch |= {"second_ids": second.long(), "second_mask": second_mask}
        return batch


E = TypeVar("E", bound=Examples)


def subset(examples: E, count: int | None, seed: int = 0) -> E:
    """`count` rows drawn without replacement, the same for the same seed; all of them for None."""
    if count is None or count >= len(examples):
        return examples
    return examples.take(_shuffled(examples, seed)[:count])


def held_out(examples: E, used: int, count: int, seed: int = 0) -> E:
    """At most `count` of the rows that `subset` leaves when it draws `used`."""
    return examples.take(_shuffled(examples, seed)[used : used + count])


def drop_words(
    examples: BertExamples, share: float, special: Sequence[int], seed: int
) -> tuple[BertExamples, Tensor]:
    """Word dropout: a copy in which each token is missing with the probability `share`.

    Args:
        special: the ids of special tokens, which stay ([CLS], [SEP]).

    Returns:
        The copy, with the labels of the originals, and (total,) bool, the tokens that it has.
    """
    ids = examples.ids
    drawn = torch.rand(len(ids.flat), generator=torch.Generator().manual_seed(seed))
    kept = (drawn >= share) | torch.isin(ids.flat, torch.tensor(special, dtype=ids.flat.dtype))
    before, starts = _kept_before(kept), ids.offsets[:-1]
    seconds = before[starts + examples.second_starts] - before[starts]
    return replace(examples, ids=ids.only(kept), second_starts=seconds.to(torch.int32)), kept


def joined(parts: Sequence[BertExamples]) -> BertExamples:
    """The rows of all parts, one part after the other."""
    return BertExamples(
        Ragged.joined([part.ids for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.second_starts for part in parts]),
    )


def _kept_before(kept: Tensor) -> Tensor:
    """(total,) bool to (total + 1,) int64: how many of the items before each one are kept."""
    return nn.functional.pad(kept.cumsum(0), (1, 0))


def _shuffled(examples: Examples, seed: int) -> Tensor:
    return torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))


def sorted_batches(lengths: Tensor, size: int) -> list[Tensor]:
    """Rows in batches of `size`, longest first: almost no padding, and a batch that does not fit
    into memory is the first one."""
    return list(lengths.argsort(descending=True, stable=True).split(size))


def shuffled_batches(lengths: Tensor, size: int, seed: int) -> list[Tensor]:
    """Rows in batches of `size` in random order, each of rows of similar length.

    Rows are shuffled, cut into pools of 50 batches, sorted by length within a pool, and the batches
    shuffled: random enough to train on, and nearly free of padding.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator)
    pools = order.split(50 * size)
    batches = [batch for pool in pools for batch in pool[lengths[pool].argsort(stable=True)].split(size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Moves every tensor of a batch."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def pieces(rows: Tensor, parts: int) -> Iterator[Tensor]:
    """`rows` in `parts` pieces, for a batch that did not fit into memory whole."""
    yield from (piece for piece in rows.tensor_split(parts) if len(piece))
