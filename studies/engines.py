"""Times pruned and cut BERTs in the engines that serve them: PyTorch, ONNX Runtime and OpenVINO, on the CPU.

    nothing, and models that runs kept  →  records/engines/<device>-<key>/record.json, tables.md, front.png

Run it without parameters, `python -m studies.engines` (or `make engines`): 18 to 26 minutes on two CPU
cores, with eight small models that were kept. Change what is between the two rulers below. Random weights
show the clock; trained models show what each engine keeps of the metric. All engines have as many threads,
read the same length-sorted batches and take turns within a cell. A line says which are not installed.
"""

import importlib.util
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import chdir
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from accelerate.utils import set_seed
from pydantic import Field

from pruning import agreement, batches, bert, caches, devices, export, metrics, records, saved, timing
from pruning.agreement import Run
from pruning.batches import Examples
from pruning.errors import run_script
from pruning.graphs import GRAPHS
from pruning.records import DENSE
from pruning.settings import OTHER, Block, Count, Share, Strict
from pruning.tasks import GLUE
from pruning.timing import Variant
from studies import plots, workloads
from studies.benchmark import Lengths, Shape, known, write_run
from studies.engine_tables import PLAIN, STOCK, clock_table, points_of, trained_table
from studies.tables import RECIPE
from studies.workloads import Berts

# ----------------------------------------------------------------------------------------------
# Settings

bert_shape = "BERT-Base"  # see workloads.SHAPES
lengths_and_batches = [("sst-2", 1), ("sst-2", 8), ("sst-2", 32), ("128", 1)]  # see workloads.LENGTHS
whole_layers = [5, 3, 2]  # behind them [CLS] goes on alone, and reads the other tokens as they are
cuts = [(6, None), (5, None), (4, None), (6, 3), (6, 2)]  # to BERT's first layers; how many whole (None: all)
recipes = [[0, 0.5, 0, 0, 0, 0], [0, 0.6, 0, 0, 0]]  # rates of cut BERTs, by the student, all tokens readable
schedules = {  # of the whole BERT, tokens fused: where, as a share of the layers, and the rate before it
    "half": [(1 / 6, 0.4), (1 / 3, 0.3), (2 / 3, 0.3)],
    "heavy": [(1 / 6, 0.8), (1 / 2, 0.5)],
}
trained_task = "sst-2"  # of trained models; None times random weights alone
trained_in = "."  # the folder with their records/ and cache/
trained_batch_sizes = [1, 32]
tokens_a_pass = 400  # about as many real tokens go through each variant, in at least one batch
seconds_a_cell = 20  # in which a cell makes as many passes as it can, but at least
fewest_passes = 5
# ----------------------------------------------------------------------------------------------

CPU = torch.device("cpu")
PACKAGES = ("onnxruntime", "openvino")
TOGETHER = 4  # models in memory beside the dense one: a BERT-Base takes 2 GB in all engines
COMPARED = 32  # batch size for metrics
LEGEND = """Milliseconds an example. In brackets: the share of what FLOPs promise against the dense model in
the same engine. In every dense model but stock the last layer computes [CLS] alone. Speed-ups are the fastest
engine's, against stock and against the fastest dense model in any engine.
"""

Batched = tuple[str, int, Examples]  # name of the lengths, batch size, what the batches are taken from
Builders = dict[str, Callable[[], Any]]  # name → what makes a model; a dense one among them


class EngineSettings(Strict):
    """The block above."""

    bert_shape: Shape
    lengths_and_batches: Annotated[list[tuple[Lengths, Count]], Field(min_length=1)]
    whole_layers: list[Count]
    cuts: list[tuple[Count, Count | None]]
    recipes: list[Annotated[list[Share], Field(min_length=1)]]
    schedules: dict[str, list[tuple[Share, Share]]]
    trained_task: Annotated[str, known(GLUE)] | None
    trained_in: str
    trained_batch_sizes: list[Count]
    tokens_a_pass: Count
    seconds_a_cell: Annotated[float, Field(ge=0)]
    fewest_passes: Count


def installed() -> list[str]:
    """The engines beside PyTorch that are there."""
    return [name for name in PACKAGES if importlib.util.find_spec(name) is not None]


class Loaded(NamedTuple):
    """A model in fp32, and itself in every engine that is installed."""

    model: Any
    runs: dict[str, Run]


