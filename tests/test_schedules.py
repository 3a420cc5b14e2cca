"""Schedules by name, drawn at random and rising; what they keep."""

import random

import numpy as np
import pytest

from pruning import schedules


def test_every_layer_processes_what_the_layers_before_it_left():
    assert schedules.alive([0, 0.5, 0, 0.5]) == [1, 0.5, 0.5, 0.25]
    assert schedules.token_layers([0, 0.5, 0, 0.5]) == (1 + 0.5 + 0.5 + 0.25) / 4


def test_schedules_drawn_keep_what_was_asked_for():
    rng = random.Random(0)
    for layers in (6, 12, 24):
        for share in (0.8, 0.5, 0.3):
            drawn = [schedules.draw(layers, share, rng) for _ in range(100)]
            kept = [schedules.token_layers(schedule) for schedule in drawn]
            assert abs(np.median(kept) - share) < 0.01 and max(kept) < 1
            assert all(0 <= rate <= 1 for schedule in drawn for rate in schedule)
            assert {len(schedule) for schedule in drawn} == {layers}


def test_schedules_drawn_may_leave_layers_out():
    rng = random.Random(0)
    drawn = [schedules.draw(12, 0.3, rng, fewest=2) for _ in range(300)]
    kept = [schedules.token_layers(schedule) * len(schedule) / 12 for schedule in drawn]
    assert {len(schedule) for schedule in drawn} == set(range(4, 13))  # three whole layers keep too little
    assert abs(np.median(kept) - 0.3) < 0.01
    alone = [schedule for schedule in drawn if 1 in schedule]
    assert 100 < len(alone) < 200  # with [CLS] alone in the last layers
    assert {len(schedule) for schedule in (schedules.draw(3, 0.1, rng, fewest=9) for _ in range(9))} == {3}


def test_rates_rise_to_the_schedule_in_the_first_part_of_the_training():
    rates_at = schedules.rising([0.8, 0.5], ramp_share=0.5)
    assert rates_at(0.25) == [0.4, 0.25]
    assert all(rates_at(progress) == [0.8, 0.5] for progress in (0.5, 0.8, 1.0))
    assert schedules.rising([0.8, 0.5], ramp_share=0)(0.01) == [0.8, 0.5]
    at_random = schedules.at_random(6, (0.2, 0.6), ramp_share=0.5, seed=0)
    assert schedules.token_layers(at_random(0.01)) > 0.95
    late = [schedules.token_layers(at_random(1.0)) for _ in range(200)]
    assert min(late) > 0.15 and 0.55 < max(late) < 0.8 and abs(np.mean(late) - 0.4) < 0.05


@pytest.mark.parametrize("kind", ["sentence", "pair"])
@pytest.mark.parametrize("name", schedules.FOR_SIX_LAYERS)
def test_a_named_schedule_keeps_as_much_of_a_bert_of_any_depth(name, kind):
    six = schedules.resolve(name, 6, kind)
    assert six == pytest.approx(schedules.FOR_SIX_LAYERS[name][kind])
    three = schedules.resolve(name, 3, kind)
    assert len(three) == 3 and schedules.alive(three) == pytest.approx(schedules.alive(six)[::2], abs=2e-3)
    twelve, deep = (schedules.resolve(name, layers, kind) for layers in (12, 24))
    assert twelve == schedules.FOR_TWELVE_LAYERS[name] and len(deep) == 2 * len(twelve)
    assert schedules.token_layers(deep) == pytest.approx(schedules.token_layers(twelve), abs=2e-3)


def test_a_schedule_is_a_list_or_a_known_name():
    assert schedules.resolve([0, 0.5], 2, "pair") == [0, 0.5]
    with pytest.raises(ValueError, match=r"no schedule is called 'quarter'.*half, third, fifth"):
        schedules.resolve("quarter", 6, "pair")
