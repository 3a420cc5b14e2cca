"""The comparison, run whole on the tiny world."""

import json
import re

import pytest

import PrepareGlue4Bert
from pruning import records
from pruning.teachers import BERT_TEACHERS
from studies import comparison, tables

SETTINGS = {
    "task_names": ["sst-2", "sts-b"],
    "seeds": [0],
    "training_rows": 16,
    "dense_epochs": 1,
    "pruned_epochs": 1,
    "batch_size": 8,
    "frozen_schedules": {"a": [0, 0.5, 0], "b": [0, 0.5, 0.5]},
    "student_rows": 16,
    "student_epochs": 1,
    "pruning_methods": ["ideal gradients student", "column mean threshold"],
    "recipe_schedules": ["half"],
    "only_cls_from": [2],
    "first_layers": [1],
    "bootstrap_draws": 20,
}
PIECES = {
    "frozen",
    "dense",
    "dense, trained on",
    "ideal gradients student",  # at a third and at half
    "column mean threshold",
    "ideal gradients student, removed tokens gone",
    "[CLS] from layer 2",
    "first 1 layers",
}
FREE = {"random", "head", "tail", "frequency"}


@pytest.fixture
def compare(full_world, monkeypatch):
    """main() of the comparison, with small settings and whatever else is given."""
    PrepareGlue4Bert.main()

    def main(**changes):
        for name, value in (SETTINGS | changes).items():
            monkeypatch.setattr(comparison, name, value)
        comparison.main()

    return main


def test_models_are_compared_in_pieces_that_resume(compare, full_world):
    compare(task_names=["sst-2"], seeds=[0, 1], bootstrap_draws=2)
    folder = full_world / "records/comparison"
    paths = sorted(folder.glob("*/*/record.json"))
    found = records.read_all("comparison")
    assert len(paths) == len(found) == 2 * (len(PIECES) + 1)
    assert {record["method"] for record in found} == PIECES
    for record in found:
        if record["method"] == "frozen":
            assert set(record["oracles"]["a"]) == FREE | set(BERT_TEACHERS)
            assert set(record["students"]["b"]) == set(BERT_TEACHERS)
            assert record["token_layers_kept"]["b"] < record["token_layers_kept"]["a"] < 1
        else:
            assert len(record["dev"]["predictions"]) == 12
    kept = {(r["method"], r["schedule"]): r["dev"]["token_layers_kept"] for r in found if "dev" in r}
    assert kept["dense", ""] == kept["dense, trained on", ""] == 1
    assert kept["first 1 layers", ""] == pytest.approx(1 / 3)
    assert 2 / 3 < kept["[CLS] from layer 2", ""] < 0.75  # of the last layer one token
    assert kept["ideal gradients student", "third"] < kept["ideal gradients student", "half"] < 1
    gone = kept["ideal gradients student, removed tokens gone", "third"]
    assert gone == kept["ideal gradients student", "third"]

    times = [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    compare(task_names=["sst-2"], seeds=[0, 1], bootstrap_draws=2)
    again = sorted(folder.glob("*/*/record.json"))
    assert again == paths and [path.stat().st_mtime_ns for path in again][1:] == times[1:]


def test_the_report_is_what_is_published(compare, full_world, capsys):
    compare()
    folder = full_world / "records/comparison"
    text = (folder / "tables.md").read_text()
    assert text.strip() in capsys.readouterr().out
    assert re.search(r"\| column mean threshold +\| third ", text) and "first 1 layers" in text
    assert re.search(r"\| attention rollout ", text)
    study = json.loads((folder / "comparison.json").read_text())
    published = tables.published("comparison")
    assert set(study) - {"checksum"} == set(published) - {"note"} and study["command"] == published["command"]
    assert set(study["intervals"][0]) == set(published["intervals"][0])
    for kind in ("oracles", "loss_curve"):
        ours, theirs = (next(r for r in s["records"] if kind in r) for s in (study, published))
        assert set(ours) == set(theirs) | {"processor", "settings"}
    interval = next(i for i in study["intervals"] if i["line"] == "first 1 layers")
    lines = tables.lines_of(study["records"])
    against = next(line for line in lines if tables.name_of(line) == interval["against"])
    change = tables.mean_of(lines["first 1 layers", ""]) - tables.mean_of(lines[against])
    assert interval["change"] == pytest.approx(change) and interval["seeds"] == [0]
    assert (folder / "comparison.png").stat().st_size > 10_000
