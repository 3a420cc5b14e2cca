"""Our classifiers as graphs for other runtimes, batch and length left free: what `export` traces.

Padding stays, on the right, and no size depends on the data: a longer example never keeps fewer tokens, so a
batch padded to T is cut to the number that stays of T tokens. All later layers work on the shorter tensors.
The rest is the PyTorch model's own code.

Shapes: B examples, T positions, K positions kept, H units.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from ModifiedModelingBert import PrunedBertForSequenceClassification
from pruning import selection
from pruning.layers import FastPaths, run_flat
from pruning.lstm_model import PrunedLstmClassifier, maximum_over_time
from pruning.selection import TokenFusion, Tokens, gather
from pruning.student import StudentPruner
from pruning.tokens import Unpadding

TYPICAL_LENGTH = 128  # tokens of a sentence, for what has to be decided once for all lengths
EXAMPLE = (3, 37)  # B and T that a graph is traced with; neither stays
PATHS = FastPaths(fused_product=False)  # oneDNN's operators are PyTorch's own


class Graph(nn.Module):
    """What both kinds share. Each has `example`, inputs to trace it with.

    Attributes:
        inputs, outputs: their names.
        pruned: the layers before which tokens are removed; of an LSTM the sentences, by number.
        keep_first: whether the first token stays whatever its score.
        margins: a list to fill with how far apart the two scores at each cut are, for one example alone.
    """

    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    pruned: Sequence[int]
    keep_first: bool
    margins: list[float] | None = None

    def prune(self, tokens: Tokens, scores: Tensor, rate: float, fusion: TokenFusion | None = None) -> Tokens:
        """The tokens that stay, as `Tokens.keep` has them, with sizes left free."""
        length, width = tokens.mask.sum(dim=1), tokens.mask.shape[1]
        kept = (length - selection.count_removed(length, rate)).clamp(min=1).minimum(length)
        all_go = selection.count_removed(1, rate) == 1  # but for the one that always stays
        width = 1 if all_go else width - selection.count_removed(width, rate)
        if self.margins is not None:
            ranked = scores[0, int(self.keep_first) :].sort(descending=True).values
            stay = width - int(self.keep_first)
            self.margins += (ranked[:-1] - ranked[1:])[stay - 1 : stay].tolist() if stay else []
        return tokens.take(*selection.choose(scores, tokens.mask, kept, width, self.keep_first), [], fusion)


def _start(states: Tensor | None, mask: Tensor, ids: Tensor) -> Tokens:
    """As Tokens.start, but no length is known to the host."""
    return Tokens(states, mask, selection.positions_of(mask), ids, None, [])


class BertGraph(Graph):
    """A pruned BERT."""

    keep_first = True
    inputs = ("input_ids", "attention_mask", "token_type_ids")

    def __init__(self, model: PrunedBertForSequenceClassification):
        super().__init__()
        self.model = model
        self.pruned = [layer for layer, rate in enumerate(model.schedule) if rate > 0]
        self.outputs = ("logits", *(f"kept_{layer}" for layer in self.pruned))

    def example(self) -> tuple[Tensor, ...]:
        return tuple(torch.ones(EXAMPLE, dtype=torch.int64) for _ in self.inputs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor
    ) -> tuple[Tensor, ...]:
        bert, mask = self.model.bert, attention_mask.bool()
        encoder, kept, typical = bert.encoder, [], TYPICAL_LENGTH
        read = tokens = _start(bert.embeddings(input_ids, token_type_ids), mask, input_ids)
        for start, end in encoder.segments():
            if start in self.pruned:
                rate = encoder.schedule[start]
                tokens = self._prune(start, tokens, rate)
                read = read if self.model.config.removed_tokens == "readable" else tokens
                typical = selection.count_kept(typical, rate)
                kept.append(tokens.kept_positions())
            read, tokens = _run(encoder.layer[start:end], read, tokens, typical, end == len(encoder.layer))
        return self.model.classifier(bert.pooler(tokens.states)), *kept

    def _prune(self, layer: int, tokens: Tokens, rate: float) -> Tokens:
        encoder: Any = self.model.bert.encoder
        fusion = encoder.fusions[str(layer)] if encoder.fusions else None
        if rate == 1:  # [CLS] alone stays: nothing to score, and no size depends on the length
            first = torch.zeros(tokens.mask.shape[0], 1, dtype=torch.int64)
            return tokens.take(first, tokens.mask[:, :1], [], fusion)
        scores = encoder.pruners[str(layer)].score(tokens, encoder.layer[layer])
        return self.prune(tokens, scores, rate, fusion)


def _run(
    segment: Sequence[Any], read: Tokens, tokens: Tokens, typical: int, is_last: bool
) -> tuple[Tokens, Tokens]:
    """As layers.run_layers, with sizes left free: padding stays, on the right, and positions are columns.

    Args:
        read: all tokens that are read: where removed ones are not, `tokens`.
        tokens: those that are updated.
        typical: how many of them.
    """
    (rows, updated), width, is_all = tokens.mask.shape, read.mask.shape[1], read is tokens
    first = torch.arange(rows) * width
    queries = None
    if not is_all:  # where an example has fewer tokens, its last column is padding
        columns = tokens.positions.masked_fill(~tokens.mask, width - 1)
        queries = (first[:, None] + columns).flatten()
    lie = Unpadding(
        [(rows, width, updated)],
        first,
        mask=read.mask[:, None, None],
        queries=queries,
        typical=[(1, typical if is_all else TYPICAL_LENGTH, typical)],
    )
    assert read.states is not None
    states = run_flat(segment, read.states.flatten(0, 1), lie, PATHS, is_last)
    if is_last:
        return read, replace(tokens, states=states[:, None])
    states = states.view(rows, width, -1)
    read = replace(read, states=states)
    return read, read if is_all else replace(tokens, states=gather(states, tokens.positions))


class LstmGraph(Graph):
    """The LSTM classifier."""

    keep_first = False
    table: Tensor
    from_word: Tensor
    from_state: Tensor
    bias: Tensor

    def __init__(self, model: PrunedLstmClassifier):
        super().__init__()
        self.model = model
        sentences = ("", "second_") if model.config["pair"] else ("",)
        self.inputs = tuple(before + name for before in sentences for name in ("ids", "mask"))
        self.pruned = range(len(sentences)) if model.pruner is not None else ()
        self.outputs = ("logits", *(sentences[number] + "kept" for number in self.pruned))
        if isinstance(model.pruner, StudentPruner):
            self.register_buffer("table", model.pruner.fold(model.embedding.weight))
        from_word, from_state, word_bias, state_bias = map(_in_onnx_order, model.lstm.all_weights[0])
        self.register_buffer("from_word", from_word[None])
        self.register_buffer("from_state", from_state[None])
        self.register_buffer("bias", torch.cat([word_bias, state_bias])[None])

    def example(self) -> tuple[Tensor, ...]:
        rows, width = EXAMPLE
        widths = (width, width - 8)[: len(self.inputs) // 2]  # the sentences of a pair have a length each
        masks = [torch.ones(rows, width, dtype=torch.int64) for width in widths]
        return tuple(part for mask in masks for part in (mask, mask.bool()))

    def forward(
        self, ids: Tensor, mask: Tensor, second_ids: Tensor | None = None, second_mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        sentences = [self._read(ids, mask)]
        if second_ids is not None and second_mask is not None:
            sentences.append(self._read(second_ids, second_mask))
        vectors, kept = zip(*sentences, strict=True)
        return self.model.classify(vectors), *(kept if self.model.pruner is not None else ())

    def _read(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """A sentence as a vector (B, H), and the positions of the words that stay."""
        model, tokens = self.model, _start(None, mask, ids)
        if model.pruner is not None:
            tokens = self.prune(tokens, self._score(tokens), model.rate)
        assert tokens.ids is not None
        vector = maximum_over_time(self._run_lstm(model.embedding(tokens.ids)), tokens.mask)
        if model.fusion is not None:
            gone = selection.removed(mask, tokens.positions, tokens.mask)
            vector = vector + model.fusion(model.embedding(ids), gone)
        return vector, tokens.kept_positions()

    def _score(self, tokens: Tokens) -> Tensor:
        pruner: Any = self.model.pruner
        if not isinstance(pruner, StudentPruner):
            return pruner.score(tokens)
        assert tokens.ids is not None
        words = pruner.words_around(tokens.ids.masked_fill(~tokens.mask, 0))
        return pruner.score_inner(embedding(words, self.table.flatten(0, 1)).sum(dim=2))

    def _run_lstm(self, states: Tensor) -> Tensor:
        """(B, T, E) to (B, T, H) by ONNX's own operator: PyTorch's would be traced step by step."""
        rows, width, _ = states.shape
        hidden = self.model.lstm.hidden_size
        outputs = torch.onnx.ops.symbolic(
            "LSTM",
            (states.transpose(0, 1), self.from_word, self.from_state, self.bias),
            {"hidden_size": hidden},
            dtype=states.dtype,
            shape=(width, 1, rows, hidden),
        )
        return outputs.squeeze(1).transpose(0, 1)


def _in_onnx_order(weight: Tensor) -> Tensor:
    """The gates (4H, …) in PyTorch's order (input, forget, cell, output) in ONNX's (input, output, forget,
    cell)."""
    entry, keep, cell, output = weight.detach().chunk(4)
    return torch.cat([entry, output, keep, cell])


GRAPHS: dict[type, Any] = {PrunedBertForSequenceClassification: BertGraph, PrunedLstmClassifier: LstmGraph}
