"""Scores, teachers and the loss that students learn by."""

import pytest
import torch
from conftest import tiny_config

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification
from pruning import metrics, pruners, teachers
from pruning.pruners import Tokens


def tokens(ids, mask):
    return Tokens.start(torch.zeros(*ids.shape, 4), mask, ids)


def test_random_scores_follow_from_seed_layer_and_example():
    ids = torch.randint(5, 60, (3, 50))
    mask = torch.ones(3, 50).bool()

    def score(seed, layer, ids=ids):
        return pruners.RandomPruner(seed, layer).eval()(tokens(ids, mask[: len(ids)]))

    first = score(0, 0)
    assert torch.equal(first[1:2], score(0, 0, ids[1:2]))
    assert not torch.equal(first, score(1, 0))
    assert not torch.equal(first, score(0, 1))
    changed = ids[1:2].clone()
    changed[0, 49] += 1
    assert not torch.equal(first[1:2], score(0, 0, changed))


def test_random_scores_are_uniform():
    ids = torch.randint(5, 30_000, (200, 60))
    scores = pruners.RandomPruner(0, 0).eval()(tokens(ids, torch.ones(200, 60).bool()))
    assert scores.min() >= 0 and scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.01
    assert abs(scores.std() - 12**-0.5) < 0.01
    assert (scores.mean(0) - 0.5).abs().max() < 0.1  # at every place
    neighbours = torch.corrcoef(torch.stack([scores[:, :-1].flatten(), scores[:, 1:].flatten()]))
    assert neighbours[0, 1].abs() < 0.05


def test_frequency_drops_the_commonest():
    pruner = pruners.FrequencyPruner(10)
    pruner.counts.copy_(torch.tensor([0, 0, 0, 0, 0, 9, 100, 1, 5, 5]))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    scores = pruner(tokens(ids, torch.ones(1, 5).bool()))
    assert scores.argsort(descending=True, stable=True).tolist() == [[2, 3, 4, 0, 1]]


def test_ranking_loss_is_least_for_the_teachers_own_ranking():
    teacher = torch.tensor([[-1e9, 4.0, -0.5, 2.0, 77.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    own = pruners.SHARPNESS * 3**0.5 * torch.tensor([[-0.75, 0.75, -0.25, 0.25, 50.0]])  # padding: no matter
    assert pruners.ranking_loss(own, teacher, mask) < 1e-6
    assert pruners.ranking_loss(own.flip(1), teacher, mask) > 0.1
    scores = torch.zeros(1, 5, requires_grad=True)
    for _ in range(200):
        loss = pruners.ranking_loss(scores, teacher, mask)
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - 5 * gradient).detach().requires_grad_()
    assert scores[0, :4].argsort().tolist() == teacher[0, :4].argsort().tolist()


def test_the_ranking_alone_counts():
    scores, teacher = torch.randn(3, 8), torch.randn(3, 8)
    mask = torch.arange(8) < torch.tensor([8, 5, 2])[:, None]
    first = pruners.ranking_loss(scores, teacher, mask)
    assert torch.equal(first, pruners.ranking_loss(scores, (7 * teacher).exp(), mask))
    assert first != pruners.ranking_loss(scores, -teacher, mask)


def test_ranking_loss_of_one_token_or_equal_scores_is_finite():
    mask = torch.tensor([[True, False], [True, True]])
    loss = pruners.ranking_loss(torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [0.0, 0.0]]), mask)
    assert torch.isfinite(loss)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown pruning method 'tails'"):
        pruners.build_pruner("tails", layer=0, hidden_size=4, vocab_size=9)


@pytest.fixture
def dense():
    torch.manual_seed(0)
    config = PrunedBertConfig(**tiny_config(initializer_range=0.3), num_labels=3)
    return PrunedBertForSequenceClassification(config).eval()


@pytest.fixture
def batch():
    mask = (torch.arange(12) < torch.tensor([12, 7])[:, None]).long()
    return {"input_ids": torch.randint(5, 64, (2, 12)) * mask, "attention_mask": mask}


def test_emission_rate_is_the_row_of_cls_in_the_product(dense, batch):
    dense.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = dense(**batch, output_attentions=True).attentions
    dense.set_attn_implementation("sdpa")
    scores = teachers.bert_scores(dense, batch, {0: "ideal emission rate", 2: "ideal emission rate"})
    a0, a1, a2 = (a.mean(1) for a in attentions)
    torch.testing.assert_close(scores[0], (a2 @ a1 @ a0)[:, 0])
    torch.testing.assert_close(scores[2], a2[:, 0])
    assert dense.config._attn_implementation == "sdpa"
    assert (scores[0][1, 7:] == 0).all()


def test_gradients_are_those_of_the_loss_for_the_models_own_answer(dense, batch):
    sizes = teachers.bert_scores(dense, batch, {1: "ideal gradients"})[1]
    output = dense(**batch, output_hidden_states=True)
    answer = output.logits.argmax(1)
    loss = torch.nn.functional.cross_entropy(output.logits, answer, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, output.hidden_states[1])
    wanted = gradient.norm(dim=2)
    for row in range(2):  # the same up to a factor of the example
        real = batch["attention_mask"][row].bool()
        ratio = sizes[row][real] / wanted[row][real]
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)


def test_the_gradient_does_not_vanish_where_the_model_is_sure():
    logits = torch.tensor([[80.0, -80.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(metrics.answer_margin(logits).sum(), logits)
    assert gradient.abs().min() == 1
    score = torch.tensor([[2.5]])
    assert metrics.answer_margin(score) == 2.5  # a regression asks for the score itself
