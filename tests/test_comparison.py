"""The comparison and the rules, run whole on the tiny world."""

import json
import re

import pytest
from conftest import ROOT

import PrepareGlue4Bert
from pruning import records, timing
from pruning.errors import UserError
from pruning.teachers import BERT_TEACHERS
from studies import comparison, rules, tables
from studies import comparison_tables as compare

SETTINGS = {
    "task_names": ["sst-2", "sts-b"],
    "seeds": [0],
    "training_rows": 16,
    "held_out_rows": 6,
    "dense_epochs": 1,
    "learning_rate": 1e-4,
    "dense_grid": {"sst-2": [(1e-4, 1), (2e-4, 1)], "other": []},
    "pruned_epochs": 1,
    "batch_size": 8,
    "lines": {
        "half": {"1 whole layer, then [CLS]": {"pruning_schedule": [0, 1, 0], "pruning_methods": ["head"]}},
        "third": {
            "2 layers, half updated": {"layers": 2, "pruning_schedule": [0, 0.5]},
            "random": {"pruning_schedule": [0, 0.5, 0], "pruning_methods": ["random"]},
            "first 1 layers": {"layers": 1, "pruning_schedule": [0], "pruning_methods": ["head"]},
            "threshold": {"pruning_schedule": [0, 0.5, 0], "pruning_methods": ["column mean threshold"]},
        },
    },
    "bootstrap_draws": 20,
}
LINES = {"dense", "dense, trained on", *(name for lines in SETTINGS["lines"].values() for name in lines)}
FREE = {"random", "head", "tail", "frequency"}


@pytest.fixture
def run_study(full_world, monkeypatch):
    """main() of a study, with small settings and whatever else is given."""
    PrepareGlue4Bert.main()

    def main(study=comparison, **changes):
        for name, value in (SETTINGS | changes).items():
            monkeypatch.setattr(comparison, name, value)
        study.main()

    return main


def test_lines_are_trained_in_pieces_that_resume(run_study, full_world, monkeypatch):
    kept, passed = [], timing.pass_over

    def seen(model, inputs):
        if "threshold" in str(getattr(model.config, "pruning_methods", "")):
            stay = sum(int((model(**batch).kept[1] >= 0).sum()) for batch in inputs)
            kept.append(stay / sum(sum(batch["lengths"]) for batch in inputs))
        passed(model, inputs)

    monkeypatch.setattr(timing, "pass_over", seen)
    run_study(task_names=["sst-2"], seeds=[0, 1], bootstrap_draws=2)
    folder = full_world / "records/comparison"
    paths = sorted(folder.glob("*/*/record.json"))
    found = records.read_all("comparison")
    [clock] = [record for record in found if record["method"] == "clock"]
    assert clock["timings"]["32"]["first 1 layers, third"]["against_dense"] > 0
    assert len(clock["timings"]["1"]) == len(LINES)  # stock in place of "dense, trained on"
    found.remove(clock)
    assert 0.2 < min(kept) <= max(kept) < 0.9  # a threshold is timed as it prunes
    assert len(paths) - 1 == len(found) == 2 * (len(LINES) + 1)
    tried = [record for record in found if record["schedule"] == compare.GRID]
    assert [record["settings"]["learning_rate"] for record in tried] == [2e-4, 2e-4]
    [first, second] = compare.grid_table(found)[1]
    assert first[:2] == ["1e-4", "1"] and first[2].endswith(" *") and not second[2].endswith(" *")
    assert {record["method"] for record in found} == LINES
    for record in found:
        assert len(record["dev"]["predictions"]) == 12 and len(record["dev"]["metrics_by_length"]) == 5
        assert record["held_out"]["examples"] == 6 and "accuracy" in record["held_out"]["metrics"]
        expected = {"dense": {"training"}, "dense, trained on": {"dense", "training"}}
        seconds = expected.get(record["method"], {"dense", "answers", "training"})
        if record["method"] == "2 layers, half updated":
            seconds = seconds | {"scores"}
        assert set(record["processor_seconds"]) == seconds and all(record["processor_seconds"].values())
    dev = {(r["method"], r["schedule"]): r["dev"] for r in found}
    assert dev["dense", ""]["flops_kept"] == dev["dense, trained on", ""]["flops_kept"] == 1
    assert dev["first 1 layers", "third"]["token_layers_kept"] == pytest.approx(1 / 3)
    assert 1 / 3 < dev["1 whole layer, then [CLS]", "half"]["token_layers_kept"] < 0.5
    flops = {name: answers["flops_kept"] for (name, _), answers in dev.items()}
    assert flops["first 1 layers"] < flops["2 layers, half updated"] < flops["random"] < 1

    times = [path.stat().st_mtime_ns for path in paths]
    lost = next(path for path in paths if "random" in str(path))
    lost.unlink()
    run_study(task_names=["sst-2"], seeds=[0, 1], bootstrap_draws=2)
    again = sorted(folder.glob("*/*/record.json"))
    changed = [path for path, was in zip(again, times, strict=True) if path.stat().st_mtime_ns != was]
    assert again == paths and changed == [lost]


