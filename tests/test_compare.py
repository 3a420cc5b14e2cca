"""The head-to-head of rules and the search for schedules, run whole on the tiny world."""

import json
import random
import re

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import build

import CompareRules4Bert
import PrepareGlue4Bert
import SearchSchedule4Bert
from pruning import metrics, schedules, teachers, training
from pruning.errors import UserError
from pruning.tasks import GLUE

RULES = {
    "task_names": ["sst-2", "sts-b"],
    "seeds": [0, 1],
    "training_rows": {"sst-2": 16, "sts-b": 16},
    "dense_epochs": {"sst-2": 1, "sts-b": 1},
    "pruned_epochs": {"sst-2": 1, "sts-b": 1},
    "batch_size": 8,
    "frozen_schedules": {"a": [0, 0.5, 0], "b": [0, 0.5, 0.5]},
    "student_rows": 16,
    "student_epochs": 1,
    "schedules_by_name": {
        "half": {"sentence": [0, 0.5, 0.5], "pair": [0.3, 0.3, 0.3]},
        "third": {"sentence": [0.5, 0.5, 0], "pair": [0.5, 0.5, 0.5]},
    },
    "depths": [1],
    "only_cls": {"[CLS] from layer 2": [0, 0, 1]},
    "draws": 20,
}
SEARCH = {
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


def settle(monkeypatch, module, settings):
    for name, value in settings.items():
        monkeypatch.setattr(module, name, value)


def test_rules_are_compared_in_pieces_that_resume(full_world, monkeypatch, capsys):
    PrepareGlue4Bert.main()
    settle(monkeypatch, CompareRules4Bert, RULES)
    CompareRules4Bert.main()
    paths = sorted((full_world / "records/rules").glob("*/*.json"))
    # frozen, dense, trained on; at a third: recipe, the others, no residue; at half: recipe; [CLS]; depth
    pieces = 3 + (1 + len(CompareRules4Bert.other_methods) + 1) + 1 + 1 + 1
    assert len(paths) == 2 * 2 * pieces
    times = [path.stat().st_mtime_ns for path in paths]
    frozen = json.loads(next(path for path in paths if path.name.startswith("frozen")).read_text())
    assert (
        set(frozen["oracles"]["a"])
        == {*teachers.RULES, *CompareRules4Bert.FREE}
        == set(frozen["students"]["b"])
    )
    recipe = [json.loads(p.read_text()) for p in paths if p.name.startswith("ideal-gradients-student-seed0")]
    for task in CompareRules4Bert.task_names:
        kept = {
            name: j["token_layers_kept"] for r in recipe if r["task"] == task for name, j in r["dev"].items()
        }
        assert kept["half"] > kept["third"]
    table = (full_world / "records/rules/summary.md").read_text()
    assert (
        "student, no residue" in table
        and "first 1 layers" in table
        and "dense, trained on" in table
        and "±" in table
    )
    assert re.search(r"column mean threshold +\| third", table)
    assert (full_world / "records/rules/retrained.png").stat().st_size > 10_000
    paths[0].unlink()
    capsys.readouterr()
    CompareRules4Bert.main()
    again = sorted((full_world / "records/rules").glob("*/*.json"))
    assert again == paths and [p.stat().st_mtime_ns for p in again][1:] == times[1:]


def test_the_search_prints_lists_to_paste(full_world, monkeypatch, capsys):
    PrepareGlue4Bert.main()
    settle(monkeypatch, SearchSchedule4Bert, SEARCH)
    SearchSchedule4Bert.main()
    said = capsys.readouterr().out
    assert re.search(r"× 0\.01 .*\[[0-9., ]+\]", said)
    assert "1000000" not in said  # nothing is so fast
    assert re.search(r"half .*\[[0-9., ]+\]", said) and "none" not in said  # something always stays
    record = json.loads(next((full_world / "records/search").glob("*.json")).read_text())
    assert len(record["points"]) == 8 and record["chosen"][0]["speedup"] > 0.01
    assert set(record["dense"]) == {"sst-2", "sts-b"}
    front = [p for p in record["points"] if p[0] in record["front"]]
    for _, metric, speedup, _ in front:
        assert not any(m > metric and s > speedup for _, m, s, _ in record["points"])
    half = next(row for row in record["chosen"] if row["budget"] == "half")
    assert half["held_out"] == max(metric for _, metric, _, kept in record["points"] if kept <= 0.5)
    assert next((full_world / "records/search").glob("*.png")).stat().st_size > 10_000


def test_random_schedules_are_for_one_process(monkeypatch):
    """A step in which a student's layer does not prune gives it no gradient, which several processes
    would wait for."""
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UserError, match="one process"):
        training.pick_device(in_several_processes=False)


