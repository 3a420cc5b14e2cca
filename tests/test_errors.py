"""At the edge of a script: what the system refuses, and Ctrl-C, end it in one sentence."""

import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import kills
import pytest
import torch
from conftest import ROOT, tiny_config, write_task
from running import BERT

import PrepareGlue4Bert
from pruning import caches, errors
from pruning.errors import UserError

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="forks processes, mounts disks")
DENSE = BERT | {"pruning_methods": [], "save_models": False}


@pytest.fixture
def prepared(full_world):
    """A world with caches for BERT."""
    PrepareGlue4Bert.main()
    return full_world


def complaint(ended):
    """The one line that a script ended with, after its progress bars; its exit status is 1."""
    lines = [line for line in ended.complained.replace("\x1b[A", "").splitlines() if line.strip()]
    lines = [line.strip() for line in lines if "%|" not in line]
    assert ended.status == 1 and len(lines) == 1, ended
    return lines[0]


# --- Standard output -------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [io.StringIO(), None], ids=["notebook", "none"])
def test_a_notebook_has_streams_of_its_own(monkeypatch, stream):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    errors.run_script(lambda: print("done"))
    assert stream is None or stream.getvalue() == "done\n"


def test_a_console_without_a_letter_and_a_reader_that_is_gone(world):
    """Two real starts: with PYTHONIOENCODING=ascii, and as `python PrepareGlue4Bert.py 2>&1 | head -0`."""
    with open(world / "bert/vocab.txt", "a", encoding="utf-8") as file:
        file.write("größe\n漢\n")
    (world / "bert/tokenizer_config.json").write_text('{"strip_accents": false}')
    write_task(world / "data/SST-2", "sentence\tlabel", lambda _, i: f"Größe 漢 good\t{i % 2}")
    command = [sys.executable, ROOT / "PrepareGlue4Bert.py"]
    both = world / "both.txt"
    with both.open("w") as file:
        ascii_only = os.environ | {"PYTHONIOENCODING": "ascii"}
        lacking = subprocess.Popen(command, stdout=file, stderr=file, env=ascii_only)
    (world / "other").mkdir()
    for name in ("data", "bert"):
        (world / "other" / name).symlink_to(world / name)
    read_end, write_end = os.pipe()
    os.close(read_end)
    alone = subprocess.Popen(
        command, cwd=world / "other", stdout=write_end, stderr=subprocess.PIPE, text=True
    )
    os.close(write_end)
    complained = alone.communicate(timeout=120)[1]
    assert alone.returncode == 1
    assert [line for line in complained.splitlines() if line and "%|" not in line] == []
    assert lacking.wait(120) == 0
    assert "[negative] [CLS] gr??e ? good [SEP]" in both.read_text(encoding="ascii")


@LINUX
def test_a_reader_of_a_runner_that_goes_after_a_line(prepared):
    os.mkfifo(prepared / "pipe")
    reader = threading.Thread(target=lambda: (prepared / "pipe").open().readline())
    reader.start()
    ended = kills.start("RunBert4Glue", DENSE, prepared, output="pipe")
    reader.join()
    assert ended.status == 1 and "Traceback" not in ended.complained and "Broken" not in ended.complained


@LINUX
def test_a_full_disk_behind_standard_output(prepared):
    ended = kills.start("PrepareGlue4Bert", {}, prepared, output="/dev/full")
    assert complaint(ended) == "standard output: No space left on device"


# --- Folders ---------------------------------------------------------------------------------

PREPARE, RUN = "PrepareGlue4Bert", "RunBert4Glue"
WHAT_IS_IN_THE_WAY = {  # a file where a folder belongs, or a folder ("/") where a file belongs
    (PREPARE, "cache"): "cache/bert/sst-2.pt cannot be written: Not a directory",
    (PREPARE, "cache/bert"): "cache/bert/sst-2.pt cannot be written: File exists",
    (PREPARE, "cache/bert/sst-2.pt/"): "cache/bert/sst-2.pt cannot be written: Is a directory",
    (RUN, "cache/bert/sst-2.pt/"): "cache/bert/sst-2.pt cannot be read: Is a directory. "
    "Run: python PrepareGlue4Bert.py",
    (RUN, "cache/locks"): "cache/locks: File exists",
    (RUN, "cache/bert/dense"): "cache/bert/dense/sst-2-seed0-KEY.pt cannot be written: File exists",
    (RUN, "records"): "records/BERT/sst-2/dense-seed0-KEY/page.html cannot be written: Not a directory",
    (RUN, "records/BERT/summary.md/"): "records/BERT/summary.md cannot be written: Is a directory",
}


