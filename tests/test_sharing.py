"""Processes side by side: two runners share a grid, a killed one blocks nobody, two train as one."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT
from running import BERT, LSTM, experiment, found, runner, without_times

import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Glue
from pruning import caches, grid, records, store, training

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
METHODS = ["lstm student", "head", "tail", "random"]


def start(world, code, *launcher):
    """A process that runs this code in a world."""
    script = world / "script.py"
    script.write_text(f"import sys\nsys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'tests')!r}]\n{code}")
    return subprocess.Popen(
        [sys.executable, *launcher, str(script)],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def with_settings(script, settings):
    """Code that imports a runner and sets its settings."""
    return f"import {script}\n" + "".join(
        f"{script}.{name} = {value!r}\n" for name, value in settings.items()
    )


def wait_for_line(process, words):
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(process.communicate()[1][-3000:])


# --- A grid in two processes -----------------------------------------------------------------


def test_two_processes_share_a_grid(full_world, monkeypatch, capsys):
    """Together they train each run once, and leave what one process alone leaves."""
    PrepareGlue4Lstm.main()
    settings = LSTM | {"task_names": ["sst-2"], "pruning_methods": METHODS}
    begin = "print('ready', flush=True)\nsys.stdin.readline()\nRunLstm4Glue.main()\n"
    other = start(full_world, with_settings("RunLstm4Glue", settings) + begin)
    wait_for_line(other, "ready")
    other.stdin.write("go\n")
    other.stdin.flush()
    capsys.readouterr()
    runner(RunLstm4Glue, settings, monkeypatch)()
    said, complained = other.communicate(timeout=120)
    assert other.returncode == 0, complained[-3000:]
    outputs = [said, capsys.readouterr().out]
    for method in ("dense", "bag of words", *METHODS):
        assert sum(said.count(f"sst-2, {method}, seed 0: ") for said in outputs) == 1
    for said in outputs:
        assert any(f"sst-2, {method}, seed 0: " in said for method in METHODS)  # neither only waited
        assert all(f"| sst-2 | {method} " in said for method in ("dense", "bag of words", *METHODS))
    summary = (full_world / "records/LSTM/summary.md").read_text()
    assert all(f"| sst-2 | {method} " in summary for method in ("dense", "bag of words", *METHODS))
    together = {r["key"]: r for r in records.read_all("LSTM")}
    (full_world / "records").rename(full_world / "records_of_two")
    for folder in ("dense", "answers", "scores"):
        (full_world / "cache/lstm" / folder).rename(full_world / folder)
    runner(RunLstm4Glue, settings, monkeypatch)()
    alone = {r["key"]: r for r in records.read_all("LSTM")}
    assert len(alone) == 6 and together.keys() == alone.keys()
    for key, record in alone.items():
        assert without_times(together[key]) == without_times(record)


def hold(one, method, seconds):
    """Holds a run for so long, as another process would."""
    held = threading.Event()

    def work():
        with store.claim(one.key_fields_of(method), wait=True):
            held.set()
            time.sleep(seconds)

    threading.Thread(target=work).start()
    assert held.wait(10)


def test_what_another_process_holds_is_waited_for_only_when_nothing_else_is_left(full_world):
    """First for the dense model, which everything starts from; and once it is there, last."""
    PrepareGlue4Bert.main()
    one = experiment(pruning_methods=["head", "tail"])
    hold(one, "head", 4)
    hold(one, "dense", 0.5)
    began = time.monotonic()
    seconds = {method: time.monotonic() - began for _, method in grid.unfinished([one])}
    assert list(seconds) == ["dense", "tail", "head"]
    assert 0.4 < seconds["dense"] < seconds["tail"] < 3 < seconds["head"]


def test_a_killed_process_blocks_nobody_and_leaves_no_temporary_files(full_world, monkeypatch, capsys):
    """It is killed while it writes a page."""
    PrepareGlue4Bert.main()
    stall = (
        "import os, psutil, time\n"
        "def fsync(handle):\n"
        "    paths = [file.path for file in psutil.Process().open_files()]\n"
        "    if any('tail-' in path and 'page.html' in path for path in paths):\n"
        "        print('writing', flush=True)\n"
        "        time.sleep(600)\n"
        "os.fsync = fsync\n"
        "RunBert4Glue.main()\n"
    )
    process = start(full_world, with_settings("RunBert4Glue", BERT | {"pruning_methods": ["tail"]}) + stall)
    wait_for_line(process, "writing")
    process.kill()
    assert process.wait() == -9
    process.communicate()
    [left] = full_world.rglob(".*.tmp")
    assert left.parent.name.startswith("tail-seed0-") and set(found("BERT")) == {"dense"}
    capsys.readouterr()
    runner(RunBert4Glue, BERT, monkeypatch)(pruning_methods=["tail", "head"])
    said = capsys.readouterr().out
    assert said.count("finished before, skipped") == 1 and "another process" not in said
    assert set(found("BERT")) == {"dense", "tail", "head"}
    assert not list(full_world.rglob("*.tmp"))


def test_what_a_living_process_writes_is_left_alone(full_world, monkeypatch):
    PrepareGlue4Bert.main()
    writing = full_world / "records" / f".record.json.{caches.MACHINE}-{os.getppid()}.abcdefgh.tmp"
    writing.write_text("half of it")
    runner(RunBert4Glue, BERT, monkeypatch)(pruning_methods=[])
    assert writing.read_text() == "half of it"


# --- Two processes that train as one ---------------------------------------------------------

STEPS = 10
STUDENT = "ideal gradients student"
ONE = {  # 17 rows: every third batch is of one row, fewer than there are processes
    "training_rows": 17,
    "batch_size": 8,
    "dense_epochs": STEPS / 3,
    "pruned_epochs": STEPS / 3,
    "augmented_copies": 0,
}


def train_both(folder):
    """Trains a dense model and one with students. Leaves their weights, and what their keys are made of."""
    one = experiment(**ONE)
    rows = training.rows_by_step(one.train_examples.lengths, one.dense_arguments, one.seed)
    assert [len(batch) for batch in rows].count(1) == 3
    dense = one.train_dense()
    pruned = one.train_pruned(STUDENT)
    assert dense.curve[-1][0] == pruned.curve[-1][0] == STEPS
    if one.accelerator.is_main_process:
        folder.mkdir()
        states = {"dense": dense.model.state_dict(), STUDENT: pruned.model.state_dict()}
        torch.save(states, folder / "states.pt")
        fields = {method: one.key_fields_of(method) for method in states}
        (folder / "fields.json").write_text(json.dumps(fields))


def test_what_is_made_with_a_dense_model_is_made_again_with_another(full_world):
    """As on a GPU, which does not train twice alike."""
    PrepareGlue4Bert.main()
    first = experiment()
    assert first.train_dense().curve == first.train_dense().curve  # the second time from cache/
    answers = first.distillation_set().with_scores(None).dense_logits
    place = first.store._path("dense", first.key_fields)
    kept = caches.load(place, "")
    kept["content"]["state"]["classifier.bias"] += 1
    caches.save(place, kept)
    other = experiment().distillation_set().with_scores(None).dense_logits
    torch.testing.assert_close(other, answers + 1)


def test_a_training_in_fp16_does_not_know_of_those_before(full_world):
    PrepareGlue4Bert.main()
    one = experiment()
    one.accelerator.scaler = used = torch.amp.GradScaler("cpu")
    one.dense()
    assert one.accelerator.scaler is not used and one.accelerator.scaler.get_scale() == 2**16
    one.accelerator.scaler = None


def test_two_processes_train_as_one_and_write_each_record_once(full_world, monkeypatch):
    """As `accelerate launch` with two GPUs, here two processes on the CPU, in fp32."""
    AcceleratorState._reset_state(True)
    monkeypatch.setattr("pruning.devices.best_precision", lambda _: ("no", "a test"))
    config = json.loads((full_world / "bert/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (full_world / "bert/config.json").write_text(json.dumps(config))
    PrepareGlue4Bert.main()
    code = "from pathlib import Path\nimport test_sharing\nfrom pruning import devices\n"
    code += "devices.best_precision = lambda _: ('no', 'a test')\ntest_sharing.train_both(Path('two'))\n"
    settings = BERT | {"pruning_methods": [STUDENT, "tail"]}
    code += with_settings("RunBert4Glue", settings) + "RunBert4Glue.main()\n"
    process = start(full_world, code, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    said, complained = process.communicate(timeout=240)
    assert process.returncode == 0, complained[-3000:]
    assert "2 processes" in said
    assert all(said.count(f"sst-2, {method}, seed 0: ") == 1 for method in ("dense", STUDENT, "tail"))
    assert set(found("BERT")) == {"dense", STUDENT, "tail"}
    train_both(Path("one"))
    start_weights = torch.load("bert/pytorch_model.bin", weights_only=True)
    one, two = (torch.load(f"{folder}/states.pt", weights_only=True) for folder in ("one", "two"))
    for method, state in one.items():
        for name, tensor in state.items():
            if name.endswith("outer.bias"):  # a score for all tokens alike: its gradient is rounding alone
                continue
            assert torch.allclose(two[method][name], tensor, rtol=0, atol=1e-5), (method, name)
    moved = one["dense"]["bert.encoder.layer.1.intermediate.dense.weight"]
    assert (moved - start_weights["encoder.layer.1.intermediate.dense.weight"]).abs().max() > 1e-4
    one, two = (json.loads(Path(f"{folder}/fields.json").read_text()) for folder in ("one", "two"))
    for method in one:
        assert records.key_of(one[method]) != records.key_of(two[method])
        dense_fields = [fields[method].get("dense", fields[method]) for fields in (one, two)]
        assert [fields.pop("processes") for fields in dense_fields] == [1, 2]
        assert one[method] == two[method]
