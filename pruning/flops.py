"""Floating-point operations by formula.

A multiplication and an addition are two, of matrix products only; elementwise work, norms and softmax are
left out, in every variant alike. They are taken over the tensors as executed, padding included: the clock
sees padding too. (PyTorch's own counter reports 0 for fused attention on a CPU and for nn.LSTM.)

H units, I units of the feed-forward, n tokens, q queries.
"""

from typing import Any

import torch
from torch import Tensor

from pruning import selection
from pruning.layers import FastPaths, Unpadding

Batch = dict[str, Tensor]


def bert_layer(config: Any, tokens: int, queries: int | None = None) -> int:
    """One encoder layer on one sequence: 2n(4H² + 2HI) + 4n²H.

    With q queries: 4nH² + 2q(2H² + 2HI) + 4qnH.
    """
    queries = tokens if queries is None else queries
    hidden, inner = config.hidden_size, config.intermediate_size
    keys_and_values = 4 * tokens * hidden**2
    return keys_and_values + 4 * queries * (hidden**2 + hidden * inner) + 4 * queries * tokens * hidden


def bert_head(config: Any) -> int:
    """The pooler and the classifier on one sequence: 2H(H + classes)."""
    return 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def token_fusion(config: Any, tokens: int) -> int:
    """The mean of a sequence's removed tokens through a matrix: 2nH + 2H²."""
    return 2 * tokens * config.hidden_size + 2 * config.hidden_size**2


def stock_bert(model: Any, batch: Batch) -> int:
    """Transformers' BERT on one batch."""
    rows, width = batch["attention_mask"].shape
    layers = model.config.num_hidden_layers * bert_layer(model.config, width)
    return rows * (layers + bert_head(model.config))


def pruned_bert(model: Any, batch: Batch) -> int:
    """Our BERT on one batch at evaluation."""
    encoder, config = model.bert.encoder, model.config
    paths = encoder.fast_paths or FastPaths(unpadding=False, cls_only=False)
    mask = batch["attention_mask"].bool()
    lengths = mask.sum(dim=1).tolist()
    total = len(lengths) * bert_head(config)
    for start, end in encoder.segments():
        if encoder.schedule[start] > 0:
            width = mask.shape[1]
            total += encoder.pruners[str(start)].flops(len(lengths), width)
            total += len(lengths) * token_fusion(config, width) if encoder.fusions else 0
            lengths = [selection.count_kept(n, encoder.schedule[start]) for n in lengths]
            kept = torch.tensor(lengths, device=mask.device)[:, None]
            mask = torch.arange(max(lengths), device=mask.device) < kept
        groups = Unpadding.of(mask, lengths, paths.unpadding).groups
        for layer in range(start, end):
            queries = 1 if paths.cls_only and layer == config.num_hidden_layers - 1 else None
            total += sum(rows * bert_layer(config, n, queries) for rows, n in groups)
    return total


def lstm_layer(embedding: int, hidden: int, steps: int) -> int:
    """One sequence through one LSTM layer: 2 · 4 · h(e + h) for each step."""
    return 2 * 4 * hidden * (embedding + hidden) * steps


def pruned_lstm(model: Any, batch: Batch) -> int:
    """The recurrence and the student on one batch at evaluation, both sentences of a pair."""
    return sum(_sentences(model, batch[name]) for name in ("mask", "second_mask") if name in batch)


def _sentences(model: Any, mask: Tensor) -> int:
    rows, width = mask.shape
    sizes = model.lstm.input_size, model.lstm.hidden_size
    if model.pruner is None:
        return rows * lstm_layer(*sizes, width)
    lengths = mask.sum(dim=1).tolist()
    steps = selection.count_kept(max(lengths), model.rate)
    student = model.pruner.table_flops(rows * width) if model.fast else model.pruner.flops(rows, width)
    return rows * lstm_layer(*sizes, steps) + student