def load(model: Any, folder: Path) -> Loaded:
    """folder: for ONNX files, which have to stay as long as the engines."""
    runs = {PLAIN: agreement.in_pytorch(model)}
    if devices.best_precision(CPU)[0] == "bf16":
        runs["PyTorch bf16"] = agreement.in_pytorch(timing.with_weights(model, CPU, torch.bfloat16))
    here = installed()
    if here:
        export.export(model, folder / export.ONNX)
    if "onnxruntime" in here:
        export.quantize(folder / export.ONNX, folder / export.INT8)
        runs["ONNX Runtime fp32"] = agreement.in_onnx_runtime(folder / export.ONNX)
        runs["ONNX Runtime int8"] = agreement.in_onnx_runtime(folder / export.INT8)
    if "openvino" in here:
        run, precision = agreement.in_openvino(folder / export.ONNX)
        runs[f"OpenVINO {precision}"] = run
    return Loaded(model, runs)


def variants_of(loaded: Loaded, examples: Examples, groups: Sequence[torch.Tensor]) -> dict[str, Variant]:
    """Engine → all these batches. A graph computes padding too: its FLOPs are those of full sequences."""
    inputs = [examples.batch(rows) for rows in groups]
    full = [batch | {"attention_mask": torch.ones_like(batch["attention_mask"])} for batch in inputs]
    plain, padded = (workloads.variant_of(loaded.model, part) for part in (inputs, full))

    def all_of(run: Run) -> None:
        for batch in inputs:
            run(batch)

    return {
        engine: replace(plain if engine.startswith("PyTorch") else padded, run=partial(all_of, run))
        for engine, run in loaded.runs.items()
    }


def judged_by(loaded: Loaded, task: Any, examples: Examples) -> dict[str, dict[str, Any]]:
    """Engine → the task's metric, and what differs from PyTorch in fp32, see `agreement.Difference`."""
    groups = batches.sorted_batches(examples.lengths, COMPARED)
    answers = {engine: agreement.answers(run, examples, groups) for engine, run in loaded.runs.items()}
    graph = GRAPHS[type(loaded.model)](loaded.model)
    found = {}
    for engine, answer in answers.items():
        metric = metrics.primary(task, examples.labels.tolist(), answer.logits)
        others = agreement.difference(graph, examples, answers[PLAIN], answer)
        found[engine] = {"metric": metric, "examples": len(examples), **others._asdict()}
    return found


@dataclass
class Study:
    """All cells, and how each trained model does in each engine."""

    chosen: EngineSettings
    cells: list[dict[str, Any]] = field(default_factory=list)
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def time_random(self) -> None:
        chosen = self.chosen
        examples = {name: workloads.bert_examples(name) for name, _ in chosen.lengths_and_batches}
        inputs = [(name, size, examples[name]) for name, size in chosen.lengths_and_batches]
        self.time_models("random", random_models(chosen), inputs)

    def time_trained(self) -> None:
        """The models of the task that runs kept, if there are any and a dense one among them."""
        chosen = self.chosen
        if chosen.trained_task is None:
            return
        task = GLUE[chosen.trained_task]
        with chdir(chosen.trained_in):
            models = trained_models(task.name)
            if DENSE not in models:
                print(f"\nNo trained models: {Path().absolute()} has no dense one of {task.name}.")
                return
            data = caches.open_task("bert", task)
            examples = data.splits[task.dev_splits[0]]
            inputs = [(task.name, size, examples) for size in chosen.trained_batch_sizes]
            self.time_models("trained", models, inputs, partial(judged_by, task=task, examples=examples))

    def time_models(
        self,
        kind: str,
        models: Builders,
        inputs: Sequence[Batched],
        judge: Callable[[Loaded], dict[str, Any]] | None = None,
    ) -> None:
        """Cells with all models, a few of them in memory at a time, the dense one always.

        Args:
            judge: what else to ask of a model while it is there.
        """
        cells: list[dict[str, Any]] = [
            {"kind": kind, "lengths": name, "batch_size": size, "rows": {}} for name, size, _ in inputs
        ]
        others = [name for name in models if name != DENSE]
        with tempfile.TemporaryDirectory() as outer:
            dense = load(models[DENSE](), Path(outer))
            stock = bert.stock_copy(dense.model).eval()
            always = {STOCK: Loaded(stock, {PLAIN: lambda batch: stock(**batch)}), DENSE: dense}
            for start in range(0, max(1, len(others)), TOGETHER):
                together = dict(always)
                with tempfile.TemporaryDirectory() as inner:
                    for name in others[start : start + TOGETHER]:
                        (path := Path(inner) / str(len(together))).mkdir()
                        together[name] = load(models[name](), path)
                        print(f"{name}: loaded ({time.time() - self.started:.0f} s)", flush=True)
                    for cell, (_, size, examples) in zip(cells, inputs, strict=True):
                        rows = self.measure(together, examples, size)
                        cell["rows"] |= {name: row for name, row in rows.items() if name not in cell["rows"]}
                    for name, loaded in together.items():
                        if judge is not None and name not in (*self.judged, STOCK):
                            self.judged[name] = judge(loaded)
        for cell in cells:
            cell["precision"] = ", ".join(dense.runs)
            print(f"\n{title_of(cell)}\n\n{records.markdown(*clock_table(cell))}", flush=True)
        self.cells += cells

    def measure(
        self, together: dict[str, Loaded], examples: Examples, size: int
    ) -> dict[str, dict[str, Any]]:
        """Model → engine → its row, as `timing.measure` gives it, but against the dense model in the same
        engine."""
        chosen = self.chosen
        groups = workloads.pick_batches(examples, size, chosen.tokens_a_pass)
        variants = {
            (name, engine): variant
            for name, loaded in together.items()
            for engine, variant in variants_of(loaded, examples, groups).items()
        }
        measured = timing.measure(
            variants,
            fair=[(STOCK, PLAIN)],
            dense=(DENSE, PLAIN),
            device=CPU,
            passes=chosen.fewest_passes,
            at_least_seconds=chosen.seconds_a_cell,
        )
        rows: dict[str, dict[str, Any]] = {}
        for (name, engine), row in measured.items():
            rows.setdefault(name, {})[engine] = row
        for by_engine in rows.values():
            for engine, row in by_engine.items():
                own = rows[DENSE][engine]
                row["against_dense"], row["bound"] = own["ms"] / row["ms"], own["flops"] / row["flops"]
                row["share_of_bound"] = row["against_dense"] / row["bound"]
        return rows

    def write(self, values: dict[str, Any]) -> None:
        """The run's folder. values: of the settings block."""
        record = records.header(CPU, self.cells[0]["precision"], self.started, values)
        record["environment"]["packages"] |= {name: metadata.version(name) for name in installed()}
        record |= {"judged": self.judged, "cells": self.cells}
        folder, task = records.folder_of_clock("engines", record), values["trained_task"]
        parts = [(title_of(cell), clock_table(cell)) for cell in self.cells]
        if self.judged:
            parts.append((f"{task}, dev", trained_table(record)))
            plots.write_front(folder / "front.png", points_of(record), task)
        write_run(folder, record, "Engines", LEGEND, parts)


