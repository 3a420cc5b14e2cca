"""The three Prepare scripts, as a user runs them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED, write_task
from hub import as_parquet

import PrepareAgnews4Lstm
import PrepareGlue4Bert
import PrepareGlue4Lstm
from pruning import bert_folder, caches, preparing, readers, wordpieces, words
from pruning.errors import UserError
from pruning.tasks import AGNEWS, GLUE
from pruning.text import split_words


def load(path):
    cache = caches.load(path, "")
    examples = caches.EXAMPLES[cache["model"]]
    return cache, {name: examples.from_columns(part) for name, part in cache["splits"].items()}


def as_the_hub_has_it(world):
    """Every classic file of a world is replaced by the hub's parquet; classes in another order."""
    for task in (*GLUE.values(), AGNEWS):
        for split, path in task.paths().items():
            if task.is_there():
                rows = readers.read(task, path)
                names = [*reversed(task.classes.values())]
                labels = [
                    label if not names else names.index(task.label_name(label)) for label in rows.labels
                ]
                texts = [rows.first] if rows.second is None else [rows.first, rows.second]
                content = as_parquet(task, labels, *texts, names=names)
                path.unlink()
                (path.parent / task.hub_files[split]).write_bytes(content)


def test_bert_caches_hold_the_joined_pairs(full_world, capsys):
    PrepareGlue4Bert.main()
    printed = capsys.readouterr().out
    assert "qqp: skipped, no folder" in printed and str(full_world / "data" / "QQP") in printed
    cache, splits = load(full_world / "cache/bert/mrpc.pt")
    assert set(splits) == {"train", "dev"} and len(splits["train"]) == 24
    text = preparing.decode(splits["train"], 0, cache["vocabulary"])
    first, second, rest = text.split(" [SEP]")
    assert first.startswith("[CLS] ") and second and rest == ""
    starts = splits["train"].second_starts
    assert text.split()[int(starts[0]) - 1] == "[SEP]"
    assert splits["train"].labels[:4].tolist() == [0, 1, 0, 1]
    assert cache["counts"].sum() == len(splits["train"].ids.flat)
    assert cache["settings"]["max_length"] == 128 and not cache["sample"]


def test_stsb_stays_real_valued(full_world):
    PrepareGlue4Bert.main()
    PrepareGlue4Lstm.main()
    for model in ("bert", "lstm"):
        labels = load(full_world / f"cache/{model}/sts-b.pt")[1]["train"].labels
        assert labels[:4].tolist() == pytest.approx([0, 0.48, 0.96, 1.44])


def test_preparing_again_does_nothing_until_something_changed(full_world, capsys):
    PrepareGlue4Bert.main()
    path = full_world / "cache/bert/sst-2.pt"
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    PrepareGlue4Bert.main()
    assert "sst-2: cache/bert/sst-2.pt is up to date" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == before
    with open(full_world / "data/SST-2/train.tsv", "a") as file:
        file.write("a great film\t1\n")
    PrepareGlue4Bert.main()
    assert len(load(path)[1]["train"]) == 25


def test_long_sequences_are_cut_the_longer_sentence_first(world, monkeypatch):
    def row(rng, index):
        return f"{index}\t{'good ' * 300}\tbad film\t{'not_' * (index % 2)}entailment"

    write_task(world / "data/RTE", "index\tsentence1\tsentence2\tlabel", row)
    PrepareGlue4Bert.main()
    cache, splits = load(world / "cache/bert/rte.pt")
    words_ = preparing.decode(splits["train"], 0, cache["vocabulary"]).split()
    assert len(words_) == 128 and words_[-4:] == ["[SEP]", "bad", "film", "[SEP]"]
    monkeypatch.setattr(PrepareGlue4Bert, "max_length", 64)
    PrepareGlue4Bert.main()
    assert load(world / "cache/bert/rte.pt")[1]["train"].lengths.max() == 64


