"""The runners as a user runs them: edit the settings, call main()."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, sentence, write_bert, write_task
from running import BERT, LSTM, experiment, files, found, runner

import PrepareAgnews4Lstm
import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Agnews
import RunLstm4Glue
from pruning import bert as berts
from pruning import caches, devices, distillation, methods, plots, records, schedules, training
from pruning.batches import BertExamples
from pruning.errors import UserError
from pruning.tasks import GLUE


@pytest.fixture
def pictures():
    """For the tests that look at them."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """They take most of the time of so small a run."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(plots, "write_plots", lambda *_: None)


@pytest.fixture
def bert(full_world, monkeypatch):
    """main() of RunBert4Glue with small settings and whatever else is given."""
    PrepareGlue4Bert.main()
    return runner(RunBert4Glue, BERT, monkeypatch)


@pytest.fixture
def lstm(full_world, monkeypatch):
    PrepareGlue4Lstm.main()
    return runner(RunLstm4Glue, LSTM | {"task_names": ["sst-2"]}, monkeypatch)


def test_four_calls_lead_from_main_to_the_model(bert, monkeypatch):
    """In training and in evaluation, calls of libraries not counted."""
    chains, real = set(), berts.PrunedBertForSequenceClassification.forward

    def forward(model, *inputs, **named):
        frame, names = sys._getframe(1), []
        while frame.f_code is not RunBert4Glue.main.__code__:
            code, frame = frame.f_code, frame.f_back
            if code.co_filename.startswith(str(ROOT / "pruning")) and not code.co_name.startswith("<"):
                names.append(code.co_name)
        chains.add(" ".join(reversed(names)))
        return real(model, *inputs, **named)

    monkeypatch.setattr(berts.PrunedBertForSequenceClassification, "forward", forward)
    bert(pruning_methods=["head"])
    assert chains >= {
        "train_dense train training_step add_gradients",
        "train_pruned train training_step add_gradients",
        "evaluate evaluate_examples in_parts_that_fit predict",
    }


def test_bert_every_method_and_a_mixture(bert, full_world, capsys, pictures):
    mixed = ["head", "frequency", "ideal gradients student"]
    bert(pruning_methods=[*methods.BERT_METHODS, mixed])
    made = found("BERT")
    assert set(made) == {"dense", *methods.BERT_METHODS, "frequency + ideal gradients student"}
    for method, record in made.items():
        split = record["splits"]["dev"]
        assert len(split["predictions"]) == 12
        assert record["settings"]["pruning_schedule"] == [0, 0.5, 0.5]
        assert record["loss_curve"] and record["sample"] is False
        if method == "dense":
            assert split["token_layers_kept"] == 1
            continue
        assert 0.5 < split["token_layers_kept"] < 0.7
        assert split["tokens_by_layer"][0] > split["tokens_by_layer"][1] > split["tokens_by_layer"][2]
        assert (record["timings"] is None) == methods.is_teacher(method)
    timings = made["head"]["timings"]
    assert set(timings) == {"dense, padded to 128", "dense, stock", "dense, ours", "pruned"}
    assert timings["dense, stock"]["speedup"] == 1 and timings["dense, ours"]["share_of_bound"] == 1
    assert (
        timings["pruned"]["flops"]
        < timings["dense, ours"]["flops"]
        < timings["dense, padded to 128"]["flops"]
    )
    page = next((full_world / "records/BERT/sst-2").glob("head-*/page.html")).read_text()
    assert '<span class="gone">' in page and "dropped before layer 2" in page
    assert (full_world / "records/BERT/sst-2.png").stat().st_size > 10_000
    summary = (full_world / "records/BERT/summary.md").read_text()
    assert "upper bound" in summary and "ideal gradients student" in summary
    assert summary.split("\n\n")[1] in capsys.readouterr().out


def test_bert_pairs_and_scores(bert):
    bert(task_names=["mrpc", "sts-b"])
    assert set(found("BERT", task="mrpc")["head"]["splits"]["dev"]["metrics"]) == {"f1", "accuracy"}
    stsb = found("BERT", task="sts-b")["head"]["splits"]["dev"]
    assert set(stsb["metrics"]) == {"pearson", "spearman"}
    assert any(p % 1 for p in stsb["predictions"])


