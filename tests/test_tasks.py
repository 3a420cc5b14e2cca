"""The table of tasks."""

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


def test_tasks_are_available_where_their_folder_is(tmp_path, capsys):
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / "RTE" / file).parent.mkdir(exist_ok=True)
        (tmp_path / "RTE" / file).touch()
    assert tasks.available(tasks.GLUE.values(), tmp_path) == [tasks.GLUE["rte"]]
    assert f"wnli: skipped, no folder {tmp_path / 'WNLI'}" in capsys.readouterr().out
    (tmp_path / "RTE/dev.tsv").unlink()
    (tmp_path / "RTE/dev.tsv").mkdir()
    with pytest.raises(UserError, match=r"rte: .*RTE is there, but not .*dev\.tsv"):
        tasks.available(tasks.GLUE.values(), tmp_path)
