"""The sample: made up, in the official layouts, always the same, apart from the user's own files."""

import pytest

import MakeSample
import PrepareAgnews4Lstm
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
import RunSample
from pruning import caches, tasks
from pruning.errors import UserError


def test_the_data_reads_without_a_broken_row(tmp_path):
    MakeSample.make_data(tmp_path)
    for name, folder in (("sst-2", "SST-2"), ("mrpc", "MRPC"), ("sts-b", "STS-B")):
        for split, path in tasks.GLUE[name].paths(tmp_path).items():
            rows = tasks.read_tsv(tasks.GLUE[name], path)
            assert not rows.broken
            assert len(rows) == (MakeSample.train_rows[folder] if split == "train" else MakeSample.dev_rows)
            lengths = [len(text.split()) for text in rows.first]
            assert min(lengths) >= 5 and max(lengths) <= 60 and len(set(lengths)) > 5
    for path in tasks.AGNEWS.paths(tmp_path).values():
        rows = PrepareAgnews4Lstm.read_csv(tasks.AGNEWS, path)
        assert not rows.broken and set(rows.labels) == {0, 1, 2, 3}
    assert (tmp_path / caches.SAMPLE_MARK.name).is_file()


def test_the_same_seed_makes_the_same_data(tmp_path):
    for name in "ab":
        MakeSample.make_data(tmp_path / name)
    for path in (tmp_path / "a").rglob("*.?sv"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_a_package_that_is_not_there_or_not_the_published_one_is_refused(monkeypatch):
    monkeypatch.setattr(MakeSample, "PACKAGE", "no-such-package")
    with pytest.raises(UserError, match="pip install --no-deps no-such-package"):
        MakeSample.find_package()
    monkeypatch.setattr(MakeSample, "PACKAGE", "pytest")
    with pytest.raises(UserError, match="SHA-256"):
        MakeSample.find_package()


def test_its_settings_are_settings_of_the_runners(monkeypatch):
    for runner, settings in (
        (RunBert4Glue, RunSample.bert_settings),
        (RunLstm4Glue, RunSample.lstm_settings),
        (RunLstm4Agnews, RunSample.lstm_settings),
    ):
        assert all(hasattr(runner, name) for name in settings)
    with pytest.raises(UserError, match="pruning_shedule"):
        RunSample.configure(RunBert4Glue, {"pruning_shedule": []})


def test_without_a_sample_it_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"python MakeSample\.py"):
        RunSample.main()
