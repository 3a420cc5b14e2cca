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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pruning import batches, caches, metrics, pruners, saved
from pruning.batches import Examples
from pruning.caches import whole_file
from pruning.errors import UserError, run_script
from pruning.graphs import GRAPHS, Graph
from pruning.tasks import AGNEWS, GLUE, Task

ONNX, INT8 = "model.onnx", "model.int8.onnx"
OPSET = 20  # the first that has GELU
REFUSED = {
    pruners.RandomPruner: "the scores of 'random' are a hash of 64 bits, which ONNX has no operators for",
    pruners.ThresholdPruner: "with a threshold it depends on the data how many tokens stay",
    pruners.TeacherPruner: "a teacher looks at what deployment does not have",
}
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
BATCH = 32
ALONE = 1_000  # examples that are also compared one by one
TOLERANCE = 1e-4  # of logits
TIE = 1e-5  # difference of two scores at a cut, up to which rounding may choose the other token


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
            dynamic_shapes=tuple({0: "batch", 1: _length_of(name)} for name in graph.inputs),
            custom_translation_table={torch.ops.aten.sort.stable: _stable_sort},
        )
    with whole_file(path) as file:
        file.write(program.model_proto.SerializeToString())


def _length_of(name: str) -> str:
    return "second_length" if name.startswith("second_") else "length"