def test_the_front_has_what_nothing_beats():
    judged = {
        (0.1,): (0.9, 1.0, 0.9),
        (0.2,): (0.8, 2.0, 0.8),
        (0.3,): (0.7, 1.5, 0.7),
        (0.4,): (0.5, 3.0, 0.6),
    }
    points = {schedule: SearchSchedule4Bert.Point(*point) for schedule, point in judged.items()}
    assert SearchSchedule4Bert.front(points) == [(0.1,), (0.2,), (0.4,)]
    assert SearchSchedule4Bert.choose(points, at_least=1.5) == (0.2,)
    assert SearchSchedule4Bert.choose(points, at_most=0.7) == (0.3,)
    assert SearchSchedule4Bert.choose(points, at_least=1.6, at_most=0.7) == (0.4,)
    assert SearchSchedule4Bert.choose(points, at_least=4) is None


def test_a_choice_that_the_clock_refuses_is_made_again(monkeypatch):
    """However far the table is from the clock: here it promises twice the speed."""
    points = {
        (rate,): SearchSchedule4Bert.Point(1 - rate, 2 + 2 * rate, 1 - rate) for rate in (0.1, 0.2, 0.3)
    }
    monkeypatch.setattr(SearchSchedule4Bert, "budgets", [1.15])
    monkeypatch.setattr(
        SearchSchedule4Bert,
        "clock",
        lambda part, chosen: [points[schedule].speedup / 2 for schedule in chosen],
    )
    assert SearchSchedule4Bert.choose_all([None], points) == {1.15: ((0.2,), pytest.approx(1.2))}


def test_the_search_starts_with_what_anyone_would_try():
    starts = SearchSchedule4Bert.plain(6)
    low, high = SearchSchedule4Bert.kept_shares
    kept = [schedules.token_layers(schedule) for schedule in starts]
    assert min(kept) < low + 0.05 and max(kept) > high - 0.05
    assert any(len(set(schedule)) == 1 for schedule in starts)  # the same rate everywhere
    assert any(schedule[0] == 0 and len(set(schedule[1:])) == 1 for schedule in starts)
    assert any(schedule[0] > 0 and not any(schedule[1:]) for schedule in starts)


def test_schedules_drawn_keep_what_was_asked_for():
    rng = random.Random(0)
    for layers in (6, 12, 24):
        for share in (0.8, 0.5, 0.3):
            drawn = [schedules.draw(layers, share, rng) for _ in range(100)]
            kept = [schedules.token_layers(schedule) for schedule in drawn]
            assert abs(np.median(kept) - share) < 0.01 and max(kept) < 1
            assert all(0 <= rate <= schedules.HIGHEST_RATE for schedule in drawn for rate in schedule)
    assert schedules.alive([0, 0.5, 0, 0.5]) == [1, 0.5, 0.5, 0.25]


def test_rates_rise_to_the_schedule_in_the_first_part_of_the_training():
    rates_at = schedules.rising([0.8, 0.5], ramp_share=0.5)
    assert rates_at(0.25) == [0.4, 0.25]
    assert all(rates_at(progress) == [0.8, 0.5] for progress in (0.5, 0.8, 1.0))
    at_random = schedules.at_random(6, (0.2, 0.6), ramp_share=0.5, seed=0)
    assert schedules.token_layers(at_random(0.01)) > 0.95
    late = [schedules.token_layers(at_random(1.0)) for _ in range(200)]
    assert min(late) > 0.15 and 0.55 < max(late) < 0.8 and abs(np.mean(late) - 0.4) < 0.05


