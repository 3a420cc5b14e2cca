"""`make data` and `make bert`: the hub's own client against a hub on this machine."""

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, tiny_config
from hub import Fault, Hub, as_parquet
from huggingface_hub import HfApi

from pruning import caches, download
from pruning.errors import UserError
from pruning.tasks import AGNEWS

FOLDERS = {folder: task for folders in download.REPOSITORIES.values() for folder, task in folders.items()}
BERT = "models/google-bert/bert-base-uncased"


def table(task):
    """A parquet file of a task with three rows."""
    return as_parquet(task, [0, 1, 0], *([f"{name} {i}" for i in range(3)] for name in task.hub))


def data_of_the_hub():
    glue, end = {"README.md": b"---\n"}, "-00000-of-00001.parquet"
    for folder, task in FOLDERS.items():
        for split in ("train", "validation", "test"):
            parts = ("_matched", "_mismatched") if folder == "mnli" and split != "train" else ("",)
            for part in parts:
                glue[f"{folder}/{split}{part}{end}"] = table(task)
    agnews = {file: glue.pop(file) for file in [*glue] if file.startswith("data/")}
    agnews.pop(f"data/validation{end}")
    return {"datasets/nyu-mll/glue": glue, "datasets/fancyzhx/ag_news": agnews}


DATA = data_of_the_hub()
MODEL = {
    "config.json": json.dumps(tiny_config(model_type="bert")).encode(),
    "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nword\n",
    "tokenizer_config.json": b"{}",
    "tokenizer.json": b"{}" * 9,
    "model.safetensors": bytes(range(256)) * 40,
    "pytorch_model.bin": b"older" * 100,
    "tf_model.h5": b"other" * 100,
    "README.md": b"a page",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with the data and a BERT; an empty folder to work in; a client that does not wait."""
    for name in ("data", "bert"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no cache of the client"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with Hub({**DATA, BERT: MODEL}) as hub:
        monkeypatch.setattr(download, "HUB", HfApi(endpoint=hub.url, token=False))
        yield hub


def start(monkeypatch, *arguments):
    """The script as the shell starts it, in this process."""
    monkeypatch.setattr(sys, "argv", ["download.py", *arguments])
    download.main()


def files(folder):
    """Files of the world, with what they hold."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in sorted(found.items())
        if not name.endswith(("README.md", ".lock"))
    }


BERT_FILES = {
    f"bert/{name}": MODEL[name]
    for name in ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
}


# --- What it brings --------------------------------------------------------------------------


def test_data_brings_every_task_in_its_folder_and_nothing_else(hub, tmp_path, monkeypatch, capsys):
    start(monkeypatch, "data")
    glue, agnews = DATA["datasets/nyu-mll/glue"], DATA["datasets/fancyzhx/ag_news"]
    expected = {f"data/ag_news_csv/{name}.parquet": agnews[f"data/{name}-00000-of-00001.parquet"]
                for name in ("train", "test")}  # fmt: skip
    for folder, task in FOLDERS.items():
        if task is not AGNEWS:
            parts = ("_matched", "_mismatched") if folder == "mnli" else ("",)
            pairs = [("train", "train")]
            pairs += [
                (a + part, b + part) for a, b in (("dev", "validation"), ("test", "test")) for part in parts
            ]
            for ours, theirs in pairs:
                content = glue[f"{folder}/{theirs}-00000-of-00001.parquet"]
                expected[f"data/{task.folder}/{ours}.parquet"] = content
    assert files(tmp_path) == expected and len(expected) == 31
    printed = capsys.readouterr().out
    assert "nyu-mll/glue: each task has a licence of its own, see https://gluebenchmark.com" in printed
    assert "fancyzhx/ag_news: for research, not for commercial use" in printed
    assert "data/CoLA/train.parquet (0.0 MB)" in printed


def test_bert_brings_what_the_project_reads(hub, tmp_path, monkeypatch, capsys):
    start(monkeypatch, "bert")
    assert files(tmp_path) == BERT_FILES
    assert f"bert-base-uncased: licence apache-2.0, see {hub.url}/google-bert/" in capsys.readouterr().out


def test_another_bert_by_its_name_and_its_weights_as_they_are(hub, tmp_path, monkeypatch):
    only = {name: MODEL[name] for name in ("config.json", "vocab.txt", "pytorch_model.bin")}
    hub.repositories["models/me/other"] = only
    start(monkeypatch, "bert", "me/other")
    assert files(tmp_path) == {f"bert/{name}": content for name, content in only.items()}