def test_mnli_is_judged_on_both_dev_sets(world, monkeypatch):
    def row(rng, index):
        label = ("neutral", "entailment", "contradiction")[index % 3]
        return f"{index}\t{sentence(rng, 1)}\t{sentence(rng, 0)}\t{label}"

    folder = world / "data/MNLI"
    write_task(folder, "index\tsentence1\tsentence2\tgold_label", row)
    dev = (folder / "dev.tsv").rename(folder / "dev_matched.tsv").read_text()
    (folder / "dev_mismatched.tsv").write_text("\n".join(dev.split("\n")[:8]) + "\n")
    PrepareGlue4Bert.main()
    runner(RunBert4Glue, BERT | {"task_names": ["mnli"]}, monkeypatch)()
    splits = found("BERT")["head"]["splits"]
    assert {name: len(split["predictions"]) for name, split in splits.items()} == {
        "dev": 12,
        "dev_mismatched": 7,
    }
    assert "mnli (dev_mismatched)" in (world / "records/BERT/summary.md").read_text()


def test_a_schedule_may_differ_by_task(bert, capsys):
    by_task = {"sst-2": [0, 0.5, 0.5], "sts-b": [0.9, 0, 0]}
    bert(task_names=["sst-2", "sts-b"], pruning_schedule=by_task)
    kept = {
        r["task"]: r["splits"]["dev"]["tokens_by_layer"] for r in records.read_all("BERT") if r["pruning"]
    }
    assert kept["sst-2"][0] > kept["sst-2"][1] > kept["sst-2"][2]
    assert kept["sts-b"][0] == kept["sts-b"][2]
    said = capsys.readouterr().out
    assert "Schedule of sst-2: [0, 0.5, 0.5]" in said and "Schedule of sts-b: [0.9, 0, 0]" in said


def test_a_pruned_model_may_have_the_first_layers_alone(bert, full_world):
    bert(layers=2, pruning_schedule=[0, 0.5], pruning_methods=["ideal gradients student"])
    bert(layers=2, pruning_schedule=[0, 0], pruning_methods=["head"])
    bert(pruning_methods=[])
    cut, whole = (found("BERT")[method]["splits"]["dev"] for method in ("no pruning", "dense"))
    assert cut["tokens_by_layer"] == whole["tokens_by_layer"][:2]
    assert cut["token_layers_kept"] == pytest.approx(2 / 3)
    pruned = found("BERT")["ideal gradients student"]
    first, second = pruned["splits"]["dev"]["tokens_by_layer"]
    assert first == whole["tokens_by_layer"][0] > second and pruned["key_fields"]["layers"] == 2
    config = json.loads(next(full_world.glob("records/BERT/*/ideal-*/model/config.json")).read_text())
    assert config["num_hidden_layers"] == 2
    with pytest.raises(UserError, match=r"layers in RunBert4Glue.py is 4, and the BERT in bert/ has 3"):
        bert(layers=4, pruning_schedule=[0, 0, 0, 0.5])
    with pytest.raises(UserError, match=r"has 3 rates, but .* 2 layers.* \[0, 0.5\], or layers = None\."):
        bert(layers=2)
    with pytest.raises(UserError, match=r"'half' is for 3 layers .* layers is 2: set layers = None"):
        bert(layers=2, pruning_schedule="half")


def test_finished_runs_are_skipped_and_a_new_schedule_is_a_new_run(bert, full_world, capsys):
    bert()
    before = files(full_world, "BERT")
    assert "2/2 [" in capsys.readouterr().err.rpartition("runs:")[2]  # the bar of the grid
    bert()
    assert files(full_world, "BERT") == before
    repeated = capsys.readouterr()
    assert repeated.out.count("finished before, skipped") == 2 and "runs:" not in repeated.err
    bert(pruning_schedule=[0, 0, 0.9])
    assert "1/1 [" in capsys.readouterr().err.rpartition("runs:")[2]
    after = files(full_world, "BERT")
    assert before.items() < after.items() and len(after) == len(before) + 1
    assert {r["pruning"] for r in records.read_all("BERT")} == {
        "",
        "[0, 0.5, 0.5], fused",
        "[0, 0, 0.9], fused",
    }