def title_of(cell: dict[str, Any]) -> str:
    return f"{cell['kind']} weights, lengths of {cell['lengths']}, batches of {cell['batch_size']}"


# --- Models -----------------------------------------------------------------------------------


def random_models(chosen: EngineSettings) -> Builders:
    """All with the same random weights."""
    berts = Berts(chosen.bert_shape, CPU, torch.float32)
    models: Builders = {DENSE: lambda: berts.dense}
    depth = berts.config.num_hidden_layers
    shapes = [*((depth, whole) for whole in chosen.whole_layers), *chosen.cuts]
    lists = [([float(layer == whole) for layer in range(layers)], "head") for layers, whole in shapes]
    for rates, method in [*lists, *((rates, RECIPE) for rates in chosen.recipes)]:
        steps = [(layer / len(rates), rate) for layer, rate in enumerate(rates)]
        models[name_of(rates, depth)] = partial(berts.pruned, steps, method, "readable", len(rates))
    for name, steps in chosen.schedules.items():
        models[f"{name}, {RECIPE}"] = partial(berts.pruned, steps, RECIPE)
    return models


def name_of(rates: Sequence[float], depth: int) -> str:
    """rates: one for each layer; behind a single one of 1 [CLS] goes on alone. depth: of the whole BERT."""
    pruned = {layer: rate for layer, rate in enumerate(rates) if rate > 0}
    steps = [f"{rate:g} before layer {layer}" for layer, rate in pruned.items()]
    if [*pruned.values()] == [1]:
        steps = [f"{layer} whole" for layer in pruned]
    return ", ".join([f"cut to {len(rates)}"] * (len(rates) < depth) + steps) or DENSE


def trained_models(task: str) -> Builders:
    """The BERTs of a task that runs kept in the current folder; of two with one name the first by path."""
    paths = sorted((records.RECORDS / "BERT" / task).glob(f"*/{saved.MODEL}/{saved.CONFIG}"))
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    depth = max((config["num_hidden_layers"] for config in configs), default=0)
    models: Builders = {}
    for path, config in zip(paths, configs, strict=True):
        name = name_of(config.get("pruning_schedule") or [0] * config["num_hidden_layers"], depth)
        models.setdefault(name, partial(lambda folder: saved.load(folder).model, path.parent))
    return models


def main() -> None:
    block = Block.read(globals(), EngineSettings)
    chosen = block.for_task(OTHER)  # no setting here differs by task
    set_seed(0)
    for name in PACKAGES:
        if name not in installed():
            print(f"{name} is not installed, so it is left out: pip install -r requirements-studies.txt")
    study = Study(chosen)
    study.time_random()
    study.time_trained()
    study.write(block.values)


if __name__ == "__main__":
    run_script(main)