def test_paired_differences_are_the_difference_and_its_spread():
    labels = [i % 2 for i in range(200)]
    right, wrong = labels, [1 - label if i < 20 else label for i, label in enumerate(labels)]
    found = metrics.paired_differences(GLUE["sst-2"], labels, [(right, wrong)] * 3, 400)
    assert found.mean() == pytest.approx(0.1, abs=0.01)
    assert found.std() == pytest.approx((0.1 * 0.9 / 200) ** 0.5, rel=0.15)
    same = metrics.paired_differences(GLUE["sst-2"], labels, [(wrong, wrong)], 10)
    assert not same.any()


# --- The rules -----------------------------------------------------------------------------------


@pytest.fixture
def seen(batch):
    """Every rule's scores, and the model and batch they are of."""
    model = build()
    return teachers.bert_rules(model, batch, teachers.RULES, range(3)), model, batch


def test_every_rule_scores_every_token_and_no_padding(seen):
    scores, _, batch = seen
    assert set(scores) == set(teachers.RULES)
    for rule, by_layer in scores.items():
        for layer, part in by_layer.items():
            assert part.shape == (4, 17) and torch.isfinite(part).all(), (rule, layer)
            assert (part[batch["attention_mask"] == 0] == 0).all(), rule


def test_attention_rules_are_what_they_say(seen):
    scores, model, batch = seen
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}  # 9 real tokens, alone
    model.set_attn_implementation("eager")
    with torch.no_grad():
        output = model(**row, output_attentions=True, output_hidden_states=True)
    model.set_attn_implementation("sdpa")
    a = [attention[0].mean(0) for attention in output.attentions]
    half = [(m + torch.eye(9)) / 2 for m in a]
    expected = {
        "column mean": a[1].mean(0),
        "[CLS] row": a[1][0],
        "ideal emission rate": (a[2] @ a[1])[0],
        "attention rollout": (half[2] @ half[1])[0],
    }
    attention = model.bert.encoder.layer[1].attention
    values = attention.self.value(output.hidden_states[1][0]).view(9, 2, 16)
    parts = attention.output.dense.weight.view(32, 2, 16)
    sizes = torch.stack([(values[:, h] @ parts[:, h].T).norm(dim=1) for h in range(2)])
    expected["attention x values"] = (output.attentions[1][0].mean(1) * sizes).mean(0)
    for rule, wanted in expected.items():
        torch.testing.assert_close(scores[rule][1][1, :9], wanted, atol=1e-5, rtol=1e-4)


def test_gradient_rules_follow_finite_differences(seen):
    scores, model, batch = seen
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}
    model = model.double()
    with torch.no_grad():
        states = model(**row, output_hidden_states=True).hidden_states[1]
        mask = torch.ones(1, 9, dtype=torch.bool)
        answer = teachers._logits_from(model, 1, states, mask).argmax(dim=1)

        def margin(moved):
            return metrics.answer_margin(teachers._logits_from(model, 1, moved, mask), answer)

        change = []
        for token in range(9):
            moved = states.clone()
            moved[0, token] *= 1 + 1e-5
            change.append(((margin(moved) - margin(states)) / 1e-5).abs().item())
    torch.testing.assert_close(
        scores["gradient x input"][1][1, :9].double(), torch.tensor(change).double(), atol=1e-4, rtol=1e-2
    )


def test_integrated_gradients_add_up_to_the_change_of_the_answer(batch, monkeypatch):
    """Completeness: with enough steps, attributions sum to the margin less the margin at 0."""
    monkeypatch.setattr(teachers, "IG_STEPS", 200)
    model = build()
    with torch.no_grad():  # without biases, a norm jumps at 0
        for name, parameter in model.named_parameters():
            if name.endswith("dense.bias"):
                parameter.normal_()
    row = {name: tensor[1:2, :9] for name, tensor in batch.items()}
    mask = torch.ones(1, 9, dtype=torch.bool)
    states = model(**row, output_hidden_states=True).hidden_states[2].detach()
    answer = model(**row).logits.argmax(dim=1)
    signed = teachers.integrated_gradients(model, row, [2], signed=True)[2]
    with torch.no_grad():
        ends = [
            metrics.answer_margin(teachers._logits_from(model, 2, s, mask), answer)
            for s in (states, 0 * states)
        ]
    assert signed.sum().item() == pytest.approx((ends[0] - ends[1]).item(), rel=0.02, abs=0.02)
