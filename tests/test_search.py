"""The search for schedules, run whole on the tiny world."""

import json
import re
from types import SimpleNamespace

import pytest

import PrepareGlue4Bert
from pruning import schedules
from pruning.errors import UserError
from studies import search, tables
from studies.search import Point
from studies.supernet import Supernet

SETTINGS = {
    "task_names": ["sst-2", "sts-b"],
    "budgets": [0.01, 1e6],
    "training_rows": 14,
    "dense_epochs": 1,
    "pruned_epochs": 1,
    "batch_size": 8,
    "evaluations": 8,
    "kept_budgets": {"half": 0.5, "none": 0.0},
    "timing_examples": 4,
    "timing_passes": 1,
}


@pytest.fixture
def find(full_world, monkeypatch):
    """main() of the search, with small settings and whatever else is given."""
    PrepareGlue4Bert.main()

    def main(**changes):
        for name, value in (SETTINGS | changes).items():
            monkeypatch.setattr(search, name, value)
        search.main()

    return main


def test_the_search_prints_lists_to_paste(find, full_world, capsys):
    find()
    printed = capsys.readouterr().out
    rows = re.findall(r"^\| (.+?) +\|.* `(\[[0-9., ]+\])` +\|$", printed, re.MULTILINE)
    lists = {budget: json.loads(rates) for budgets, rates in rows for budget in budgets.split(", ")}
    assert set(lists) == {"× 0.01", "half"}  # nothing is a million times as fast, and something always stays
    record = json.loads(next((full_world / "records/search").glob("*.json")).read_text())
    theirs = tables.published("search")["records"][0]
    assert set(record) == set(theirs)
    assert set(record["chosen"][0]) == set(theirs["chosen"][0])
    assert len(record["points"]) == 8 and record["chosen"][0]["speedup"] > 0.01
    assert set(record["dense"]) == {"sst-2", "sts-b"}
    front = [p for p in record["points"] if p[0] in record["front"]]
    assert len(front) == len(record["front"]) > 0
    for _, metric, speedup, _ in front:
        assert not any(m > metric and s > speedup for _, m, s, _ in record["points"])
    half = next(row for row in record["chosen"] if row["budget"] == "half")
    assert lists["half"] == half["schedule"]
    assert {len(schedule) for schedule, *_ in record["points"]} == {2, 3}  # of all layers, and of fewer
    assert half["held_out"] == max(metric for _, metric, _, kept in record["points"] if kept <= 0.5)
    assert next((full_world / "records/search").glob("*.png")).stat().st_size > 10_000


def test_models_are_taken_from_the_cache(find, full_world):
    find(task_names=["sst-2"])
    kept = [full_world / "cache/bert/dense", full_world / "cache/bert/supernets"]
    models = {path: path.stat().st_mtime_ns for folder in kept for path in folder.iterdir()}
    assert len(models) == 2
    find(task_names=["sst-2"], evaluations=9)
    assert models == {path: path.stat().st_mtime_ns for folder in kept for path in folder.iterdir()}
    assert len([*(full_world / "records/search").glob("*.json")]) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training_rows": 24}, "sst-2 has 24 rows"),
        ({"training_rows": None}, "sst-2 has 24 rows"),
        ({"budgets": []}, "budgets in search.py"),
        ({"pruning_method": "ideal gradients"}, "cannot be deployed"),
    ],
)
def test_a_search_that_cannot_work_says_so_before_any_training(find, full_world, changes, words):
    with pytest.raises(UserError, match=words):
        find(**changes)
    assert not (full_world / "cache/bert/dense").exists()


def test_what_is_chosen_is_the_best_of_what_is_fast_enough_and_keeps_few_enough():
    evaluated = {
        (0.1,): (0.9, 1.0, 0.9),
        (0.2,): (0.8, 2.0, 0.8),
        (0.3,): (0.7, 1.5, 0.7),
        (0.4,): (0.5, 3.0, 0.6),
    }
    points = {schedule: Point(*point) for schedule, point in evaluated.items()}
    assert search.choose(points) == (0.1,)
    assert search.choose(points, at_least=1.5) == (0.2,)
    assert search.choose(points, at_most=0.7) == (0.3,)
    assert search.choose(points, at_least=1.6, at_most=0.7) == (0.4,)
    assert search.choose(points, at_least=4) is None


