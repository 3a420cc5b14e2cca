"""BERT's layers without wasted work: the same results to rounding, in less time.

    no padding        real tokens lie end to end in one flat tensor; only the attention looks at single
                      sequences, all those of one length at once, and so never needs a mask
    [CLS] only        the last layer computes keys and values of all tokens, but queries, output projection
                      and feed-forward of the first token alone: it is all that the classifier reads
    one projection    query, key and value come out of one matrix product
    fused product     on the CPU, oneDNN multiplies few tokens, and applies GELU while it multiplies

The last two are for inference; with gradients each parameter is used by itself. Norms and dropout are the
stock modules, and so is any part that is not a plain linear layer. Each gain can be switched off.

Shapes: B sequences, T positions of the longest, N tokens of all sequences together, H units.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertIntermediate, BertLayer, BertSelfAttention

# What one more call of the attention costs, in tokens that a layer processes in the same time. On a GPU
# launches are dear and tokens cheap: there a little padding is the smaller waste.
TOKENS_PER_CALL = {"cpu": 4}
TOKENS_PER_CALL_ELSEWHERE = 256

# oneDNN's product, which torch.compile uses on x86 (torch 2.13). PyTorch's own (MKL) is as fast for many
# tokens and faster for one to three, but takes up to twice as long for so many as these, and reads the
# inner layer again for GELU.
FEW_TOKENS = range(4, 50)
ONEDNN = "AVX" in torch.backends.cpu.get_cpu_capability() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@dataclass(frozen=True)
class FastPaths:
    """Which gains are on; a benchmark measures each of them."""

    no_padding: bool = True
    cls_only: bool = True
    one_projection: bool = True
    fused_product: bool = True


@dataclass
class Layout:
    """How the tokens of a padded batch (B, T) lie while layers work on them.

    Either they stay as they are (`index` is None), or they form a flat tensor (N, H) of real tokens in
    which longer sequences come first, so that sequences of one length are neighbours.

    Attributes:
        shape: (B, T) of the padded batch.
        runs: neighbours of one length: (how many sequences, tokens of each).
        index: (N,) int64, each flat token's place in the padded batch, b · T + t.
        back: (B,) int64, which flat sequence is the b-th of the batch.
        first: (B,) int64, the first real token of each sequence as it lies now.
        mask: (B, 1, 1, T) bool for the attention, True at real tokens; None where no padding is left.
    """

    shape: tuple[int, int]
    runs: list[tuple[int, int]]
    first: Tensor
    index: Tensor | None = None
    back: Tensor | None = None
    mask: Tensor | None = None

    @classmethod
    def of(cls, mask: Tensor, lengths: Sequence[int], no_padding: bool = True) -> "Layout":
        """The cheaper layout for a batch.

        Args:
            mask: (B, T) bool, True at real tokens, wherever they stand.
            lengths: the sums of `mask`, known to the host without asking the device.
            no_padding: False leaves padding where it is.
        """
        rows, width = mask.shape
        row_starts = torch.arange(0, rows * width, width, device=mask.device)
        order = sorted(range(rows), key=lambda row: -lengths[row])
        runs = [(len(list(run)), length) for length, run in groupby(lengths[row] for row in order)]
        if runs == [(rows, width)]:
            return cls((rows, width), runs, row_starts)
        call = TOKENS_PER_CALL.get(mask.device.type, TOKENS_PER_CALL_ELSEWHERE)
        padding = rows * width - sum(lengths)
        if not no_padding or padding < call * (len(runs) - 1) or not min(lengths):
            first = row_starts + mask.int().argmax(dim=1)
            return cls((rows, width), [(rows, width)], first, mask=mask[:, None, None, :])
        by_length = torch.tensor(order)
        starts = torch.tensor([0, *(lengths[row] for row in order[:-1])]).cumsum(0)
        by_length, starts = by_length.to(mask.device), starts.to(mask.device)
        places = torch.arange(rows * width, device=mask.device).view(rows, width)
        index = places[by_length][mask[by_length]]
        return cls((rows, width), runs, starts, index, by_length.argsort())

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
    stretch: Sequence[BertLayer],
    states: Tensor,
    mask: Tensor,
    lengths: Sequence[int],
    paths: FastPaths,
    only_first: bool,
) -> Tensor:
    """Layers with no pruner between them.

    Args:
        states: (B, T, H), with `mask` and `lengths` as in `Layout.of`.
        only_first: the output at each sequence's first real token is enough.

    Returns:
        (B, T, H), or (B, 1, H) if that was enough.
    """
    layout = Layout.of(mask, lengths, paths.no_padding)
    states = layout.flatten(states)
    paths = _possible(paths, states)
    for i, layer in enumerate(stretch, start=1):
        if only_first and paths.cls_only and i == len(stretch):
            states = _run_layer(layer, states, layout, paths, only_first=True)
            return layout.in_order(states)[:, None]
        states = _run_layer(layer, states, layout, paths)
    return layout.unflatten(states)


def _possible(paths: FastPaths, states: Tensor) -> FastPaths:
    """`paths` without what does not go here and now.

    The last two use weights without gradients and casts: autocast remembers the cast of a parameter, but
    would cast a view of several each time.
    """
    as_they_are = not torch.is_grad_enabled() and not torch.is_autocast_enabled(states.device.type)
    has_onednn = ONEDNN and states.device.type == "cpu" and states.dtype in (torch.float32, torch.bfloat16)
    return replace(
        paths,
        one_projection=paths.one_projection and as_they_are,
        fused_product=paths.fused_product and as_they_are and has_onednn,
    )


def _run_layer(
    layer: BertLayer, states: Tensor, layout: Layout, paths: FastPaths, only_first: bool = False
) -> Tensor:
    """One layer over tokens as they lie; with `only_first` (B, H) for the first ones alone."""
    attention, feed_forward = layer.attention, layer.output
    query, key, value = _project(attention.self, states, layout, paths, only_first)
    if only_first:
        states = layout.take_first(states)
    context = _attend(attention.self, query, key, value, layout, only_first).view(states.shape)
    merged = _linear(attention.output.dense, context, paths)
    states = attention.output.LayerNorm(attention.output.dropout(merged) + states)
    merged = _linear(feed_forward.dense, _inner(layer.intermediate, states, paths), paths)
    return feed_forward.LayerNorm(feed_forward.dropout(merged) + states)


def _project(
    attention: BertSelfAttention, states: Tensor, layout: Layout, paths: FastPaths, only_first: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value; the query of the first tokens alone, if that is enough."""
    asking = layout.take_first(states) if only_first else states
    fused = one_projection(attention) if paths.one_projection else None
    if fused is None:
        parts = ((attention.query, asking), (attention.key, states), (attention.value, states))
        return tuple(_linear(part, x, paths) for part, x in parts)  # type: ignore[return-value]
    weight, bias = fused
    if not only_first:
        return _product(states, weight, bias, paths).chunk(3, dim=-1)  # type: ignore[return-value]
    size = attention.all_head_size
    key, value = _product(states, weight[size:], bias[size:], paths).chunk(2, dim=-1)
    return _product(asking, weight[:size], bias[:size], paths), key, value


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
    attention: BertSelfAttention, query: Tensor, key: Tensor, value: Tensor, layout: Layout, only_first: bool
) -> Tensor:
    """The heads' outputs side by side, (tokens, H): each run of sequences by itself."""
    heads, size = attention.num_attention_heads, attention.attention_head_size
    query, key, value = (part.reshape(-1, heads, size) for part in (query, key, value))
    outputs, start, asked = [], 0, 0
    for rows, width in layout.runs:
        asking = rows * (1 if only_first else width)
        end = start + rows * width
        output = scaled_dot_product_attention(
            query[asked : asked + asking].view(rows, -1, heads, size).transpose(1, 2),
            key[start:end].view(rows, width, heads, size).transpose(1, 2),
            value[start:end].view(rows, width, heads, size).transpose(1, 2),
            attn_mask=layout.mask,
            dropout_p=attention.dropout.p if attention.training else 0.0,
            scale=attention.scaling,
        )  # (rows, heads, width or 1, size)
        outputs.append(output.transpose(1, 2).reshape(asking, heads * size))
        start, asked = end, asked + asking
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def one_projection(attention: BertSelfAttention) -> tuple[Tensor, Tensor] | None:
    """The weights (3H, H) and biases (3H,) of query, key and value in one piece.

    The three parameters become rows of it at the first call, so nothing is copied afterwards, an
    optimizer's step is seen at once, and state dicts keep their names. Whatever takes the parameters
    elsewhere (another device, a loaded model) is noticed by their address, and they are joined again.

    Returns:
        None if one of the three is not a plain linear layer (an adapter, a quantized one).
    """
    parts = (attention.query, attention.key, attention.value)
    if any(type(part) is not nn.Linear or part.bias is None for part in parts):
        return None
    fused = attention.__dict__.get("_one_projection")
    if fused is None or not (_is_joined(fused[0], parts, "weight") and _is_joined(fused[1], parts, "bias")):
        with torch.inference_mode(False), torch.no_grad():  # tensors made in inference could not be trained
            fused = tuple(_join([getattr(part, name) for part in parts]) for name in ("weight", "bias"))
        attention.__dict__["_one_projection"] = fused
    return fused  # type: ignore[return-value]


def _is_joined(fused: Tensor, parts: Sequence[nn.Linear], name: str) -> bool:
    step = fused.nbytes // len(parts)
    addresses = [getattr(part, name).data_ptr() for part in parts]
    return addresses == [fused.data_ptr() + i * step for i in range(len(parts))]


def _join(parameters: Sequence[nn.Parameter]) -> Tensor:
    """One tensor of all parameters' rows, which they then are views of."""
    fused = torch.cat([parameter.data for parameter in parameters])
    for parameter, rows in zip(parameters, fused.chunk(len(parameters)), strict=True):
        parameter.data = rows
    return fused