def test_a_separator_within_a_sentence_does_not_move_the_second_segment(world):
    def row(rng, index):
        return f"{index}\tgood [SEP] film\tbad\t{index % 2}"

    write_task(world / "data/WNLI", "index\tsentence1\tsentence2\tlabel", row)
    write_task(world / "data/CoLA", None, lambda rng, index: f"x\t{index % 2}\t\tgood [SEP] film")
    PrepareGlue4Bert.main()
    pairs = load(world / "cache/bert/wnli.pt")[1]["train"]
    assert (int(pairs.lengths[0]), int(pairs.second_starts[0])) == (7, 5)
    sentences = load(world / "cache/bert/cola.pt")[1]["train"]
    assert (int(sentences.lengths[0]), int(sentences.second_starts[0])) == (5, 5)


def tokenizer_of_the_bert():
    settings = {"max_length": 128, **bert_folder.tokenizer_settings()}
    return wordpieces.build_tokenizer(bert_folder.read_vocabulary(), settings).backend_tokenizer


def test_casing_comes_from_the_bert(world):
    assert bert_folder.tokenizer_settings()["do_lower_case"] is True
    vocabulary = world / "bert/vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "Paris\n")
    assert bert_folder.tokenizer_settings()["do_lower_case"] is False
    tokenizer = tokenizer_of_the_bert()
    assert tokenizer.encode("Paris good Good").tokens == ["[CLS]", "Paris", "good", "[UNK]", "[SEP]"]
    (world / "bert/tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))
    assert bert_folder.tokenizer_settings()["do_lower_case"] is True


@pytest.mark.skipif(not (SHARED / "vocab").is_dir(), reason="no ../shared/vocab beside the checkout")
@pytest.mark.parametrize(("name", "lower"), [("uncased", True), ("cased", False)])
def test_casing_of_the_real_vocabularies(world, name, lower):
    (world / "bert/vocab.txt").write_bytes((SHARED / "vocab" / f"{name}.txt").read_bytes())
    assert bert_folder.tokenizer_settings()["do_lower_case"] is lower
    tokenizer = tokenizer_of_the_bert()
    tokens = tokenizer.encode("Élan in Washington").tokens
    assert tokens[-2] == ("washington" if lower else "Washington") and "[UNK]" not in tokens


@pytest.mark.parametrize("script", [PrepareGlue4Bert, PrepareGlue4Lstm, PrepareAgnews4Lstm])
def test_without_data_the_scripts_say_how_to_get_it(world, script):
    with pytest.raises(UserError, match="no data found") as error:
        script.main()
    assert "README" in str(error.value)


@pytest.mark.parametrize(
    ("script", "name", "value", "wanted"),
    [
        (PrepareGlue4Bert, "max_length", 4, "from 5 to 160"),
        (PrepareGlue4Bert, "max_length", 161, "from 5 to 160"),
        (PrepareGlue4Bert, "max_length", "128", "from 5 to 160"),
        (PrepareGlue4Bert, "max_length", 128.0, "from 5 to 160"),
        (PrepareGlue4Lstm, "vocabulary_size", 2, "of at least 3"),
        (PrepareAgnews4Lstm, "vocabulary_size", True, "of at least 3"),
    ],
)
def test_a_setting_that_cannot_work_is_an_error_before_any_work(
    full_world, monkeypatch, script, name, value, wanted
):
    monkeypatch.setattr(script, name, value)
    with pytest.raises(UserError) as error:
        script.main()
    assert (
        str(error.value) == f"{name} in {script.__name__}.py is {value!r}; it must be a whole number {wanted}"
    )
    assert not list((full_world / "cache").iterdir())


def test_the_smallest_settings_work(world, monkeypatch):
    write_task(world / "data/CoLA", None, lambda rng, index: f"x\t{index % 2}\t\tgood film")
    monkeypatch.setattr(PrepareGlue4Bert, "max_length", 3)
    monkeypatch.setattr(PrepareGlue4Lstm, "vocabulary_size", 3)
    (world / "bert/config.json").unlink()  # until it is converted, a BERT may be without
    PrepareGlue4Bert.main()
    PrepareGlue4Lstm.main()
    assert set(load(world / "cache/bert/cola.pt")[1]["train"].lengths.tolist()) == {3}
    cache, splits = load(world / "cache/lstm/cola.pt")
    assert len(cache["vocabulary"]) == 3 and splits["train"].ids.row(0).sort().values.tolist() == [1, 2]
    write_task(world / "data/MNLI", None, lambda rng, index: "")
    with pytest.raises(UserError, match="is 3; it must be a whole number of at least 5"):
        PrepareGlue4Bert.main()


@pytest.mark.parametrize("script", [PrepareGlue4Bert, PrepareGlue4Lstm])
def test_training_rows_of_one_class_are_an_error(world, script):
    write_task(world / "data/CoLA", None, lambda rng, index: "x\t1\t\tgood film")
    with pytest.raises(UserError) as error:
        script.main()
    assert (
        str(error.value) == "data/CoLA/train.tsv: all rows are of the class 'acceptable'; training needs two"
    )


def test_a_file_that_cannot_be_opened_is_an_error(full_world, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(caches, "fingerprint", refuse)
    with pytest.raises(UserError, match=r"^data/SST-2/train\.tsv cannot be read: Permission denied$"):
        PrepareGlue4Bert.main()


@pytest.mark.parametrize(
    ("script", "unneeded"),
    [(PrepareGlue4Bert, ["pandas", "tensorflow", "keras"]), (PrepareAgnews4Lstm, ["pandas"])],
)
def test_the_scripts_import_what_they_need_only(full_world, script, unneeded):
    as_the_hub_has_it(full_world)
    blocked = f"import sys; sys.modules.update(dict.fromkeys({unneeded}))"
    code = f"{blocked}; sys.path.append({str(ROOT)!r}); import {script.__name__} as script; script.main()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_vocabulary_the_script_says_so(world):
    (world / "bert/vocab.txt").unlink()
    with pytest.raises(UserError, match="no vocabulary"):
        PrepareGlue4Bert.main()


def test_a_folder_without_its_files_is_an_error(full_world):
    (full_world / "data/SST-2/dev.tsv").unlink()
    with pytest.raises(UserError, match=r"sst-2: data/SST-2 is there, but not data/SST-2/dev\.tsv"):
        PrepareGlue4Bert.main()


def test_broken_rows_are_shown(full_world, capsys):
    path = full_world / "data/SST-2/train.tsv"
    path.write_text(path.read_text() * 1 + "a good film\t1\n" * 200 + "no label\n")
    PrepareGlue4Bert.main()
    printed = capsys.readouterr().out
    assert "224 rows, 1 broken and skipped" in printed
    assert "line 226: 1 fields instead of 2" in printed


def test_lstm_caches_hold_both_sentences(full_world):
    PrepareGlue4Lstm.main()
    cache, splits = load(full_world / "cache/lstm/mrpc.pt")
    train = splits["train"]
    assert train.second_ids is not None
    first, second = preparing.decode(train, 0, cache["vocabulary"]).split(" | ")
    line = (full_world / "data/MRPC/train.tsv").read_text(encoding="utf-8-sig").split("\n")[1]
    assert line.split("\t")[3:] == [first, second]
    assert torch.equal(train.lengths, train.ids.lengths + train.second_ids.lengths)


def test_agnews_cache(full_world):
    PrepareAgnews4Lstm.main()
    cache, splits = load(full_world / "cache/lstm/agnews.pt")
    assert splits["train"].labels[:5].tolist() == [0, 1, 2, 3, 0]
    line = (full_world / "data/ag_news_csv/train.csv").read_text().split("\n")[0]
    text = line.replace('"', "").split(",", 1)[1].replace(",", " ")
    assert preparing.decode(splits["train"], 0, cache["vocabulary"]) == text


def test_both_forms_of_the_data_give_the_same_caches(full_world, capsys):
    scripts = (PrepareGlue4Bert, PrepareGlue4Lstm, PrepareAgnews4Lstm)
    for script in scripts:
        script.main()
    paths = sorted(Path("cache").rglob("*.pt"))
    classic = {path: caches.load(path, "") for path in paths}
    as_the_hub_has_it(full_world)
    capsys.readouterr()
    for script in scripts:
        script.main()
    assert len(paths) == 7 and "mrpc: data/MRPC/dev.parquet: 12 rows, 0 broken" in capsys.readouterr().out
    for path, before in classic.items():
        after = caches.load(path, "")
        assert after["vocabulary"] == before["vocabulary"] and after["settings"] == before["settings"]
        assert torch.equal(after["counts"], before["counts"])
        for split, columns in before["splits"].items():
            assert after["splits"][split].keys() == columns.keys()
            assert all(torch.equal(after["splits"][split][name], columns[name]) for name in columns)
        read_from = [Path(name).suffix for name in after["fingerprints"] if name.startswith("data/")]
        assert read_from and {*read_from} == {".parquet"}


def test_a_cache_follows_the_files_that_are_there(full_world, capsys):
    classic = {path: path.read_bytes() for path in (full_world / "data/MRPC").iterdir()}
    as_the_hub_has_it(full_world)
    PrepareGlue4Bert.main()
    capsys.readouterr()
    PrepareGlue4Bert.main()
    assert "mrpc: cache/bert/mrpc.pt is up to date" in capsys.readouterr().out
    for path, content in classic.items():
        path.write_bytes(content)
    PrepareGlue4Bert.main()
    printed = capsys.readouterr().out
    assert "mrpc: data/MRPC/dev.tsv: 12 rows" in printed and "sst-2: cache/bert/sst-2.pt is up to" in printed


def test_an_edited_entry_of_the_table_makes_a_cache_stale(full_world, monkeypatch, capsys):
    PrepareGlue4Bert.main()
    turned = dict(reversed(GLUE["sst-2"].classes.items()))
    edited = replace(GLUE["sst-2"], classes=turned)
    monkeypatch.setitem(GLUE, "sst-2", edited)
    with pytest.raises(
        UserError, match=r"does not hold sst-2 for this version\. Run: python PrepareGlue4Bert"
    ):
        caches.open_task("bert", edited)
    capsys.readouterr()
    PrepareGlue4Bert.main()
    printed = capsys.readouterr().out
    assert "sst-2: written to" in printed and "mrpc: cache/bert/mrpc.pt is up to date" in printed
    assert load(full_world / "cache/bert/sst-2.pt")[1]["train"].labels[:3].tolist() == [1, 0, 1]
    assert caches.open_task("bert", edited).task is edited


def test_broken_rows_of_parquet_are_shown_with_their_number(full_world, capsys):
    content = as_parquet(GLUE["sst-2"], [0, 1] * 100 + [-1], ["a film"] * 201)
    for name in ("train", "dev"):
        (full_world / f"data/SST-2/{name}.tsv").unlink()
        (full_world / f"data/SST-2/{name}.parquet").write_bytes(content)
    PrepareGlue4Bert.main()
    printed = capsys.readouterr().out
    assert "data/SST-2/dev.parquet: 200 rows, 1 broken and skipped" in printed
    assert "    row 201: unknown label 'number -1'" in printed


def test_words_are_lower_cased_and_not_glued():
    texts = ["Wall Street's\\band", "ÉLAN – don’t", "a/b 3.5%", "!?"]
    cleaned = [" ".join(split_words(text)) for text in texts]
    assert cleaned == ["wall streets band", "élan dont", "a b 3 5", ""]


def test_words_do_not_depend_on_the_language_of_the_system():
    """Turkish writes a small I without its dot."""
    code = "from pruning import words; print(*words.build_vocabulary(['IRAQ In It'], 9).get_vocabulary())"
    environment = os.environ | {"LC_ALL": "tr_TR.UTF-8"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True)
    assert {"iraq", "in", "it"} <= {*done.stdout.decode().split()}


def test_every_row_keeps_a_word_and_the_vocabulary_is_the_trainings():
    vectorization = words.build_vocabulary(["b b b a a c"], 5)
    ids = words.vectorize(["a b", "...", "new c !"], vectorization, "")
    assert [row.tolist() for row in map(ids.row, range(3))] == [[3, 2], [1], [1, 4]]
