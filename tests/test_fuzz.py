"""Whatever is damaged, foreign or mistyped ends in a result or in one sentence, never in a traceback.

Readers, configurations, vocabularies and weights are damaged in test_readers.py and test_bert_folder.py.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from running import BERT, experiment, found, runner, without_times
from test_caches import WORDS, columns, prepared

import PrepareGlue4Bert
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from pruning import batches, caches, grid, plots, records, results, training
from pruning.errors import UserError
from pruning.settings import BertSettings, LstmGlueSettings, LstmSettings
from pruning.store import Store
from pruning.tasks import AGNEWS, GLUE


def cases(count):
    """The same examples on every machine."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


def sentence_of(error):
    """What a user reads: one line of a length that one reads."""
    sentence = str(error)
    assert sentence and "\n" not in sentence and len(sentence) < 700
    return sentence


@st.composite
def damages(draw):
    """A function from a file's bytes to others: some flipped, left out, put in or written twice, or a cut."""
    share, few = draw(st.floats(0, 1, exclude_max=True)), draw(st.binary(min_size=1, max_size=5))
    kind = draw(st.sampled_from(["flipped", "left out", "put in", "cut", "twice"]))

    def damage(content: bytes) -> bytes:
        at = int(share * len(content))
        part = content[at : at + len(few)]
        flipped = bytes(one ^ other for one, other in zip(part, few, strict=False))
        middle = {"flipped": flipped, "left out": b"", "put in": few + part, "cut": b"", "twice": part * 2}
        return content[:at] + middle[kind] + (b"" if kind == "cut" else content[at + len(few) :])

    return damage


# --- Caches ----------------------------------------------------------------------------------


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@cases(120)
@given(model=st.sampled_from(["bert", "lstm"]), damage=damages())
def test_a_damaged_task_is_refused_in_a_sentence_that_names_the_script(in_tmp, model, damage):
    path, written = caches.path_of(model, "mrpc"), prepared(model)
    caches.save(path, written)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    if path.read_bytes() == whole:
        return
    assert not caches.is_current(path, written["settings"], written["fingerprints"])
    with pytest.raises(UserError) as error:
        caches.open_task(model, GLUE["mrpc"])
    sentence = sentence_of(error.value)
    assert sentence.endswith(f"Run: python PrepareGlue4{model.title()}.py") and str(path) in sentence


KEPT = {  # what a runner keeps
    "dense": {"classifier.weight": torch.rand(2, 8), "classifier.bias": torch.zeros(2)},
    "scores": {1: torch.rand(30), "first": torch.rand(30)},
}


@cases(60)
@given(kind=st.sampled_from([*KEPT]), damage=damages())
def test_a_damaged_model_or_damaged_scores_are_made_again(in_tmp, kind, damage):
    store, fields = Store(caches.CACHE / "bert", "mrpc-seed0", writes=True), {"seed": 0}
    store.seconds[kind] = 1.0
    store.keep(kind, fields, KEPT[kind])
    [path] = (caches.CACHE / "bert" / kind).iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert (store.load(kind, fields) is None) == (path.read_bytes() != whole)
    store.keep(kind, fields, KEPT[kind])
    assert path.read_bytes() == whole and store.load(kind, fields).keys() == KEPT[kind].keys()


SHAPES = st.sampled_from([(), (0,), (1,), (4,), (5,), (WORDS,), (4, 1), (0, 0), (2, 3)])
TYPES = [torch.int32, torch.int64, torch.uint8, torch.bool, torch.float32, torch.bfloat16, torch.complex64]
TENSORS = st.builds(
    lambda shape, kind, most: (torch.linspace(-1, most, math.prod(shape)).reshape(shape)).to(kind),
    *(SHAPES, st.sampled_from(TYPES), st.sampled_from([1, 4, 1000])),
)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.one_of(
    *(LEAVES, TENSORS, st.lists(LEAVES | TENSORS, max_size=3)),
    st.dictionaries(st.sampled_from(["train", "dev", "ids", "x"]), LEAVES | TENSORS, max_size=3),
)
OTHER_TENSORS = st.sampled_from(  # made from the one that is there
    [
        *(lambda column, kind=kind: column.to(kind) for kind in TYPES),
        *(lambda column, shape=shape: column.reshape(shape) for shape in ((-1, 1), (1, -1))),
        lambda column: column[:-1],
        lambda column: column.flip(0),
        lambda column: torch.cat([column, column[:1]]),
    ]
)


