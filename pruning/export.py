"""A pruned classifier for ONNX Runtime, or another runtime that reads ONNX. Pruning is inside the graph.

    python -m pruning.export FOLDER     model.onnx and model.int8.onnx beside a model that a run kept

Inputs are the PyTorch model's own, for any number of examples of any length, padded on the right. Outputs:
`logits`, and for each pruned layer (of an LSTM: each sentence) the positions that stay, -1 where an example
has fewer. Where the task is prepared, the command compares the files with the PyTorch model on its dev set.
"""

import argparse
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruning import caches, pruners, records, saved
from pruning.agreement import compare
from pruning.caches import whole_file
from pruning.errors import UserError, run_script
from pruning.graphs import GRAPHS
from pruning.saved import SavedModel
from pruning.tasks import task_of

ONNX, INT8 = "model.onnx", "model.int8.onnx"
OPSET = 20  # the first that has GELU
SEVEN_BITS = 64  # the largest weight in int8
REFUSED = {
    pruners.RandomPruner: "the scores of 'random' are a hash of 64 bits, which ONNX has no operators for",
    pruners.ThresholdPruner: "with a threshold it depends on the data how many tokens stay",
    pruners.TeacherPruner: "a teacher looks at what deployment does not have",
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


# --- Writing ---------------------------------------------------------------------------------


def export(model: Any, path: Path) -> None:
    """Writes a model as ONNX, in fp32, whole or not at all.

    Args:
        model: a PrunedBertForSequenceClassification or PrunedLstmClassifier, in fp32, in evaluation mode, on
            the CPU.

    Raises UserError for a pruner that ONNX cannot have, and where ONNX is not installed.
    """
    check_packages()
    for module in model.modules():
        if type(module) in REFUSED:
            raise UserError(f"{path} cannot be made: {REFUSED[type(module)]}. Export another method")
    graph = GRAPHS[type(model)](model).eval()
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            graph,
            graph.example(),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=tuple(
                {0: "batch", 1: "second_length" if name.startswith("second_") else "length"}
                for name in graph.inputs
            ),
            custom_translation_table={
                torch.ops.aten.sort.stable: _stable_sort,
                torch.ops.aten.scaled_dot_product_attention.default: _attention,
            },
        )
        _fold_weights(program.model)
    with whole_file(path) as file:
        file.write(program.model_proto.SerializeToString())


def _fold_weights(model: Any) -> None:
    """Stores weights as they are multiplied (some by head): torch itself folds only small constants."""
    from onnxscript import optimizer

    limit = max(value.const_value.nbytes for value in model.graph.initializers.values())
    optimizer.fold_constants(model, input_size_limit=limit, output_size_limit=limit)
    optimizer.remove_unused_nodes(model)


