"""BERT's layers without wasted work: the same results to rounding, in less time.

    unpadding         real tokens lie end to end in one flat tensor; only the attention looks at single
                      sequences, all those of one length at once, and so never needs a mask
    [CLS] only        the last layer computes queries, output projection and feed-forward of the first token
                      alone: it is all that the classifier reads
    absorbed          where few tokens ask, keys and values of what they read are never made: see `absorbed`
    fused product     on the CPU, oneDNN multiplies few tokens, and applies GELU while it multiplies

The last one is for inference. Norms and dropout are the stock modules, and so is any part that is not a plain
linear layer. Each gain can be switched off.

Shapes: B sequences, T positions of the longest, N tokens of all sequences together, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers.activations import GELUActivation
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.bert.modeling_bert import BertEncoder, BertIntermediate, BertLayer, BertSelfAttention

from pruning.plan import LayoutOptions
from pruning.tokens import FlatTokens, Unpadding

# oneDNN's product, which torch.compile uses on x86 (torch 2.13). PyTorch's own (MKL) is as fast for many
# tokens and faster for one to three, but takes up to twice as long for FEW_TOKENS, and reads the inner layer
# again for GELU: avoiding that pays for many tokens only where there is AVX-512 (studies/LOG.md).
FEW_TOKENS = range(4, 50)
AVX512 = "AVX512" in torch.backends.cpu.get_cpu_capability()
ONEDNN = "AVX" in torch.backends.cpu.get_cpu_capability() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ONEDNN_BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()
# What one more call of the attention costs, in tokens that a layer processes in the same time
TOKENS_PER_CALL, TOKENS_PER_DEAR_CALL = 4, 256
CALLS_TO_ABSORB = 6  # more than keys, values and the attention take
BY_HEAD = 1.4  # how much longer small products by head take than large ones (studies/LOG.md)


@dataclass(frozen=True)
class FastPaths:
    """Which gains are on; a benchmark measures each of them."""

    unpadding: bool = True
    cls_only: bool = True
    absorbed: bool = True
    fused_product: bool = True


def calls_are_dear(device: str) -> bool:
    """On a GPU launches are dear and tokens cheap: there a little padding is the smaller waste."""
    return device != "cpu"


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


def run_layers(
    segment: Sequence[BertLayer], tokens: FlatTokens, paths: FastPaths, only_first: bool
) -> FlatTokens:
    """Layers with no pruner between them; see `run_flat`. Without cuDNN's attention, which takes seconds at
    each new shape and gives NaN at some (PyTorch's issue 196678)."""
    paths = _possible(paths, tokens.read)
    has_cudnn = tokens.read.device.type == "cuda" and torch.backends.cuda.cudnn_sdp_enabled()
    if has_cudnn:
        torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        states = run_flat(segment, tokens.read, tokens.unpadding, paths, only_first)
    finally:
        if has_cudnn:
            torch.backends.cuda.enable_cudnn_sdp(True)
    return replace(tokens, read=states)


def run_flat(
    segment: Sequence[BertLayer], read: Tensor, unpadding: Unpadding, paths: FastPaths, only_first: bool
) -> Tensor:
    """Layers over tokens as they lie, (N, H) to (N, H).

    Args:
        read: the states of all tokens; of readable ones only some are updated.
        only_first: with `paths.cls_only` the last layer gives the first token of each sequence alone, (B, H).
    """
    queries = unpadding.queries
    updated = read if queries is None else read.index_select(0, queries)
    for i, layer in enumerate(segment, start=1):
        if only_first and paths.cls_only and i == len(segment):
            first = read.index_select(0, unpadding.first)
            return _run_layer(layer, first, read, unpadding.with_first_as_query(), paths)
        updated = _run_layer(layer, updated, read, unpadding, paths)
        read = updated if queries is None else read.index_copy(0, queries, updated)
    return read


def run_stock_layers(
    segment: Sequence[BertLayer], tokens: FlatTokens, config: Any, **kwargs: Any
) -> FlatTokens:
    """The same by the stock layers. Tokens that are only read are computed too, and then put back."""
    unpadding, queries = tokens.unpadding, tokens.unpadding.queries
    states = tokens.read.unflatten(0, (len(unpadding.first), -1))  # padding stays
    mask = None if unpadding.mask is None else unpadding.mask[:, 0, 0] == 0
    attention_mask = create_bidirectional_mask(config, states, mask)  # as stock's attention wants it
    for layer in segment:
        computed = layer(states, attention_mask, **kwargs)
        if queries is not None:
            updated = computed.flatten(0, 1).index_select(0, queries)
            computed = states.flatten(0, 1).index_copy(0, queries, updated).view(states.shape)
        states = computed
    return replace(tokens, read=states.flatten(0, 1))


def layout_options(encoder: Any, states: Tensor, paths: FastPaths | None) -> LayoutOptions:
    """How tokens may lie for a pass. paths: None for the stock layers."""
    kind, readable = states.device.type, encoder.config.removed_tokens == "readable" and bool(encoder.pruners)
    cost: int | None = TOKENS_PER_DEAR_CALL if calls_are_dear(kind) else TOKENS_PER_CALL
    if paths and paths.unpadding and has_varlen(encoder.layer[0].attention.self, states):
        cost = None
    known = all(pruner.keeps_by_rate for pruner in encoder.pruners.values())
    filled = calls_are_dear(kind) and known and cost is not None
    return LayoutOptions(states.device, cost, bool(paths and (paths.unpadding or readable)), readable, filled)


def has_varlen(attention: BertSelfAttention, states: Tensor) -> bool:
    """Whether one call of the attention serves sequences of all lengths end to end: in half precision on
    NVIDIA's cards from Ampere on, without dropout of attention weights."""
    size, drops = attention.attention_head_size, attention.training and attention.dropout.p > 0
    if states.device.type != "cuda" or drops or size % 8 or size > 256:
        return False
    if not torch.backends.cuda.is_flash_attention_available():  # PyTorch's builds for Windows have none
        return False
    is_cast = torch.is_autocast_enabled("cuda")
    dtype = torch.get_autocast_dtype("cuda") if is_cast else states.dtype
    if dtype not in (torch.float16, torch.bfloat16):
        return False
    return torch.cuda.get_device_capability(states.device) >= (8, 0)


def _possible(paths: FastPaths, states: Tensor) -> FastPaths:
    """`paths`, without oneDNN where it does not apply: with gradients, under autocast, on other devices."""
    by_type = {torch.float32: ONEDNN, torch.bfloat16: ONEDNN_BF16}
    has_onednn = states.device.type == "cpu" and by_type.get(states.dtype, False)
    plain = has_onednn and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    return replace(paths, fused_product=paths.fused_product and plain)


def _run_layer(
    layer: BertLayer, states: Tensor, read: Tensor, unpadding: Unpadding, paths: FastPaths
) -> Tensor:
    """One layer over tokens as they lie: updates the states (Q, H) and reads all, (N, H)."""
    attention, feed_forward = layer.attention, layer.output
    query = _linear(attention.self.query, states, paths)
    sizes = attention.self.all_head_size, attention.self.num_attention_heads
    if (
        paths.absorbed
        and may_absorb(attention.self)
        and absorbing_pays(*sizes, unpadding.typical or unpadding.groups, states.device.type)
    ):
        context = absorbed(attention.self, query, read, unpadding)
    else:
        key, value = (_linear(part, read, paths) for part in (attention.self.key, attention.self.value))
        context = _attend(attention.self, query, key, value, unpadding)
    merged = _linear(attention.output.dense, context.view(states.shape), paths)
    states = attention.output.LayerNorm(attention.output.dropout(merged) + states)
    merged = _linear(feed_forward.dense, _inner(layer.intermediate, states, paths), paths)
    return feed_forward.LayerNorm(feed_forward.dropout(merged) + states)


def _is_plain(part: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer as PyTorch has it: a quantizer replaces the layer, or its weight."""
    return type(part) is nn.Linear and type(part.weight) in (nn.Parameter, FakeTensor)  # of a graph's tracer


def _linear(part: nn.Module, x: Tensor, paths: FastPaths) -> Tensor:
    """A linear layer, or whatever stands in its place."""
    # how many tokens there are is not asked of an exported graph: it would become a guard
    if paths.fused_product and _is_plain(part) and x.numel() // x.shape[-1] in FEW_TOKENS:
        return _onednn_product(x, part.weight, part.bias, "none")
    return part(x)


def _inner(intermediate: BertIntermediate, states: Tensor, paths: FastPaths) -> Tensor:
    """The inner layer of the feed-forward, activation included."""
    dense, activation = intermediate.dense, intermediate.intermediate_act_fn
    if paths.fused_product and _is_plain(dense) and isinstance(activation, GELUActivation):
        tokens = states.numel() // states.shape[-1]
        if tokens in FEW_TOKENS or (AVX512 and tokens >= FEW_TOKENS.stop):
            return _onednn_product(states, dense.weight, dense.bias, "gelu")
    return activation(_linear(dense, states, paths))


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def _attend(
    attention: BertSelfAttention, query: Tensor, key: Tensor, value: Tensor, unpadding: Unpadding
) -> Tensor:
    """The heads' outputs side by side, (Q, H): each group of sequences by itself."""
    heads, size = attention.num_attention_heads, attention.attention_head_size
    query, key, value = (part.reshape(-1, heads, size) for part in (query, key, value))
    if unpadding.ends is not None:
        widest = [max(sizes) for sizes in zip(*unpadding.groups, strict=True)]
        ends = unpadding.ends.updated, unpadding.ends.read
        one: Any = varlen_attn(query, key, value, *ends, widest[2], widest[1], scale=attention.scaling)
        return one.flatten(1)  # (Q, heads, size) to (Q, H)
    outputs = []
    for rows, read, asked in unpadding.spans():
        output = scaled_dot_product_attention(
            query[asked].view(rows, -1, heads, size).transpose(1, 2),
            key[read].view(rows, -1, heads, size).transpose(1, 2),
            value[read].view(rows, -1, heads, size).transpose(1, 2),
            attn_mask=unpadding.mask,
            dropout_p=attention.dropout.p if attention.training else 0.0,
            scale=attention.scaling,
        )  # (rows, heads, updated, size)
        outputs.append(output.transpose(1, 2).reshape(-1, heads * size))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def absorbed(attention: BertSelfAttention, query: Tensor, states: Tensor, unpadding: Unpadding) -> Tensor:
    """What `_attend` gives, without keys and values: (q · W_K) · X in place of q · (X · W_K)ᵀ for the scores,
    (softmax · X) · W_V + b_V for the output. Exact: the keys' bias moves all scores of a query alike. (As
    DeepSeek-V2, 2024, absorbs projections into query and output.)

    Args:
        query: (Q, H) of the tokens that are updated.
        states: (N, H) of all tokens that are read.
    """
    heads, size = attention.num_attention_heads, attention.attention_head_size
    to_key, to_value = (part.weight.view(heads, size, -1) for part in (attention.key, attention.value))
    outputs = []
    for rows, read, asked in unpadding.spans():
        x = states[read].view(rows, -1, states.shape[-1])  # (rows, width, H)
        q = query[asked].view(-1, heads, size).transpose(0, 1)  # (heads, rows · updated, size)
        absorbing = (q @ to_key).view(heads, rows, -1, x.shape[-1]).transpose(0, 1).flatten(1, 2)
        scores = (absorbing @ x.transpose(1, 2)) * attention.scaling  # (rows, heads · updated, width)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        if torch.is_grad_enabled():  # several processes wait for a gradient of every parameter
            scores = scores + 0 * attention.key.bias.sum()
        if unpadding.mask is not None:
            mask = unpadding.mask[:, 0]
            scores = scores.masked_fill(~mask if mask.dtype == torch.bool else mask < 0, -torch.inf)
        mixed = scores.softmax(dim=2).to(x.dtype) @ x  # (rows, heads · updated, H)
        mixed = mixed.view(rows, heads, -1, x.shape[-1]).transpose(0, 1).flatten(1, 2)
        output = (mixed @ to_value.transpose(1, 2)).transpose(0, 1).reshape(-1, heads * size)
        outputs.append(output + attention.value.bias)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def may_absorb(attention: BertSelfAttention) -> bool:
    """Not with dropout of attention weights, and not with something else in place of a linear layer."""
    plain = all(_is_plain(part) and part.bias is not None for part in (attention.key, attention.value))
    return plain and not (attention.training and attention.dropout.p > 0)


def absorbing_pays(
    hidden: int, heads: int, groups: Sequence[tuple[int, int, int]], device: str = "cpu"
) -> bool:
    """Whether absorbing is faster, for `Unpadding.groups` with n tokens of which q are updated: it takes
    2qH² + 2hqnH for h heads, not 2nH² + 2qnH, but slower products (BY_HEAD). Where calls are dear, it has to
    save the cost of its own calls, too (a layer's products for a token are 12H²)."""
    by_absorbing = BY_HEAD * sum(rows * q * (hidden + heads * n) for rows, n, q in groups)
    if calls_are_dear(device):
        by_absorbing += len(groups) * CALLS_TO_ABSORB * TOKENS_PER_DEAR_CALL * 6 * hidden
    return by_absorbing < sum(rows * n * (hidden + q) for rows, n, q in groups)
