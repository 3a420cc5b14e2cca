"""Floating-point operations by formula.

A multiplication and an addition are two, of matrix products only; elementwise work, norms and softmax are
left out, in every variant alike. They are taken over the tensors as executed, padding included: the clock
sees padding too. (PyTorch's own counter reports 0 for fused attention on a CPU and for nn.LSTM.)

H units, I units of the feed-forward, n tokens.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BertForSequenceClassification

from ModifiedModelingBert import PrunedBertForSequenceClassification
from pruning.layers import FastPaths, absorbing_pays, layout_options
from pruning.lstm_fast import takes_steps
from pruning.lstm_model import PrunedLstmClassifier
from pruning.plan import WholeBatch, groups_of
from pruning.selection import count_kept
from pruning.tokens import mask_on_host

Batch = dict[str, Tensor]


def bert_layer(
    config: Any, groups: Sequence[tuple[int, int, int]], absorbed: bool = True, device: str = "cpu"
) -> int:
    """One encoder layer on a batch. For a sequence of n tokens, of which q are updated: 4q(H² + HI), and for
    keys, values and attention 4nH² + 4qnH; or, h heads, 4qH² + 4hqnH where the layer absorbs them.

    Args:
        groups: as in `Unpadding`.
        absorbed: whether the layer may; it does where that pays.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    absorbs = absorbed and absorbing_pays(hidden, heads, groups, device)
    total = 0
    for rows, n, q in groups:
        attention = q * (hidden + heads * n) if absorbs else n * (hidden + q)
        total += 4 * rows * hidden * (q * (hidden + inner) + attention)
    return total


def bert_head(config: Any) -> int:
    """The pooler and the classifier on one sequence: 2H(H + classes)."""
    return 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def token_fusion(hidden: int) -> int:
    """The mean of a sequence's removed tokens through a matrix: 2H²."""
    return 2 * hidden**2


def stock_bert(model: Any, batch: Batch) -> int:
    """Transformers' BERT on one batch."""
    rows, width = batch["attention_mask"].shape
    layers = model.config.num_hidden_layers * bert_layer(model.config, [(rows, width, width)])
    return layers + rows * bert_head(model.config)


def pruned_bert(model: Any, batch: Batch) -> int:
    """Our BERT on one batch at evaluation, padded on the right. A model with thresholds is asked how many
    tokens stay: the batch has to be on its device."""
    encoder, config = model.bert.encoder, model.config
    paths = encoder.fast_paths or FastPaths(unpadding=False, cls_only=False, absorbed=False)
    weight = encoder.layer[0].output.dense.weight
    real = mask_on_host(batch["attention_mask"], batch["attention_mask"], None)
    whole = WholeBatch(real, None, layout_options(encoder, weight, encoder.fast_paths))
    read = updated = whole.layout
    total = len(real) * bert_head(config)
    seen = None
    if not all(pruner.keeps_by_rate for pruner in encoder.pruners.values()):
        with torch.no_grad():
            seen = model(**batch, return_dict=True).kept
    for first, end in encoder.segments():
        if (rate := encoder.schedule[first]) > 0:
            stay = [count_kept(n, rate) for n in updated.lengths.tolist()]
            if seen:
                stay = (seen[first] >= 0).sum(dim=1).cpu().numpy()[whole.order].tolist()
            pruner = encoder.pruners[str(first)]
            if max(stay) > 1 or not pruner.keeps_by_rate:  # else nothing is scored
                total += pruner.flops(*(updated.real.shape if pruner.needs_grid else (1, updated.size)))
            total += len(real) * token_fusion(config.hidden_size) if encoder.fusions else 0
            updated = whole.step(updated, stay).layout
            read = read if whole.options.readable else updated
        groups = groups_of(read, updated if encoder.fast_paths else read)  # stock layers compute all tokens
        for layer in range(first, end):
            alone = paths.cls_only and layer == len(encoder.schedule) - 1
            queried = [(rows, n, 1 if alone else q) for rows, n, q in groups]
            total += bert_layer(config, queried, paths.absorbed, weight.device.type)
    return total


def lstm_layer(embedding: int, hidden: int, steps: int) -> int:
    """One sequence through one LSTM layer: 2 · 4 · h(e + h) for each step."""
    return 2 * 4 * hidden * (embedding + hidden) * steps


def pruned_lstm(model: Any, batch: Batch) -> int:
    """Recurrence, student and fusion on one batch at evaluation, both sentences of a pair."""
    return sum(_sentences(model, batch[name]) for name in ("mask", "second_mask") if name in batch)


def _sentences(model: Any, mask: Tensor) -> int:
    rows, width = mask.shape
    lengths = [count_kept(n, model.rate) for n in mask.sum(dim=1).tolist()]
    sizes = model.lstm.input_size, model.lstm.hidden_size
    if model.reads_tables and takes_steps(model, rows, max(lengths)):
        # a first step has no state before it; words and padding are not multiplied
        recurrence = sum(lstm_layer(0, sizes[1], n - 1) for n in lengths if n)
    else:
        steps = rows * (width if model.pruner is None else max(lengths))
        recurrence = lstm_layer(*sizes, sum(lengths) if model.packed else steps)
    if model.pruner is None:
        return recurrence
    if model.fast and model.tabled:
        return recurrence + model.pruner.table_flops(rows * width)
    fusion = 0 if model.fusion is None else rows * token_fusion(model.lstm.hidden_size)
    return recurrence + model.pruner.flops(rows, width) + fusion


# Type of a model → its FLOPs on a batch
FORMULAS: dict[type, Callable[[Any, Batch], int]] = {
    BertForSequenceClassification: stock_bert,
    PrunedBertForSequenceClassification: pruned_bert,
    PrunedLstmClassifier: pruned_lstm,
}


def of(model: Any, inputs: Iterable[Batch]) -> int:
    """A model's on batches, by the formula of its type."""
    return sum(FORMULAS[type(model)](model, batch) for batch in inputs)