def test_the_report_is_what_is_published(run_study, full_world, capsys):
    run_study()
    folder = full_world / "records/comparison"
    text = (folder / "tables.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert re.search(r"\| random +\| third ", text) and "first 1 layers" in text
    study = json.loads((folder / "comparison.json").read_text())
    recipe = {"half": "1 whole layer, then [CLS]", "third": "2 layers, half updated"}
    assert study["recipe"] == recipe and study["command"] == "python -m studies.comparison"
    against = {(i["line"], i["against"]) for i in study["intervals"]}
    assert ("2 layers, half updated, third", "first 1 layers, third") in against
    interval = next(i for i in study["intervals"] if i["line"] == "first 1 layers, third")
    lines = compare.lines_of(study["records"])
    against = next(line for line in lines if compare.name_of(line) == interval["against"])
    change = compare.mean_of(lines["first 1 layers", "third"]) - compare.mean_of(lines[against])
    assert interval["change"] == pytest.approx(change) and interval["seeds"] == [0]
    assert (folder / "comparison.png").stat().st_size > 10_000


def test_a_dense_model_of_the_grid_may_be_chosen_later(run_study, full_world):
    lines = {"third": {"first 1 layers": SETTINGS["lines"]["third"]["first 1 layers"]}}
    for learning_rate, other in ((1e-4, 2e-4), (2e-4, 1e-4)):
        run_study(task_names=["sst-2"], lines=lines, learning_rate=learning_rate, bootstrap_draws=2)
        study = json.loads((full_world / "records/comparison/comparison.json").read_text())
        found = [record for record in study["records"] if record["method"] == "dense"]
        chosen = {record["settings"]["learning_rate"]: record["schedule"] for record in found}
        assert chosen == {learning_rate: "", other: compare.GRID}


def test_published_lines_are_not_trained_again(run_study, full_world, monkeypatch, tmp_path):
    run_study(task_names=["sst-2"], bootstrap_draws=2)
    folder = full_world / "records/comparison"
    (folder / "comparison.json").rename(tmp_path / "comparison.json")
    text = (folder / "tables.md").read_text()
    folder.rename(full_world / "before")
    monkeypatch.setattr(tables, "PUBLISHED", tmp_path)
    monkeypatch.setattr(comparison, "train", lambda piece: pytest.fail(f"{piece.name} is trained"))
    tables.published.cache_clear()
    run_study(task_names=["sst-2"], bootstrap_draws=2)
    tables.published.cache_clear()
    assert (folder / "tables.md").read_text().split("by the clock")[0] == text.split("by the clock")[0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"dept": 2}, "line 1: dept is not a setting"),
        ({"layers": 4}, "layers in comparison.py is 4, and the BERT in bert/ has 3"),
        ({"pruning_schedule": [0.5]}, "one rate for each layer"),
        ({"pruning_methods": ["head", "tail"]}, "line 1: a line has one method"),
    ],
)
def test_a_line_that_cannot_work_says_so_before_any_training(run_study, full_world, changed, words):
    with pytest.raises(UserError, match=words):
        run_study(lines={"half": {"line 1": changed}})
    assert not (full_world / "cache/bert/dense").exists()


def test_rules_prune_the_same_dense_models(run_study, full_world, monkeypatch, capsys):
    for name, value in {"a": [0, 0.5, 0], "b": [0, 0.5, 0.5]}.items():
        monkeypatch.setitem(rules.frozen_schedules, name, value)
    monkeypatch.setattr(rules, "student_rows", 16)
    monkeypatch.setattr(rules, "student_epochs", 1)
    run_study(rules, task_names=["sst-2"])
    [record] = records.read_all("rules")
    assert set(record["oracles"]["a"]) == FREE | set(BERT_TEACHERS)
    assert set(record["students"]["b"]) == set(BERT_TEACHERS)
    assert record["token_layers_kept"]["b"] < record["token_layers_kept"]["a"] < 1
    assert len([*(full_world / "cache/bert/dense").iterdir()]) == 1
    text = (full_world / "records/rules/tables.md").read_text()
    assert text.strip() in capsys.readouterr().out and re.search(r"\| attention rollout ", text)
    published = json.loads((ROOT / "records/published/rules.json").read_text())["records"][0]
    assert set(published) <= set(record)
