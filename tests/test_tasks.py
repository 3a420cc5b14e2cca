"""The table of tasks."""

from dataclasses import replace

import pytest

from pruning import tasks
from pruning.errors import UserError


@pytest.mark.parametrize(
    ("name", "text", "label", "shown"),
    [
        ("cola", "1", 1, "acceptable"),
        ("mnli", "neutral", 2, "neutral"),
        ("qnli", "not_entailment", 1, "not_entailment"),
        ("sts-b", "2.80", 2.8, "2.8"),
        ("agnews", "4", 3, "Sci/Tech"),
    ],
)
def test_a_label_is_a_number_and_has_a_name(name, text, label, shown):
    task = (tasks.GLUE | {"agnews": tasks.AGNEWS})[name]
    assert task.parse_label(text) == label and task.label_name(label) == shown


@pytest.mark.parametrize("score", ["5.1", "-1", "nan", "high", ""])
def test_scores_outside_the_range_are_refused(score):
    with pytest.raises(ValueError, match="score"):
        tasks.GLUE["sts-b"].parse_label(score)


def test_mnli_has_two_dev_sets_and_agnews_a_test_set():
    assert tasks.GLUE["mnli"].dev_splits == ("dev", "dev_mismatched")
    assert tasks.AGNEWS.paths()["dev"].as_posix() == "data/ag_news_csv/test.csv"


def make_files(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.mark.parametrize(
    ("there", "ending"),
    [
        ([], ".tsv"),
        (["train.parquet"], ".parquet"),
        (["train.parquet", "dev.tsv"], ".tsv"),
        (["train.parquet", "dev.parquet", "train.tsv"], ".parquet"),
        (["train.parquet", "dev.parquet", "train.tsv", "dev.tsv"], ".tsv"),
    ],
)
def test_the_files_of_a_task_are_all_classic_or_all_the_hubs(tmp_path, there, ending):
    make_files(tmp_path / "MRPC", *there)
    paths = tasks.GLUE["mrpc"].paths(tmp_path)
    assert {split: path.name for split, path in paths.items()} == {
        split: split + ending for split in ("train", "dev")
    }


def test_the_hubs_files_have_the_names_of_the_classic_ones():
    names = {
        "train": "train.parquet",
        "dev": "dev_matched.parquet",
        "dev_mismatched": "dev_mismatched.parquet",
    }
    assert tasks.GLUE["mnli"].hub_files == names
    assert tasks.AGNEWS.hub_files == {"train": "train.parquet", "dev": "test.parquet"}
    assert replace(tasks.GLUE["mnli"], hub=()).hub_files == {}


def test_test_files_have_the_names_of_glues_server(tmp_path):
    make_files(tmp_path / "MNLI", "test_matched.tsv", "test_matched.parquet", "test_mismatched.parquet")
    paths = {"MNLI-m": "test_matched.tsv", "MNLI-mm": "test_mismatched.parquet"}
    found = tasks.GLUE["mnli"].test_paths(tmp_path)
    assert {name: path.name for name, path in found.items()} == paths
    make_files(tmp_path / "SST-2", "test.parquet")
    assert tasks.GLUE["sst-2"].test_paths(tmp_path) == {"SST-2": tmp_path / "SST-2/test.parquet"}
    make_files(tmp_path / "ag_news_csv", "test.csv", "test.parquet")
    assert tasks.AGNEWS.test_paths(tmp_path) == tasks.GLUE["rte"].test_paths(tmp_path) == {}


def test_a_task_of_the_users_own_has_its_classic_files_only(tmp_path):
    make_files(tmp_path / "RTE", "train.parquet", "dev.parquet")
    own = replace(tasks.GLUE["rte"], hub=())
    assert own.paths(tmp_path)["dev"] == tmp_path / "RTE/dev.tsv"


def test_tasks_are_available_where_their_folder_is(tmp_path, capsys):
    make_files(tmp_path / "RTE", "train.tsv", "dev.tsv")
    assert tasks.available(tasks.GLUE.values(), tmp_path) == [tasks.GLUE["rte"]]
    assert f"wnli: skipped, no folder {tmp_path / 'WNLI'}" in capsys.readouterr().out
    (tmp_path / "RTE/dev.tsv").unlink()
    (tmp_path / "RTE/dev.tsv").mkdir()
    with pytest.raises(UserError, match=r"rte: .*RTE is there, but not .*dev\.tsv\. Run: python -m pruning"):
        tasks.available(tasks.GLUE.values(), tmp_path)
