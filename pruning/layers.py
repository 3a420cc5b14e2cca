"""BERT's layers without wasted work: the same results to rounding, in less time.

    unpadding         real tokens lie end to end in one flat tensor; only the attention looks at single
                      sequences, all those of one length at once, and so never needs a mask
    [CLS] only        the last layer computes keys and values of all tokens, but queries, output projection
                      and feed-forward of the first token alone: it is all that the classifier reads
    fused product     on the CPU, oneDNN multiplies few tokens, and applies GELU while it multiplies

The last one is for inference. Norms and dropout are the stock modules, and so is any part that is not a plain
linear layer. Each gain can be switched off.

Shapes: B sequences, T positions of the longest, N tokens of all sequences together, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertEncoder, BertIntermediate, BertLayer, BertSelfAttention

# What one more call of the attention costs, in tokens that a layer processes in the same time. On a GPU
# launches are dear and tokens cheap: there a little padding is the smaller waste.
TOKENS_PER_CALL = {"cpu": 4}
TOKENS_PER_CALL_ELSEWHERE = 256

# oneDNN's product, which torch.compile uses on x86 (torch 2.13). PyTorch's own (MKL) is as fast for many
# tokens and faster for one to three, but takes up to twice as long for so many as these, and reads the
# inner layer again for GELU.
FEW_TOKENS = range(4, 50)
ONEDNN = "AVX" in torch.backends.cpu.get_cpu_capability() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN_BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@dataclass(frozen=True)
class FastPaths:
    """Which gains are on; a benchmark measures each of them."""

    unpadding: bool = True
    cls_only: bool = True
    fused_product: bool = True


def needs_stock_layers(encoder: BertEncoder, arguments: dict[str, Any]) -> bool:
    """Whether something was asked for that only the stock layers give: states or attention weights of every
    layer, another attention than SDPA, memory saved by checkpoints or chunks.

    Args:
        arguments: of the model's forward.
    """
    config = encoder.config
    recorded = ("output_hidden_states", "output_attentions")
    return (
        any(arguments.get(name, getattr(config, name, False)) for name in recorded)
        or config._attn_implementation != "sdpa"
        or config.chunk_size_feed_forward > 0
        or (encoder.training and any(layer.gradient_checkpointing for layer in encoder.layer))
    )


@dataclass
class Unpadding:
    """How the tokens of a padded batch (B, T) lie while layers work on them.

    Either they stay as they are (`index` is None), or they form a flat tensor (N, H) of real tokens in
    which longer sequences come first, so that sequences of one length are neighbours.

    Attributes:
        shape: (B, T) of the padded batch.
        groups: neighbours of one length: (how many sequences, tokens of each).
        index: (N,) int64, each flat token's place in the padded batch, b · T + t.
        back: (B,) int64, which flat sequence is the b-th of the batch.
        first: (B,) int64, the first real token of each sequence as it lies now.
        mask: (B, 1, 1, T) bool for the attention, True at real tokens; None where no padding is left.
    """

    shape: tuple[int, int]
    groups: list[tuple[int, int]]
    first: Tensor
    index: Tensor | None = None
    back: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, lengths: Sequence[int], unpad: bool = True) -> "Unpadding":
        """The cheaper way for a batch to lie.

        Args:
            mask: (B, T) bool, True at real tokens, wherever they stand.
            lengths: the sums of `mask`, known to the host without asking the device.
            unpad: False leaves padding where it is.
        """
        rows, width = mask.shape
        row_starts = torch.arange(0, rows * width, width, device=mask.device)
        order = sorted(range(rows), key=lambda row: -lengths[row])
        groups = [(len(list(run)), length) for length, run in groupby(lengths[row] for row in order)]
        if groups == [(rows, width)]:
            return cls((rows, width), groups, row_starts)
        call = TOKENS_PER_CALL.get(mask.device.type, TOKENS_PER_CALL_ELSEWHERE)
        padding = rows * width - sum(lengths)
        if not unpad or padding < call * (len(groups) - 1) or not min(lengths):
            first = row_starts + mask.int().argmax(dim=1)
            return cls((rows, width), [(rows, width)], first, mask=mask[:, None, None, :])
        by_length = torch.tensor(order)
        starts = torch.tensor([0, *(lengths[row] for row in order[:-1])]).cumsum(0)
        by_length, starts = by_length.to(mask.device), starts.to(mask.device)
        slots = torch.arange(rows * width, device=mask.device).view(rows, width)
        index = slots[by_length][mask[by_length]]
        return cls((rows, width), groups, starts, index, by_length.argsort())

    def flatten(self, states: Tensor) -> Tensor:
        """Padded (B, T, H) to how the tokens lie: (N, H), or unchanged."""
        return states if self.index is None else states.flatten(0, 1).index_select(0, self.index)

    def unflatten(self, states: Tensor) -> Tensor:
        """The inverse of `flatten`, 0 at padding."""
        if self.index is None:
            return states
        rows, width = self.shape
        padded = states.new_zeros(rows * width, states.shape[-1])
        return padded.index_copy(0, self.index, states).view(rows, width, -1)

    def take_first(self, states: Tensor) -> Tensor:
        """(B, H) the first real token of each sequence, in the order in which they lie."""
        return states.reshape(-1, states.shape[-1]).index_select(0, self.first)

    def in_order(self, rows: Tensor) -> Tensor:
        """(B, H) as sequences lie → (B, H) as the batch has them."""
        return rows if self.back is None else rows.index_select(0, self.back)


def run_layers(
    segment: Sequence[BertLayer],
    states: Tensor,
    mask: Tensor,
    lengths: Sequence[int],
    paths: FastPaths,
    only_first: bool,
) -> Tensor:
    """Layers with no pruner between them.

    Args:
        states: (B, T, H), with `mask` and `lengths` as in `Unpadding.of`.
        only_first: the output at each sequence's first real token is enough.

    Returns:
        (B, T, H), or (B, 1, H) if that was enough.
    """
    unpadding = Unpadding.of(mask, lengths, paths.unpadding)
    states = unpadding.flatten(states)
    paths = _possible(paths, states)
    for i, layer in enumerate(segment, start=1):
        if only_first and paths.cls_only and i == len(segment):
            states = _run_layer(layer, states, unpadding, paths, only_first=True)
            return unpadding.in_order(states)[:, None]
        states = _run_layer(layer, states, unpadding, paths)
    return unpadding.unflatten(states)


def _possible(paths: FastPaths, states: Tensor) -> FastPaths:
    """`paths`, without oneDNN where it does not apply: with gradients, under autocast, on other devices."""
    plain = not torch.is_grad_enabled() and not torch.is_autocast_enabled(states.device.type)
    by_type = {torch.float32: ONEDNN, torch.bfloat16: ONEDNN_BF16}
    has_onednn = states.device.type == "cpu" and by_type.get(states.dtype, False)
    return replace(paths, fused_product=paths.fused_product and plain and has_onednn)


def _run_layer(
    layer: BertLayer, states: Tensor, unpadding: Unpadding, paths: FastPaths, only_first: bool = False
) -> Tensor:
    """One layer over tokens as they lie; with `only_first` (B, H) for the first ones alone."""
    attention, feed_forward = layer.attention, layer.output
    key, value = (_linear(part, states, paths) for part in (attention.self.key, attention.self.value))
    if only_first:
        states = unpadding.take_first(states)
    query = _linear(attention.self.query, states, paths)
    context = _attend(attention.self, query, key, value, unpadding, only_first).view(states.shape)
    merged = _linear(attention.output.dense, context, paths)
    states = attention.output.LayerNorm(attention.output.dropout(merged) + states)
    merged = _linear(feed_forward.dense, _inner(layer.intermediate, states, paths), paths)
    return feed_forward.LayerNorm(feed_forward.dropout(merged) + states)


def _linear(part: nn.Module, x: Tensor, paths: FastPaths) -> Tensor:
    """A linear layer, or whatever stands in its place."""
    if paths.fused_product and type(part) is nn.Linear:
        return _product(x, part.weight, part.bias, paths)
    return part(x)


def _inner(intermediate: BertIntermediate, states: Tensor, paths: FastPaths) -> Tensor:
    """The inner layer of the feed-forward, activation included."""
    dense = intermediate.dense
    is_gelu = isinstance(intermediate.intermediate_act_fn, GELUActivation)
    many = states.numel() // states.shape[-1] >= FEW_TOKENS.start
    if paths.fused_product and type(dense) is nn.Linear and is_gelu and many:
        return _onednn_product(states, dense.weight, dense.bias, "gelu")
    return intermediate.intermediate_act_fn(_linear(dense, states, paths))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, paths: FastPaths) -> Tensor:
    """x · weightᵀ + bias."""
    if paths.fused_product and x.numel() // x.shape[-1] in FEW_TOKENS:
        return _onednn_product(x, weight, bias, "none")
    return linear(x, weight, bias)


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def _attend(
    attention: BertSelfAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    unpadding: Unpadding,
    only_first: bool,
) -> Tensor:
    """The heads' outputs side by side, (tokens, H): each run of sequences by itself."""
    heads, size = attention.num_attention_heads, attention.attention_head_size
    query, key, value = (part.reshape(-1, heads, size) for part in (query, key, value))
    outputs, start, first = [], 0, 0
    for rows, width in unpadding.groups:
        queries = rows * (1 if only_first else width)
        end = start + rows * width
        output = scaled_dot_product_attention(
            query[first : first + queries].view(rows, -1, heads, size).transpose(1, 2),
            key[start:end].view(rows, width, heads, size).transpose(1, 2),
            value[start:end].view(rows, width, heads, size).transpose(1, 2),
            attn_mask=unpadding.mask,
            dropout_p=attention.dropout.p if attention.training else 0.0,
            scale=attention.scaling,
        )  # (rows, heads, width or 1, size)
        outputs.append(output.transpose(1, 2).reshape(queries, heads * size))
        start, first = end, first + queries
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