def test_what_is_there_is_left_alone_and_asks_for_nothing(hub, tmp_path, monkeypatch, capsys):
    start(monkeypatch, "data")
    start(monkeypatch, "bert")
    hub.requests.clear()
    capsys.readouterr()
    start(monkeypatch, "data")
    start(monkeypatch, "bert", "me/other")
    printed = capsys.readouterr().out
    assert hub.requests == []
    assert "sst-2: data/SST-2 has it already and is left alone" in printed
    assert "bert holds a BERT already and is left alone; to have me/other, empty the folder" in printed


def test_a_classic_folder_is_left_alone_and_a_part_is_completed(hub, tmp_path, monkeypatch):
    start(monkeypatch, "data")
    before = files(tmp_path)
    for name in ("train", "dev", "test"):
        (tmp_path / f"data/RTE/{name}.parquet").unlink()
    for name in ("train", "dev"):
        (tmp_path / f"data/RTE/{name}.tsv").write_text("mine")
    (tmp_path / "data/QQP/dev.parquet").unlink()
    (tmp_path / "data/QQP/train.parquet").write_bytes(b"mine")
    hub.requests.clear()
    start(monkeypatch, "data")
    assert hub.fetched() == ["qqp/validation-00000-of-00001.parquet"]
    after = files(tmp_path)
    assert after["data/QQP/train.parquet"] == b"mine" == after["data/RTE/dev.tsv"] * 1
    assert after["data/QQP/dev.parquet"] == before["data/QQP/dev.parquet"]
    assert not [name for name in after if name.startswith("data/RTE") and name.endswith("parquet")]


def test_the_clients_own_cache_is_used_but_not_trusted(hub, tmp_path, monkeypatch):
    own = HfApi(endpoint=hub.url, token=False)
    cached = own.hf_hub_download("google-bert/bert-base-uncased", "model.safetensors")
    vocabulary = own.hf_hub_download("google-bert/bert-base-uncased", "vocab.txt")
    with open(os.path.realpath(vocabulary), "wb") as file:
        file.write(b"damaged")
    hub.requests.clear()
    start(monkeypatch, "bert")
    assert {name: content for name, content in files(tmp_path).items() if name in BERT_FILES} == BERT_FILES
    assert hub.fetched() == ["config.json", "vocab.txt", "tokenizer_config.json"] and cached


# --- What goes wrong on the way --------------------------------------------------------------


@pytest.fixture
def small_steps(monkeypatch):
    """The client goes on from where it was at every byte; otherwise every 10 MB."""
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1)


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault("slow", "", 3), Fault("drop", "model.safetensors"), Fault("drop", "", float("inf"))),
        *(Fault("mute", "", 4), Fault("reset", "", 2), Fault("wrong", "", 1), Fault("wrong", "vocab.txt", 2)),
        Fault("503", "/api/", 2),
    ],
    ids=lambda fault: f"{fault.kind} {fault.match} {fault.times} times",
)
def test_a_bad_connection_ends_in_the_right_files(small_steps, hub, tmp_path, monkeypatch, fault):
    hub.faults.append(Fault(fault.kind, fault.match, fault.times))
    start(monkeypatch, "bert")
    assert files(tmp_path) == BERT_FILES


def test_a_part_that_is_too_slow_is_asked_for_again(small_steps, hub, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.02)
    hub.faults.append(Fault("slow", "model.safetensors", 4))
    start(monkeypatch, "bert")
    assert hub.fetched().count("model.safetensors") == 5 and files(tmp_path) == BERT_FILES


def test_a_dropped_connection_goes_on_where_it_was(small_steps, hub, tmp_path, monkeypatch):
    hub.faults.append(Fault("drop", "model.safetensors"))
    start(monkeypatch, "bert")
    half = len(MODEL["model.safetensors"]) // 2
    asked = [request for request in hub.requests if "GET" in request and "model.safetensors" in request]
    assert len(asked) == 2 and asked[1].endswith(f"bytes={half}-")
    assert files(tmp_path) == BERT_FILES