def test_a_setting_makes_new_runs_of_what_it_affects(bert, full_world):
    bert()
    for change, new in (
        ({"seeds": [1]}, 2),
        ({"learning_rate": 1e-4}, 2),
        ({"pruned_epochs": 2}, 1),
        ({"word_dropout": 0.2}, 1),
        ({"shown_examples": 1, "timing_passes": 2, "evaluation_batch_size": 3}, 0),
    ):
        before = files(full_world, "BERT")
        bert(**change)
        assert len(files(full_world, "BERT")) == len(before) + new, change


def test_an_interrupted_run_leaves_no_record_and_is_redone(bert, full_world, monkeypatch):
    real = training.predict
    monkeypatch.setattr(training, "predict", lambda model, *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bert()
    assert not files(full_world, "BERT")
    monkeypatch.setattr(training, "predict", real)
    bert()
    assert set(found("BERT")) == {"dense", "head"}


def test_the_dense_model_is_trained_once_and_teachers_are_asked_once(bert, full_world, monkeypatch):
    asked, trained = [], []
    real_train, real_score = training.train, distillation.score_examples

    def score(examples, *rest, **named):
        asked.append(len(examples))
        return real_score(examples, *rest, **named)

    monkeypatch.setattr(training, "train", lambda *a, **k: trained.append(a[3]) or real_train(*a, **k))
    monkeypatch.setattr(distillation, "score_examples", score)
    bert(pruning_methods=["head", "ideal gradients student"])
    bert(pruning_methods=["tail", "ideal gradients"])
    assert [name.split(", ")[1] for name in trained] == [
        "dense", "head", "ideal gradients student", "tail", "ideal gradients",
    ]  # fmt: skip
    assert asked.count(24) == 1  # the training set once, then from cache/


def test_labels_are_not_used_at_evaluation(bert, full_world):
    asked = ["ideal gradients", "ideal gradients student", "ideal emission rate"]
    bert(pruning_methods=asked)
    first = found("BERT")
    cache_path = full_world / "cache/bert/sst-2.pt"
    cache = caches.load(cache_path, "")
    labels = cache["splits"]["dev"]["labels"]
    cache["splits"]["dev"]["labels"] = 1 - labels
    caches.save(cache_path, cache)
    (full_world / "records").rename(full_world / "before")
    bert(pruning_methods=asked)
    assert len(first) == 4
    for name, record in found("BERT").items():
        split, was = record["splits"]["dev"], first[name]["splits"]["dev"]
        assert split["predictions"] == was["predictions"]
        assert split["tokens_by_layer"] == was["tokens_by_layer"]
        assert split["metrics"]["accuracy"] == pytest.approx(1 - was["metrics"]["accuracy"])


def test_lstm_every_method(lstm, full_world):
    lstm(pruning_methods=list(methods.LSTM_METHODS), task_names=["mrpc"])
    lstm(pruning_methods=["lstm student"], task_names=["sst-2", "sts-b"])
    made = found("LSTM", task="mrpc")
    assert set(made) == {"dense", "bag of words", *methods.LSTM_METHODS}
    assert set(found("LSTM", task="sst-2")) == {"dense", "bag of words", "lstm student"}
    assert set(found("LSTM", task="sts-b")) == {"dense", "lstm student"}
    for record in records.read_all("LSTM"):
        split, method = record["splits"]["dev"], record["method"]
        assert len(split["predictions"]) == 12
        if method in ("dense", "bag of words"):
            assert split["token_layers_kept"] == (1 if method == "dense" else None)
        else:
            assert 0.5 <= split["token_layers_kept"] < 0.6  # of odd lengths the larger half stays
            assert (record["timings"] is None) == methods.is_teacher(method)
    timings = made["lstm student"]["timings"]
    fair = {"dense, stock", "dense, packed"}
    assert set(timings) == {*fair, "dense, padded to 128", "dense, ours", "pruned"}
    assert max(timings[name]["speedup"] for name in fair) == 1
    page = next((full_world / "records/LSTM/mrpc").glob("tail-*/page.html")).read_text()
    assert "&nbsp;|&nbsp;" in page


def test_agnews(full_world, monkeypatch, pictures):
    PrepareAgnews4Lstm.main()
    runner(RunLstm4Agnews, LSTM | {"pruning_methods": ["lstm student", "lstm", "random"]}, monkeypatch)()
    made = found("LSTM")
    assert set(made) == {"dense", "lstm student", "lstm", "random", "bag of words"}
    assert (full_world / "records/LSTM/agnews.png").is_file()


def test_every_prepared_task_is_run_and_others_are_named(bert, lstm, capsys):
    bert(task_names=None)
    assert [r["task"] for r in records.read_all("BERT") if r["method"] == "head"] == [
        "mrpc",
        "sst-2",
        "sts-b",
    ]
    said = capsys.readouterr().out
    for task in ("cola", "qqp", "mnli", "qnli", "rte", "wnli"):
        assert f"{task}: skipped, it is not prepared (no cache/bert/{task}.pt)" in said
    lstm(task_names=["rte", "mrpc"])
    assert {r["task"] for r in records.read_all("LSTM")} == {"mrpc"}
    assert "rte: skipped, it is not prepared (no cache/lstm/rte.pt)" in capsys.readouterr().out


def test_a_task_that_is_not_prepared_needs_no_values(bert):
    bert(task_names=None, pruned_epochs={"sst-2": 1, "mrpc": 1, "sts-b": 1}, pruning_methods=[])
    assert {record["task"] for record in records.read_all("BERT")} == {"mrpc", "sst-2", "sts-b"}


def test_pairs_need_a_bert_that_tells_two_sentences_apart(bert):
    pretrained = berts.Pretrained.read()
    pretrained.config["type_vocab_size"] = 1
    berts.open_tasks(pretrained, [GLUE["sst-2"]])
    with pytest.raises(UserError, match=r"^mrpc has pairs of sentences, and the BERT in bert/ reads single"):
        berts.open_tasks(pretrained, [GLUE["mrpc"]])


def test_a_list_with_a_teacher_and_a_threshold(bert):
    mixed = ["head", "ideal gradients", "column mean threshold"]
    bert(pruning_methods=[mixed])
    run = found("BERT")["ideal gradients + column mean threshold"]
    assert run["untimed"] == "upper bound" and run["timings"] is None
    assert 0.4 < run["splits"]["dev"]["token_layers_kept"] < 0.8


def test_a_teacher_of_a_layer_that_does_not_prune_is_no_upper_bound(bert):
    bert(pruning_methods=[["ideal gradients", "head", "tail"]])
    run = found("BERT")["head + tail"]
    assert run["untimed"] == "" and run["timings"]["pruned"]["speedup"] > 0 and run["model_files"]


def test_without_a_prepared_task_the_runner_names_the_script(bert, lstm):
    for model in ("bert", "lstm"):
        shutil.rmtree(f"cache/{model}")
    with pytest.raises(UserError, match=r"no task is prepared in .*bert\. Run: python PrepareGlue4Bert\.py"):
        bert(task_names=["rte"])
    with pytest.raises(UserError, match=r"no task is prepared in .*lstm\. Run: python PrepareGlue4Lstm\.py"):
        lstm(task_names=["wnli"])


def test_where_other_tasks_are_prepared_the_runner_says_so(bert):
    with pytest.raises(
        UserError, match=r"prepared are .*sst-2.*, and task_names has none of them\. Edit it, or run: .*Bert"
    ):
        bert(task_names=["rte"])


def test_a_rate_of_0_has_one_key_however_it_is_written(bert):
    runs = [experiment(pruning_schedule=schedule) for schedule in ([0, 0.5, 0], [0.0, 0.5, 0])]
    assert len({records.key_of(run.key_fields_of("random")) for run in runs}) == 1
    assert experiment(pruning_schedule=[0, 0, 0]).name_of(["head"] * 3) == "no pruning"


def test_where_nothing_is_pruned_all_methods_are_one_run(bert, lstm):
    """A BERT that is only cut is no result of a method, and a teacher that never prunes no upper bound."""
    bert(pruning_methods=["ideal gradients", "head", ["tail"] * 2], pruning_schedule=[0, 0], layers=2)
    lstm(pruning_methods=["lstm", "random"], target_prune_rate=0)
    for model in ("BERT", "LSTM"):
        runs = [r for r in records.read_all(model) if r["method"] not in ("dense", "bag of words")]
        assert [run["method"] for run in runs] == ["no pruning"]
        assert not runs[0]["untimed"] and runs[0]["timings"]["pruned"]["speedup"] > 0


def test_lists_that_differ_only_where_nothing_is_pruned_are_one_run(bert):
    first, *others = ["tail", "head", "random"], ["head", "head", "random"], ["tail", "tail", "random"]
    bert(pruning_methods=[first, *others], pruning_schedule=[0, 0.5, 0.5])
    assert set(found("BERT")) == {"dense", "head + random", "tail + random"}


def test_a_bert_that_reads_64_tokens_is_timed_padded_to_64(full_world, monkeypatch):
    write_bert(full_world / "bert", max_position_embeddings=64)
    monkeypatch.setattr(PrepareGlue4Bert, "max_length", 64)
    PrepareGlue4Bert.main()
    runner(RunBert4Glue, BERT, monkeypatch)()
    assert found("BERT")["head"]["timings"]["dense, padded to 128"]["ms"] > 0


def test_a_vocabulary_larger_than_the_bert_s(bert, full_world):
    write_bert(full_world / "bert", vocab_size=20)
    with pytest.raises(
        UserError, match=r"bert/vocab\.txt has \d+ words .* BERT in bert/ 20: .* its own vocab"
    ):
        bert()


def test_without_methods_the_dense_model_alone_is_trained(bert, capsys):
    bert(pruning_methods=[])
    assert set(found("BERT")) == {"dense"}
    assert "| sst-2 | dense " in capsys.readouterr().out


def test_the_runner_ends_with_the_table_of_its_own_runs(bert, full_world, capsys):
    bert(pruning_methods=["head", "tail"])
    bert(seeds=[1])
    capsys.readouterr()
    bert(pruning_methods=["tail"])
    table = [line for line in capsys.readouterr().out.split("\n") if line.startswith("| ")]
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in table[1:]] == [
        ["sst-2", "dense", "", "1"],
        ["sst-2", "tail", "[0, 0.5, 0.5], fused", "1"],
    ]
    summary = (full_world / "records/BERT/summary.md").read_text()
    assert [line.split("|")[2].strip() for line in summary.split("\n") if line.startswith("| sst-2")] == [
        "dense", "head", "tail",
    ]  # fmt: skip


