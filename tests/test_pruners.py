"""Scores of pruners, and the loss that students learn by."""

import pytest
import torch

from pruning import losses, methods, pruners
from pruning.lstm_model import PrunedLstmClassifier
from pruning.pruners import PrunerConfig
from pruning.selection import Tokens


def tokens(ids, mask):
    return Tokens.start(torch.zeros(*ids.shape, 4), mask, ids)


def random_scores(ids, seed=0, layer=0):
    config = PrunerConfig(layer, hidden_size=4, vocab_size=60, seed=seed)
    return pruners.RandomPruner(config).eval().score(tokens(ids, torch.ones_like(ids).bool()))


def test_random_scores_follow_from_seed_layer_and_example():
    ids = torch.randint(5, 60, (3, 50))
    first = random_scores(ids)
    assert torch.equal(first[1:2], random_scores(ids[1:2]))
    assert not torch.equal(first, random_scores(ids, seed=1))
    assert not torch.equal(first, random_scores(ids, layer=1))
    changed = ids[1:2].clone()
    changed[0, 49] += 1
    assert not torch.equal(first[1:2], random_scores(changed))


def test_random_scores_are_uniform():
    scores = random_scores(torch.randint(5, 30_000, (200, 60)))
    assert scores.min() >= 0 and scores.max() < 1
    assert abs(scores.mean() - 0.5) < 0.01
    assert abs(scores.std() - 12**-0.5) < 0.01
    assert (scores.mean(0) - 0.5).abs().max() < 0.1  # at every place
    neighbours = torch.corrcoef(torch.stack([scores[:, :-1].flatten(), scores[:, 1:].flatten()]))
    assert neighbours[0, 1].abs() < 0.05


@pytest.fixture
def frequency():
    return pruners.FrequencyPruner(PrunerConfig(0, hidden_size=4, vocab_size=10))


def test_frequency_drops_the_commonest(frequency):
    frequency.counts.copy_(torch.tensor([0, 0, 0, 0, 0, 9, 100, 1, 5, 5]))
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    scores = frequency.score(tokens(ids, torch.ones(1, 5).bool()))
    assert scores.argsort(descending=True, stable=True).tolist() == [[2, 3, 4, 0, 1]]


def test_words_that_the_training_text_does_not_count_stay_longest(frequency):
    frequency.set_frequencies(torch.tensor([9, 9, 9, 3]))  # an embedding of more words than the vocabulary
    assert frequency.counts.tolist() == [9, 9, 9, 3, 0, 0, 0, 0, 0, 0]
    frequency.resize(12)
    assert frequency.counts.tolist() == [9, 9, 9, 3, *[0] * 8]
    frequency.resize(3)
    assert frequency.counts.tolist() == [9, 9, 9]


def test_frequency_counts_on_in_half_precision(frequency):
    ids = torch.tensor([[5, 6, 7]])
    frequency.set_frequencies(torch.tensor([0, 0, 0, 0, 0, 90_000, 70_000, 3]))
    words = tokens(ids, torch.ones(1, 3).bool())
    assert frequency.half().score(words).tolist() == [[-90_000, -70_000, -3]]


def test_ranking_loss_is_least_for_the_teachers_own_ranking():
    teacher = torch.tensor([[-1e9, 4.0, -0.5, 2.0, 77.0]])
    mask = torch.tensor([[True, True, True, True, False]])
    own = losses.SHARPNESS * 3**0.5 * torch.tensor([[-0.75, 0.75, -0.25, 0.25, 50.0]])  # padding: no matter
    assert losses.ranking_loss(own, teacher, mask) < 1e-6
    assert losses.ranking_loss(own.flip(1), teacher, mask) > 0.1
    scores = torch.zeros(1, 5, requires_grad=True)
    for _ in range(200):
        loss = losses.ranking_loss(scores, teacher, mask)
        (gradient,) = torch.autograd.grad(loss, scores)
        scores = (scores - 5 * gradient).detach().requires_grad_()
    assert scores[0, :4].argsort().tolist() == teacher[0, :4].argsort().tolist()


def test_the_ranking_alone_counts():
    scores, teacher = torch.randn(3, 8), torch.randn(3, 8)
    mask = torch.arange(8) < torch.tensor([8, 5, 2])[:, None]
    first = losses.ranking_loss(scores, teacher, mask)
    assert torch.equal(first, losses.ranking_loss(scores, (7 * teacher).exp(), mask))
    assert first != losses.ranking_loss(scores, -teacher, mask)


def test_ranking_loss_of_one_token_or_none_is_zero_and_of_equal_scores_finite():
    mask = torch.tensor([[True, False], [False, False]])
    teacher = torch.tensor([[3.0, 0.0], [0.0, 0.0]])
    assert losses.ranking_loss(torch.zeros(2, 2), teacher, mask) == 0
    equal = losses.ranking_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2).bool())
    assert 0 < equal < torch.inf


def test_the_loss_of_the_task_is_of_classes_or_of_a_score():
    logits, labels = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0.0, 0.0])
    wanted = -logits.log_softmax(dim=1)[:, 0].mean()
    torch.testing.assert_close(losses.task_loss(logits, labels), wanted)
    assert losses.task_loss(torch.tensor([[2.0], [1.0]]), torch.tensor([1.0, 4.0])) == (1 + 9) / 2


def test_distillation_loss_is_the_divergence_at_the_temperature():
    logits, teacher = torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[4.0, 0.0, 2.0]])
    assert losses.distillation_loss(teacher, teacher) == 0
    p, q = ((values / 2).softmax(dim=1) for values in (teacher, logits))
    wanted = 4 * (p * (p / q).log()).sum()
    torch.testing.assert_close(losses.distillation_loss(logits, teacher), wanted)
    assert losses.distillation_loss(torch.tensor([[2.0], [1.0]]), torch.tensor([[1.0], [4.0]])) == 5


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown pruning method 'tails'"):
        methods.check_method("tails", methods.BERT_METHODS)
    with pytest.raises(ValueError, match="unknown pruning method 'column mean'"):
        PrunedLstmClassifier(9, 2, pair=False, method="column mean", rate=0.5)


@pytest.mark.parametrize(
    ("method", "teacher", "is_teacher"),
    [
        ("head", None, False),
        ("column mean", None, False),  # in a pruned model it needs no full pass
        ("column mean student", "column mean", False),
        ("ideal gradients", "ideal gradients", True),
        ("ideal gradients student", "ideal gradients", False),
        ("lstm", "lstm", True),
    ],
)
def test_teachers_and_students_need_a_teachers_scores(method, teacher, is_teacher):
    assert methods.teacher_of(method) == teacher and methods.is_teacher(method) == is_teacher
