"""The student: a small network that scores tokens, trained to rank them as a teacher does.

Shapes: B examples, T positions, H units, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pruning.losses import ranking_loss
from pruning.pruners import Pruner, PrunerConfig
from pruning.selection import Tokens

# Up to so many words a student does without `embedding_bag` and oneDNN's GELU, whose calls take longer (AMD
# EPYC, two threads, with them and without: 37 words 139 and 74 µs, 2,368 words 245 and 197, 9,472 words 417
# and 569).
FEW_WORDS = 4_000


class StudentPruner(Pruner):
    """Scores each token from the state that the layer is about to read, and the states beside it.

    A convolution of width `context` (1: the token alone), GELU, one output. In a BERT layer the states have
    seen the sentence already; in front of an LSTM the neighbours are all the context there is. Padding is
    zeroed first, so that it looks like the end of the sentence.

    It learns from a copy of the states that no gradient flows back through: its ranking loss trains the
    student alone, the task the model (gradients of both are clipped by one norm). Where states are
    embeddings, `fold` does the first product once for each word."""

    def __init__(self, config: PrunerConfig):
        super().__init__(config)
        self.context = config.student_context
        self.needs_grid = self.context > 1
        self.inner = nn.Linear(config.hidden_size * self.context, config.student_width)
        self.outer = nn.Linear(config.student_width, 1)

    def score(self, tokens: Tokens, layer: Any = None, teacher_scores: Tensor | None = None) -> Tensor:
        assert tokens.states is not None
        dtype = getattr(self.inner.weight, "dtype", None)  # of int8 the weight may be a method
        states = tokens.states.detach()  # in fp32 also in a model of bf16
        states = states.to(dtype if dtype and dtype.is_floating_point else torch.float32)
        if self.context > 1:
            reach = self.context // 2
            states = nn.functional.pad(states * tokens.mask[..., None], (0, 0, reach, reach))
            states = states.unfold(1, self.context, 1).flatten(2)  # (B, T, H · context)
        return self.score_inner(self.inner(states))

    def loss(self, scores: Tensor, teacher_scores: Tensor, ranked: Tensor) -> Tensor | None:
        return ranking_loss(scores, teacher_scores, ranked)

    @property
    def may_fold(self) -> bool:
        """Whether the inner layer is a plain one: a quantizer may have replaced it."""
        return type(self.inner) is nn.Linear and type(self.inner.weight) is nn.Parameter

    def fold(self, embeddings: Tensor) -> Tensor:
        """(V, context, width) what each word adds to the inner layer of tokens around it, bias included at
        its own place. embeddings: (V, H), 0 for the padding word 0."""
        weight = self.inner.weight.unflatten(1, (embeddings.shape[1], self.context))  # (width, H, context)
        table = torch.einsum("vh,whc->vcw", embeddings.to(weight.dtype), weight)
        table[:, self.context // 2] += self.inner.bias
        return table

    def score_words(self, ids: Tensor, table: Tensor) -> Tensor:
        """As `score`, from ids (B, T), 0 at padding, and a table made by `fold`."""
        if ids.numel() > FEW_WORDS:
            words, flat = self.words_around(ids).flatten(0, 1), table.flatten(0, 1)
            return self.score_inner(nn.functional.embedding_bag(words, flat, mode="sum")).view(ids.shape)
        reach, width = self.context // 2, ids.shape[1]
        rows = nn.functional.embedding(nn.functional.pad(ids, (reach, reach)), table.flatten(1))
        rows = rows.unflatten(2, table.shape[1:])  # (B, T + 2 · reach, context, width of the inner layer)
        inner, *others = (rows[:, place : place + width, place] for place in range(self.context))
        for other in others:
            inner.add_(other)  # in place: for GELU of contiguous tensors only PyTorch calls oneDNN
        return self.score_inner(inner)

    def words_around(self, ids: Tensor) -> Tensor:
        """(B, T, context) rows of a table made by `fold`, flat: their sum is a token's inner layer."""
        around = nn.functional.pad(ids, (self.context // 2, self.context // 2)).unfold(1, self.context, 1)
        return around * self.context + torch.arange(self.context, device=ids.device)

    def score_inner(self, inner: Tensor) -> Tensor:
        """Scores (…) from the inner layer (…, width) before its GELU."""
        return self.outer(nn.functional.gelu(inner)).squeeze(-1)

    def flops(self, rows: int, width: int) -> int:
        return rows * width * 2 * (self.inner.weight.numel() + self.outer.weight.numel())

    def table_flops(self, tokens: int) -> int:
        return tokens * (self.context * self.inner.out_features + 2 * self.outer.weight.numel())