def open_or_refuse(model, written):
    """Opens a cache, and makes a batch of it, unless it is refused in a sentence that names the script."""
    caches.save(caches.path_of(model, "mrpc"), written)
    try:
        data = caches.open_task(model, GLUE["mrpc"])
    except UserError as error:
        assert sentence_of(error).endswith(f"Run: python PrepareGlue4{model.title()}.py")
        return
    assert len(data.counts) == len(data.vocabulary) and len(data.fingerprint) == 64
    for examples in data.splits.values():
        batch = examples.take(torch.arange(4)).batch(torch.arange(4))
        ids = batch["input_ids" if model == "bert" else "ids"]
        assert ids.shape[0] == 4 and 0 <= int(ids.min()) <= int(ids.max()) < WORDS
        kinds = {name: column.dtype for name, column in examples.to_columns().items()}
        assert kinds == {name: column.dtype for name, column in columns(model).items()}


@cases(150)
@given(model=st.sampled_from(["bert", "lstm"]), place=st.integers(0, 30), value=ANYTHING)
def test_a_cache_of_other_content_is_opened_or_refused(in_tmp, model, place, value):
    """As another version of the script may write it: whole, but not what this one expects."""
    written = prepared(model)
    splits, dev = written["splits"], written["splits"]["dev"]
    contents = (
        (dev, [*dev, "second_ids", "more"]),
        (splits, [*splits, "test"]),
        (written, [*written, "more"]),
    )
    places = [(content, name) for content, names in contents for name in names]
    content, name = places[place % len(places)]
    content[name] = value
    open_or_refuse(model, written)


@cases(150)
@given(model=st.sampled_from(["bert", "lstm"]), place=st.integers(0, 19), other=OTHER_TENSORS)
def test_a_cache_with_another_column_is_opened_or_refused(in_tmp, model, place, other):
    written = prepared(model)
    dev = written["splits"]["dev"]
    name = [*dev][place % len(dev)]
    dev[name] = other(dev[name])
    open_or_refuse(model, written)


# --- Records ---------------------------------------------------------------------------------


@pytest.fixture
def bert(full_world, monkeypatch):
    """main() of RunBert4Glue, without pictures, in a world with data."""
    monkeypatch.setattr(plots, "write_plots", lambda *_: None)
    PrepareGlue4Bert.main()
    return runner(RunBert4Glue, BERT, monkeypatch)


@pytest.fixture
def finished(bert):
    """An experiment with two runs, which have records."""
    bert()
    return experiment()


@st.composite
def other_values(draw):
    """A function from a record's bytes to those of the same record, one of its values another."""
    place, value = draw(st.integers(0, 100)), draw(LEAVES)

    def change(content: bytes) -> bytes:
        record = json.loads(content)
        record[[*record][place % len(record)]] = value
        return json.dumps(record).encode()

    return change


ODD = {
    "a byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content: content.decode().encode("utf-16"),
    "a line end": lambda content: content + b"\r\n",
    "NaN": lambda content: content.replace(b'"seed":0', b'"seed":NaN'),
    "of another project": lambda _: b'{"name": "somebody else\'s"}',
    "too deep": lambda _: b"[" * 100_000,
} | {
    text: lambda _, text=text: text.encode()
    for text in ("", "{}", "[]", "null", "0", "1e999", '"key"', '["key"]', '{"key": "", "key_fields": {}}')
}
CHANGES = damages() | other_values() | st.sampled_from([*ODD.values()])


@cases(100)
@given(method=st.sampled_from(["dense", "head"]), change=CHANGES)
def test_a_damaged_record_is_left_out_of_the_summary_and_its_run_is_due(finished, capsys, method, change):
    before, path = found("BERT"), finished.folder_of(method) / records.RECORD
    whole = path.read_bytes()
    damaged = change(whole)
    path.write_bytes(damaged)
    capsys.readouterr()
    try:
        records.write_summary("BERT")
        records.print_table("BERT", {record["key"] for record in before.values()})
        due = [due for _, due in grid.unfinished([finished])]
        assert path.read_bytes() == damaged
        if due:
            assert due == [method]
            del before[method]
            lines = capsys.readouterr().err.splitlines()
            assert [line for line in lines if "runs:" not in line and line.strip()] == [
                f"{path.parent}: no record of this project, or a damaged one; left out"
            ]
        assert found("BERT") == before  # if it is taken for whole, it is the same
    finally:
        path.write_bytes(whole)


def test_damaged_records_are_made_again_and_those_of_others_stay(bert, full_world, capsys):
    bert()
    before = found("BERT")
    folders = {method: experiment().folder_of(method) for method in before}
    path = folders["dense"] / records.RECORD
    path.write_bytes(path.read_bytes()[:-20])
    (folders["head"] / records.RECORD).write_text("{}")
    others = {
        full_world / "records/BERT/sst-2" / name: content
        for name, content in {
            "somebody/record.json": b'{"key": 1}',
            "copied-seed0-00000000/record.json": json.dumps(before["head"]).encode(),
            f"{folders['head'].name}/._record.json": b"\x00\x05\x16\x07",
            "._x.json": b"\x00\x05\x16\x07",
            "notes.json": b"[]",
        }.items()
    }
    for other, content in others.items():
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(content)
    capsys.readouterr()
    bert()
    after, (said, complained) = found("BERT"), capsys.readouterr()
    assert {m: without_times(r) for m, r in after.items()} == {m: without_times(r) for m, r in before.items()}
    assert all(said.count(f"sst-2, {method}, seed 0: ") == 1 for method in ("dense", "head"))
    for name in ("somebody", "copied-seed0-00000000"):
        assert complained.count(f"records/BERT/sst-2/{name}: no record of this project") == 1
    assert complained.count("left out") == 2
    assert all(other.read_bytes() == content for other, content in others.items())


