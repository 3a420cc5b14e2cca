"""The LSTM classifier, which removes words before its recurrence starts.

At evaluation the words that go are never embedded; the student reads a table of words (`StudentPruner.fold`)
instead of multiplying embeddings, and on the CPU a few steps are taken one by one, because PyTorch's fused
LSTM spends longer than that on putting its weights in order. All three give the same results to rounding.

Shapes: B examples, T words of the longest, T' words that stay, E units of the embedding, H of the LSTM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pruning import methods, selection
from pruning.losses import task_loss
from pruning.pruners import PrunerConfig, StudentPruner
from pruning.selection import Tokens

EMBEDDING = 300
HIDDEN = 300
INNER = 256
DROPOUT = 0.3
EMBEDDING_SPREAD = 0.3  # standard deviation of fresh embeddings
MEMORY = 40  # words that a fresh LSTM remembers at most: AG News' mean length
STUDENT_WIDTH = 32
STUDENT_CONTEXT = 3  # the word and its two neighbours
FEW_STEPS = 6  # up to which the fused LSTM is the slower one on a CPU


@dataclass
class LstmOutput:
    """What the classifier returns. Without a pruner there is no `kept`, without a training student no loss of
    its own."""

    logits: Tensor  # (B, C)
    loss: Tensor | None  # scalar
    kept: tuple[Tensor, ...] | None  # (B, T') int64, positions of the words that each LSTM read, -1: fewer
    pruning_loss: Tensor | None  # scalar, the student's mean ranking loss


class DerivedTensors:
    """What evaluation computes from weights once, and again when one of them has changed."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[tuple[int, int]], Tensor, list[Tensor]]] = {}

    def __reduce__(self) -> tuple:
        return DerivedTensors, ()  # a copy, or a model loaded, has weights of its own

    def get(self, name: str, compute: Callable[[], Tensor], *weights: Tensor) -> Tensor:
        """What `compute` makes of `weights`. (A change that PyTorch does not count, through `.data` or by a
        fused optimizer, is noticed after `clear` only.)"""
        if any(weight.is_inference() for weight in weights):  # nothing tells when these change
            return compute()
        now = [(weight.data_ptr(), weight._version) for weight in weights]
        if name not in self._kept or self._kept[name][0] != now:
            held = [weight.detach() for weight in weights]  # so that no other tensor gets their address
            self._kept[name] = (now, compute(), held)
        return self._kept[name][1]

    def clear(self) -> None:
        self._kept.clear()


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
    ):
        """Raises ValueError for a rate outside [0, 1] or an unknown method."""
        super().__init__()
        selection.check_rate(rate)
        of_pruning = {"method": method, "rate": rate, "seed": seed}
        self.config = {"vocab_size": vocab_size, "outputs": outputs, "pair": pair, **of_pruning}
        self.rate = rate if method else 0.0
        self.training_rate: float | None = None
        self.packed = False  # for the clock: whether the LSTM is handed packed sequences, with equal results
        self.fast = True  # for the clock: whether evaluation uses the table and the single steps
        self._derived = DerivedTensors()
        self.embedding = nn.Embedding(vocab_size, EMBEDDING, padding_idx=0)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.inner = nn.Linear(HIDDEN * (4 if pair else 1), INNER)
        self.classifier = nn.Linear(INNER, outputs)
        self.pruner = None
        if method and self.rate > 0:
            config = PrunerConfig(0, EMBEDDING, vocab_size, seed, STUDENT_WIDTH, STUDENT_CONTEXT)
            self.pruner = methods.build_pruner(method, methods.LSTM_METHODS, config)
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
        vectors, tokens, losses = zip(*sentences, strict=True)
        logits = self.classify(vectors)
        ranking = [loss for loss in losses if loss is not None]
        return LstmOutput(
            logits,
            None if labels is None else task_loss(logits, labels),
            tuple(part.kept_positions() for part in tokens) if self.pruner is not None else None,
            torch.stack(ranking).mean() if ranking else None,
        )

    def classify(self, vectors: Sequence[Tensor]) -> Tensor:
        """Logits (B, C) of one sentence or two, each (B, H)."""
        features, *second = vectors
        for v in second:
            features = torch.cat([features, v, (features - v).abs(), features * v], dim=1)
        inner = torch.relu(self.inner(self.dropout(features)))
        return self.classifier(self.dropout(inner))

    def _read(
        self, ids: Tensor, mask: Tensor, teacher_scores: Tensor | None
    ) -> tuple[Tensor, Tokens, Tensor | None]:
        """A sentence as a vector (B, H), the words that stay, and the loss of a student in training."""
        if torch.is_grad_enabled():
            self._derived.clear()  # an optimizer may be about to change weights
        fast = self.fast and not self.training and not torch.is_grad_enabled()
        is_student = isinstance(self.pruner, StudentPruner)
        needs_states = self.pruner is None or (is_student and not fast)
        tokens = Tokens.start(self.dropout(self.embedding(ids)) if needs_states else None, mask, ids)
        loss = None
        if not any(tokens.lengths):
            return self.inner.weight.new_zeros(len(ids), HIDDEN), tokens, None
        if self.pruner is not None:
            drawn = self.training_rate if self.training else None
            rate = self.rate if drawn is None else drawn
            if is_student and fast:
                scores = self._score_from_table(tokens)
                tokens = tokens.keep(scores, self.pruner.kept_lengths(scores, tokens, rate), keep_first=False)
            else:
                tokens, loss = methods.prune(
                    self.pruner, tokens, rate, keep_first=False, teacher_scores=teacher_scores
                )
        if tokens.states is None:
            tokens.states = self.dropout(self.embedding(tokens.ids))
        if self.pruner and fast and tokens.states.shape[1] <= FEW_STEPS and ids.device.type == "cpu":
            return encode_step_by_step(self.lstm, self._derived, tokens.states, tokens.lengths), tokens, loss
        return self.encode(tokens.states, None if tokens.is_full else tokens.mask), tokens, loss

    def _score_from_table(self, tokens: Tokens) -> Tensor:
        """The student's scores (B, T), from its first product for every word of the vocabulary."""
        student: Any = self.pruner
        assert tokens.ids is not None
        weights = (self.embedding.weight, student.inner.weight, student.inner.bias)
        words = tokens.ids if tokens.is_full else tokens.ids.masked_fill(~tokens.mask, 0)
        with torch.autocast(words.device.type, enabled=False):  # a table is read, not multiplied
            table = self._derived.get("words", lambda: student.fold(self.embedding.weight), *weights)
            return student.score_words(words, table)

    def encode(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """The maximum over time (B, H) of the LSTM's states. states: (B, T, E); mask: (B, T) bool, True at
        words, None where there is no padding."""
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


@torch.autocast("cpu", enabled=False)
def encode_step_by_step(lstm: nn.LSTM, derived: DerivedTensors, states: Tensor, lengths: list[int]) -> Tensor:
    """What `PrunedLstmClassifier.encode` gives, by the LSTM's equations, for a few steps at evaluation.

    Every step computes the sentences that have a word left, and nothing else. states: (B, T, E).
    """
    from_word, from_state, word_bias, state_bias = lstm.all_weights[0]
    rows, steps, _ = states.shape
    # MKL multiplies a few rows several times faster by a transposed copy, and one row by the original.
    by_word = derived.get("by word", lambda: from_word.t().contiguous(), from_word)
    by_state = derived.get("by state", lambda: from_state.t().contiguous(), from_state)
    by_state = by_state if rows > 1 else from_state.t()
    order = sorted(range(rows), key=lambda row: -lengths[row])
    is_sorted = order == list(range(rows))
    if not is_sorted:
        states = states[torch.tensor(order)]
    words = torch.addmm(word_bias + state_bias, states.transpose(0, 1).flatten(0, 1), by_word)
    most = words.new_zeros(rows, HIDDEN)
    cell = hidden = most
    for step, gates in enumerate(words.view(steps, rows, -1)):  # (B, 4H): input, forget, cell, output
        reading = sum(length > step for length in lengths)
        gates = gates[:reading]
        if step:
            gates.addmm_(hidden[:reading], by_state)
        entry, keep, _, output = gates.sigmoid().chunk(4, dim=1)
        proposed = gates[:, 2 * HIDDEN : 3 * HIDDEN].tanh().mul_(entry)
        cell = proposed.addcmul_(keep, cell[:reading]) if step else proposed
        hidden = cell.tanh().mul_(output)
        most[:reading] = torch.maximum(most[:reading], hidden) if step else hidden
    return most if is_sorted else most[torch.tensor(order).argsort()]
