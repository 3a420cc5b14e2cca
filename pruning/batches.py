"""From a cache to batches: ragged columns, padded only as far as the longest row of a batch.

Shapes: N rows, B rows of a batch, T positions of the batch's longest row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor, nn

from pruning.plan import move

OFFSETS = {"ids": "offsets", "second_ids": "second_offsets"}  # ragged column → its offsets, in a cache


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
        return cls(torch.as_tensor(flat, dtype=dtype), _totals(lengths))

    @classmethod
    def joined(cls, parts: Sequence["Ragged"]) -> "Ragged":
        """The rows of all parts, one part after the other."""
        flat = torch.cat([part.flat for part in parts])
        return cls.of(flat, torch.cat([part.lengths for part in parts]), flat.dtype)

    @classmethod
    def of_padded(cls, values: Tensor, mask: Tensor) -> "Ragged":
        """From rows (B, T), with items where `mask` (B, T) is True."""
        return cls(values[mask], _totals(mask.sum(dim=1)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: Tensor) -> "Ragged":
        """A copy with only these rows, in this order."""
        lengths = self.lengths[rows]
        offsets = _totals(lengths)
        moved = (self.offsets[rows] - offsets[:-1]).repeat_interleave(lengths)
        return Ragged(self.flat[moved + torch.arange(len(moved))], offsets)

    @property
    def lengths(self) -> Tensor:
        """(N,) int64."""
        return self.offsets.diff()

    def row(self, index: int) -> Tensor:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def only(self, kept: Tensor) -> "Ragged":
        """A copy with only the items at which `kept` (total,) is True."""
        return Ragged(self.flat[kept], _totals(kept)[self.offsets])

    def pad(self, rows: Tensor, width: int | None = None) -> tuple[Tensor, Tensor]:
        """These rows, zero on the right up to `width` (the longest of them by default).

        Returns (B, T) values of the flat tensor's dtype, and (B, T) bool, True at items.
        """
        lengths = self.lengths[rows]
        columns = torch.arange(width or int(lengths.max()))
        mask = columns < lengths[:, None]
        indices = (self.offsets[rows][:, None] + columns).clamp(max=max(0, len(self.flat) - 1))
        return self.flat[indices].masked_fill(~mask, 0), mask


@dataclass
class Examples(ABC):
    """One split of a task. Every attribute is a column of N rows, or None.

    Attributes:
        ids: the tokens; see the two kinds.
        labels: (N,) float32, the number of the class or the score.
    """

    ids: Ragged
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def from_columns(cls, columns: dict[str, Tensor]) -> Self:
        """From the plain tensors of a cache. Raises KeyError or TypeError if they are not those of `cls`."""
        parts: dict[str, Any] = dict(columns)
        for name, offsets in OFFSETS.items():
            if name in parts:
                parts[name] = Ragged(parts[name], parts.pop(offsets))
        return cls(**parts)

    def to_columns(self) -> dict[str, Tensor]:
        """The plain tensors that a cache holds."""
        columns: dict[str, Tensor] = {}
        for name, column in vars(self).items():
            if isinstance(column, Ragged):
                columns |= {name: column.flat, OFFSETS[name]: column.offsets}
            elif column is not None:
                columns[name] = column
        return columns

    def take(self, rows: Tensor) -> Self:
        """A copy with only these rows, in this order."""
        columns = {name: column for name, column in vars(self).items() if column is not None}
        return type(self)(**{name: column[rows] for name, column in columns.items()})

    def sentences(self) -> list[Ragged]:
        """The tokens of each sentence that is pruned by itself."""
        return [column for column in vars(self).values() if isinstance(column, Ragged)]

    @property
    def lengths(self) -> Tensor:
        """(N,) real tokens of each example, both sentences together."""
        return torch.stack([sentence.lengths for sentence in self.sentences()]).sum(dim=0)

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

    def batch(self, rows: Tensor, width: int | None = None) -> dict[str, Tensor]:
        """ids (B, T) int64 and mask (B, T) bool of the first sentence and, for pairs, second_ids and
        second_mask of the second, each as wide as its own longest."""
        batch: dict[str, Tensor] = {}
        for before, sentence in zip(("", "second_"), self.sentences(), strict=False):
            ids, mask = sentence.pad(rows, width)
            batch |= {f"{before}ids": ids.long(), f"{before}mask": mask}
        return batch


E = TypeVar("E", bound=Examples)


def subset(examples: E, count: int | None) -> E:
    """`count` rows drawn without replacement, always the same; all of them for None."""
    if count is None or count >= len(examples):
        return examples
    return examples.take(_shuffled(len(examples))[:count])


def held_out(examples: E, used: int, count: int) -> E:
    """At most `count` of the rows that `subset` leaves when it draws `used`."""
    return examples.take(_shuffled(len(examples))[used : used + count])


def drop_words(
    examples: BertExamples, share: float, special: Sequence[int], seed: int
) -> tuple[BertExamples, Tensor]:
    """Word dropout: a copy in which each token but the `special` ids is missing with probability `share`.

    Returns the copy, with the labels of the originals, and (total,) bool, the tokens that it has.
    """
    ids = examples.ids
    drawn = torch.rand(len(ids.flat), generator=torch.Generator().manual_seed(seed))
    kept = (drawn >= share) | torch.isin(ids.flat, torch.tensor(special, dtype=ids.flat.dtype))
    before, starts = _totals(kept), ids.offsets[:-1]
    seconds = before[starts + examples.second_starts] - before[starts]
    return replace(examples, ids=ids.only(kept), second_starts=seconds.int()), kept


def joined(parts: Sequence[BertExamples]) -> BertExamples:
    """The rows of all parts, one part after the other."""
    return BertExamples(
        Ragged.joined([part.ids for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.second_starts for part in parts]),
    )


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
    pools = torch.randperm(len(lengths), generator=generator).split(50 * size)
    batches = [batch for pool in pools for batch in pool[lengths[pool].argsort(stable=True)].split(size)]
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]


def to_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Moves every tensor of a batch. With BERT's goes `lengths`, so that nobody has to ask the device."""
    moved: dict[str, Any] = {name: move(tensor, device) for name, tensor in batch.items()}
    if "attention_mask" in batch:
        moved["lengths"] = batch["attention_mask"].sum(dim=1).tolist()
    return moved


def on_device(
    examples: Examples, groups: Sequence[Tensor], device: torch.device, width: int | None = None
) -> list[dict[str, Any]]:
    """A model's arguments for each group of rows, padded to the longest of it or to `width`."""
    return [to_device(examples.batch(rows, width), device) for rows in groups]


def _totals(counts: Any) -> Tensor:
    """(n,) counts or booleans to (n + 1,) int64: the sum of those before each one, and of all."""
    return nn.functional.pad(torch.as_tensor(counts, dtype=torch.int64).cumsum(0), (1, 0))


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))
