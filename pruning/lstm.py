"""The LSTM classifier, which removes words before its recurrence starts.

At evaluation the words that go are never embedded; the student reads a table of words (`StudentPruner.fold`)
instead of multiplying embeddings, and on the CPU a few steps are taken one by one, because PyTorch's fused
LSTM spends longer than that on putting its weights in order. All three give the same results to rounding.

Shapes: B examples, T words of the longest, T' words that stay, E units of the embedding, H of the LSTM.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from pruning import pruners, selection, timing
from pruning.metrics import task_loss
from pruning.pruners import FrequencyPruner, StudentPruner, Tokens

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
    """What the classifier returns.

    Attributes:
        logits: (B, C).
        loss: scalar, where labels were given.
        kept: for each sentence (B, T') int64, the places of the words that the LSTM read, -1 where an
            example has fewer; None without a pruner.
        pruning_loss: scalar, the mean ranking loss of the student; None unless it is training.
    """

    logits: Tensor
    loss: Tensor | None
    kept: tuple[Tensor, ...] | None
    pruning_loss: Tensor | None


class PrunedLstmClassifier(nn.Module):
    """Embedding 300, LSTM 300, hidden layer 256. Of a pair, each sentence is pruned by itself.

    A sentence u is the maximum over time of the LSTM's states (as in Conneau et al., EMNLP 2017): the last
    state alone took several times as many steps to learn anything. A pair is [u, v, |u - v|, u · v], one
    LSTM reading both.

    Attributes:
        packed: whether the LSTM is handed packed sequences or padded ones; results are equal, which is
            faster depends on the device (see `pick_packing`).
        fast: whether evaluation uses the table and the single steps; for measuring them.
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
        self.rate = rate if method else 0.0
        self.training_rate: float | None = None
        self.packed = False
        self.fast = True
        self._derived: dict[str, tuple[list[tuple[int, int]], Tensor]] = {}
        self.embedding = nn.Embedding(vocab_size, EMBEDDING, padding_idx=0)
        self.lstm = nn.LSTM(EMBEDDING, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(DROPOUT)
        self.inner = nn.Linear(HIDDEN * (4 if pair else 1), INNER)
        self.classifier = nn.Linear(INNER, outputs)
        self.pruner = (
            pruners.build_pruner(
                method,
                layer=0,
                hidden_size=EMBEDDING,
                vocab_size=vocab_size,
                seed=seed,
                student_width=STUDENT_WIDTH,
                student_context=STUDENT_CONTEXT,
            )
            if method and self.rate > 0
            else None
        )
        self._initialize()

    @torch.no_grad()
    def _initialize(self) -> None:
        """Smaller embeddings, and gates that remember: with PyTorch's own start the last state knows
        only the last few words, and the loss does not move for hundreds of steps.

        Biases by the chrono initialization (Tallec & Ollivier, ICLR 2018): log of U(1, MEMORY - 1) for
        the forget gate, and its negative for the input gate.
        """
        self.embedding.weight.normal_(std=EMBEDDING_SPREAD)
        self.embedding.weight[0] = 0
        _, _, word_bias, state_bias = self.lstm.all_weights[0]
        word_bias.zero_()
        state_bias.zero_()
        memory = torch.empty(HIDDEN).uniform_(1, MEMORY - 1).log()
        state_bias[:HIDDEN] = -memory  # the gates in order: input, forget, cell, output
        state_bias[HIDDEN : 2 * HIDDEN] = memory

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        second_ids: Tensor | None = None,
        second_mask: Tensor | None = None,
        labels: Tensor | None = None,
        teacher_scores: dict[str, Tensor] | None = None,
    ) -> LstmOutput:
        """
        Args:
            ids, second_ids: (B, T) words of the first and, for pairs, of the second sentence.
            mask, second_mask: (B, T) bool, True at words; padding on the right.
            labels: (B,) class or score.
            teacher_scores: "first", "second" → (B, T).
        """
        scores = teacher_scores or {}
        u, kept, losses = self._read(ids, mask, scores.get("first"))
        features = u
        if second_ids is not None and second_mask is not None:
            v, second_kept, second_losses = self._read(second_ids, second_mask, scores.get("second"))
            features = torch.cat([u, v, (u - v).abs(), u * v], dim=1)
            kept, losses = kept + second_kept, losses + second_losses
        inner = torch.relu(self.inner(self.dropout(features)))
        logits = self.classifier(self.dropout(inner))
        return LstmOutput(
            logits,
            None if labels is None else task_loss(logits, labels),
            kept if self.pruner is not None else None,
            torch.stack(losses).mean() if losses else None,
        )

    def _read(
        self, ids: Tensor, mask: Tensor, teacher_scores: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...], list[Tensor]]:
        """The words that stay as a vector (B, H), their places, and the student's loss if any."""
        if self.pruner is None:
            return self.encode(self.dropout(self.embedding(ids)), mask), (), []
        student = self.pruner if isinstance(self.pruner, StudentPruner) else None
        fast = self._may_be_fast()
        states = None if student is None or fast else self.dropout(self.embedding(ids))
        tokens = Tokens.start(states, mask, ids)
        loss = None
        if student is not None and fast:
            words = ids if tokens.is_full else ids.masked_fill(~mask, 0)
            with torch.autocast(ids.device.type, enabled=False):  # a table is read, not multiplied
                scores = student.score_words(words, self._word_table(student))
        else:
            scores, loss = pruners.score_tokens(self.pruner, tokens, teacher_scores, keep_first=False)
        now = self.training_rate if self.training else None
        tokens = tokens.keep(scores, self.rate if now is None else now, keep_first=False)
        if tokens.states is None:
            tokens.states = self.dropout(self.embedding(tokens.ids))
        places = tokens.places.masked_fill(~tokens.mask, -1)
        if tokens.states.shape[1] <= FEW_STEPS and ids.device.type == "cpu" and fast:
            encoded = self._encode_step_by_step(tokens.states, tokens.lengths)
        else:
            encoded = self.encode(tokens.states, None if tokens.is_full else tokens.mask)
        return encoded, (places,), [] if loss is None else [loss]

    def encode(self, states: Tensor, mask: Tensor | None) -> Tensor:
        """The maximum over time (B, H) of the LSTM's states.

        Args:
            states: (B, T, E).
            mask: (B, T) bool, True at words; None where there is no padding.
        """
        if self.packed and mask is not None:
            lengths = mask.sum(dim=1).cpu()
            packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1]
            )
        else:
            outputs, _ = self.lstm(states)  # (B, T, H)
        if mask is not None:
            outputs = outputs.masked_fill(~mask[..., None], -torch.inf)
        return outputs.amax(dim=1)

    @torch.autocast("cpu", enabled=False)
    def _encode_step_by_step(self, states: Tensor, lengths: list[int]) -> Tensor:
        """What `encode` gives, by the LSTM's equations, for a few steps at evaluation.

        Every step computes the sentences that have a word left, and nothing else.
        """
        from_word, from_state, word_bias, state_bias = self.lstm.all_weights[0]
        rows, steps, _ = states.shape
        # MKL multiplies a few rows several times faster by a transposed copy, and one row by the original.
        by_word = self._derive("by word", lambda: from_word.t().contiguous(), from_word)
        by_state = self._derive("by state", lambda: from_state.t().contiguous(), from_state)
        by_state = by_state if rows > 1 else from_state.t()
        order = sorted(range(rows), key=lambda row: -lengths[row])
        is_sorted = order == list(range(rows))
        if not is_sorted:
            states = states[torch.tensor(order)]
        words = torch.addmm(word_bias + state_bias, states.transpose(0, 1).flatten(0, 1), by_word)
        most = cell = hidden = torch.zeros(())
        for step, gates in enumerate(words.view(steps, rows, -1)):  # (B, 4H): input, forget, cell, output
            reading = sum(length > step for length in lengths)
            gates = gates[:reading]
            if step:
                gates.addmm_(hidden[:reading], by_state)
            entry, keep, _, output = gates.sigmoid().chunk(4, dim=1)
            proposed = gates[:, 2 * HIDDEN : 3 * HIDDEN].tanh().mul_(entry)
            cell = proposed.addcmul_(keep, cell[:reading]) if step else proposed
            hidden = cell.tanh().mul_(output)
            if step:
                torch.maximum(most[:reading], hidden, out=most[:reading])
            else:
                most = hidden.clone()
        return most if is_sorted else most[torch.tensor(order).argsort()]

    def _word_table(self, student: StudentPruner) -> Tensor:
        """The student's first product for every word of the vocabulary."""
        weights = (self.embedding.weight, student.inner.weight, student.inner.bias)
        return self._derive("words", lambda: student.fold(self.embedding.weight), *weights)

    def _may_be_fast(self) -> bool:
        return self.fast and not self.training and not torch.is_grad_enabled()

    def _derive(self, name: str, compute: Callable[[], Tensor], *weights: Tensor) -> Tensor:
        """What `compute` makes of `weights`, kept until one of them changes or `train`, `eval` is called.

        (A change through `.data` without a call of `eval()` afterwards is not noticed.)
        """
        now = [(weight.data_ptr(), weight._version) for weight in weights]
        if name not in self._derived or self._derived[name][0] != now:
            self._derived[name] = (now, compute())
        return self._derived[name][1]

    def train(self, mode: bool = True) -> "PrunedLstmClassifier":
        self._derived.clear()
        return super().train(mode)

    def input_gates(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The mean activation of the input gate at each word (B, T), 0 at padding: the `lstm` teacher.

        i_t = sigmoid(W_ii x_t + b_ii + W_hi h_{t-1} + b_hi), averaged over the H units ("Sequence
        Pruning", 2020). The states come from the fused LSTM, the gates of all words from one product.
        """
        states = self.embedding(ids)
        outputs, _ = self.lstm(states)
        before = nn.functional.pad(outputs, (0, 0, 1, 0))[:, :-1]  # (B, T, H), h_{t-1}
        weights = (w[:HIDDEN] for w in self.lstm.all_weights[0])  # the gates: input, forget, cell, output
        from_word, from_state, word_bias, state_bias = weights
        gates = torch.sigmoid(
            nn.functional.linear(states, from_word, word_bias)
            + nn.functional.linear(before, from_state, state_bias)
        )
        return gates.mean(dim=2) * mask

    @property
    def schedule(self) -> list[float]:
        """The rate, as the one layer's schedule."""
        return [self.rate]

    def set_training_rates(self, rates: Sequence[float] | None) -> None:
        """The rate of training steps from here on; None: the model's own. Evaluation keeps to that."""
        self.training_rate = None if rates is None else rates[0]

    def set_frequencies(self, counts: Tensor) -> None:
        """Tells the `frequency` pruner how often each word (V,) stands in the training text."""
        if isinstance(self.pruner, FrequencyPruner):
            self.pruner.counts.copy_(counts)

    def flops(self, mask: Tensor) -> int:
        """FLOPs of the recurrence and the student on one batch of sentences as executed at evaluation,
        padding included. mask: (B, T)."""
        rows, width = mask.shape
        if self.pruner is None:
            return rows * timing.lstm_flops(EMBEDDING, HIDDEN, width)
        steps = selection.count_kept(int(mask.sum(dim=1).max()), self.rate)
        student = self.pruner.flops(folded=self.fast) if isinstance(self.pruner, StudentPruner) else 0
        return rows * (timing.lstm_flops(EMBEDDING, HIDDEN, steps) + student * width)


@torch.no_grad()
def pick_packing(model: PrunedLstmClassifier, ids: Tensor, mask: Tensor) -> bool:
    """Sets `packed` to what is faster here for a batch like this one: the best of three calls each."""
    states = model.embedding(ids)
    seconds = {}
    for packed in (False, True):
        model.packed = packed
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model.encode(states, mask).sum().item()  # .item() waits for the device
            times.append(time.perf_counter() - start)
        seconds[packed] = min(times[1:])
    model.packed = seconds[True] < seconds[False]
    return model.packed