def test_a_folder_in_place_of_a_record_is_named(bert, capsys):
    bert(pruning_methods=[])
    path = experiment().folder_of("head") / records.RECORD
    path.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        bert()
    assert sentence_of(error.value) == f"{path} cannot be written: Is a directory"
    assert set(found("BERT")) == {"dense"}


# --- Settings --------------------------------------------------------------------------------

KINDS = {RunBert4Glue: BertSettings, RunLstm4Glue: LstmGlueSettings, RunLstm4Agnews: LstmSettings}
WHOLE = st.sampled_from([0, 1, 2, 12, -1, 2**31, 2**32, 2**63, 2**64, 10**400])
GOOD = st.sampled_from(["head", "random", "half", "fused", "sst-2", "cola", "lstm", "other", 0.5, 1e-3, "0"])
ODD_VALUES = st.sampled_from([(0,), {0}, range(3), b"0", 1j, np.float64(0.5), np.int64(1), 1e308, -0.0])
PLAIN = LEAVES | WHOLE | GOOD | ODD_VALUES
LISTS = st.lists(PLAIN | st.lists(PLAIN, max_size=3), max_size=4)
BY_TASK = st.dictionaries(st.sampled_from(["sst-2", "other", "agnews", "sst2", 0]), PLAIN | LISTS, max_size=3)
NAMES = st.text("abcdefgh_éß漢", min_size=1, max_size=8)
PLACES = {name: place for place, name in enumerate(BertSettings.model_fields)}


@pytest.fixture
def idle(full_world, monkeypatch):
    """The runners read their settings and make their experiments, which are kept here; nothing is run."""
    PrepareGlue4Bert.main()
    one_sentence = {name: columns("lstm")[name] for name in ("ids", "offsets", "labels")}
    for task in (GLUE["sst-2"], AGNEWS):
        made_from = {path.as_posix(): caches.fingerprint(path) for path in task.paths().values()}
        changes = {
            "splits": {"train": one_sentence, "dev": one_sentence},
            "fingerprints": made_from | caches.fingerprint_of_entry(task),
        }
        caches.save(caches.path_of("lstm", task.name), prepared("lstm", task) | changes)
    experiments = []
    monkeypatch.setattr(results, "record_bag_of_words", experiments.append)
    monkeypatch.setattr(results, "summarize", lambda all_of_them: experiments.extend(all_of_them))
    monkeypatch.setattr(grid, "unfinished", lambda _: [])
    return experiments


@cases(250)
@given(
    script=st.sampled_from([*KINDS]),
    place=st.integers(0, 30),
    new_name=NAMES,
    value=PLAIN | LISTS | BY_TASK,
)
@example(script=RunBert4Glue, place=PLACES["augmented_copies"], new_name="x", value=10**400)
def test_any_value_of_any_setting_is_taken_or_refused_in_one_sentence(
    idle, monkeypatch, script, place, new_name, value
):
    names = [*KINDS[script].model_fields, *[new_name] * 2]
    name = names[place % len(names)]
    idle.clear()
    with monkeypatch.context() as patch:
        if script is RunBert4Glue:
            patch.setattr(script, "pruning_schedule", [0, 0.5, 0.5])  # of a BERT of 3 layers, whole
            patch.setattr(script, "layers", None)
        patch.setattr(script, name, value, raising=False)
        try:
            script.main()
        except UserError as error:
            sentence = sentence_of(error)
            nothing_prepared = name == "task_names" and "has none of them" in sentence
            assert nothing_prepared or (name in sentence and f"{script.__name__}.py" in sentence)
            return
    assert idle
    for one in idle:
        lengths, values = one.train_examples.lengths, one.settings
        for arguments in (one.dense_arguments, one.pruned_arguments):
            few = replace(arguments, epochs=min(2, arguments.epochs))
            assert 1 <= len(training.rows_by_step(lengths, few, one.seed)) <= 2 * len(lengths)
        assert sum(map(len, batches.sorted_batches(lengths, values.evaluation_batch_size))) == len(lengths)
        timed = results.timing_subset(one.train_examples, values.timing_examples)
        assert len(timed) == min(len(lengths), values.timing_examples)
        assert all(len(records.key_of(one.key_fields_of(method))) == 8 for method in grid.methods_of(one))
