"""The LSTM classifier, which removes words before its recurrence starts.

Shapes: B examples, T words of the longest, T' words that stay, E units of the embedding, H of the LSTM.
"""

import time
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
        self.rate_share = 1.0
        self.packed = False
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
        states = self.dropout(self.embedding(ids))
        if self.pruner is None:
            return self.encode(states, mask), (), []
        tokens = Tokens.start(states, mask, ids)
        scores, loss = pruners.score_tokens(self.pruner, tokens, teacher_scores, keep_first=False)
        share = self.rate_share if self.training else 1.0
        tokens = tokens.keep(scores, self.rate * share, keep_first=False)
        places = tokens.places.masked_fill(~tokens.mask, -1)
        encoded = self.encode(tokens.states, tokens.mask)
        return encoded, (places,), [] if loss is None else [loss]

    def encode(self, states: Tensor, mask: Tensor) -> Tensor:
        """The maximum over time (B, H) of the LSTM's states; states (B, T, E), mask (B, T)."""
        if self.packed:
            lengths = mask.sum(dim=1).cpu()
            packed = pack_padded_sequence(states, lengths, batch_first=True, enforce_sorted=False)
            outputs, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1]
            )
        else:
            outputs, _ = self.lstm(states)  # (B, T, H)
        return outputs.masked_fill(~mask[..., None], -torch.inf).amax(dim=1)

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

    def set_rate_share(self, share: float) -> None:
        """In training, words are pruned at `share` (0 to 1) of the rate. Evaluation: always 1."""
        self.rate_share = share

    def set_frequencies(self, counts: Tensor) -> None:
        """Tells the `frequency` pruner how often each word (V,) stands in the training text."""
        if isinstance(self.pruner, FrequencyPruner):
            self.pruner.counts.copy_(counts)

    def flops(self, words: int, kept: int) -> int:
        """One sentence of `words` words of which `kept` are read; a pair's hidden layer is left out."""
        student = self.pruner.flops() if isinstance(self.pruner, StudentPruner) else 0
        return timing.lstm_flops(EMBEDDING, HIDDEN, kept) + student * words


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
