"""Pruners: what scores tokens. Higher = kept. Choosing and gathering is `selection`'s work.

    random       a number that follows from a seed and the example itself
    head, tail   drop from the head or from the tail of the sequence
    frequency    drop the words that are commonest in the training text
    column mean  the attention that a token receives; with a threshold in place of a rate: LTP
    <teacher>    looks at what deployment has not (see `teachers`): an upper bound
    <teacher> student
                 a small network trained to rank as the teacher does: what one deploys

Shapes: B examples, T positions, H units.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pruning import selection

BERT_TEACHERS = ("ideal emission rate", "attention rollout", "ideal gradients", "gradient x input")
LSTM_TEACHERS = ("lstm", "integrated gradients")
SHARPNESS = 3.0  # of the target that students learn from


def methods_of(teachers: tuple[str, ...]) -> tuple[str, ...]:
    """Every name that `pruning_methods` may hold, for a model with these teachers."""
    students = tuple(f"{teacher} student" for teacher in teachers)
    return ("random", "head", "tail", "frequency", *teachers, *students)


LSTM_METHODS = methods_of(LSTM_TEACHERS)
BERT_METHODS = (*methods_of(BERT_TEACHERS), "column mean", "column mean threshold")


def teacher_of(method: str) -> str | None:
    """The teacher whose scores `method` needs (a teacher itself, or a student in training)."""
    teacher = method.removesuffix(" student")
    return teacher if teacher in BERT_TEACHERS + LSTM_TEACHERS else None


def is_teacher(method: str) -> bool:
    """Whether `method` looks at what deployment has not."""
    return teacher_of(method) == method


@dataclass
class Tokens:
    """A batch on its way through a model, with whatever is aligned with its tokens.

    Attributes:
        states: (B, T, H) what the next layer reads; None where nothing looks at it before it is made.
        mask: (B, T) bool, True at real tokens.
        places: (B, T) int64, each token's place in its whole sentence, padding not counted.
        ids: (B, T) int64 vocabulary ids; None where the model was given embeddings.
        whole: ids and mask of the whole examples, before anything was removed; None like `ids`.
        lengths: the B sums of `mask`, known to the host.
    """

    states: Tensor | None
    mask: Tensor
    places: Tensor
    ids: Tensor | None
    whole: tuple[Tensor, Tensor] | None
    lengths: list[int]

    @classmethod
    def start(cls, states: Tensor | None, mask: Tensor, ids: Tensor | None) -> "Tokens":
        """The tokens of a batch that nothing was removed from yet."""
        return cls(
            states, mask, places_of(mask), ids, None if ids is None else (ids, mask), mask.sum(dim=1).tolist()
        )

    @property
    def is_full(self) -> bool:
        """Whether there is no padding."""
        return min(self.lengths) == self.mask.shape[1]

    def keep(
        self, scores: Tensor, rate: float, keep_first: bool, residue: "Residue | None" = None
    ) -> "Tokens":
        """Removes the share `rate` of each example's real tokens, the lowest `scores` (B, T) first."""
        lengths = [selection.count_kept(length, rate) for length in self.lengths]
        return self.keep_counts(scores, lengths, keep_first, residue)

    def keep_counts(
        self, scores: Tensor, lengths: list[int], keep_first: bool, residue: "Residue | None" = None
    ) -> "Tokens":
        """Keeps so many of each example's real tokens, the highest `scores` (B, T). The others leave their
        `residue` with the first token, which stays."""
        alike = self.is_full and len(set(lengths)) == 1
        kept = None if alike else torch.tensor(lengths, device=scores.device)
        indices, mask = selection.choose(scores, self.mask, kept, max(lengths), keep_first)
        states = None if self.states is None else selection.gather(self.states, indices)
        if residue is not None and states is not None:
            states[:, 0] += residue(self.states, selection.left_out(self.mask, indices, mask))
        return replace(
            self,
            states=states,
            mask=mask,
            places=selection.gather(self.places, indices),
            ids=None if self.ids is None else selection.gather(self.ids, indices),
            lengths=lengths,
        )


