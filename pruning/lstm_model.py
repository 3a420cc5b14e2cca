"""The LSTM classifier, which removes words before its recurrence starts.

Words that go may leave something behind: the mean of their embeddings, through a matrix, joins the sentence.

Evaluation goes another way, with the same results to rounding: see `lstm_fast`.

Shapes: B examples, T words of the longest, T' words that stay, E units of the embedding, H of the LSTM.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pruning import methods, selection
from pruning.losses import task_loss
from pruning.lstm_fast import read_fast
from pruning.pruners import PrunerConfig
from pruning.recurrence import DerivedTensors, Recurrence
from pruning.selection import TokenFusion, Tokens
from pruning.student import StudentPruner

EMBEDDING = 300
HIDDEN = 300
INNER = 256
DROPOUT = 0.3
EMBEDDING_SPREAD = 0.3  # standard deviation of fresh embeddings
MEMORY = 40  # words that a fresh LSTM remembers at most: AG News' mean length
STUDENT_WIDTH = 32
STUDENT_CONTEXT = 3  # the word and its two neighbours


@dataclass
class LstmOutput:
    """What the classifier returns. Without a pruner there is no `kept`, without a training student no loss of
    its own."""

    logits: Tensor  # (B, C)
    loss: Tensor | None  # scalar
    kept: tuple[Tensor, ...] | None  # (B, T') int64, positions of the words that each LSTM read, -1: fewer
    pruning_loss: Tensor | None  # scalar, the student's mean ranking loss


class PrunedLstmClassifier(nn.Module):
    """Embedding 300, LSTM 300, hidden layer 256. Of a pair, each sentence is pruned by itself.

    A sentence u is the maximum over time of the LSTM's states (as in Conneau et al., EMNLP 2017): the last
    state alone took several times as many steps to learn anything. A sentence without a word is 0. A pair is
    [u, v, |u - v|, u · v], one LSTM reading both.
    """

    def __init__(
        self,
        vocab_size: int,
        outputs: int,
        *,
        pair: bool,
        method: str | None = None,
        rate: float = 0.0,
        seed: int = 0,
        removed_tokens: str = "gone",
    ):
        """removed_tokens: "fused" or "gone". Raises ValueError for anything else, a rate outside [0, 1] or an
        unknown method."""
        super().__init__()
        selection.check_rate(rate)
        if removed_tokens not in ("fused", "gone"):
            raise ValueError(f"removed_tokens of an LSTM is 'fused' or 'gone', not {removed_tokens!r}")
        of_pruning = {"method": method, "rate": rate, "seed": seed, "removed_tokens": removed_tokens}
        self.config = {"vocab_size": vocab_size, "outputs": outputs, "pair": pair, **of_pruning}
        self.rate = rate if method else 0.0
        self.training_rate: float | None = None
        self.packed = False  # for the clock: whether the LSTM is handed packed sequences, with equal results
        self.fast = True  # for the clock: whether evaluation uses tables and single steps
        self.tabled = True  # whether there are words enough to read to pay for tables of the vocabulary
        self._derived = DerivedTensors()
        self.embedding = nn.Embedding(vocab_size, EMBEDDING, padding_idx=0)
        self.lstm = Recurrence(EMBEDDING, HIDDEN)
        self.dropout = nn.Dropout(DROPOUT)
        self.inner = nn.Linear(HIDDEN * (4 if pair else 1), INNER)
        self.classifier = nn.Linear(INNER, outputs)
        self.pruner = self.fusion = None
        if method and self.rate > 0:
            config = PrunerConfig(0, EMBEDDING, vocab_size, seed, STUDENT_WIDTH, STUDENT_CONTEXT)
            methods.check_method(method, methods.LSTM_METHODS)
            self.pruner = methods.LSTM_METHODS[method](config)
            self.fusion = TokenFusion(HIDDEN) if removed_tokens == "fused" else None
        initialize(self)

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        second_ids: Tensor | None = None,
        second_mask: Tensor | None = None,
        labels: Tensor | None = None,
        teacher_scores: dict[str, Tensor] | None = None,
    ) -> LstmOutput:
        """ids, second_ids (B, T): words of the first and, for pairs, the second sentence; masks (B, T) bool;
        padding on the right; labels (B,); teacher_scores: "first", "second" → (B, T)."""
        scores = teacher_scores or {}
        sentences = [self._read(ids, mask, scores.get("first"))]
        if second_ids is not None and second_mask is not None:
            sentences.append(self._read(second_ids, second_mask, scores.get("second")))
        vectors, kept, losses = zip(*sentences, strict=True)
        logits = self.classify(vectors)
        ranking = [loss for loss in losses if loss is not None]
        return LstmOutput(
            logits,
            None if labels is None else task_loss(logits, labels),
            kept if self.pruner is not None else None,
            torch.stack(ranking).mean() if ranking else None,
        )

    def classify(self, vectors: Sequence[Tensor]) -> Tensor:
        """Logits (B, C) of one sentence or two, each (B, H)."""
        features, *second = vectors
        for v in second:
            features = torch.cat([features, v, (features - v).abs(), features * v], dim=1)
        inner = torch.relu(self.inner(self.dropout(features) if self.training else features))
        return self.classifier(self.dropout(inner) if self.training else inner)

    @property
    def reads_tables(self) -> bool:
        """Whether single steps take their gates from tables of words."""
        may = self.fast and self.tabled and not self.packed
        return may and self.lstm.may_table(self.embedding.weight)

    def _read(
        self, ids: Tensor, mask: Tensor, teacher_scores: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """A sentence as (B, H), the positions (B, T') of words that stay (-1: fewer), a student's loss."""
        may_be_fast = self.fast and not self.training and teacher_scores is None
        if torch.is_grad_enabled():  # an optimizer may be about to change weights
            self._derived.clear()
            self.lstm.derived.clear()
        elif may_be_fast and DerivedTensors.may_hold(self.embedding.weight, *self.lstm.weights):
            return *read_fast(self, ids, mask), None
        needs_states = self.pruner is None or self.fusion or isinstance(self.pruner, StudentPruner)
        tokens = Tokens.start(self.dropout(self.embedding(ids)) if needs_states else None, mask, ids)
        embedded, loss = tokens.states, None
        if not any(tokens.lengths):
            return self.embedding.weight.new_zeros(len(ids), HIDDEN), tokens.kept_positions(), None
        if self.pruner is not None:
            rate = self.training_rate if self.training and self.training_rate is not None else self.rate
            tokens, loss = methods.prune(self.pruner, tokens, rate, teacher_scores=teacher_scores)
        if tokens.states is None:
            tokens.states = self.dropout(self.embedding(tokens.ids))
        vector = self.encode(tokens.states, None if tokens.is_full else tokens.mask)
        if self.fusion is not None:
            vector = vector + self.fusion(embedded, selection.removed(mask, tokens.positions, tokens.mask))
        return vector, tokens.kept_positions(), loss

    def encode(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """The maximum over time (B, H) of the LSTM's states. states: (B, T, E); mask: (B, T) bool, True at
        words, None where there is no padding."""
        with not_in_fp16(states.device):
            if self.packed and mask is not None:
                lengths = mask.sum(dim=1).cpu().clamp(min=1)
                packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
                read, _ = self.lstm(packed)
                outputs, _ = pad_packed_sequence(read, batch_first=True, total_length=mask.shape[1])
            else:
                outputs, _ = self.lstm(states)  # (B, T, H)
        return outputs.amax(dim=1) if mask is None else maximum_over_time(outputs, mask)

    def train(self, mode: bool = True) -> "PrunedLstmClassifier":
        self._derived.clear()  # a change through `.data` is not noticed otherwise
        return super().train(mode)

    @property
    def schedule(self) -> list[float]:
        """The rate, as the one layer's schedule."""
        return [self.rate]

    def set_training_rates(self, rates: Sequence[float] | None) -> None:
        """The rate of training steps from here on; None: the model's own. Evaluation keeps to that."""
        self.training_rate = None if rates is None else rates[0]


def not_in_fp16(device: torch.device) -> AbstractContextManager:
    """cuDNN's LSTM under autocast computes in fp16 where bf16 was asked for, and nothing scales its
    gradients: there it computes in fp32."""
    if device.type != "cuda" or torch.get_autocast_dtype("cuda") == torch.float16:
        return nullcontext()
    return torch.autocast("cuda", enabled=False)


def maximum_over_time(outputs: Tensor, mask: Tensor) -> Tensor:
    """(B, H) the maximum of the states (B, T, H) at the words of `mask` (B, T), 0 where there is no word."""
    most = outputs.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)
    return most.masked_fill(~mask.any(dim=1, keepdim=True), 0)


@torch.no_grad()
def initialize(model: "PrunedLstmClassifier") -> None:
    """Smaller embeddings, and gates that remember: with PyTorch's own start the last state knows
    only the last few words, and the loss does not move for hundreds of steps.

    Biases by the chrono initialization (Tallec & Ollivier, ICLR 2018): log of U(1, MEMORY - 1) for
    the forget gate, and its negative for the input gate.
    """
    model.embedding.weight.normal_(std=EMBEDDING_SPREAD)
    model.embedding.weight[0] = 0
    _, _, word_bias, state_bias = model.lstm.all_weights[0]
    word_bias.zero_()
    state_bias.zero_()
    memory = torch.empty(HIDDEN).uniform_(1, MEMORY - 1).log()
    state_bias[:HIDDEN] = -memory  # the gates in order: input, forget, cell, output
    state_bias[HIDDEN : 2 * HIDDEN] = memory
