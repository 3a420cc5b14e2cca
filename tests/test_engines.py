"""The study of engines: what it times, that it leaves its record, and what its tables say."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import build
from running import BERT, runner

import PrepareGlue4Bert
import RunBert4Glue
from pruning import agreement
from pruning.batches import BertExamples, Ragged
from pruning.errors import UserError
from pruning.records import DENSE
from pruning.tasks import GLUE
from studies import engine_tables, engines, plots, workloads
from studies.engine_tables import PLAIN, STOCK

TINY = {"hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 32, "num_attention_heads": 2}
SMALL = {
    "bert_shape": "tiny",
    "lengths_and_batches": [("sst-2", 4)],
    "whole_layers": [1],
    "cuts": [(1, None)],
    "recipes": [[0, 0.5]],
    "schedules": {},
    "trained_batch_sizes": [2],
    "tokens_a_pass": 60,
    "seconds_a_cell": 0,
    "fewest_passes": 1,
}


@pytest.fixture(params=[("onnxruntime", "openvino"), ()])
def here(request, monkeypatch):
    """The engines beside PyTorch that are installed: all, or none."""
    find = importlib.util.find_spec
    missing = {*engines.PACKAGES} - {*request.param}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    for name in request.param:
        pytest.importorskip(name)
    return request.param


def test_a_model_runs_in_every_engine_that_is_installed(here, tmp_path):
    loaded = engines.load(build([0], num_hidden_layers=1), tmp_path)
    packages = {
        "ONNX Runtime fp32": "onnxruntime",
        "ONNX Runtime int8": "onnxruntime",
        "OpenVINO": "openvino",
    }
    named = {engine for engine in loaded.runs if not engine.startswith("PyTorch")}
    assert len(named) == sum(package in here for package in packages.values())
    ids = Ragged.of(torch.arange(5, 29), torch.tensor([17, 3, 4]))
    found = engines.judged_by(loaded, GLUE["sst-2"], BertExamples(ids, torch.zeros(3), torch.zeros(3)))
    assert {*found} == {*loaded.runs} and found[PLAIN]["logits"] == 0
    assert all(each["logits"] < 1e-4 for engine, each in found.items() if engine.endswith("fp32"))
    assert not here or found["ONNX Runtime int8"]["logits"] > 0


def twice(model, _folder):
    """In PyTorch, and once more in the place of another engine: an export would take most of a minute."""
    return engines.Loaded(model, dict.fromkeys((PLAIN, "other fp32"), agreement.in_pytorch(model)))


@pytest.fixture
def run(monkeypatch, full_world):
    """main() with small settings. Returns the folder that it leaves."""
    monkeypatch.setitem(workloads.SHAPES, "tiny", TINY)
    monkeypatch.setattr(engines, "load", twice)
    for name, value in SMALL.items():
        monkeypatch.setattr(engines, name, value)

    def main():
        engines.main()
        [folder] = full_world.glob("records/engines/*")
        return folder

    return main


def test_all_of_it_runs_with_a_model_that_was_kept(run, monkeypatch):
    PrepareGlue4Bert.main()
    train = runner(
        RunBert4Glue, BERT | {"pruning_schedule": [0, 1, 0], "removed_tokens": "readable"}, monkeypatch
    )
    train()
    [pruned] = Path("records/BERT/sst-2").glob("head-*")
    pruned.rename(pruned.with_name("attention-rollout"))  # by path it now stands before the dense one
    folder = run()
    assert {path.name for path in folder.iterdir()} == {"record.json", "tables.md", "front.png"}
    record = json.loads((folder / "record.json").read_text())
    random, trained = record["cells"]
    assert [*random["rows"]] == [STOCK, DENSE, "1 whole", "cut to 1", "cut to 2, 0.5 before layer 1"]
    assert [*trained["rows"]] == [STOCK, DENSE, "1 whole"] and [*record["judged"]] == [DENSE, "1 whole"]
    for by_engine in record["judged"].values():
        for engine, found in by_engine.items():
            assert found["examples"] == 12
            assert found["metric"] == by_engine[PLAIN]["metric"] and found["sets"] == 0, engine
    for cell in record["cells"]:
        assert [*cell["rows"][DENSE]] == [*cell["rows"]["1 whole"]] and cell["rows"][STOCK].keys() == {PLAIN}
        assert all(row["bound"] == row["share_of_bound"] == 1 for row in cell["rows"][DENSE].values())
        assert all(row["bound"] > 1 for row in cell["rows"]["1 whole"].values())
        assert all(row["against_dense"] == 1 for row in cell["rows"][DENSE].values())


def test_without_a_kept_model_a_line_says_so(run, monkeypatch, capsys):
    monkeypatch.setattr(engines, "whole_layers", [])
    monkeypatch.setattr(engines, "cuts", [])
    folder = run()
    assert "has no dense one of sst-2" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {"record.json", "tables.md"}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("bert_shape", "huge", "unknown name 'huge'"),
        ("lengths_and_batches", [("qqp", 1)], "unknown name 'qqp'"),
        ("trained_task", "agnews", "unknown name 'agnews'"),
    ],
)
def test_a_setting_that_cannot_work_stops_it_at_once(monkeypatch, name, value, sentence):
    monkeypatch.setattr(engines, name, value)
    with pytest.raises(UserError, match=sentence):
        engines.main()


def row(ms, against_dense, bound=1.0, share=1.0):
    return {"ms": ms, "against_dense": against_dense, "bound": bound, "share_of_bound": share}


def test_a_table_shows_the_fastest_engines_speed_ups():
    rows = {
        STOCK: {PLAIN: row(8.0, 0.5, 0.8)},
        DENSE: {PLAIN: row(4.0, 1), "OpenVINO bf16": row(2.0, 1)},
        # timed later, when the machine was three times as slow: its dense model had 12.0 and 6.0
        "3 whole": {PLAIN: row(6.0, 2, 4.0, 0.5), "OpenVINO bf16": row(3.0, 2, 4.0, 0.5)},
    }
    header, table = engine_tables.clock_table({"rows": rows})
    assert header == [
        *("ms an example", "FLOPs", PLAIN, "OpenVINO bf16", "against stock", "against the fastest dense")
    ]
    assert table == [
        [STOCK, "125%", "8.0", "", "× 1.00", "× 0.25"],
        [DENSE, "100%", "4.0", "2.0", "× 4.00", "× 1.00"],
        ["3 whole", "25%", "2.0 (50%)", "1.0 (50%)", "× 8.00", "× 2.00"],
    ]


def test_what_was_asked_stands_by_what_was_reached():
    rows = {STOCK: {PLAIN: row(8.0, 0.5)}, DENSE: {PLAIN: row(4.0, 1)}}
    rows |= {name: {PLAIN: row(2.0, 2)} for asked in engine_tables.ASKED.values() for name in asked}
    cells = [{"kind": "random", "lengths": n, "batch_size": b, "rows": rows} for n, b in engine_tables.ASKED]
    header, table = engine_tables.asked_table({"cells": cells})
    assert header[1:3] == ["sst-2, batch 32", "sst-2, batch 8"] and len(table) == 5
    assert table[1] == ["3 whole", "× 2.00 of 3.1", "× 2.00 of 2.6", "× 2.00 of 1.7", "× 2.00 of 2.9"]
    assert table[4][-1] == "× 2.00"


def judged(metric, sets=0):
    return {"metric": metric, "examples": 872, "ties": 1 if sets else 0, "sets": sets, "logits": 0.0}


@pytest.fixture
def record():
    models = {DENSE: (0.91, 0.908), "cut to 6": (0.89, 0.884), "0.5 before layer 1": (0.9, 0.9)}
    rows = {name: {PLAIN: row(4.0, 1), "int8": row(2.0, 1)} for name in models}
    answers = {name: {PLAIN: judged(a), "int8": judged(b)} for name, (a, b) in models.items()}
    answers["0.5 before layer 1"]["int8"] = judged(0.9, sets=40)
    rows["cut to 6"]["int8"] = row(3.0, 2)
    rows[STOCK] = {PLAIN: row(5.0, 0.8)}
    cell = {"kind": "trained", "batch_size": 32, "lengths": "sst-2", "rows": rows}
    return {"cells": [{"kind": "random"}, cell], "judged": answers}


def test_what_int8_loses_is_said_above_half_a_point(record):
    header, table = engine_tables.trained_table(record)
    assert header == ["metric × 100", PLAIN, "int8", "other kept tokens", "batch 32"]
    assert table == [
        [DENSE, "91.0", "90.8", "", "2.0 ms, × 1.00, int8"],
        ["cut to 6", "89.0", "88.4, loses 0.6", "", "1.0 ms, × 2.00, int8"],
        ["0.5 before layer 1", "90.0", "90.0", "int8 41 of 872", "2.0 ms, × 1.00, int8"],
    ]


def test_a_front_has_nothing_that_another_beats(record):
    assert plots.front([(2, 90.0), (1, 80.0), (3, 85.0), (2, 91.0), (4, 91.0)]) == [(1, 80.0), (2, 91.0)]
    points = engine_tables.points_of(record)["batch 32"]
    assert (DENSE, "int8", 2.0, 90.8) in points and len(points) == 6