# --- Pruners that need no training -----------------------------------------------------------


def _mix(x: Tensor) -> Tensor:
    """Scrambles int64 numbers (the finalizer of SplitMix64; overflow wraps, as it should)."""
    x = (x ^ (x >> 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ (x >> 31)


def places_of(mask: Tensor) -> Tensor:
    """(B, T) each real token's place in its sentence, padding not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def example_keys(ids: Tensor, mask: Tensor) -> Tensor:
    """(B,) a hash of each example's real tokens (B, T) and their places: the same in any batch."""
    places = places_of(mask)
    return (_mix(ids * 1_000_003 + places + 1) * mask).sum(dim=1)


class RandomPruner(nn.Module):
    """Uniform scores. Drawn afresh in training; at evaluation a hash of seed, layer and example,
    so that an example's tokens get the same scores alone and in any batch."""

    def __init__(self, seed: int, layer: int):
        super().__init__()
        self.salt = seed * 1_009 + layer + 1

    def forward(self, tokens: Tokens) -> Tensor:
        if self.training:
            return torch.rand(tokens.mask.shape, device=tokens.mask.device)
        if tokens.whole is None:
            raise ValueError("the pruner 'random' needs input_ids, not inputs_embeds")
        keys = example_keys(*tokens.whole)
        mixed = _mix(_mix(keys + self.salt)[:, None] + tokens.places)
        return (mixed & 0xFFFFFF).float() / 2**24  # 24 bits: every value is exact in fp32


class HeadPruner(nn.Module):
    """Drops from the head of the sequence."""

    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.places.float()


class TailPruner(nn.Module):
    """Drops from the tail of the sequence."""

    def forward(self, tokens: Tokens) -> Tensor:
        return -tokens.places.float()


class FrequencyPruner(nn.Module):
    """Drops the words that are commonest in the training text; `counts` (V,) are saved with the model."""

    counts: Tensor

    def __init__(self, vocab_size: int):
        super().__init__()
        self.register_buffer("counts", torch.zeros(vocab_size))

    def forward(self, tokens: Tokens) -> Tensor:
        if tokens.ids is None:
            raise ValueError("the pruner 'frequency' needs input_ids, not inputs_embeds")
        return -self.counts[tokens.ids]


class ColumnMeanPruner(nn.Module):
    """The attention that each token receives in the layer that it stands before: the mean over heads and
    queries, which ranks as PoWER-BERT's column sum does (Goyal et al., ICML 2020).

    The layer's attention is computed on all tokens for it, so it costs more than a student.
    """

    @torch.no_grad()
    def forward(self, tokens: Tokens, attention: Any) -> Tensor:
        """(B, T). attention: a BertSelfAttention."""
        assert tokens.states is not None
        shape = (*tokens.mask.shape, attention.num_attention_heads, -1)
        query = attention.query(tokens.states).view(shape).transpose(1, 2)
        key = attention.key(tokens.states).view(shape).transpose(1, 2)
        weights = (query @ key.transpose(2, 3)).float() * attention.scaling
        weights = weights.masked_fill(~tokens.mask[:, None, None, :], -torch.inf).softmax(dim=3)
        asking = tokens.mask[:, :, None]
        return (weights.mean(dim=1) * asking).sum(dim=1) / asking.sum(dim=1)


class ThresholdPruner(ColumnMeanPruner):
    """Removes the tokens whose column mean is at most `threshold`, so the count depends on the example
    (LTP, Kim et al., KDD 2022).

    Where LTP learns its threshold by a penalty, here it is tuned to the schedule: in training it is the
    quantile at which the batch loses as many tokens as it would at the rate, and `calibrate` sets it for
    evaluation.
    """

    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.zeros(()))

    def counts(self, scores: Tensor, tokens: Tokens, rate: float) -> list[int]:
        """How many tokens of each example stay, the first one always."""
        first = tokens.mask.int().argmax(dim=1, keepdim=True)
        if self.training:
            removed = sum(n - selection.count_kept(n, rate) for n in tokens.lengths)
            values = scores[tokens.mask.scatter(1, first, False)]
            self.threshold.fill_(values.kthvalue(removed).values if removed else -1.0)
        stay = (scores > self.threshold) & tokens.mask
        return stay.scatter(1, first, True).sum(dim=1).tolist()


# --- What goes leaves something --------------------------------------------------------------


class Residue(nn.Module):
    """What removed tokens leave behind: their mean, through a matrix, is added to the state of [CLS].

    One removal, one product of a vector and a matrix: a token that goes is not processed any further, but
    the classifier's token has its share of it. The matrix starts at 0, where nothing is left behind. (EViT,
    Liang et al., ICLR 2022, keeps the mean of what it removes as one more token.)
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, hidden_size))

    def forward(self, states: Tensor, removed: Tensor) -> Tensor:
        """(B, H), 0 where nothing goes. states: (B, T, H); removed: (B, T) bool."""
        share = removed / removed.sum(dim=1, keepdim=True).clamp(min=1)  # (B, T)
        mean = (share[:, None].to(states.dtype) @ states).squeeze(1)
        return nn.functional.linear(mean, self.weight)

    def flops(self, tokens: int) -> int:
        """Of one sequence of so many tokens."""
        return 2 * tokens * len(self.weight) + 2 * self.weight.numel()


# --- Teachers and students -------------------------------------------------------------------


class TeacherPruner(nn.Module):
    """Stands where a teacher prunes: its scores come from outside, as `teacher_scores`."""


class StudentPruner(nn.Module):
    """Scores each token from the state that the layer is about to read, and the states beside it.

    A convolution of width `context` (1: the token alone), GELU, one output. In a BERT layer the
    states have seen the sentence already; in front of an LSTM the neighbours are all the context
    there is. Padding is zeroed first, so that it looks like the end of the sentence.

    Where states are word embeddings, the first product can be done once for each word: see `fold`.
    """

    def __init__(self, hidden_size: int, width: int, context: int):
        super().__init__()
        self.context = context
        self.inner = nn.Linear(hidden_size * context, width)
        self.outer = nn.Linear(width, 1)

    def forward(self, tokens: Tokens) -> Tensor:
        states = tokens.states
        assert states is not None
        if self.context > 1:
            reach = self.context // 2
            states = nn.functional.pad(states * tokens.mask[..., None], (0, 0, reach, reach))
            states = states.unfold(1, self.context, 1).flatten(2)  # (B, T, H · context)
        return self.outer(nn.functional.gelu(self.inner(states))).squeeze(-1)

    def fold(self, embeddings: Tensor) -> Tensor:
        """What each word adds to the inner layer of the tokens around it.

        Args:
            embeddings: (V, H), 0 for the padding word 0.

        Returns:
            (V, context, width): for a token, for itself if context is 1; bias included at the token's own.
        """
        weight = self.inner.weight.unflatten(1, (embeddings.shape[1], self.context))  # (width, H, context)
        table = torch.einsum("vh,whc->vcw", embeddings, weight)
        table[:, self.context // 2] += self.inner.bias
        return table

    def score_words(self, ids: Tensor, table: Tensor) -> Tensor:
        """As `forward`, from ids (B, T), 0 at padding, and a table made by `fold`."""
        around = nn.functional.pad(ids, (self.context // 2, self.context // 2)).unfold(1, self.context, 1)
        parts = around * self.context + torch.arange(self.context, device=ids.device)  # (B, T, context)
        inner = nn.functional.embedding_bag(parts.flatten(0, 1), table.flatten(0, 1), mode="sum")
        return self.outer(nn.functional.gelu(inner)).view(ids.shape)

    def flops(self, folded: bool = False) -> int:
        """Multiplications and additions for one token; `folded`: in `score_words`."""
        first = self.context * self.inner.out_features if folded else 2 * self.inner.weight.numel()
        return first + 2 * self.outer.weight.numel()


def ranking_loss(scores: Tensor, teacher_scores: Tensor, mask: Tensor) -> Tensor:
    """ListNet's top-one loss (Cao et al., ICML 2007), averaged over the examples.

    Cross-entropy between the softmax of the student's scores and a target, less the target's entropy. Of a
    teacher's scores only the ranking counts, whatever their sign and spread: the target is the softmax of
    the ranks, spread evenly to a standard deviation of SHARPNESS, so most weight lies on what is to stay.

    Args:
        scores, teacher_scores: (B, T).
        mask: (B, T) bool, the tokens to rank.
    """
    counts = mask.sum(dim=1, keepdim=True).clamp(min=1)
    order = teacher_scores.float().masked_fill(~mask, -torch.inf).argsort(dim=1, stable=True)
    ranks = order.argsort(dim=1) - (mask.shape[1] - counts)  # 0 for the lowest score in the mask
    spread_evenly = (2 * ranks + 1) / counts - 1  # in (-1, 1), standard deviation 1 / √3
    target = _masked_log_softmax(SHARPNESS * 3**0.5 * spread_evenly, mask)
    student = _masked_log_softmax(scores.float(), mask)
    divergence = (target.exp() * (target - student) * mask).sum(dim=1)
    return divergence.mean()


def _masked_log_softmax(values: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the tokens in `mask`; finite (and meaningless) elsewhere."""
    return values.masked_fill(~mask, -1e4).log_softmax(dim=1)


def build_pruner(
    method: str,
    *,
    layer: int,
    hidden_size: int,
    vocab_size: int,
    seed: int = 0,
    student_width: int = 64,
    student_context: int = 1,
) -> nn.Module:
    """The pruner called `method`, to stand before layer number `layer`.

    Raises ValueError for an unknown name.
    """
    if method == "random":
        return RandomPruner(seed, layer)
    if method == "head":
        return HeadPruner()
    if method == "tail":
        return TailPruner()
    if method == "frequency":
        return FrequencyPruner(vocab_size)
    if method == "column mean":
        return ColumnMeanPruner()
    if method == "column mean threshold":
        return ThresholdPruner()
    if is_teacher(method):
        return TeacherPruner()
    if teacher_of(method):
        return StudentPruner(hidden_size, student_width, student_context)
    names = ", ".join(dict.fromkeys(BERT_METHODS + LSTM_METHODS))
    raise ValueError(f"unknown pruning method {method!r}; known are: {names}")


def score_tokens(
    pruner: nn.Module, tokens: Tokens, teacher_scores: Tensor | None, keep_first: bool
) -> tuple[Tensor, Tensor | None]:
    """The pruner's scores (B, T) and, for a student in training, its ranking loss.

    The student learns from a copy of the states that no gradient flows back through: its loss
    trains the student alone, and the task alone trains the model.

    Args:
        teacher_scores: (B, T₀) of the whole sentences, by place; needed by teachers always and by
            students while they train.
        keep_first: the first token stays in any case, so there is nothing to learn about it.
    """
    aligned = None if teacher_scores is None else teacher_scores.gather(1, tokens.places)
    if isinstance(pruner, TeacherPruner):
        if aligned is None:
            raise ValueError("a teacher prunes by teacher_scores, and none were given")
        return aligned, None
    if not isinstance(pruner, StudentPruner):
        return pruner(tokens), None
    assert tokens.states is not None
    scores = pruner(replace(tokens, states=tokens.states.detach()))
    if aligned is None or not pruner.training:
        return scores, None
    ranked = tokens.mask & (tokens.places > 0) if keep_first else tokens.mask
    return scores, ranking_loss(scores, aligned, ranked)