BY_HAND = "By hand: data/README.md and bert/README.md say how"
NAME = "google-bert/bert-base-uncased"
WITHOUT_A_LOGIN = ": it is not there, or may not be read without a login (HF_TOKEN)"


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("404", "/api/"), f"{NAME} could not be fetched from URL: the answer was 404{WITHOUT_A_LOGIN}"),
        (Fault("401", "/api/"), f"{NAME} could not be fetched from URL: the answer was 401{WITHOUT_A_LOGIN}"),
        (Fault("500", "/api/"), f"{NAME} could not be fetched from URL: the answer was 500"),
        (
            Fault("404", "model.safetensors"),
            f"model.safetensors of {NAME} could not be fetched from URL: the answer was 404{WITHOUT_A_LOGIN}",
        ),
        (
            Fault("403", "vocab.txt"),
            f"vocab.txt of {NAME} could not be fetched from URL: the answer was 403{WITHOUT_A_LOGIN}",
        ),
        (
            Fault("mute", "model.safetensors"),
            f"model.safetensors of {NAME} could not be fetched from URL: "
            "Server disconnected without sending a response",
        ),
        (
            Fault("wrong", "model.safetensors"),
            f"model.safetensors of {NAME} comes from URL with a wrong checksum",
        ),
        (Fault("wrong", "vocab.txt"), f"vocab.txt of {NAME} comes from URL with a wrong checksum"),
    ],
    ids=lambda value: f"{value.kind} {value.match}" if isinstance(value, Fault) else "",
)
def test_what_stays_wrong_ends_in_one_sentence_and_no_file(hub, tmp_path, monkeypatch, fault, sentence):
    hub.faults.append(Fault(fault.kind, fault.match, float("inf")))
    with pytest.raises(UserError) as error:
        start(monkeypatch, "bert")
    assert str(error.value) == f"{sentence.replace('URL', hub.url)}. {BY_HAND}"
    assert files(tmp_path) == {}


def test_without_leave_to_use_the_network_the_sentence_names_the_setting(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"offline mode is enabled\..* unset the `HF_HUB_OFFLINE` .* By hand: "
    ):
        start(monkeypatch, "data")
    assert hub.requests == []


def test_a_full_disk_is_an_error_at_once(hub, tmp_path, monkeypatch):
    tries = []

    def full(*arguments, **_):
        tries.append(arguments)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(UserError, match=f"config.json of {NAME} could .*: .* {os.strerror(errno.ENOSPC)}"):
        start(monkeypatch, "bert")
    assert len(tries) == 1 and files(tmp_path) == {}


def test_tasks_before_one_that_fails_are_kept_whole(hub, tmp_path, monkeypatch):
    hub.faults.append(Fault("wrong", "mrpc/validation", float("inf")))
    with pytest.raises(
        UserError, match=r"mrpc/validation-00000-of-00001[.]parquet of nyu-mll/glue comes from"
    ):
        start(monkeypatch, "data")
    assert {name.split("/")[1] for name in files(tmp_path)} == {"CoLA", "SST-2"}
    hub.faults.clear()
    hub.requests.clear()
    start(monkeypatch, "data")
    assert hub.fetched()[0] == "mrpc/train-00000-of-00001.parquet" and len(files(tmp_path)) == 31


# --- What is no BERT, and no room ------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"config.json": json.dumps(tiny_config(model_type="roberta")).encode()},
            "me/x: config.json: model_type is 'roberta'; it should be 'bert'",
        ),
        ({"config.json": b"{}"}, "me/x: config.json has no vocab_size"),
        ({"config.json": b"<html>"}, "me/x: config.json cannot be read as JSON: "),
        ({"config.json": None}, "me/x on URL has no file config.json. "),
        ({"vocab.txt": None}, "me/x on URL has no file vocab.txt. "),
        (
            {"model.safetensors": None, "pytorch_model.bin": None},
            "me/x on URL has no file pytorch_model.bin. ",
        ),
    ],
)
def test_what_is_no_bert_ends_in_one_sentence_before_the_weights(
    hub, tmp_path, monkeypatch, changes, sentence
):
    repository = {name: content for name, content in (MODEL | changes).items() if content is not None}
    hub.repositories["models/me/x"] = repository
    with pytest.raises(UserError) as error:
        start(monkeypatch, "bert", "me/x")
    assert str(error.value).startswith(sentence.replace("URL", hub.url)) and "\n" not in str(error.value)
    assert not {"model.safetensors", "pytorch_model.bin"} & {*hub.fetched()}
    assert files(tmp_path) == {}


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "two words", "https://x.y/z"])
def test_a_name_that_is_none_ends_in_one_sentence(hub, monkeypatch, name):
    with pytest.raises(UserError) as error:
        start(monkeypatch, "bert", name)
    assert str(error.value).startswith(f"{name} could not be fetched from {hub.url}: ")
    assert "\n" not in str(error.value) and str(error.value).endswith(BY_HAND)


