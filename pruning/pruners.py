"""Pruners: what scores tokens (higher = kept) and says how many of them stay. `selection` does the rest.

    random       a number that follows from a seed and the example itself
    head, tail   drop from the head or from the tail of the sequence
    frequency    drop the words that are commonest in the training text
    column mean  the attention that a token receives; with a threshold in place of a rate: LTP
    <teacher>    looks at what deployment does not have (see `teachers`): an upper bound
    <teacher> student
                 a small network, trained to rank as the teacher does: what one deploys (see `student`)

A new pruner is one class here and one line in PRUNERS at the end.

Shapes: B examples, T positions, H units, V words.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pruning.selection import Tokens, count_kept, positions_of


@dataclass(frozen=True)
class PrunerConfig:
    """What a pruner may know when it is built; `layer` is the number of the one before which it stands."""

    layer: int
    hidden_size: int
    vocab_size: int
    seed: int = 0
    student_width: int = 64
    student_context: int = 1


class Pruner(nn.Module):
    """What a model asks of a pruner."""

    zero_at_start: tuple[str, ...] = ()  # tensors that a fresh pruner has at 0 (`from_pretrained` sets them)
    needs_grid = True  # False: `score` reads positions, ids and states alone, and may get them as (N, …)

    def __init__(self, config: PrunerConfig):
        super().__init__()

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        """(B, T) floats, higher = kept; anything at padding. Without `needs_grid` perhaps (N,), of the tokens
        of all examples end to end.

        Args:
            tokens: `positions` are always there, `mask` with `needs_grid`; it may lack `states` before an
                LSTM, `ids` where a BERT is given embeddings, `lengths` and `whole` in a graph for other
                runtimes.
            layer: the BertLayer that is next, None before an LSTM.
            teacher_scores: (B, T) of these tokens, where there are any.
        """
        raise TypeError(f"{type(self).__name__} does not score tokens")

    @property
    def keeps_by_rate(self) -> bool:
        """Whether length and rate alone say how many tokens stay."""
        return type(self).kept_lengths is Pruner.kept_lengths

    def kept_lengths(self, scores: Tensor, tokens: Tokens, rate: float) -> list[int]:
        """How many tokens of each example stay."""
        return [count_kept(length, rate) for length in tokens.lengths]

    def loss(self, scores: Tensor, teacher_scores: Tensor, ranked: Tensor) -> Tensor | None:
        """What trains the pruner itself: a scalar, or None. `ranked`: (B, T) bool, the tokens to rank."""
        return None

    def set_frequencies(self, counts: Tensor) -> None:
        """Tells how often each word stands in the training text. counts: (V',), V' at most V."""

    def resize(self, vocab_size: int) -> None:
        """The model has another number of words from here on."""

    def flops(self, rows: int, width: int) -> int:
        """FLOPs of the scores of one batch: `rows` sequences, padded to `width`."""
        return 0

    def table_flops(self, tokens: int) -> int:
        """FLOPs of the scores of `tokens` tokens from a table of words, in place of the first product."""
        return 0


# --- Pruners without training ----------------------------------------------------------------


def _mix(x: Tensor) -> Tensor:
    """Scrambles int64 numbers (the finalizer of SplitMix64; overflow wraps, as it should)."""
    x = (x ^ (x >> 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31)


def example_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """(B,) a hash of each example's real tokens (B, T) and their positions: the same in any batch."""
    return (_mix(ids * 1_000_003 + positions_of(mask) + 1) * mask).sum(dim=1)


class RandomPruner(Pruner):
    """Uniform scores. Drawn afresh in training; at evaluation a hash of seed, layer and example,
    so that an example's tokens get the same scores alone and in any batch."""

    def __init__(self, config: PrunerConfig):
        super().__init__(config)
        self.salt = config.seed * 1_009 + config.layer + 1

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        if self.training:
            return torch.rand(tokens.mask.shape, device=tokens.mask.device)
        if tokens.whole is None:
            raise ValueError("the pruner 'random' needs input_ids, not inputs_embeds")
        mixed = _mix(_mix(example_keys(*tokens.whole) + self.salt)[:, None] + tokens.positions)
        return (mixed & 0xFFFFFF).float() / 2**24  # 24 bits: every value is exact in fp32


class HeadPruner(Pruner):
    """Drops from the head of the sequence."""

    needs_grid = False

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        return tokens.positions.float()


class TailPruner(Pruner):
    """Drops from the tail of the sequence."""

    needs_grid = False

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        return -tokens.positions.float()


class FrequencyPruner(Pruner):
    """Drops the words that are commonest in the training text; `counts` (V,) are saved with the model."""

    needs_grid = False
    zero_at_start = ("counts",)
    counts: Tensor

    def __init__(self, config: PrunerConfig):
        super().__init__(config)
        counts = torch.zeros(config.vocab_size, dtype=torch.int64)  # fp16 would end at 65,504
        self.register_buffer("counts", counts)

    def set_frequencies(self, counts: Tensor) -> None:
        self.counts[: len(counts)] = counts  # some BERTs round the size of their embedding up

    def resize(self, vocab_size: int) -> None:
        self.counts = nn.functional.pad(self.counts, (0, vocab_size - len(self.counts)))

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        if tokens.ids is None:
            raise ValueError("the pruner 'frequency' needs input_ids, not inputs_embeds")
        return -self.counts[tokens.ids].float()


class ColumnMeanPruner(Pruner):
    """The attention that each token receives in the layer that is next: the mean over heads and queries,
    which ranks as PoWER-BERT's column sum does (Goyal et al., ICML 2020). The attention of that layer is
    computed on all tokens for it, so it costs more than a student.
    """

    def __init__(self, config: PrunerConfig):
        super().__init__(config)
        self.hidden_size = config.hidden_size

    @torch.no_grad()
    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        assert tokens.states is not None
        attention = layer.attention.self
        shape = (*tokens.mask.shape, attention.num_attention_heads, -1)
        query = attention.query(tokens.states).view(shape).transpose(1, 2)
        key = attention.key(tokens.states).view(shape).transpose(1, 2)
        weights = (query @ key.transpose(2, 3)).float() * attention.scaling
        weights = weights.masked_fill(~tokens.mask[:, None, None, :], -torch.inf).softmax(dim=3)
        queries = tokens.mask[:, :, None]
        return (weights.mean(dim=1) * queries).sum(dim=1) / queries.sum(dim=1)

    def flops(self, rows: int, width: int) -> int:
        """Queries, keys and their products: 4nH² + 2n²H for a sequence of n tokens."""
        return rows * (4 * width * self.hidden_size**2 + 2 * width**2 * self.hidden_size)


class ThresholdPruner(ColumnMeanPruner):
    """Removes the tokens whose column mean is at most `threshold`, so the count depends on the example
    (LTP, Kim et al., KDD 2022). Where LTP learns its threshold by a penalty, here it is tuned to the
    schedule: in training it is the quantile at which the batch loses as many tokens as it would at the rate,
    and `calibrate` sets it for evaluation.
    """

    zero_at_start = ("threshold",)
    threshold: Tensor

    def __init__(self, config: PrunerConfig) -> None:
        super().__init__(config)
        self.register_buffer("threshold", torch.zeros(()))

    def kept_lengths(self, scores: Tensor, tokens: Tokens, rate: float) -> list[int]:
        first = tokens.mask.int().argmax(dim=1, keepdim=True)  # it stays
        if self.training:
            removed = sum(n - count_kept(n, rate) for n in tokens.lengths)
            values = scores[tokens.mask.scatter(1, first, False)]
            self.threshold.fill_(values.kthvalue(removed).values if removed else -1.0)
        stay = (scores > self.threshold).scatter(1, first, True) & tokens.mask
        return stay.sum(dim=1).tolist()


# --- Where a teacher prunes ------------------------------------------------------------------


class TeacherPruner(Pruner):
    """Stands where a teacher prunes."""

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        if teacher_scores is None:
            raise ValueError("a teacher prunes by teacher_scores, and none were given")
        return teacher_scores


# --- Names -----------------------------------------------------------------------------------

PRUNERS: dict[str, Callable[[PrunerConfig], Pruner]] = {
    "random": RandomPruner,
    "head": HeadPruner,
    "tail": TailPruner,
    "frequency": FrequencyPruner,
    "column mean": ColumnMeanPruner,
    "column mean threshold": ThresholdPruner,
}
# These read states or the next layer, which an LSTM's pruners do not get (but for students).
BERT_ONLY = ("column mean", "column mean threshold")
