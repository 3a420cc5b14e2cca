"""Caches: whole or absent, never code, never stale."""

import hashlib
import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from pruning import batches, caches
from pruning.batches import BertExamples, LstmExamples, Ragged
from pruning.errors import UserError
from pruning.tasks import GLUE


def content(**changes):
    return {"task": "t", "model": "m", "settings": {"a": 1}, "fingerprints": {}, **changes}


def test_saved_and_loaded(tmp_path):
    path = tmp_path / "deep" / "x.pt"
    caches.save(path, content(splits={"train": {"ids": torch.arange(3)}}))
    assert caches.load(path, "")["splits"]["train"]["ids"].tolist() == [0, 1, 2]
    assert [p.name for p in path.parent.iterdir()] == ["x.pt"]


def test_an_exception_in_the_middle_leaves_what_was_there(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(RuntimeError), caches.whole_file(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_name_that_windows_refuses_for_a_moment_is_asked_for_again(tmp_path, monkeypatch, kind):
    real, refusals = os.replace, [PermissionError(13, "Access is denied")] * 3

    def replace(*names):
        if refusals:
            raise refusals.pop()
        real(*names)

    monkeypatch.setattr(os, "replace", replace)
    write = caches.whole_file if kind == "file" else caches.whole_folder
    with pytest.raises(UserError, match="x cannot be written: Access is denied"), write(tmp_path / "x"):
        pass
    monkeypatch.setattr(caches, "RETRIES", 2)
    with write(tmp_path / "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("kind", ["cache", "record"])
def test_a_kill_in_the_middle_leaves_nothing_under_the_name(tmp_path, kind):
    code = f"""
        import os, signal
        from pathlib import Path
        from pruning import caches, records
        real = os.replace
        os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)  # everything is written but the name
        path = Path({str(tmp_path / "x.file")!r})
        if {kind!r} == "cache":
            caches.save(path, {{"a": [1] * 1000}})
        else:
            records.write(path, {{"a": [1] * 1000}})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.file").exists()
    assert len(list(tmp_path.iterdir())) == 1
    caches.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_leftovers_of_dead_processes_go_and_nothing_else(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = tmp_path / "lstm"
    folder.mkdir()
    stay = [tmp_path / name for name in ("x.pt", ".x.tmp", f"x.pt.{dead.pid}.tmp", f".x.{dead.pid}.a1.pt")]
    alive = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    stay.append(folder / f".x.pt.{caches.MACHINE}-{alive.pid}.a1_b2c3.tmp")
    stay.append(folder / f".x.pt.0123abcd-{dead.pid}.a1_b2c3.tmp")  # of another machine
    go = [place / f".x.pt.{caches.MACHINE}-{dead.pid}.a1_b2c3.tmp" for place in (tmp_path, folder)]
    for path in stay + go:
        path.touch()
    with caches.whole_file(tmp_path / "mine.pt") as file:
        file.write(b"all of it")
        caches.remove_leftovers(tmp_path)
    alive.communicate(b"\n")
    assert (tmp_path / "mine.pt").read_bytes() == b"all of it"
    assert all(path.exists() for path in stay) and not any(path.exists() for path in go)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_opening_a_cache_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "x.pt"
    body = io.BytesIO()
    torch.save({"x": Evil()}, body)
    for content in (body.getvalue(), pickle.dumps(Evil())):
        checksum = hashlib.sha256(content).hexdigest().encode()
        path.write_bytes(caches.LAYOUT + checksum + b"\n" + content)
        with pytest.raises(UserError, match=r"x\.pt is damaged\. Run: python Prepare\.py"):
            caches.load(path, "Prepare.py")
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"not a cache of this version\. Run: python Prepare\.py"):
            caches.load(path, "Prepare.py")
    assert not (tmp_path / "ran").exists()


def test_missing_and_older_layouts_name_the_script(tmp_path):
    with pytest.raises(UserError, match=r"no cache .*x\.pt\. Run: python Prepare\.py"):
        caches.load(tmp_path / "x.pt", "Prepare.py")
    torch.save({"layout": 1}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is not a cache of this version\. Run: python Prepare\.py"):
        caches.load(tmp_path / "x.pt", "Prepare.py")


# --- A prepared task -------------------------------------------------------------------------

WORDS = 80


def pairs() -> BertExamples:
    """Four joined pairs, [CLS] = 1, [SEP] = 2, words from 3 on."""
    rows = [[1, *range(3, 3 + a), 2, *range(40, 40 + b), 2] for a, b in ((30, 20), (1, 1), (8, 40), (25, 3))]
    seconds = torch.tensor([row.index(2) + 1 for row in rows], dtype=torch.int32)
    ids = Ragged.of([i for row in rows for i in row], [len(row) for row in rows])
    return BertExamples(ids, torch.tensor([0.0, 1.0, 0.0, 1.0]), seconds)


def columns(model):
    """Four joined pairs for BERT, or their words for the LSTM."""
    if model == "bert":
        return pairs().to_columns()
    first, second = Ragged.of([4, 5, 6, 7, 8], [2, 1, 1, 1]), Ragged.of([9, 10, 11, 12], [1] * 4)
    return LstmExamples(first, torch.tensor([0.0, 1, 0, 1]), second).to_columns()


def prepared(model="bert", task=GLUE["mrpc"], **changes):
    """A cache; `changes` to the columns of its dev split."""
    return {
        "task": task.name,
        "model": model,
        "settings": {"max_length": 128},
        "fingerprints": {"data/MRPC/train.tsv": "0" * 64, **caches.fingerprint_of_entry(task)},
        "sample": False,
        "vocabulary": [f"word{i}" for i in range(WORDS)],
        "counts": torch.ones(WORDS).long(),
        "splits": {"train": columns(model), "dev": columns(model) | changes},
    }


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(task="mrpc", model="bert"):
    """What `open_task` says, and `is_current` agrees that the cache is to be made again."""
    with pytest.raises(UserError) as caught:
        caches.open_task(model, GLUE[task])
    message = str(caught.value)
    assert "\n" not in message and message.endswith(f"Run: python PrepareGlue4{model.title()}.py")
    return message


@pytest.mark.parametrize("model", ["bert", "lstm"])
def test_a_prepared_task_comes_back_as_it_was(in_tmp, model):
    written = prepared(model)
    caches.save(caches.path_of(model, "mrpc"), written)
    data = caches.open_task(model, GLUE["mrpc"])
    assert data.task is GLUE["mrpc"] and list(data.splits) == ["train", "dev"]
    for name, tensor in data.splits["dev"].to_columns().items():
        assert torch.equal(tensor, written["splits"]["dev"][name])
    assert (data.vocabulary, data.settings, data.sample) == (
        written["vocabulary"],
        {"max_length": 128},
        False,
    )
    again = caches.open_task(model, GLUE["mrpc"]).fingerprint
    assert again == data.fingerprint
    caches.save(caches.path_of(model, "mrpc"), written | {"settings": {"max_length": 64}})
    assert caches.open_task(model, GLUE["mrpc"]).fingerprint != again


@pytest.mark.parametrize("place", [*(i / 20 for i in range(20)), 32, 33, 97, -1])
def test_a_flipped_byte_is_noticed_wherever_it_is(in_tmp, place):
    """place: a share of the file, or a byte: the ends of the layout, of the checksum and of the file."""
    path, written = caches.path_of("bert", "mrpc"), prepared()
    caches.save(path, written)
    data = bytearray(path.read_bytes())
    place = int(place * len(data)) if isinstance(place, float) else place
    data[place] ^= 0x10
    path.write_bytes(data)
    message = refused()
    assert "cache/bert/mrpc.pt is damaged" in message or "is not a cache of this version" in message
    assert not caches.is_current(path, written["settings"], written["fingerprints"])


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_noticed(in_tmp, share):
    path, written = caches.path_of("bert", "mrpc"), prepared()
    caches.save(path, written)
    assert caches.is_current(path, written["settings"], written["fingerprints"])
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = refused()
    assert "cache/bert/mrpc.pt is damaged" in message or "is not a cache of this version" in message
    assert not caches.is_current(path, written["settings"], written["fingerprints"])


def test_a_cache_of_another_task_or_model_is_noticed(in_tmp):
    caches.save(caches.path_of("bert", "mrpc"), prepared())
    caches.path_of("bert", "mrpc").rename(caches.path_of("bert", "rte"))
    assert "cache/bert/rte.pt does not hold rte" in refused("rte")
    caches.save(caches.path_of("bert", "mrpc"), prepared("lstm"))
    assert "does not hold mrpc" in refused()
    caches.save(caches.path_of("bert", "mrpc"), prepared() | {"model": "lstm"})
    assert "does not hold mrpc" in refused()


def changed(name, place, value, model="bert"):
    column = columns(model)[name].clone()
    column[place] = value
    return {name: column}


BAD = {
    "an id beyond the vocabulary": changed("ids", 3, WORDS),
    "a negative id": changed("ids", 3, -1),
    "a last offset too small": changed("offsets", -1, 100),
    "a last offset too large": changed("offsets", -1, 1_000),
    "a first offset": changed("offsets", 0, 1),
    "offsets that fall": changed("offsets", 1, 90),
    "a row of nothing": changed("offsets", 1, 0),
    "offsets of fewer rows": {"offsets": columns("bert")["offsets"][[0, 1, 2, 4]]},
    "fewer labels": {"labels": torch.zeros(3)},
    "a label of no class": changed("labels", 0, 2),
    "a label between two": changed("labels", 0, 0.5),
    "a label that is no number": changed("labels", 0, torch.nan),
    "fewer second segments": {"second_starts": torch.ones(3, dtype=torch.int32)},
    "a second segment beyond the row": changed("second_starts", 1, 60),
    "a list": {"labels": [0.0, 1.0, 0.0, 1.0]},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD)
def test_columns_that_do_not_fit_are_noticed(in_tmp, changes):
    caches.save(caches.path_of("bert", "mrpc"), prepared(**changes))
    assert "cache/bert/mrpc.pt does not hold mrpc for this version" in refused()


BAD_SECONDS = {
    "an id": changed("second_ids", 0, WORDS, "lstm"),
    "an offset": changed("second_offsets", -1, 9, "lstm"),
    "fewer rows": {"second_offsets": torch.tensor([0, 1, 2, 4])},
}


@pytest.mark.parametrize("changes", BAD_SECONDS.values(), ids=BAD_SECONDS)
def test_second_sentences_that_do_not_fit_are_noticed(in_tmp, changes):
    caches.save(caches.path_of("lstm", "mrpc"), prepared("lstm", **changes))
    assert "cache/lstm/mrpc.pt does not hold mrpc for this version" in refused(model="lstm")


@pytest.mark.parametrize("name", prepared())
def test_a_cache_that_lacks_something_is_noticed(in_tmp, name):
    written = prepared()
    del written[name]
    caches.save(caches.path_of("bert", "mrpc"), written)
    assert "does not hold mrpc" in refused()


@pytest.mark.parametrize("name", ["dev", *columns("bert")])
def test_a_cache_that_lacks_a_split_or_a_column_is_noticed(in_tmp, name):
    written = prepared()
    del (written["splits"] if name == "dev" else written["splits"]["dev"])[name]
    caches.save(caches.path_of("bert", "mrpc"), written)
    assert "does not hold mrpc" in refused()


def test_a_cache_that_is_no_dictionary_is_noticed(in_tmp):
    caches.save(caches.path_of("bert", "mrpc"), [1, 2])
    assert "does not hold mrpc" in refused()


def test_a_changed_source_makes_a_cache_stale(tmp_path):
    source = tmp_path / "s"
    source.write_text("one")
    cache = content(fingerprints={source.as_posix(): caches.fingerprint(source)})
    made = cache, GLUE["mrpc"], tmp_path / "x.pt", "Prepare.py"
    caches.check_sources(*made)
    source.write_text("two")
    with pytest.raises(UserError, match=r"has changed since .*x\.pt was made\. Run: python Prepare\.py"):
        caches.check_sources(*made)
    source.unlink()
    caches.check_sources(*made)  # data may be deleted, caches stay good


def test_data_in_other_files_makes_a_cache_stale(in_tmp):
    caches.save(caches.path_of("bert", "mrpc"), prepared("bert"))
    folder = Path("data/MRPC")
    folder.mkdir(parents=True)
    (folder / "train.parquet").touch()
    assert caches.open_task("bert", GLUE["mrpc"]).task.name == "mrpc"  # half of it is there
    (folder / "dev.parquet").touch()
    assert "not made from data/MRPC/train.parquet, which is there now" in refused()


def test_ragged_rows_pad_and_take():
    ragged = Ragged.of([1, 2, 3, 4, 5, 6], [3, 1, 2])
    taken = ragged[torch.tensor([2, 0, 2])]
    assert taken.flat.tolist() == [5, 6, 1, 2, 3, 5, 6] and taken.offsets.tolist() == [0, 2, 5, 7]
    assert len(ragged[torch.tensor([], dtype=torch.int64)]) == 0
    values, mask = ragged.pad(torch.tensor([2, 0]))
    assert values.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert mask.tolist() == [[True, True, False], [True] * 3]
    assert ragged.pad(torch.tensor([1]), 4)[0].tolist() == [[4, 0, 0, 0]]
    taken = ragged[torch.tensor([2, 0])]
    assert [taken.row(i).tolist() for i in range(2)] == [[5, 6], [1, 2, 3]]


def test_batches_hold_every_row_once_and_similar_lengths():
    lengths = torch.randint(1, 100, (1000,))
    for made in (batches.sorted_batches(lengths, 32), batches.shuffled_batches(lengths, 32, seed=0)):
        assert torch.cat(made).sort().values.tolist() == list(range(1000))
        padded = sum(len(rows) * int(lengths[rows].max()) for rows in made)
        assert padded < 1.15 * int(lengths.sum())
    one, same, other = (batches.shuffled_batches(lengths, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.cat(one), torch.cat(same)) and not torch.equal(torch.cat(one), torch.cat(other))


def test_bert_batches_mark_the_second_segment():
    examples = BertExamples(
        Ragged.of([2, 7, 3, 8, 3, 2, 9, 3], [5, 3]), torch.zeros(2), torch.tensor([3, 3], dtype=torch.int32)
    )
    batch = examples.batch(torch.tensor([0, 1]))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def test_word_dropout_leaves_special_tokens_in():
    whole = pairs()
    copy, kept = batches.drop_words(whole, 0.3, [1, 2], seed=0)
    assert len(copy) == len(whole) and torch.equal(copy.labels, whole.labels)
    assert torch.equal(copy.ids.flat, whole.ids.flat[kept])
    words = whole.ids.flat > 2
    assert 0.2 < (~kept)[words].float().mean() < 0.4 and kept[~words].all()
    for row in range(len(whole)):
        ids = copy.ids.row(row).tolist()
        second = int(copy.second_starts[row])
        assert ids[0] == 1 and ids.count(2) == 2 and ids[second - 1] == 2
        assert all(i < 40 for i in ids[:second]) and all(i >= 40 for i in ids[second:-1])
        assert ids == [i for i in whole.ids.row(row).tolist() if i in ids]  # in order
    assert not torch.equal(kept, batches.drop_words(whole, 0.3, [1, 2], seed=1)[1])


def test_parts_are_joined_row_by_row():
    whole = pairs()
    copy, _ = batches.drop_words(whole, 0.3, [1, 2], seed=0)
    both = batches.joined([whole, copy])
    assert len(both) == 8 and both.ids.row(5).tolist() == copy.ids.row(1).tolist()
    assert both.second_starts.tolist() == whole.second_starts.tolist() + copy.second_starts.tolist()
    assert both.labels.tolist() == [0, 1, 0, 1] * 2