def put_in_the_way(path):
    """A file of somebody's at `path`, or a folder if it ends in a slash, in place of what is there."""
    place = Path(path)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if path.endswith("/"):
        place.mkdir(parents=True)
    else:
        place.write_text("somebody's")


@LINUX
@pytest.mark.parametrize(("script", "path"), WHAT_IS_IN_THE_WAY)
def test_a_file_in_place_of_a_folder_is_named(prepared, script, path):
    put_in_the_way(path)
    ended = kills.start(script, DENSE if script == RUN else {}, prepared)
    assert re.sub("[0-9a-f]{8}", "KEY", complaint(ended)) == WHAT_IS_IN_THE_WAY[script, path]
    assert path.endswith("/") or Path(path).read_text() == "somebody's"
    assert not list(prepared.rglob("*.tmp"))


@contextmanager
def disk(folder, options):
    """A disk in memory in place of a folder, with what is in the folder."""
    copy = shutil.copytree(folder, folder.with_name("copy"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a disk")
    try:
        shutil.copytree(copy, folder, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


DISKS = [
    (PREPARE, "cache", "ro", "cache/bert/sst-2.pt cannot be written"),
    (RUN, "cache", "ro", "cache/locks"),
    (RUN, "cache", "size=96k", "cache/bert/dense/sst-2-seed0-KEY.pt cannot be written"),
    (RUN, "records", "ro", "records/BERT/sst-2/dense-seed0-KEY/page.html cannot be written"),
    (RUN, "records", "size=4k", "records/BERT/sst-2/dense-seed0-KEY/record.json cannot be written"),
]


@LINUX
@pytest.mark.parametrize(("script", "folder", "options", "sentence"), DISKS)
def test_a_full_or_a_read_only_disk_is_named(prepared, script, folder, options, sentence):
    if script == PREPARE:
        (prepared / "cache/bert/sst-2.pt").unlink()
    with disk(prepared / folder, options):
        ended = kills.start(script, DENSE if script == RUN else {}, prepared)
        assert not list((prepared / folder).rglob("*.tmp"))
    why = "Read-only file system" if options == "ro" else "No space left on device"
    assert re.sub("[0-9a-f]{8}", "KEY", complaint(ended)) == f"{sentence}: {why}"


@LINUX
def test_a_disk_too_small_for_converted_weights_is_named(world, monkeypatch):
    import ConvertBert4Torch  # and with it TensorFlow

    weights = torch.load("bert/pytorch_model.bin")
    weights["embeddings.word_embeddings.weight"] = torch.rand(4_000, 32)
    (world / "bert/config.json").write_text(json.dumps(tiny_config(vocab_size=4_000)))
    monkeypatch.setattr(ConvertBert4Torch, "read_checkpoint", lambda _: weights)
    with disk(world / "cache", "size=96k"), pytest.raises(UserError) as error:
        ConvertBert4Torch.convert("bert/model.ckpt", "bert/config.json", "cache/pytorch_model.bin")
    assert str(error.value) == "cache/pytorch_model.bin cannot be written: No space left on device"


def test_a_disk_that_is_full_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("old")

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as error:
        caches.save(path, {"a": [1]})
    assert str(error.value) == f"{path} cannot be written: {os.strerror(errno.ENOSPC)}"
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and path.read_text() == "old"


# --- Ctrl-C, and what is no user's fault -------------------------------------------------------


@LINUX
def test_ctrl_c_stops_a_script_with_one_sentence_and_loses_no_line_of_it(prepared):
    for cache in (prepared / "cache/bert").iterdir():
        cache.unlink()
    ended = kills.start(PREPARE, {"wordpieces": kills.CtrlCInTokenizer}, prepared)
    assert (ended.status, ended.complained) == (130, kills.STOPPED)
    assert ended.said.splitlines()[-1] == "sst-2: data/SST-2/dev.tsv: 12 rows, 0 broken and skipped"
    assert ended.seconds < 5


@pytest.mark.parametrize("error", [OSError(errno.ETIMEDOUT, "late"), OSError("of a library"), KeyError("x")])
def test_a_fault_of_the_project_keeps_its_traceback(capfd, error):
    def main():
        raise error

    with pytest.raises(type(error)) as caught:
        errors.run_script(main)
    assert caught.value is error


def test_a_file_that_the_system_refuses_is_named(capfd, tmp_path):
    with pytest.raises(UserError) as caught:
        errors.run_script(lambda: (tmp_path / "none").read_text())
    assert str(caught.value) == f"{tmp_path / 'none'}: No such file or directory"
