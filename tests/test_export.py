"""Exported files in ONNX Runtime: the PyTorch model's kept sets and logits, any size, shorter tensors."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnxruntime
import pytest
import test_lstm
import torch
from conftest import build
from running import experiment

import PrepareGlue4Bert
from pruning import agreement, caches, export, methods, pruners, student
from pruning.batches import BertExamples, LstmExamples, Ragged
from pruning.errors import UserError
from pruning.graphs import GRAPHS
from pruning.tasks import GLUE

STUDENT = "ideal gradients student"
LENGTHS = torch.tensor([17, 1, 150, 2, 9, 128, 3, 40])  # none is what a graph is traced with


def bert(schedule, method, removed_tokens="fused"):
    return build(schedule, method, removed_tokens=removed_tokens, num_hidden_layers=len(schedule))


def rows_of(rates):
    """What the LayerNorms of a BERT see of two sentences of 128 tokens."""
    width, rows = 128, [256]
    for rate in rates:
        width -= int(width * rate)
        rows += [2 * width] * 2
    return [*rows[:-2], 2, 2]  # the last layer has [CLS] alone


EXPORTED = [name for name, kind in pruners.PRUNERS.items() if kind not in export.REFUSED]  # a layer for each
# All pruners, all fates of removed tokens, absorbed and plain attention; and what the LayerNorms (rows) or
# the LSTM (steps) see of two sentences of 128 tokens.
MODELS: dict[str, tuple[Callable[[], Any], list[int]]] = {
    "every pruner": (lambda: bert([0.1] * len(EXPORTED), EXPORTED, "gone"), rows_of([0.1] * len(EXPORTED))),
    "dense": (lambda: bert([0], "head"), [256, 2, 2]),
    "fused": (lambda: bert([0.9, 0], STUDENT), [256, 26, 26, 2, 2]),
    "readable": (lambda: bert([0.3, 0.5], ["column mean", "frequency"], "readable"), [256, 180, 180, 2, 2]),
    "[CLS] alone": (lambda: bert([1, 0], STUDENT, "readable"), [256, 2, 2, 2, 2]),
    "LSTM": (lambda: test_lstm.build(), [128]),
    "LSTM, tail": (lambda: test_lstm.build("tail", 0.4), [77]),
    "LSTM, pairs": (lambda: test_lstm.build("lstm student", 0.7, pair=True), [39, 39]),
}


class Exported(NamedTuple):
    model: Any
    path: Any
    examples: Any
    rows: list[int]


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    make, rows = MODELS[request.param]
    model, path = make(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export.export(model, path)
    return Exported(model, path, examples_of(model, LENGTHS), rows)


def examples_of(model, lengths):
    """Random sentences, of these lengths, for a model."""
    torch.manual_seed(0)
    ids, labels = Ragged.of(torch.randint(5, 50, (int(lengths.sum()),)), lengths), torch.zeros(len(lengths))
    if hasattr(model, "bert"):
        return BertExamples(ids, labels, lengths // 2)
    second = Ragged.of(ids.flat.flip(0), lengths.flip(0)) if model.config["pair"] else None
    return LstmExamples(ids, labels, second)


def test_alone_and_in_any_batch_the_file_answers_as_the_model(exported):
    model, path, examples, _ = exported
    alone = torch.arange(len(examples)).split(1)
    wanted = agreement.answers(agreement.in_pytorch(model), examples, alone)
    assert all(len(kept) == len(wanted.kept[0]) for kept in wanted.kept)
    for groups in (alone, torch.arange(len(examples)).split(len(examples)), LENGTHS.argsort().split(3)):
        found = agreement.answers(agreement.in_onnx_runtime(path), examples, groups)
        assert found.kept == wanted.kept
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-5, rtol=0)


def test_openvino_answers_as_the_model(exported):
    pytest.importorskip("openvino")
    model, path, examples, _ = exported
    if not hasattr(model, "bert"):
        pytest.skip("an LSTM is served by ONNX Runtime alone")
    groups = LENGTHS.argsort().split(3)
    run, precision = agreement.in_openvino(path)
    wanted = agreement.answers(agreement.in_pytorch(model), examples, groups)
    found = agreement.answers(run, examples, groups)
    difference = agreement.difference(GRAPHS[type(model)](model), examples, wanted, found)
    assert precision in ("fp32", "bf16")
    assert difference.is_small or precision == "bf16"


def test_layers_behind_a_pruned_one_work_on_shorter_tensors(exported):
    model, path, _, rows = exported
    graph = onnx.load(path)
    seen = [node.output[0] for node in graph.graph.node if node.op_type in ("LayerNormalization", "LSTM")]
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in seen)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    batch = examples_of(model, torch.tensor([128, 128])).batch(torch.arange(2))
    outputs = session.run(seen, {name: tensor.numpy() for name, tensor in batch.items()})
    assert [output.size // output.shape[-1] // (2 if output.ndim == 4 else 1) for output in outputs] == rows
    operators = {node.op_type for node in graph.graph.node}
    assert operators.isdisjoint({"NonZero", "Compress", "Unique"})  # no size depends on the data
    if model.schedule == [1, 0]:
        assert "TopK" not in operators  # nothing is ranked


def test_names_of_inputs_outputs_and_free_sizes(exported):
    graph = onnx.load(exported.path).graph
    assert [i.name for i in graph.input] == [*exported.examples.batch(torch.arange(2))]
    assert graph.output[0].name == "logits"
    for each in graph.input:
        length = "second_length" if each.name.startswith("second") else "length"
        assert [size.dim_param for size in each.type.tensor_type.shape.dim] == ["batch", length]


def test_the_quantized_file_multiplies_in_int8_and_is_close(exported, tmp_path):
    model, path, examples, _ = exported
    export.quantize(path, tmp_path / "model.int8.onnx")
    quantized = onnx.load(tmp_path / "model.int8.onnx").graph
    operators = [node.op_type for node in quantized.node]
    assert {"MatMulInteger"} <= {*operators} and operators.count("LSTM") == 0
    in_int8 = [weight.dims for weight in quantized.initializer if weight.data_type == onnx.TensorProto.INT8]
    of_pruners = [[*w.T.shape] for name, w in model.named_parameters() if "pruner" in name and w.dim() == 2]
    assert not any([*dims] in of_pruners for dims in in_int8)
    if hasattr(model, "bert") and model.config.removed_tokens == "readable":  # weights by head too
        by_head = [weight for weight in quantized.initializer if len(weight.dims) == 3]
        assert {onnx.TensorProto.INT8} <= {weight.data_type for weight in by_head}
        assert max(abs(onnx.numpy_helper.to_array(w)).max() for w in by_head if w.data_type == 3) <= 64
    groups = torch.arange(len(examples)).split(3)
    wanted = agreement.answers(agreement.in_pytorch(model), examples, groups)
    found = agreement.answers(agreement.in_onnx_runtime(tmp_path / "model.int8.onnx"), examples, groups)
    if not hasattr(model, "bert"):
        assert found.kept == wanted.kept  # its pruner reads words, in fp32
    assert 0 < (found.logits - wanted.logits).abs().median() < 0.1


@pytest.mark.parametrize(
    "method, reason",
    [
        ("random", "64 bits"),
        ("column mean threshold", "with a threshold"),
        ("ideal gradients", "a teacher looks at"),
    ],
)
def test_what_onnx_cannot_have_is_refused_in_one_sentence(method, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        export.export(bert([0, 0.5], method), tmp_path / "model.onnx")
    assert not any(tmp_path.iterdir())


def test_every_pruner_is_exported_above_or_refused():
    known = {*methods.BERT_METHODS.values(), *methods.LSTM_METHODS.values()}
    above = {type(part) for make, _ in MODELS.values() for part in make().modules()}
    assert known - above == {*export.REFUSED}
    assert {student.StudentPruner, pruners.ColumnMeanPruner} <= above


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_remedy(missing, monkeypatch, tmp_path):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match=f"{missing} is not installed: pip install -r requirements-onnx.txt"):
        export.main([str(tmp_path)])


@torch.no_grad()
@pytest.mark.parametrize("make", [lambda m: bert([0.5, 0], m, "gone"), lambda m: test_lstm.build(m, 0.5)])
def test_other_tokens_are_a_tie_only_where_two_scores_at_the_cut_are_equal_to_rounding(make):
    lengths = torch.tensor([9, 1, 2])
    counted = {}
    for method in ("frequency", "head"):
        model = make(method)
        methods.set_frequencies(model, torch.ones(64)[: 50 if not hasattr(model, "bert") else 64])
        examples, groups = examples_of(model, lengths), torch.arange(3).split(3)
        wanted = agreement.answers(agreement.in_pytorch(model), examples, groups)
        found = agreement.Answers(wanted.logits.clone(), [[[0]] for _ in wanted.kept])
        found.logits[0] += 1
        counted[method] = agreement.difference(GRAPHS[type(model)](model), examples, wanted, found)
    assert counted["frequency"][:3] == (1, 0, 0) and counted["frequency"].is_small
    assert counted["head"].ties == 0 and counted["head"].sets >= 1 and not counted["head"].is_small
    assert counted["head"].logits == pytest.approx(1)


@pytest.fixture
def kept_model(full_world):
    """A folder as a run leaves it, with a pruned BERT for sst-2."""
    PrepareGlue4Bert.main()
    builder = experiment(layers=1, pruning_schedule=[1]).builder  # the fastest to export
    folder = full_world / "run" / "model"
    folder.mkdir(parents=True)
    builder.save(builder.build("tail", 0), folder)
    return folder


def test_the_command_writes_both_files_and_compares_them_with_the_model(kept_model, capsys, monkeypatch):
    export.main([str(kept_model.parent)])
    printed = capsys.readouterr().out
    assert {export.ONNX, export.INT8} <= {path.name for path in kept_model.iterdir()}
    assert "sst-2, dev:\n  accuracy × 100: PyTorch " in printed
    for way in ("batches of 32", "one by one"):
        assert f"fp32, {way}, 12 examples: 0 keep other tokens, 0 more" in printed
    assert "Warning" not in printed and "[torch.onnx]" not in printed
    caches.path_of("bert", "sst-2").unlink()
    monkeypatch.setattr(export, "export", lambda *_: None)
    export.main([str(kept_model)])
    assert "Not compared with PyTorch: sst-2 is not prepared" in capsys.readouterr().out


def test_a_file_that_answers_otherwise_ends_in_one_sentence(monkeypatch):
    model, other = test_lstm.build("head", 0.4), test_lstm.build("tail", 0.4)
    monkeypatch.setattr(agreement, "in_onnx_runtime", lambda _: agreement.in_pytorch(other))
    with pytest.raises(UserError, match=r"model.onnx does not answer as the PyTorch model does"):
        agreement.compare(model, GLUE["sst-2"], examples_of(model, LENGTHS), [Path("model.onnx")] * 2)


def test_the_world_of_a_kept_model_is_found_from_any_folder(tmp_path):
    assert export._world_of(tmp_path / "records/BERT/sst-2/head-seed0-1a2b3c4d/model") == tmp_path
    assert export._world_of(tmp_path / "moved/model") == Path()