def test_a_part_of_a_bert_is_neither_used_nor_overwritten(hub, tmp_path, monkeypatch):
    (tmp_path / "bert/vocab.txt").write_text("mine")
    (tmp_path / "bert/uncased_L-12").mkdir()
    with pytest.raises(UserError) as error:
        start(monkeypatch, "bert")
    assert str(error.value) == (
        "bert holds uncased_L-12, vocab.txt, but no whole BERT; empty the folder first"
    )
    for name in ("bert_config.json", "bert_model.ckpt.index"):
        (tmp_path / "bert" / name).write_text("mine")
    start(monkeypatch, "bert")
    assert hub.requests == [] and (tmp_path / "bert/vocab.txt").read_text() == "mine"


def test_the_traces_of_a_killed_download_are_removed(hub, tmp_path, monkeypatch):
    left = f"bert/.vocab.txt.{caches.MACHINE}-4999999.ab.tmp"
    traces = [tmp_path / name for name in (left, "cache/download/config.json")]
    for trace in traces:
        trace.parent.mkdir(parents=True, exist_ok=True)
        trace.write_text("a part")
    start(monkeypatch, "bert")
    assert files(tmp_path) == BERT_FILES


def test_a_folder_that_cannot_be_written_to_is_named(hub, tmp_path, monkeypatch):
    (tmp_path / "data/CoLA").write_text("in the way")
    with pytest.raises(UserError, match=r"^data/CoLA/train\.parquet cannot be written: "):
        start(monkeypatch, "data")


def test_two_downloads_do_not_meet_in_a_folder(hub, tmp_path, monkeypatch):
    with download.staging(), pytest.raises(UserError, match="another download is running in this folder"):
        start(monkeypatch, "data")
    assert hub.requests == [] and not (tmp_path / "cache/download").exists()
    start(monkeypatch, "bert")


@pytest.mark.parametrize("arguments", [[], ["datas"], ["data", "x"], ["bert", "a/b", "c"]])
def test_other_arguments_are_answered_with_the_right_ones(hub, monkeypatch, arguments):
    with pytest.raises(UserError, match=r"say what: python -m pruning\.download data, or bert"):
        start(monkeypatch, *arguments)


# --- As a process ----------------------------------------------------------------------------


def process(folder, *arguments, **environment):
    """The script in a process of its own, in an empty folder."""
    folder.mkdir(exist_ok=True)
    own = {"HF_HOME": str(folder.parent / "no cache of the client"), "PYTHONPATH": str(ROOT), **environment}
    hears = None if sys.platform == "win32" else partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, "-m", "pruning.download", *arguments],
        cwd=folder, env=os.environ | own, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=hears,  # a shell's background job is deaf to Ctrl-C, and so are its children
    )  # fmt: skip


def test_without_a_network_make_data_ends_in_one_sentence(hub, tmp_path):
    closed = "http://127.0.0.1:9"
    started = process(tmp_path, "data", HF_ENDPOINT=closed)
    said, complained = started.communicate(timeout=60)
    sentence = f"nyu-mll/glue could not be fetched from {closed}: [Errno {errno.ECONNREFUSED}] "
    assert complained == f"{sentence}{os.strerror(errno.ECONNREFUSED)}. {BY_HAND}\n"
    assert (started.returncode, said) == (1, "")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_ctrl_c_and_a_kill_leave_no_part_of_a_file(hub, tmp_path, monkeypatch):
    hub.faults.append(Fault("stuck", "model.safetensors", math.inf))
    endings = {signal.SIGINT: 130, signal.SIGKILL: -signal.SIGKILL}
    started = {number: process(tmp_path / number.name, "bert", HF_ENDPOINT=hub.url) for number in endings}
    locks = "*/cache/download/**/model.safetensors.lock"
    while len([*tmp_path.glob(locks)]) < 2 or hub.fetched().count("model.safetensors") < 2:
        assert all(one.poll() is None for one in started.values()) and not hub.ended.wait(0.02)
    for number, one in started.items():
        one.send_signal(number)
        complained = one.communicate(timeout=60)[1]
        assert one.returncode == endings[number] and "Traceback" not in complained
    hub.faults.clear()
    for number in endings:
        monkeypatch.chdir(tmp_path / number.name)
        assert not Path("bert").exists() and Path("cache/download").exists() == (number == signal.SIGKILL)
        start(monkeypatch, "bert")
        assert files(Path()) == BERT_FILES