def _stable_sort(scores: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """ONNX's TopK of all: of equal scores the earlier comes first, as `selection.choose` wants it."""
    from onnxscript import opset18 as operators

    count = operators.Shape(scores, start=dim, end=dim + 1)
    return operators.TopK(scores, count, axis=dim, largest=descending, sorted=True)


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

    Weights take 7 bits: with 8, processors without VNNI overflow. In fp32 stay embeddings, what each head
    multiplies by itself, and pruners, which cost little and decide much.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(path)
    _unshare_lstm(model.graph)
    by_head = {weight.name for weight in model.graph.initializer if len(weight.dims) == 3}
    exact = [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and (node.input[1] in by_head or ".pruner" in str(node.metadata_props))
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


def _unshare_lstm(graph: Any) -> None:
    """Gives every LSTM weights of its own: the quantizer changes them in place, and one LSTM reads both
    sentences of a pair."""
    weights = {weight.name: weight for weight in graph.initializer}
    for number, node in enumerate(node for node in graph.node if node.op_type == "LSTM"):
        for place in (1, 2):
            copy = graph.initializer.add()
            copy.CopyFrom(weights[node.input[place]])
            node.input[place] = copy.name = f"{copy.name}_{number}"


# --- Comparing -------------------------------------------------------------------------------

Run = Callable[[dict[str, Tensor]], tuple[Tensor, list[Tensor]]]  # a batch → logits, positions kept


class Answers(NamedTuple):
    """Of N examples: logits (N, C), and the positions that each keeps in each pruned layer."""

    logits: Tensor
    kept: list[list[list[int]]]


def in_onnx_runtime(path: Path) -> Run:
    """An exported file, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        logits, *kept = map(torch.from_numpy, outputs)
        return logits, kept

    return run


def in_pytorch(model: Any) -> Run:
    graph = GRAPHS[type(model)](model)

    @torch.no_grad()
    def run(batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        output = model(**batch)
        return output.logits, graph.kept_by(output.kept)

    return run


def answers(run: Run, examples: Examples, groups: Sequence[Tensor]) -> Answers:
    """What `run` makes of all examples, by batches of the rows in `groups`."""
    logits, kept = [], []
    for rows in groups:
        part, positions = run(examples.batch(rows))
        logits.append(part)
        for i in range(len(rows)):
            kept.append([layer[i][layer[i] >= 0].tolist() for layer in positions])
    order = torch.cat([*groups]).argsort()
    return Answers(torch.cat(logits)[order], [kept[i] for i in order.tolist()])


class Difference(NamedTuple):
    """Examples that keep other tokens because two scores at a cut differ by less than TIE; of the others,
    those that keep other tokens, those of another class, and the greatest difference of logits."""

    ties: int
    sets: int
    classes: int
    logits: float

    @property
    def is_small(self) -> bool:
        return not self.sets and not self.classes and self.logits <= TOLERANCE


def difference(graph: Graph, examples: Examples, wanted: Answers, found: Answers) -> Difference:
    other = [i for i, kept in enumerate(wanted.kept) if kept != found.kept[i]]
    ties = [i for i in other if _smallest_margin(graph, examples.batch(torch.tensor([i]))) < TIE]
    alike = torch.ones(len(examples)).bool()
    alike[ties] = False
    ours, theirs = wanted.logits[alike], found.logits[alike]
    classes = ours.argmax(dim=1) != theirs.argmax(dim=1)
    distance = (ours - theirs).abs().flatten().tolist()
    return Difference(len(ties), len(other) - len(ties), int(classes.sum()), max(distance, default=0.0))


@torch.no_grad()
def _smallest_margin(graph: Graph, example: dict[str, Tensor]) -> float:
    """The smallest difference between the lowest score that stays and the highest that goes."""
    margins: list[float] = []
    graph.margins = margins
    graph(**example)
    graph.margins = None
    return min(margins, default=float("inf"))


def compare(model: Any, task: Task, examples: Examples, paths: Sequence[Path]) -> list[str]:
    """Lines that say how the two files answer beside the model. Raises UserError where the fp32 file does not
    answer as the model does."""
    groups = batches.sorted_batches(examples.lengths, BATCH)
    runs = in_pytorch(model), *map(in_onnx_runtime, paths)
    wanted, found, int8 = (answers(run, examples, groups) for run in runs)
    few = examples.take(torch.arange(min(ALONE, len(examples))))
    alone = answers(runs[1], few, torch.arange(len(few)).split(1))
    first = Answers(wanted.logits[: len(few)], wanted.kept[: len(few)])
    graph = GRAPHS[type(model)](model)
    lines = [_metrics(task, examples, PyTorch=wanted, fp32=found, int8=int8)]
    for name, count, result in (
        (f"batches of {BATCH}", len(examples), difference(graph, examples, wanted, found)),
        ("one by one", len(few), difference(graph, few, first, alone)),
    ):
        lines.append(
            f"fp32, {name}, {count:,} examples: {result.sets} keep other tokens, {result.ties} more where "
            f"two scores are equal to rounding; {result.classes} other classes; logits to {result.logits:.0e}"
        )
        if not result.is_small:
            raise UserError(f"{paths[0]} does not answer as the PyTorch model does. {lines[-1]}")
    return lines


def _metrics(task: Task, examples: Examples, **found: Answers) -> str:
    """The task's metric × 100 of each."""
    name, labels = task.metrics[0], examples.labels.tolist()
    values = []
    for who, part in found.items():
        value = metrics.compute(task, labels, metrics.predictions_of(task, part.logits))[name]
        values.append(f"{who} undefined" if value is None else f"{who} {100 * value:.2f}")
    return f"{name} × 100: {', '.join(values)}"


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
    task = (GLUE | {AGNEWS.name: AGNEWS})[kept.task]
    kind = "lstm" if kept.config["model_type"] == "pruned_lstm" else "bert"
    prepared = caches.path_of(kind, task.name)
    if not prepared.exists():
        print(f"Not compared with PyTorch: {task.name} is not prepared ({prepared})")
        return
    data = caches.open_task(kind, task, f"Prepare{'Agnews' if task is AGNEWS else 'Glue'}4{kind.title()}.py")
    if data.vocabulary != kept.vocabulary:
        print(f"Not compared with PyTorch: {prepared} was prepared with another vocabulary")
        return
    for split in task.dev_splits:
        print(f"{task.name}, {split}:", *compare(kept.model, task, data.splits[split], paths), sep="\n  ")


if __name__ == "__main__":
    run_script(main)
