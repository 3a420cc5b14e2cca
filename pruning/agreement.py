"""Whether an exported classifier answers as the PyTorch model does: kept tokens, classes, logits, metric."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pruning import batches, metrics
from pruning.batches import Examples
from pruning.errors import UserError
from pruning.graphs import GRAPHS, Graph
from pruning.tasks import Task

BATCH = 32
ALONE = 1_000  # examples that are also compared one by one
TOLERANCE = 1e-4  # of logits
TIE = 1e-5  # difference of two scores at a cut, up to which rounding may choose the other token

Run = Callable[[dict[str, Tensor]], tuple[Tensor, list[Tensor]]]  # a batch → logits, positions kept


class Answers(NamedTuple):
    """Of N examples: logits (N, C), and the positions that each keeps in each pruned layer."""

    logits: Tensor
    kept: list[list[list[int]]]


def in_onnx_runtime(path: Path) -> Run:
    """An exported file, on the CPU, with as many threads as PyTorch. They do not wait for the next batch, as
    they would by default: something else may run before it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
        logits, *kept = map(torch.from_numpy, outputs)
        return logits, kept

    return run


def in_openvino(path: Path) -> tuple[Run, str]:
    """An exported file in fp32, on the CPU, and the precision that OpenVINO computes it in: bf16 where the
    processor has it, else fp32. As many threads as PyTorch has work on one batch."""
    import openvino

    wanted = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(path, "CPU", wanted)
    request = model.create_infer_request()

    def run(batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        outputs = request.infer({name: tensor.numpy() for name, tensor in batch.items()}, share_inputs=True)
        logits, *kept = (torch.tensor(outputs[output]) for output in model.outputs)
        return logits, kept

    precision = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return run, {"f32": "fp32"}.get(precision, precision)


def in_pytorch(model: Any) -> Run:
    graph = GRAPHS[type(model)](model)

    @torch.no_grad()
    def run(batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        output = model(**batch)
        return output.logits.float(), [output.kept[place] for place in graph.pruned] if output.kept else []

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
    """Between two engines' answers to the same examples."""

    ties: int  # examples that keep other tokens because two scores at a cut differ by less than TIE
    sets: int  # of the rest: those that keep other tokens,
    classes: int  # those of another class,
    logits: float  # and the greatest difference of logits

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
    values = []
    for who, part in found.items():
        value = metrics.primary(task, examples.labels.tolist(), part.logits)
        values.append(f"{who} undefined" if value is None else f"{who} {100 * value:.2f}")
    return f"{task.metrics[0]} × 100: {', '.join(values)}"