def test_a_choice_that_the_clock_refuses_is_made_again():
    """However far the estimate is from the clock: here it promises twice the speed."""
    points = {(rate,): Point(1 - rate, 2 + 2 * rate, 1 - rate) for rate in (0.1, 0.2, 0.3)}
    slow = SimpleNamespace(clock=lambda chosen: [points[schedule].speedup / 2 for schedule in chosen])
    assert search.choose_by_clock([slow], points, 1.15) == ((0.2,), pytest.approx(1.2))
    assert search.choose_by_clock([slow], points, 1.28) == ((0.3,), pytest.approx(1.3))
    assert search.choose_by_clock([slow], points, 1.4) == (
        (0.1,),
        pytest.approx(1.1),
    )  # none is: the last tried
    assert search.choose_by_clock([slow], points, 3) == (None, None)


def test_the_search_starts_with_what_anyone_would_try():
    starts = search.plain(6, 2, [0.15, 0.7])
    kept = [schedules.token_layers(schedule) * len(schedule) / 6 for schedule in starts]
    assert min(kept) < 0.15 + 0.05 and max(kept) > 0.7 - 0.05
    for depth in (6, 4, 3):
        pruned = [schedule for schedule in starts if len(schedule) == depth and any(schedule)]
        assert any(len(set(schedule)) == 1 for schedule in pruned)  # the same rate everywhere
        assert any(schedule[0] == 0 and len(set(schedule[1:])) == 1 for schedule in pruned)
        assert any(schedule[0] > 0 and not any(schedule[1:]) for schedule in pruned)
    assert {len(schedule) for schedule in starts if not any(schedule)} == {2, 3, 4, 5}  # only cut
    assert (0, 0, 1, 0, 0, 0) in starts  # [CLS] alone from the third layer on
    assert {len(schedule) for schedule in search.plain(6, 6, [0.15, 0.7])} == {6}


def test_rates_are_multiples_of_a_twentieth():
    assert search.rounded([0, 0.024, 0.026, 0.49, 0.98, 0.15000000000000002]) == (0, 0, 0.05, 0.5, 1, 0.15)


def test_the_speed_of_a_schedule_is_estimated_from_those_that_were_timed():
    """Here seconds are the sum that `parts_of` names."""
    supernet = Supernet.__new__(Supernet)
    seconds = {
        (0.0, 0.0, 0.0): 0.1 + 3 * 0.03 + 2 * 0.2 + 0.05,
        (0.0, 0.0): 0.1 + 2 * 0.03 + 0.2 + 0.05,
        (0.0,): 0.1 + 0.03 + 0.05,
        (0.5, 0.0, 0.0): 0.1 + 3 * 0.03 + 1 * 0.2 + 0.025 + 0.01,
        (0.5, 0.5, 0.0): 0.1 + 3 * 0.03 + 0.75 * 0.2 + 0.0125 + 0.02,
        (0.0, 0.0, 0.8): 0.1 + 3 * 0.03 + 2 * 0.2 + 0.01 + 0.01,
        (0.9, 0.0): 0.1 + 2 * 0.03 + 0.1 * 0.2 + 0.005 + 0.01,
    }
    supernet.clock = lambda chosen: [1 / seconds[schedule] for schedule in chosen]
    supernet.learn_costs(list(seconds))
    assert supernet.costs == pytest.approx([0.1, 0.03, 0.2, 0.05, 0.01])
    expected = 0.1 + 3 * 0.03 + 1.4 * 0.2 + 0.2 * 0.05 + 0.02
    assert 1 / supernet.speedup((0.0, 0.6, 0.5)) == pytest.approx(expected)


def test_estimated_speeds_are_positive_whatever_the_clock_says():
    supernet = Supernet.__new__(Supernet)
    supernet.clock = lambda chosen: [2.0, 1.0, 0.5]  # the harder it prunes, the slower
    supernet.learn_costs([(0.0, 0.0), (0.5, 0.0), (0.9, 0.0)])
    assert min(supernet.costs) >= 0 and supernet.speedup((0.9, 0.9)) > 0