def _stable_sort(scores: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX's TopK of all: of equal scores the earlier comes first, as `selection.choose` wants it."""
    from onnxscript import opset18 as operators

    count = operators.Shape(scores, start=dim, end=dim + 1)
    return operators.TopK(scores, count, axis=dim, largest=descending, sorted=True)


def _attention(query: Any, key: Any, value: Any, attn_mask: Any, *_: Any, scale: float, **others: Any) -> Any:
    """Attention with a mask, True at what is read; each example has a True. Torch's own translation, which
    does not rely on that, takes nine operators more."""
    from onnxscript import opset18 as operators

    lowest = np.finfo(np.float32).min.item()
    scores = operators.MatMul(query, operators.Transpose(key, perm=[0, 1, 3, 2])) * scale
    weights = operators.Softmax(operators.Where(attn_mask, scores, lowest), axis=-1)
    return operators.MatMul(weights, value)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter and the quantizer tell their own developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def check_packages() -> None:
    """Raises UserError where what exports or runs ONNX is not installed."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"{name} is not installed: pip install -r requirements-onnx.txt")


def quantize(path: Path, quantized: Path) -> None:
    """Writes `path` again with int8 weights in matrix products and LSTMs, one scale for each output;
    activations get theirs as they come (dynamic).

    Weights take 7 bits: with 8, processors without VNNI overflow, and a file may be served elsewhere than it
    was made. Embeddings, and the weights of pruners, which cost little and decide much, stay in fp32.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    _unshare_lstm(model.graph)
    _quantize_by_head(model.graph)
    exact = [
        node.name
        for node in model.graph.node
        for made_by in node.metadata_props
        if node.op_type == "MatMul" and made_by.key == "namespace" and ".pruner" in made_by.value
    ]
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(
            model,
            Path(folder) / INT8,
            op_types_to_quantize=["MatMul", "LSTM"],
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=exact,
        )
        with whole_file(quantized) as file:
            file.write((Path(folder) / INT8).read_bytes())


def _quantize_by_head(graph: Any) -> None:
    """The same for weights (heads, K, N): `quantize_dynamic` knows no scale for each output of each head."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 3}
    nodes = []
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        y = node.output[0]
        values = numpy_helper.to_array(weights[node.input[1]])
        scale = np.abs(values).max(axis=1, keepdims=True).clip(np.finfo(np.float32).tiny) / SEVEN_BITS
        parts = {f"{y}_weight": (values / scale).round().astype(np.int8), f"{y}_scale": scale}
        graph.initializer.extend(numpy_helper.from_array(part, name) for name, part in parts.items())
        steps: list[tuple[str, list[str], list[str], dict[str, Any]]] = [
            ("DynamicQuantizeLinear", [node.input[0]], [f"{y}_x", f"{y}_x_scale", f"{y}_x_zero"], {}),
            ("MatMulInteger", [f"{y}_x", f"{y}_weight", f"{y}_x_zero"], [f"{y}_sums"], {}),
            ("Cast", [f"{y}_sums"], [f"{y}_floats"], {"to": TensorProto.FLOAT}),
            ("Mul", [f"{y}_x_scale", f"{y}_scale"], [f"{y}_scales"], {}),
            ("Mul", [f"{y}_floats", f"{y}_scales"], [y], {}),
        ]
        for kind, inputs, outputs, more in steps:
            nodes.append(helper.make_node(kind, inputs, outputs, f"{outputs[0]}_node", **more))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    for weight in weights.values():
        if weight.name not in used:
            graph.initializer.remove(weight)


def _unshare_lstm(graph: Any) -> None:
    """Gives every LSTM weights of its own: the quantizer changes them in place, and one LSTM reads both
    sentences of a pair."""
    weights = {weight.name: weight for weight in graph.initializer}
    for number, node in enumerate(node for node in graph.node if node.op_type == "LSTM"):
        for place in (1, 2):
            copy = graph.initializer.add()
            copy.CopyFrom(weights[node.input[place]])
            node.input[place] = copy.name = f"{copy.name}_{number}"


# --- The command ------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pruning.export", description="Makes ONNX files of a model that a run kept."
    )
    parser.add_argument("folder", type=Path, help="a run's folder in records/")
    given = parser.parse_args(arguments)
    check_packages()
    kept = saved.load(given.folder)
    paths = [kept.folder / name for name in (ONNX, INT8)]
    print("Exporting, which takes a minute for 12 layers ...", flush=True)
    export(kept.model, paths[0])
    quantize(*paths)
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    paths = [path.resolve() for path in paths]
    with chdir(_world_of(kept.folder)):
        print(*_compared(kept, paths), sep="\n  ")


def _world_of(folder: Path) -> Path:
    """The folder whose records/<model>/<task>/<run>/model/ this is; the current one where it was moved."""
    above = folder.resolve().parents
    return above[4] if len(above) > 4 and above[3].name == records.RECORDS.name else Path()


def _compared(kept: SavedModel, paths: Sequence[Path]) -> list[str]:
    """Lines on each dev split of the model's task, if it is prepared in the current folder."""
    task = task_of(kept.task)
    kind = "lstm" if kept.config["model_type"] == "pruned_lstm" else "bert"
    prepared = caches.path_of(kind, task.name)
    if not prepared.exists():
        return [f"Not compared with PyTorch: {task.name} is not prepared ({prepared})"]
    data = caches.open_task(kind, task)
    if data.vocabulary != kept.vocabulary:
        return [f"Not compared with PyTorch: {prepared} was prepared with another vocabulary"]
    lines = []
    for split in task.dev_splits:
        lines += [f"{task.name}, {split}:", *compare(kept.model, task, data.splits[split], paths)]
    return lines


if __name__ == "__main__":
    run_script(main)
