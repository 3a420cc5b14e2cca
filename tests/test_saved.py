"""Models that runs keep: whole folders, read here and by a stranger, with the record's answers."""

import io
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_world, write_data
from hub import Hub
from huggingface_hub import ModelCard
from running import BERT, LSTM, files, found, runner
from safetensors import SafetensorError

import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Glue
from pruning import caches, methods, plots, predict, saved, words
from pruning.errors import UserError
from pruning.tasks import GLUE
from pruning.text import split_words

STUDENT = "ideal gradients student"  # other students differ in what taught them
DEPLOYABLE = [m for m in methods.BERT_METHODS if not methods.is_teacher(m) and not m.endswith("student")]
DEPLOYABLE += [STUDENT, ["head", "frequency", STUDENT]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A world in which every method that can be deployed was run; the current folder."""
    world = tmp_path_factory.mktemp("world")
    make_world(world)
    write_data(world / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world)
        patch.setattr(plots, "write_plots", lambda *_: None)
        PrepareGlue4Bert.main()
        PrepareGlue4Lstm.main()
        bert = runner(RunBert4Glue, BERT, patch)
        bert(pruning_methods=[*DEPLOYABLE, "ideal gradients"])
        bert(task_names=["mrpc", "sts-b"], pruning_methods=["ideal gradients student"])
        runner(RunLstm4Glue, LSTM, patch)(
            task_names=["sst-2", "mrpc"], pruning_methods=["lstm student", "tail"]
        )
        yield world


def texts_of(task):
    """The dev set as its file has it: sentences or pairs."""
    lines = Path(f"data/{GLUE[task].folder}/dev.tsv").read_text(encoding="utf-8").splitlines()
    header, *rows = [line.strip("\ufeff").split("\t") for line in lines]
    columns = [header.index(name) for name in (GLUE[task].first, GLUE[task].second) if name]
    texts = [tuple(row[column] for column in columns) for row in rows]
    return texts if len(columns) > 1 else [text for (text,) in texts]


def folders(model, task):
    return {
        r["method"]: next(Path("records", model, task).glob(f"*{r['key']}"))
        for r in found(model, task=task).values()
    }


# --- What is there ---------------------------------------------------------------------------


def test_every_model_that_can_be_deployed_is_kept_whole(kept):
    for method, folder in folders("BERT", "sst-2").items():
        listed = found("BERT", task="sst-2")[method].get("model_files")
        if method == "ideal gradients":
            assert listed is None and not (folder / "model").exists()
        else:
            assert {*listed, "README.md"} == {path.name for path in (folder / "model").iterdir()}
            assert ("ModifiedModelingBert.py" in listed) == (method != "dense")


def test_a_config_says_all_that_changes_an_answer(kept):
    config = json.loads(
        (folders("BERT", "sst-2")["ideal gradients student"] / "model/config.json").read_text()
    )
    wanted = {
        "model_type": "pruned_bert",
        "id2label": {"0": "negative", "1": "positive"},
        "pruning_schedule": [0, 0.5, 0.5],
        "pruning_methods": "ideal gradients student",
        "removed_tokens": "fused",
        "problem_type": "single_label_classification",
        "dtype": "float32",
    }
    assert wanted.items() <= config.items()
    dense = json.loads((folders("BERT", "sts-b")["dense"] / "model/config.json").read_text())
    assert (dense["model_type"], dense["problem_type"]) == ("bert", "regression")
    assert "pruning_schedule" not in dense and "auto_map" not in dense


def test_a_card_carries_the_records_figures(kept):
    record = found("BERT", task="sst-2")["head"]
    card = ModelCard.load(folders("BERT", "sst-2")["head"] / "model/README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    dev = record["splits"]["dev"]
    assert figures == {
        "accuracy": dev["metrics"]["accuracy"],
        "token_layers_kept": dev["token_layers_kept"],
        "speedup": record["timings"]["pruned"]["speedup"],
    }
    assert "[0, 0.5, 0.5]" in card.text and "trust_remote_code=True" in card.text
    assert 'classify("a sentence", truncation=True)' in card.text
    for folder, said in (
        (folders("BERT", "mrpc")[STUDENT], 'classify({"text": "a sentence", "text_pair": "another"}, trunc'),
        (folders("LSTM", "mrpc")["dense"], "python -m pruning.predict FOLDER < pairs.txt`, a tab between"),
        (folders("LSTM", "sst-2")["dense"], 'python -m pruning.predict FOLDER "a sentence"`. Anywhere'),
    ):
        assert said in ModelCard.load(folder / "model/README.md").text


# --- The record's answers --------------------------------------------------------------------


@pytest.mark.parametrize("model", ["BERT", "LSTM"])
@pytest.mark.parametrize("task", ["sst-2", "mrpc", "sts-b"])
def test_a_loaded_model_gives_the_records_answers(kept, model, task):
    if (model, task) == ("LSTM", "sts-b"):
        pytest.skip("not run")
    for method, record in found(model, task=task).items():
        if "model_files" in record:
            answers = saved.load(folders(model, task)[method]).answer(texts_of(task))
            predictions = record["splits"]["dev"]["predictions"]
            if task == "sts-b":
                assert [float(a.label) for a in answers] == pytest.approx(predictions, abs=0.0051)
            else:
                assert [a.label for a in answers] == [GLUE[task].label_name(p) for p in predictions], method


def test_a_stranger_gets_the_same_logits_from_the_folder_alone(kept, tmp_path):
    originals = {m: f for m, f in folders("BERT", "sst-2").items() if (f / "model").is_dir()}
    copies = {m: tmp_path / "kept models" / f.name / "model" for m, f in originals.items()}
    for method, copy in copies.items():
        shutil.copytree(originals[method] / "model", copy)
    texts, labels = texts_of("sst-2"), [i % 2 for i in range(12)]
    (tmp_path / "dev.json").write_text(json.dumps({"sentences": texts, "labels": labels}))
    shutil.copy(ROOT / "tests/elsewhere.py", tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {
        "HF_HOME": str(tmp_path / "hf")
    }
    folders_elsewhere = [str(copies[method]) for method in sorted(copies, key=lambda m: m == STUDENT)]
    command = [sys.executable, "elsewhere.py", "dev.json", *folders_elsewhere]
    with Hub() as hub:
        environment["HF_ENDPOINT"] = hub.url
        process = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    given = json.loads(process.stdout.splitlines()[-1])
    for method, copy in copies.items():
        theirs = given[str(copy)]
        model = saved.load(originals[method])
        ours, _ = model.logits(model.encode(texts))
        torch.testing.assert_close(torch.tensor(theirs["logits"]), ours, atol=1e-5, rtol=0)
        assert theirs["round_trip"] < 1e-6
    pushed = hub.repositories["models/somebody/pruned"]
    assert {"ModifiedModelingBert.py", "selection.py", "model.safetensors", "tokenizer.json"} <= {*pushed}
    assert given["pushed"] == given[str(copies[STUDENT])]["labels"]
    for method in ("dense", STUDENT):
        theirs, dev = given[str(copies[method])], found("BERT", task="sst-2")[method]["splits"]["dev"]
        assert theirs["labels"] == [GLUE["sst-2"].label_name(answer) for answer in dev["predictions"]]
        assert theirs["trainer"] == dev["metrics"]["accuracy"]


def test_a_served_model_reads_the_words_that_were_prepared():
    odd = [
        "Don't STOP—me now",
        "l’été à Paris\u2028x",
        "a's'b 12,000\\n",
        "",
        "  ",
        "naïve Straße №7 e\u0301",
        "ΑΣ 漢字 x_y",
    ]
    vectorization = words.build_vocabulary(odd, 100)
    vocabulary = ["[PAD]", "[UNK]", *map(str, vectorization.get_vocabulary()[2:])]
    rows = words.vectorize(odd, vectorization, "odd")
    for i, text in enumerate(odd):
        assert [vocabulary[word] for word in rows.row(i)] == (split_words(text) or ["[UNK]"])


# --- Grids -----------------------------------------------------------------------------------


@pytest.fixture
def bert(full_world, monkeypatch):
    monkeypatch.setattr(plots, "write_plots", lambda *_: None)
    PrepareGlue4Bert.main()
    return runner(RunBert4Glue, BERT, monkeypatch)


def test_without_save_models_none_is_kept_and_later_only_those_runs_are_done_again(bert, full_world):
    bert(save_models=False)
    assert set(found("BERT")) == {"dense", "head"} and not [*full_world.glob("records/BERT/*/*/model")]
    bert(save_models=True, pruning_methods=["tail"])
    before = files(full_world, "BERT")
    bert(save_models=True, pruning_methods=["head", "tail"])
    after = files(full_world, "BERT")
    assert [path.parent.name[:4] for path in before if after[path] != before[path]] == ["head"]
    assert len([*full_world.glob("records/BERT/sst-2/*/model/model.safetensors")]) == 3


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["gone", "empty"])
def test_a_run_whose_model_lacks_a_file_is_done_again(bert, full_world, harm):
    bert()
    weights = next(full_world.glob("records/BERT/sst-2/head-*/model/model.safetensors"))
    before = weights.read_bytes()
    harm(weights)
    bert()
    assert weights.read_bytes() == before


def test_a_disk_too_small_stops_the_grid_before_any_training(bert, full_world, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 1_000, 1_000))
    with pytest.raises(UserError, match=r"records has room for 0.00 GB.*save_models = False") as error:
        bert()
    assert "\n" not in str(error.value)
    assert found("BERT") == {}
    bert(save_models=False)  # asks for nothing
    assert "Models to be kept: 2," in capsys.readouterr().out


def test_a_disk_that_fills_while_a_model_is_written_is_named(bert, full_world, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("pruning.bert.BertBuilder.save", full)
    with pytest.raises(UserError, match="/model cannot be written: I/O error: No space left"):
        bert()
    assert not [*full_world.rglob("*.tmp")] and not [*full_world.glob("records/BERT/*/*/model")]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "model"
    with caches.whole_folder(target) as unfinished:
        (unfinished / "a").write_text("1")
    with pytest.raises(ZeroDivisionError), caches.whole_folder(target) as unfinished:
        (unfinished / "a").write_text("2")
        raise ZeroDivisionError
    assert (target / "a").read_text() == "1" and [*tmp_path.iterdir()] == [target]
    dead = tmp_path / f".model.{caches.MACHINE}-999999999.abcd1234.tmp"
    dead.mkdir()
    (dead / "a").write_text("3")
    caches.remove_leftovers(tmp_path)
    assert [*tmp_path.iterdir()] == [target]


# --- From a shell ----------------------------------------------------------------------------


def test_a_shell_gets_label_probability_and_dropped_words(kept, capsys):
    folder = folders("BERT", "sst-2")["head"]
    capsys.readouterr()
    predict.main([str(folder), "--words", "the film was good"])
    option_first = capsys.readouterr().out
    predict.main([str(folder), "the film was good", "--words"])
    printed = capsys.readouterr().out
    assert printed == option_first
    [answer, *words_lines] = printed.splitlines()
    label, probability, text = answer.split("\t")
    assert (
        label in ("negative", "positive") and 0.5 <= float(probability) <= 1 and text == "the film was good"
    )
    assert words_lines == [
        "    dropped before layer 1: the film was",
        "    dropped before layer 2: good",
        "    kept: [CLS] [SEP]",
    ]


def test_pairs_come_with_a_tab_and_scores_without_probability(kept, capsys, monkeypatch):
    folder = folders("BERT", "sts-b")["ideal gradients student"]
    text = "\ufeffa film\tthe caf\u00e9\r\na town\tan old town\n"  # whatever the console's encoding
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "ascii"))
    capsys.readouterr()
    predict.main([str(folder)])
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1:] for line in lines] == [["a film", "the caf\u00e9"], ["a town", "an old town"]]
    assert all(0 <= float(line[0]) <= 5 for line in lines)
    with pytest.raises(UserError, match="answers pairs"):
        predict.main([str(folder), "one sentence"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), "ascii"))
    with pytest.raises(UserError, match="standard input is no text in UTF-8"):
        predict.main([str(folder)])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, None, "is records/BERT/nothing a run's folder"),
        ("config.json", "{", "holds no model of this project"),
        ("config.json", '{"model_type": "gpt2"}', "holds no model of this project"),
        ("config.json", {"removed_tokens": "bad"}, "is damaged"),
        ("config.json", {"id2label": []}, "holds no model of this project"),
        ("config.json", {"dtype": "float99"}, "is damaged"),
        ("model.safetensors", "", "is damaged"),
        ("tokenizer.json", None, "is damaged: there is no tokenizer.json"),
        ("tokenizer.json", "{}", "is damaged"),
    ],
)
def test_a_folder_without_a_sound_model_is_one_sentence(kept, tmp_path, name, content, said):
    folder = Path("records/BERT/nothing")
    if name:
        folder = tmp_path / "model"
        shutil.copytree(folders("BERT", "sst-2")["head"] / "model", folder)
        text = (folder / name).read_bytes()
        (folder / name).unlink()
        if isinstance(content, dict):
            content = json.dumps(json.loads(text) | content)
        if content is not None:
            (folder / name).write_text(content)
    with pytest.raises(UserError, match=said) as error:
        predict.main([str(folder), "a film"])
    assert "\n" not in str(error.value)


def test_glues_test_file_is_answered_in_the_form_of_its_server(kept, capsys):
    folder = folders("BERT", "mrpc")[STUDENT]
    with pytest.raises(UserError, match="there is no test file of mrpc in data/MRPC"):
        predict.main([str(folder), "--glue"])
    rows = [f"{i}\t1\t2\t{first}\t{second}" for i, (first, second) in enumerate(texts_of("mrpc"))]
    Path("data/MRPC/test.tsv").write_text("\n".join(["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows, ""]))
    capsys.readouterr()
    predict.main([str(folder), "--glue"])
    lines = (folder / "MRPC.tsv").read_text().splitlines()
    answers = found("BERT", task="mrpc")[STUDENT]["splits"]["dev"]["predictions"]
    assert lines == ["index\tprediction", *(f"{i}\t{answer:g}" for i, answer in enumerate(answers))]
    assert capsys.readouterr().out == f"{folder / 'MRPC.tsv'}: 12 answers to data/MRPC/test.tsv\n"
