"""The fast paths: each gives what the stock layers give, to rounding, with and without gradients."""

import copy
from dataclasses import fields

import pytest
import torch
from conftest import build
from transformers import BertForSequenceClassification

from pruning.layers import FastPaths
from pruning.unpadding import Unpadding

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


def test_unpadding_lays_sequences_of_one_length_side_by_side():
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [1, 0, 0, 0, 1]]).bool()
    unpadding = Unpadding.of(mask, mask.sum(dim=1).tolist())
    assert unpadding.groups == [(1, 5, 5), (3, 2, 2)] and unpadding.mask is None
    states = torch.arange(20.0).view(4, 5, 1)
    flat = unpadding.flatten(states)
    assert flat[:, 0].tolist() == [5, 6, 7, 8, 9, 0, 1, 13, 14, 15, 19]
    assert torch.equal(unpadding.unflatten(flat), states * mask[..., None])
    assert unpadding.in_order(flat[unpadding.first])[:, 0].tolist() == [0, 5, 13, 15]


def test_unpadding_knows_which_tokens_are_updated():
    """Sequences of 2, 5 and 2 tokens, of which 1, 3 and 2 are updated."""
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]).bool()
    unpadding = Unpadding.of(mask, [2, 5, 2], updated=[1, 3, 2])
    assert unpadding.groups == [(1, 5, 3), (1, 2, 2), (1, 2, 1)]
    positions = torch.tensor([[0, 9, 9], [0, 2, 4], [0, 1, 9]])
    places = unpadding.places(positions, positions < 9)
    assert places.tolist() == [0, 2, 4, 5, 6, 7]
    flat = unpadding.flatten(torch.arange(15.0).view(3, 5, 1))
    assert flat[places, 0].tolist() == [5, 7, 9, 13, 14, 0]
    assert [(rows, asked.stop, read.stop) for rows, asked, read in unpadding.spans()] == [
        (1, 3, 5), (1, 5, 7), (1, 6, 9),
    ]  # fmt: skip


def test_padding_stays_where_removing_it_costs_more():
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 1, 1]]).bool()
    unpadding = Unpadding.of(mask, [3, 3, 2])
    assert (
        unpadding.index is None and unpadding.groups == [(3, 3, 3)] and unpadding.mask.shape == (3, 1, 1, 3)
    )
    assert unpadding.first.tolist() == [0, 3, 7]
    assert Unpadding.of(mask[:2], [3, 3]).mask is None
    assert Unpadding.of(torch.zeros(2, 40).bool(), [0, 0]).index is None  # nothing to lay end to end


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