def test_another_vocabulary_or_casing_makes_the_cache_stale(bert, full_world):
    (full_world / "bert/tokenizer_config.json").write_text(json.dumps({"do_lower_case": False}))
    with pytest.raises(UserError, match=r"another casing.*Run: python PrepareGlue4Bert\.py"):
        bert()
    vocabulary = full_world / "bert/vocab.txt"
    vocabulary.write_text(vocabulary.read_text() + "new\n")
    with pytest.raises(UserError, match=r"bert/vocab\.txt has changed.*Run: python PrepareGlue4Bert\.py"):
        bert()


def test_without_a_bert_the_runner_says_how_to_get_one(bert, full_world, capsys):
    weights = full_world / "bert/pytorch_model.bin"
    weights.rename(full_world / "cache/pytorch_model.bin")
    bert()
    assert "weights from cache/pytorch_model.bin" in capsys.readouterr().out
    (full_world / "cache/pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"no PyTorch weights.*ConvertBert4Torch\.py"):
        bert()
    (full_world / "bert/config.json").unlink()
    with pytest.raises(UserError, match="no configuration"):
        bert()


def test_weights_of_another_shape_are_refused(bert, full_world):
    torch.save({"pooler.dense.bias": torch.zeros(32)}, full_world / "bert/pytorch_model.bin")
    with pytest.raises(UserError, match=r"no BERT as bert.config\.json describes it.*shape \[64, 32\]"):
        bert()


def test_out_of_memory_halves_the_batch_and_changes_nothing(bert, full_world, monkeypatch, capsys):
    config = json.loads((full_world / "bert/config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (full_world / "bert/config.json").write_text(json.dumps(config))
    bert(pruning_methods=["head", "ideal gradients student"], timing_examples=12)
    whole = found("BERT")
    (full_world / "records").rename(full_world / "before")
    (full_world / "cache/bert/dense").rename(full_world / "before_dense")
    (full_world / "cache/bert/scores").rename(full_world / "before_scores")
    real = BertExamples.batch

    def small_memory(examples, rows, width=None):
        if len(rows) > 4:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return real(examples, rows, width)

    monkeypatch.setattr(BertExamples, "batch", small_memory)
    bert(pruning_methods=["head", "ideal gradients student"], timing_examples=12)
    assert "out of memory: batches go in 2 parts from here on" in capsys.readouterr().out
    for name, record in found("BERT").items():
        losses = [loss for _, loss in record["loss_curve"]]
        assert losses == pytest.approx([loss for _, loss in whole[name]["loss_curve"]], abs=1e-5)
        assert record["splits"]["dev"]["predictions"] == whole[name]["splits"]["dev"]["predictions"]
        assert record["shown"] == whole[name]["shown"]
        assert {row["batch_size"] for row in record["timings"].values()} == {4}


@pytest.fixture
def in_bf16(monkeypatch):
    """Trainings in bf16, whatever the processor."""
    AcceleratorState._reset_state(True)
    monkeypatch.setattr(devices, "best_precision", lambda _: ("bf16", "the test says so"))
    yield
    AcceleratorState._reset_state(True)


def check_bf16(made):
    """Training is in bf16, predictions are not: they would all be numbers of eight bits. What the model in
    bf16 answers stands beside its time."""
    for record in made:
        [row] = [row for row in record["timings"].values() if "metric" in row]
        is_pruned = record["method"] != "dense"
        assert row is record["timings"]["pruned" if is_pruned else "dense, ours"]
        assert row["metric"] != record["splits"]["dev"]["metrics"]["pearson"]
        assert (0 <= row["other_tokens"] < 0.5) if is_pruned else row["other_tokens"] is None
        assert record["precision"] == "bf16"
        assert all(loss == loss for _, loss in record["loss_curve"])
        predictions = torch.tensor(record["splits"]["dev"]["predictions"])
        assert not torch.equal(predictions, predictions.bfloat16().float())


def test_bert_in_bf16(in_bf16, bert, capsys):
    methods_in_bf16 = ["ideal gradients student", "random", "column mean threshold"]
    bert(pruning_methods=methods_in_bf16, task_names=["sts-b"])
    assert "Precision of the training: bf16, the test says so." in capsys.readouterr().out
    check_bf16(records.read_all("BERT"))


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN's LSTM needs a processor with bf16"
)
def test_lstm_in_bf16(in_bf16, lstm):
    lstm(task_names=["sts-b"])
    check_bf16(records.read_all("LSTM"))


def test_other_errors_are_not_taken_for_lack_of_memory(bert, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr(training.Inputs, "batch", broken)
    with pytest.raises(RuntimeError, match="something else"):
        bert()


EDGE = {
    "training_rows": 1,
    "dense_epochs": 0.1,
    "pruned_epochs": 0.1,
    "batch_size": 1_000,
    "learning_rate": 1e-12,
    "distillation_share": 1,
    "ramp_share": 1,
    "evaluation_batch_size": 1,
    "timing_examples": 1,
    "shown_examples": 0,
}


@pytest.mark.parametrize(("rate", "kept"), [(0, 1), (1, 1 / 12)])
def test_settings_at_the_edge_of_their_range_run(bert, lstm, rate, kept):
    bert(**EDGE, pruning_schedule=[rate] * 3, pruning_methods=["random", "column mean student"])
    lstm(**EDGE, target_prune_rate=rate)
    for model in ("BERT", "LSTM"):
        pruned = [r for r in records.read_all(model) if r["method"] not in ("dense", "bag of words")]
        assert len(pruned) == (2 if model == "BERT" and rate else 1)
        for record in pruned:
            split = record["splits"]["dev"]
            assert split["token_layers_kept"] == pytest.approx(kept, abs=0.03 if rate else 0)
            assert record["loss_curve"][-1][0] == 1 and len(split["predictions"]) == 12


def test_onednn_keeps_code_for_few_shapes_unless_the_user_says_how_many(monkeypatch):
    for name in devices.SHAPE_CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "64")
    devices.pick_device()
    assert [os.environ[name] for name in devices.SHAPE_CACHES] == ["256", "64"]


def test_two_seeds_give_a_mean_and_a_spread(bert, full_world):
    bert(seeds=[0, 1])
    row = next(row for row in records.summary_rows(records.read_all("BERT")) if row[1] == "head")
    assert row[records.HEADER.index("seeds")] == "2"
    assert "±" in row[records.HEADER.index("value")] and "±" in row[records.HEADER.index("against dense")]


def test_without_tensorflow_and_pandas_a_script_ends_with_a_sentence_and_status_1(full_world):
    """Nothing is prepared here; and importing the two fails."""
    code = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "for name in ('tensorflow', 'keras', 'pandas'): sys.modules[name] = None\n"
        "import RunBert4Glue, RunLstm4Glue, PrepareGlue4Bert\n"
        f"runpy.run_path({str(ROOT / 'RunLstm4Agnews.py')!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no cache" in done.stderr and "Run: python PrepareAgnews4Lstm.py" in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_settings_stand_near_the_top():
    assert RunBert4Glue.pruning_schedule == schedules.resolve("third", 12, "pair")
    for script, name in (
        ("RunBert4Glue", "pruning_schedule"),
        ("RunLstm4Glue", "target_prune_rate"),
        ("RunLstm4Agnews", "target_prune_rate"),
    ):
        lines = (ROOT / f"{script}.py").read_text().split("\n")
        assert any(line.startswith(f"{name} =") for line in lines[:70])


def test_training_a_model_leaves_the_one_it_started_from_alone(bert):
    """And the pre-trained weights, which every task and seed starts from."""
    one = experiment()
    weights = one.builder.pretrained.weights
    pretrained = {name: tensor.clone() for name, tensor in weights.items()}
    dense = one.dense()
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    one.train_pruned("head")
    stock = berts.stock_copy(dense)
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
    assert all(torch.equal(tensor, pretrained[name]) for name, tensor in weights.items())


def test_augmented_copies_are_answered_by_the_dense_model(bert):
    """And each of their tokens has the score that it has in the whole sentence."""
    one = experiment(augmented_copies=2, pruned_epochs=3)
    whole, data = one.train_examples, one.distillation_set()
    assert len(data.examples) == len(data.logits) == 3 * len(whole)
    assert torch.equal(data.examples.labels[: len(whole)], whole.labels)
    copied = torch.arange(len(whole), 3 * len(whole))
    copies = training.Inputs(data.examples.take(copied))
    answers = training.predict(one.dense(), copies, batch_size=8, device=torch.device("cpu")).logits
    assert torch.allclose(data.logits[copied], answers, atol=1e-5)
    assert torch.equal(data.examples.labels[copied], answers.argmax(dim=1).float())
    assert len(data.examples.ids.flat) < 2.95 * len(whole.ids.flat)
    scored = data.with_scores({1: whole.ids})  # ids in place of scores
    assert torch.equal(scored.teacher_scores[1].flat, data.examples.ids.flat)
    trained = one.train_pruned("ideal gradients student")
    model = trained.model
    assert trained.curve[-1][0] == 3 * len(whole) // 8  # as many steps as without copies
    assert all(m.p == 0 for m in model.modules() if isinstance(m, torch.nn.Dropout))
    assert any(m.p > 0 for m in one.dense().modules() if isinstance(m, torch.nn.Dropout))


def test_word_dropout_says_how_many_words_a_copy_lacks(bert):
    whole = len(experiment().train_examples.ids.flat)
    lengths = {
        share: len(experiment(augmented_copies=1, word_dropout=share).distillation_set().examples.ids.flat)
        for share in (0.0, 0.15, 0.5)
    }
    assert lengths[0.0] == 2 * whole
    assert 1.5 * whole < lengths[0.5] < 1.7 * whole < lengths[0.15] < 1.95 * whole


# --- Losses that are NaN or infinite -----------------------------------------------------------


@pytest.fixture
def blown_up(monkeypatch):
    """Every pruned model is trained at a rate that the settings would not take; its steps."""
    steps = []
    real_arguments, real_step = training.Arguments.of_pruned, training.training_step

    def step(*arguments):
        steps.append(arguments)
        return real_step(*arguments)

    def arguments(settings):
        return replace(real_arguments(settings), learning_rate=1e30)

    monkeypatch.setattr(training, "training_step", step)
    monkeypatch.setattr(training.Arguments, "of_pruned", arguments)
    return steps


def test_a_loss_that_is_no_number_stops_within_50_steps(bert, full_world, blown_up):
    with pytest.raises(UserError) as error:
        bert(pruning_methods=["head"], pruned_epochs=1_000, dense_epochs=0.1, augmented_copies=0)
    assert str(error.value) == (
        "sst-2, head, seed 0: the loss is NaN or infinite at step 50; a lower learning rate may help"
    )
    assert len(blown_up) == 1 + 50
    assert set(found("BERT")) == {"dense"}
    for path in (full_world / "records").rglob("*.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN, Infinity


@pytest.mark.parametrize("model", ["BERT", "LSTM"])
def test_answers_that_are_no_numbers_make_no_record(request, full_world, monkeypatch, model):
    """The training went well up to its last step."""
    real = training.train

    def train(trained, *arguments, **named):
        curve = real(trained, *arguments, **named)
        trained.classifier.bias.data.fill_(torch.nan)
        return curve

    monkeypatch.setattr(training, "train", train)
    main = request.getfixturevalue(model.lower())
    said = r"^sst-2: the model's answers are NaN or infinite; a lower learning rate"
    with pytest.raises(UserError, match=said):
        main()
    assert set(found(model)) <= {"bag of words"}


def test_weights_that_are_no_numbers_are_refused(bert, full_world):
    path = full_world / "bert/pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    state["encoder.layer.0.output.dense.weight"][0, 0] = torch.nan
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        bert()
    assert "\n" not in str(error.value) and not records.read_all("BERT")


def test_the_commit_of_a_repository_around_the_project_is_none_of_its_own(tmp_path, monkeypatch):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "one")
    (tmp_path / "project/pruning").mkdir(parents=True)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "pruning/records.py"))
    assert len(records.git_commit()) == 40
    monkeypatch.setattr(records, "__file__", str(tmp_path / "project/pruning/records.py"))
    assert records.git_commit() is None


def test_the_commit_of_a_folder_whose_name_the_system_has_no_letters_for(tmp_path):
    folder = tmp_path / "项目"
    folder.mkdir()
    for words in ("init", "-c user.name=a -c user.email=a@b commit --allow-empty -m one"):
        subprocess.run(["git", *words.split()], cwd=folder, check=True, capture_output=True)
    code = """import os; from pruning import records
records.__file__ = os.path.join(os.getcwd(), "pruning", "records.py")
print(records.git_commit())"""
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=os.environ | plain)
    assert len(done.stdout.strip()) == 40, done.stderr
