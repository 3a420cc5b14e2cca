"""Removed tokens that stay readable, against a full-length forward in which they are copied, not updated."""

import pytest
import torch
from conftest import build

from pruning import flops
from pruning.layers import FastPaths, absorbing_pays, may_absorb
from pruning.methods import BERT_METHODS, is_teacher

DEPLOYABLE = [method for method in BERT_METHODS if not is_teacher(method)]
SCHEDULES = [[0, 0.5, 0.5], [0.3, 0, 0.5], [0, 1, 0]]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LENGTHS = (17, 9, 4, 1)


def readable(schedule, method="tail", **changes):
    return build(schedule, method, removed_tokens="readable", **NO_DROPOUT | changes)


def by_hand(model, batch, kept):
    """The logits of a full-length forward in which the states of removed tokens are copied."""
    states = model.bert.embeddings(batch["input_ids"], batch["token_type_ids"])
    mask = torch.where(batch["attention_mask"].bool(), 0.0, -1e9)[:, None, None]
    for layer, positions in zip(model.bert.encoder.layer, kept, strict=True):
        updated = torch.zeros(states.shape[:2]).bool()
        for row, row_positions in enumerate(positions):
            updated[row, row_positions[row_positions >= 0]] = True
        states = torch.where(updated[..., None], layer(states, mask), states)
    return model.classifier(model.bert.pooler(states))


@torch.no_grad()
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("method", DEPLOYABLE)
def test_the_logits_are_those_of_a_full_length_forward(batch, schedule, method):
    model = readable(schedule, method)
    output = model(**batch)
    torch.testing.assert_close(output.logits, by_hand(model, batch, output.kept), atol=1e-5, rtol=0)
    model.bert.encoder.fast_paths = None
    stock = model(**batch)
    torch.testing.assert_close(output.logits, stock.logits, atol=1e-5, rtol=0)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(output.kept, stock.kept, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("method", DEPLOYABLE)
def test_alone_and_with_any_padding_the_same(batch, method):
    model = readable([0.3, 0, 0.5], method)
    together = model(**batch).logits
    for row, length in enumerate(LENGTHS):
        for extra in (0, 20):
            alone = {name: tensor[row : row + 1, :length] for name, tensor in batch.items()}
            alone = {name: torch.nn.functional.pad(tensor, (0, extra)) for name, tensor in alone.items()}
            torch.testing.assert_close(model(**alone).logits[0], together[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_gradients_are_those_of_the_stock_layers(batch, schedule):
    model, gradients = readable(schedule).train(), []
    for paths in (FastPaths(), None):
        model.bert.encoder.fast_paths = paths
        model.zero_grad()
        model(**batch, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name  # or several processes would wait for it
        torch.testing.assert_close(gradient, gradients[1][name], atol=1e-6, rtol=1e-4, msg=name)


def test_removed_tokens_are_read_and_what_is_gone_is_not(batch):
    logits = []
    for removed_tokens in ("readable", "gone"):
        model = build([0, 1, 0], "tail", removed_tokens=removed_tokens)
        model.bert.encoder.fast_paths = FastPaths(fused_product=False)  # which calls no module
        seen = []
        model.bert.encoder.layer[2].attention.output.dense.register_forward_pre_hook(
            lambda _, arguments, seen=seen: seen.append(arguments[0])
        )
        with torch.no_grad():
            logits.append(model(**batch).logits)
        assert seen[0].shape == (4, 32)  # [CLS] alone is updated
    assert not torch.allclose(logits[0][:3], logits[1][:3], atol=1e-3)
    torch.testing.assert_close(logits[0][3], logits[1][3], atol=1e-5, rtol=0)  # one token: nothing goes


def test_keys_and_values_of_what_few_tokens_read_are_never_made(batch):
    model, called = readable([0, 1, 0]), []
    for number, layer in enumerate(model.bert.encoder.layer):
        layer.attention.self.key.register_forward_hook(lambda *_, number=number: called.append(number))
    model.bert.encoder.fast_paths = FastPaths(fused_product=False)
    with torch.no_grad():
        model(**batch)
    assert called == [0]  # layers 1 and 2 absorb them
    cheap = flops.pruned_bert(model, batch)
    model.bert.encoder.fast_paths = FastPaths(absorbed=False)
    assert cheap < 0.75 * flops.pruned_bert(model, batch)


def test_attention_is_absorbed_where_that_saves_enough_products():
    for hidden, tokens, asked, pays in [(384, 14, 7, True), (384, 16, 8, False), (384, 128, 1, True)]:
        assert absorbing_pays(hidden, 12, [(8, tokens, asked)]) == pays


def test_dropout_of_attention_weights_and_adapters_are_not_absorbed():
    attention = build(attention_probs_dropout_prob=0.1).bert.encoder.layer[0].attention.self
    assert may_absorb(attention.eval()) and not may_absorb(attention.train())
    attention.key = torch.nn.Sequential(attention.key)
    assert not may_absorb(attention.eval())


def test_the_word_is_saved_with_the_model(batch, tmp_path):
    model = readable([0, 0.5, 0])
    assert not any("fusions" in name for name in model.state_dict())
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits, atol=1e-6, rtol=0)
