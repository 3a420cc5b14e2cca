"""Caches: whole or absent, never code, never stale."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from conftest import ROOT

from pruning import batches, caches
from pruning.batches import Examples, Ragged
from pruning.errors import UserError


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


def test_opening_a_cache_never_runs_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "x.pt"
    torch.save({"layout": caches.LAYOUT, "x": Evil()}, path)
    with pytest.raises(UserError, match=r"cannot be read.*python Prepare\.py"):
        caches.load(path, "Prepare.py")
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(UserError):
        caches.load(path, "Prepare.py")
    assert not (tmp_path / "ran").exists()


def test_missing_and_older_layouts_name_the_script(tmp_path):
    with pytest.raises(UserError, match=r"no cache .*x\.pt\. Run: python Prepare\.py"):
        caches.load(tmp_path / "x.pt", "Prepare.py")
    torch.save({"layout": 0}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"layout 0, this version reads 1\. Run: python Prepare\.py"):
        caches.load(tmp_path / "x.pt", "Prepare.py")


def test_a_changed_source_makes_a_cache_stale(tmp_path):
    source = tmp_path / "s"
    source.write_text("one")
    cache = content(fingerprints=caches.fingerprints([source]))
    caches.check_sources(cache, tmp_path / "x.pt", "Prepare.py")
    source.write_text("two")
    with pytest.raises(UserError, match=r"has changed since .*x\.pt was made\. Run: python Prepare\.py"):
        caches.check_sources(cache, tmp_path / "x.pt", "Prepare.py")
    source.unlink()
    caches.check_sources(cache, tmp_path / "x.pt", "Prepare.py")  # data may be deleted, caches stay good


def test_ragged_rows_pad_and_take():
    ragged = Ragged.of([1, 2, 3, 4, 5, 6], [3, 1, 2])
    values, mask = ragged.pad(torch.tensor([2, 0]))
    assert values.tolist() == [[5, 6, 0], [1, 2, 3]]
    assert mask.tolist() == [[True, True, False], [True] * 3]
    assert ragged.pad(torch.tensor([1]), 4)[0].tolist() == [[4, 0, 0, 0]]
    taken = ragged.take(torch.tensor([2, 0]))
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
    examples = Examples(
        Ragged.of([2, 7, 3, 8, 3, 2, 9, 3], [5, 3]), torch.zeros(2), torch.tensor([3, 3], dtype=torch.int32)
    )
    batch = batches.bert_batch(examples, torch.tensor([0, 1]))
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1], [0] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]


def pairs() -> Examples:
    """Four joined pairs, [CLS] = 1, [SEP] = 2, words from 3 on."""
    rows = [[1, *range(3, 3 + a), 2, *range(40, 40 + b), 2] for a, b in ((30, 20), (1, 1), (8, 40), (25, 3))]
    seconds = torch.tensor([row.index(2) + 1 for row in rows], dtype=torch.int32)
    ids = Ragged.of([i for row in rows for i in row], [len(row) for row in rows])
    return Examples(ids, torch.tensor([0.0, 1.0, 0.0, 1.0]), seconds)


def test_words_are_left_out_and_marks_are_not():
    whole = pairs()
    copy, kept = batches.leave_words_out(whole, 0.3, [1, 2], seed=0)
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
    assert not torch.equal(kept, batches.leave_words_out(whole, 0.3, [1, 2], seed=1)[1])


def test_parts_are_joined_row_by_row():
    whole = pairs()
    copy, _ = batches.leave_words_out(whole, 0.3, [1, 2], seed=0)
    both = batches.joined([whole, copy])
    assert len(both) == 8 and both.ids.row(5).tolist() == copy.ids.row(1).tolist()
    assert both.second_starts.tolist() == whole.second_starts.tolist() + copy.second_starts.tolist()
    assert both.labels.tolist() == [0, 1, 0, 1] * 2
