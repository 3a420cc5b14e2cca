"""Counting, choosing and gathering."""

import math
from fractions import Fraction

import pytest
import torch

from pruning import selection


class WithCls(selection.Tokens):
    keeps_first = True


@pytest.mark.parametrize("rate", [0, 0.1, 0.29, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.999, 1])
def test_counts_follow_the_formula(rate):
    exact = Fraction(rate).limit_denominator(10**6)
    wanted = [min(n, max(1, n - math.floor(n * exact))) for n in range(513)]
    assert [selection.count_kept(n, rate) for n in range(513)] == wanted


def test_counts_are_those_of_the_decimal_that_was_written():
    assert selection.count_kept(100, 0.29) == 71  # not 72, as floats would say


@pytest.mark.parametrize("rate", [0.1, 0.37, 0.5, 0.9])
def test_the_longest_example_gives_the_width(rate):
    counts = [selection.count_kept(n, rate) for n in range(300)]
    assert counts == sorted(counts)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan"), "0.5", None, True])
def test_rates_outside_the_range_are_refused(rate):
    with pytest.raises(ValueError, match="between 0 and 1"):
        selection.check_rate(rate)


def test_the_best_are_chosen_in_their_old_order():
    scores = torch.tensor([[0.1, 5.0, 2.0, 9.0, 3.0]])
    indices, mask = selection.choose(scores, torch.ones(1, 5).bool(), torch.tensor([3]), 3, False)
    assert indices.tolist() == [[1, 3, 4]]
    assert mask.all()


def test_of_equal_scores_the_earlier_token_stays():
    scores = torch.zeros(1, 40)
    indices, _ = selection.choose(scores, torch.ones(1, 40).bool(), torch.tensor([7]), 7, False)
    assert indices.tolist() == [list(range(7))]


def test_removed_is_what_was_not_chosen_and_no_padding():
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    indices, chosen = torch.tensor([[0, 2, 3], [1, 3, 3]]), torch.tensor([[True] * 3, [True, False, False]])
    removed = selection.removed(mask, indices, chosen)
    assert removed.tolist() == [[False, True, False, False], [True, False, True, False]]


def test_the_first_real_token_stays_whatever_its_score():
    mask = torch.tensor([[True] * 4, [False, False, True, True]])
    scores = torch.tensor([[-9.0, 1, 2, 3], [9.0, 9, -9, 1]])
    indices, kept = selection.choose(scores, mask, torch.tensor([1, 1]), 1, True)
    assert indices.tolist() == [[0], [2]]
    assert kept.all()


def test_padding_is_never_chosen_before_a_token():
    mask = torch.tensor([[True, True, True, False, False], [True] * 5])
    scores = torch.tensor([[-torch.inf, -3.0, -2.0, 99.0, 99.0], [1.0, 2, 3, 4, 5]])
    kept = torch.tensor([3, 4])
    indices, chosen = selection.choose(scores, mask, kept, 4, False)
    assert indices[0, :3].tolist() == [0, 1, 2]
    assert chosen.tolist() == [[True, True, True, False], [True] * 4]
    assert indices[1].tolist() == [1, 2, 3, 4]


def test_scores_are_compared_in_fp32():
    scores = torch.tensor([[1.0, 1.001]], dtype=torch.float64)
    indices, _ = selection.choose(scores, torch.ones(1, 2).bool(), torch.tensor([1]), 1, False)
    assert indices.item() == 1


def test_gather_takes_what_is_aligned():
    states = torch.arange(24.0).view(2, 4, 3)
    ids = torch.arange(8).view(2, 4)
    indices = torch.tensor([[0, 3], [1, 2]])
    assert selection.gather(ids, indices).tolist() == [[0, 3], [5, 6]]
    assert torch.equal(selection.gather(states, indices)[1], states[1, 1:3])


def test_an_example_without_a_token_keeps_none_and_the_others_keep_theirs():
    mask = torch.tensor([[False] * 3, [True] * 3])
    tokens = selection.Tokens.start(torch.ones(2, 3, 1), mask, None)
    kept = tokens.keep(torch.tensor([[3.0, 2, 1], [1.0, 2, 3]]), [0, 2])
    assert kept.kept_positions().tolist() == [[-1, -1], [1, 2]]
    assert kept.lengths == [0, 2] and not kept.is_full


def test_all_that_is_aligned_with_the_tokens_goes_with_them():
    mask = torch.tensor([[False, True, True, True, True], [True, True, True, False, False]])
    ids = torch.tensor([[0, 11, 12, 13, 14], [21, 22, 23, 0, 0]])
    tokens = WithCls.start(ids[..., None].float(), mask, ids)
    assert tokens.positions[mask].tolist() == [0, 1, 2, 3, 0, 1, 2]
    scores = torch.tensor([[9.0, 0, 1, 3, 2], [0.0, 1, 2, 9, 9]])
    kept = tokens.keep(scores, [3, 2])
    assert kept.ids[kept.mask].tolist() == [11, 13, 14, 21, 23]
    assert kept.states[kept.mask].flatten().tolist() == [11, 13, 14, 21, 23]
    assert kept.kept_positions().tolist() == [[0, 2, 3], [0, 2, -1]]
    assert kept.whole[0] is ids and kept.whole[1] is mask


def test_removed_tokens_reach_the_first_one_as_their_mean_through_a_matrix():
    fusion = selection.TokenFusion(2)
    assert torch.equal(fusion.weight, torch.zeros(2, 2))
    fusion.weight.data = torch.tensor([[0.0, 1.0], [10.0, 0.0]])
    states = torch.tensor([[[1.0, 2], [3, 4], [5, 6], [7, 8]], [[1, 2], [3, 4], [0, 0], [0, 0]]])
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    tokens = WithCls.start(states, mask, None)
    scores = torch.tensor([[0.0, 1, 0, 0], [0.0, 1, 9, 9]])
    kept = tokens.keep(scores, [2, 2], fusion=fusion)
    assert kept.states[0].tolist() == [[1 + 7, 2 + 60], [3, 4]]  # of (5, 6) and (7, 8) the mean is (6, 7)
    assert kept.states[1].tolist() == [[1, 2], [3, 4]]  # nothing was removed
    assert tokens.states is states and states[0, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [([0, 0.5], "2 rates, but the model has 3 layers"), ([0, 0, 2], "layer 2: .*between 0 and 1, not 2")],
)
def test_schedules_that_do_not_fit_are_refused(schedule, message):
    selection.check_schedule([0, 0.5, 1], 3)
    with pytest.raises(ValueError, match=message):
        selection.check_schedule(schedule, 3)


@pytest.mark.parametrize("keep_first", [False, True])
def test_without_padding_nothing_needs_to_be_counted(keep_first):
    scores = torch.randint(0, 6, (50, 12)).float()  # many of them equal
    mask = torch.ones(50, 12).bool()
    short, full = (
        selection.choose(scores, mask, kept, 5, keep_first) for kept in (None, torch.full((50,), 5))
    )
    assert torch.equal(short[0], full[0]) and torch.equal(short[1], full[1])
