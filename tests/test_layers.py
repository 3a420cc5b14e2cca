"""The fast paths: each gives what the stock layers give, to rounding, with and without gradients."""

import copy
from dataclasses import fields, replace
from itertools import pairwise

import pytest
import torch
from conftest import build
from test_selection import WithCls
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertForSequenceClassification

from pruning import layers
from pruning.layers import FastPaths
from pruning.plan import LayoutOptions
from pruning.tokens import FlatTokens

OFF = FastPaths(**{field.name: False for field in fields(FastPaths)})
EACH = [FastPaths(), OFF] + [
    FastPaths(**{field.name: field.name == on.name for field in fields(FastPaths)})
    for on in fields(FastPaths)
]
SCHEDULES = [None, [0.3, 0, 0.5], [0, 0.5, 1]]


def name(paths):
    on = [field.name for field in fields(paths) if getattr(paths, field.name)]
    return "+".join(on) if len(on) < len(fields(paths)) else "all"


def logits(model, paths, **batch):
    model.bert.encoder.fast_paths = paths
    return model(**batch).logits


@pytest.mark.parametrize("inference", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("paths", EACH, ids=name)
def test_each_path_gives_the_stock_layers_logits(batch, paths, schedule, inference):
    model = build(schedule, "tail")
    with inference():
        for rows in (slice(0, 4), slice(0, 1), slice(1, 3)):
            part = {key: tensor[rows] for key, tensor in batch.items()}
            torch.testing.assert_close(
                logits(model, paths, **part), logits(model, None, **part), atol=1e-5, rtol=0
            )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bf16(batch, schedule):
    model = build(schedule, "tail").bfloat16()
    with torch.inference_mode():
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    torch.testing.assert_close(fast, stock, atol=2e-2, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_precisions(batch, dtype):
    model = build([0.3, 0, 0.5], "tail").to(dtype)
    with torch.inference_mode():
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    torch.testing.assert_close(fast, stock, atol=1e-12 if dtype == torch.float64 else 2e-2, rtol=0)


def test_autocast(batch):
    model = build([0.3, 0, 0.5], "tail")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    torch.testing.assert_close(fast, stock, atol=2e-2, rtol=0)


def test_dense_is_stock_bert(batch):
    ours = build()
    stock = BertForSequenceClassification(ours.config).eval()
    stock.load_state_dict(ours.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, stock(**batch).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu_python"])
def test_other_activations(batch, activation):
    model = build(hidden_act=activation)
    with torch.no_grad():
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    torch.testing.assert_close(fast, stock, atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("paths", EACH, ids=name)
def test_gradients_are_the_stock_layers(batch, paths, schedule):
    model = build(schedule, "tail", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    gradients = []
    for each in (paths, None):
        model.zero_grad()
        logits(model, each, **batch).square().sum().backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][key], atol=1e-5, rtol=1e-4, msg=key)


def test_work_is_saved():
    """Counts the tokens that the last feed-forward and the first projection see."""
    model, seen = build(), []
    encoder = model.bert.encoder
    encoder.fast_paths = FastPaths(fused_product=False)
    last, first = encoder.layer[-1], encoder.layer[0]
    last.attention.output.LayerNorm.register_forward_hook(lambda m, i, o: seen.append(o.numel() // 32))
    first.attention.output.LayerNorm.register_forward_hook(lambda m, i, o: seen.append(o.numel() // 32))
    mask = torch.arange(40) < torch.tensor([[40], [7], [7], [3]])
    ids = torch.randint(5, 64, (4, 40)) * mask
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask.long())
    assert seen == [57, 4]


MASKS = {  # two rows are neither full nor padded on the right
    "holes": [[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 0, 0, 0, 1]],
    "nearly full": [[1, 1, 1], [1, 1, 1], [0, 1, 1]],
}


def flat_tokens(mask, call_cost=4, rates=(), readable=False):
    """States are their places in the padded batch."""
    real = torch.as_tensor(mask).bool().numpy()
    options = LayoutOptions(torch.device("cpu"), call_cost, unpad=True, readable=readable, filled=False)
    states = torch.arange(float(real.size)).view(*real.shape, 1)
    return FlatTokens.start(states, real, torch.arange(real.size).view(real.shape), rates, options)


def test_sequences_of_one_length_lie_side_by_side():
    tokens = flat_tokens(MASKS["holes"])
    assert tokens.unpadding.groups == [(1, 5, 5), (3, 2, 2)] and tokens.unpadding.mask is None
    assert tokens.states[:, 0].tolist() == [5, 6, 7, 8, 9, 0, 1, 13, 14, 15, 19]
    assert tokens.ids.tolist() == tokens.states[:, 0].tolist()
    assert tokens.positions.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 0, 1]
    assert torch.equal(tokens.in_batch()[..., 0], torch.arange(20).view(4, 5) * torch.tensor(MASKS["holes"]))
    first = replace(tokens, read=tokens.read[tokens.unpadding.first]).firsts_in_batch()
    assert first.flatten().tolist() == [0, 5, 13, 15]
    grid = tokens.on_grid()
    assert grid.lengths == grid.mask.sum(dim=1).tolist() == [5, 2, 2, 2]
    assert grid.ids[grid.mask].tolist() == tokens.ids.tolist()


def test_padding_stays_where_removing_it_costs_more():
    tokens = flat_tokens(MASKS["nearly full"])
    assert tokens.trail.whole.places is None and tokens.unpadding.groups == [(3, 3, 3)]
    assert (tokens.unpadding.mask[:, 0, 0] == 0).int().tolist() == MASKS["nearly full"]
    assert tokens.unpadding.first.tolist() == [0, 3, 7]
    assert flat_tokens(MASKS["nearly full"][:2]).unpadding.mask is None
    assert flat_tokens(torch.zeros(2, 40)).trail.whole.places is None  # nothing to lay end to end


def test_what_is_read_and_what_is_updated():
    """Sequences of 5, 2, 2 and 2 tokens, of which 3, 1, 1 and 1 are updated."""
    tokens = flat_tokens(MASKS["holes"], rates=[0.5], readable=True)
    kept = tokens.keep(torch.arange(11.0), [3, 1, 1, 1])
    assert kept.unpadding.groups == [(1, 5, 3), (3, 2, 1)]
    assert kept.unpadding.queries.tolist() == [0, 3, 4, 5, 7, 9]
    assert kept.states[:, 0].tolist() == [5, 8, 9, 0, 13, 15]
    assert [(rows, asked.stop, read.stop) for rows, read, asked in kept.unpadding.spans()] == [
        (1, 3, 5), (3, 6, 11),
    ]  # fmt: skip


@pytest.mark.parametrize("call_cost", [1, 1_000, None])
def test_flat_tokens_stay_as_padded_ones_do(call_cost):
    """Scores with ties; what a pruner keeps beyond the plan is planned when it is known."""
    mask = torch.arange(9) < torch.tensor([4, 9, 2, 1, 6])[:, None]
    padded = WithCls.start(torch.arange(45.0).view(5, 9, 1), mask, torch.arange(45).view(5, 9))
    flat = flat_tokens(mask, call_cost, rates=[0.5, 0.5])
    for lengths in ([2, 5, 1, 1, 3], [2, 4, 1, 1, 1], [1, 1, 1, 1, 1]):
        scores = torch.randint(0, 3, (45,)).float()
        order = flat.trail.whole.order
        flat = flat.keep(scores[flat.ids], [lengths[row] for row in order])
        padded = padded.keep(scores[padded.ids], lengths)
        assert torch.equal(flat.trail.kept, padded.kept_positions())
        assert torch.equal(flat.in_batch(), padded.states * padded.mask[..., None])


def of_each(query, key, value, ends_of_queries, ends_of_keys, most_queries, most_keys, *, scale):
    """What `varlen_attn` computes, sequence by sequence."""
    ends = [ends.tolist() for ends in (ends_of_queries, ends_of_keys)]
    assert ends_of_queries.dtype == ends_of_keys.dtype == torch.int32
    assert [most_queries, most_keys] == [max(b - a for a, b in pairwise(each)) for each in ends]
    outputs = []
    for (start, end), (first, last) in zip(*(pairwise(each) for each in ends), strict=True):
        parts = (query[start:end], key[first:last], value[first:last])
        parts = [part.transpose(0, 1) for part in parts]
        outputs.append(scaled_dot_product_attention(*parts, scale=scale).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("way", ["one call for all lengths", "calls are dear"])
@pytest.mark.parametrize("removed_tokens", ["fused", "readable"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_ways_of_a_gpu_give_the_same(batch, monkeypatch, way, removed_tokens, schedule):
    model, results = build(schedule, "ideal gradients student", removed_tokens=removed_tokens), []
    for _ in range(2):
        model.zero_grad()
        output = model(**batch)
        output.logits.square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        results.append((output.logits, [*(output.kept or ())], gradients))
        if way == "calls are dear":
            monkeypatch.setattr(layers, "calls_are_dear", lambda _: True)
        else:
            monkeypatch.setattr(layers, "has_varlen", lambda *_: True)
            monkeypatch.setattr(layers, "varlen_attn", of_each)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


def test_one_call_for_all_lengths_is_for_half_precision_on_a_gpu():
    attention = build().bert.encoder.layer[0].attention.self
    assert not layers.has_varlen(attention, torch.zeros(1, dtype=torch.bfloat16))


def change_in_place(model):
    with torch.no_grad():
        model.bert.encoder.layer[0].attention.self.key.weight.add_(0.1)
    return model


def change_data(model):
    model.bert.encoder.layer[0].attention.self.value.bias.data += 0.1
    return model


def step(model):
    model.train()
    ids = torch.randint(5, 64, (2, 9))
    model(input_ids=ids, labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.AdamW(model.parameters(), lr=0.01, fused=True).step()
    return model.eval()


def replace_parameter(model):
    query = model.bert.encoder.layer[1].attention.self.query
    query.weight = torch.nn.Parameter(torch.randn_like(query.weight))
    return model


def load(model):
    model.load_state_dict({key: tensor + 0.01 for key, tensor in model.state_dict().items()})
    return model


def load_and_assign(model):
    state = {key: tensor + 0.01 for key, tensor in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    return model


@pytest.mark.parametrize(
    "change",
    [
        change_in_place,
        change_data,
        step,
        replace_parameter,
        load,
        load_and_assign,
        copy.deepcopy,
        lambda model: model.double().float(),
    ],
)
def test_a_changed_weight_counts_at_once(batch, change):
    model = build()
    with torch.inference_mode():
        model(**batch)
    model = change(model)
    with torch.inference_mode():
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    torch.testing.assert_close(fast, stock, atol=1e-5, rtol=0)


def test_an_adapter_in_place_of_a_linear_layer_is_called(batch):
    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for place in ("attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"):
        model = build()
        parent, _, child = place.rpartition(".")
        parent = model.bert.encoder.layer[0].get_submodule(parent)
        adapter = Doubled(getattr(parent, child).in_features, getattr(parent, child).out_features)
        setattr(parent, child, adapter)
        with torch.inference_mode():
            fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
        torch.testing.assert_close(fast, stock, atol=1e-5, rtol=0)


def test_a_weight_that_a_quantizer_replaced_is_multiplied_by_its_own_rules(batch):
    class Quantized(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if "mkldnn" in str(function) or function is torch.Tensor.view:
                raise NotImplementedError(function)
            found = super().__torch_function__(function, types, args, kwargs or {})
            return found.as_subclass(torch.Tensor) if function is torch.nn.functional.linear else found

    model = build()
    expected = logits(model, None, **batch).detach()
    first, *_, last = model.bert.encoder.layer
    for dense in (first.output.dense, first.intermediate.dense, last.attention.self.key):
        dense.weight = torch.nn.Parameter(dense.weight.detach().as_subclass(Quantized))
    with torch.inference_mode():
        torch.testing.assert_close(logits(model, FastPaths(), **batch), expected, atol=1e-5, rtol=0)


def test_stock_layers_where_they_are_needed(batch):
    model = build([0, 0.5, 0], "tail")
    with torch.no_grad():
        assert len(model(**batch, output_hidden_states=True).hidden_states) == 4
        assert model.bert(**batch).last_hidden_state.shape == (4, 9, 32)
    model = build(chunk_size_feed_forward=1)
    with torch.no_grad():
        fast, stock = logits(model, FastPaths(), **batch), logits(model, None, **batch)
    assert torch.equal(fast, stock)
    model = build(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    expected = model(**batch).logits
    model.activation_checkpointing_enable()
    torch.testing.assert_close(model(**batch).logits, expected, atol=1e-5, rtol=0)
