"""Shows by the clock what pruning gains: BERT and LSTM with random weights, so no data and no training.

    nothing  →  records/benchmark/<device>-<key>/record.json, tables.md, speed.png

Run it without parameters, `python -m studies.benchmark` (or `make bench`): 5 minutes on two CPU cores, 10
where the device computes in bf16. Change what is between the two rulers below. Every comparison is made
within one cell, see `timing.measure`; `studies.workloads` builds what is compared.
"""

import itertools
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from pydantic import AfterValidator, Field

from pruning import devices, methods, records, settings, timing
from pruning.errors import run_script
from pruning.pruners import TeacherPruner, ThresholdPruner
from pruning.settings import Count, Share
from pruning.timing import Variant
from studies import plots, workloads
from studies.comparison_tables import Record, Table
from studies.tables import OURS, STOCK, cell_table
from studies.workloads import Berts

# ----------------------------------------------------------------------------------------------
# Settings

bert_shapes = ["BERT-Base", "6 layers"]  # see workloads.SHAPES
lengths_of = ["sst-2", "128", "512"]  # see workloads.LENGTHS; a number: every sequence is that long
batch_sizes = [1, 8, 32]
schedules = {  # where, as a share of the layers, and the rate before that layer; the token-layers kept:
    "light": [(1 / 3, 0.3)],  # 80%
    "half": [(1 / 6, 0.4), (1 / 3, 0.3), (2 / 3, 0.3)],  # about 52%
    "heavy": [(1 / 6, 0.8), (1 / 2, 0.5)],  # 28%
}
pruning_methods = ["random", "head", "tail", "frequency", "ideal gradients student"]  # all with "half"
lstm_batch_sizes = [1, 32, 256]
lstm_rates = [0, 0.3, 0.6, 0.9]
tokens_a_pass = 400  # about as many real tokens go through each variant, in at least one batch
seconds_a_cell = 5  # in which a cell makes as many passes as it can, but at least
fewest_passes = 3
# ----------------------------------------------------------------------------------------------

# A teacher is no speed-up, and a threshold removes nothing until it has been tuned on real sentences.
TIMED = [name for name, kind in methods.BERT_METHODS.items() if kind not in (TeacherPruner, ThresholdPruner)]
MOST_TOKENS = 512  # that a BERT reads
SMALL, LARGE = 1, 32  # batch sizes of the BERT cells that show something else than schedules
LEGEND = """Time and FLOPs are those of one example; FLOPs by formula, as executed. Speed-up: a ratio of
medians against the row that has × 1.00 (stock transformers, length-sorted, padded per batch; the fastest
dense LSTM). The bound is what FLOPs promise against ours dense, the share of it is what the clock shows.
"""


def known(names: Collection[str], most: int = 0) -> AfterValidator:
    """Checks that a value is one of these names, or a number from 2 to `most`."""

    def check(value: str) -> str:
        if value not in names and not (value.isdigit() and 1 < int(value) <= most):
            raise ValueError(f"unknown name {value!r}; known are: {', '.join(names)}")
        return value

    return AfterValidator(check)


Shape = Annotated[str, known(workloads.SHAPES)]
Lengths = Annotated[str, known(workloads.LENGTHS, MOST_TOKENS)]


def _complete(values: dict[str, Any]) -> dict[str, Any]:
    if not {"half", "heavy"} <= set(values):
        raise ValueError("one has to be called 'half', and one 'heavy'")
    return values


class BenchmarkSettings(settings.Strict):
    """The block above."""

    bert_shapes: list[Shape]
    lengths_of: list[Lengths]
    batch_sizes: list[Count]
    schedules: Annotated[dict[str, list[tuple[Share, Share]]], AfterValidator(_complete)]
    pruning_methods: list[Annotated[str, known(TIMED)]]
    lstm_batch_sizes: list[Count]
    lstm_rates: Annotated[list[Share], Field(min_length=1)]
    tokens_a_pass: Count
    seconds_a_cell: Annotated[float, Field(ge=0)]
    fewest_passes: Count


@dataclass
class Benchmark:
    """All cells of one device."""

    chosen: BenchmarkSettings
    accelerator: Accelerator
    cells: list[dict[str, Any]] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    @property
    def precisions(self) -> dict[str, torch.dtype]:
        """fp32, and bf16 where the device computes in it."""
        bf16 = {"bf16": torch.bfloat16} if devices.precision_name(self.accelerator) == "bf16" else {}
        return {"fp32": torch.float32, **bf16}

    def time_all(self) -> None:
        chosen = self.chosen
        for precision, dtype in self.precisions.items():
            for shape in chosen.bert_shapes:
                berts = Berts(shape, self.device, dtype)
                facts: dict[str, Any] = {"shape": shape, "precision": precision}
                self.time_schedules(berts, facts)
                self.time_the_rest(berts, facts)
            for size in chosen.lstm_batch_sizes:
                variants = workloads.lstms(chosen.lstm_rates, size, chosen.tokens_a_pass, self.device, dtype)
                fair = list(variants)[:3]  # all dense
                rows = self.measure(variants, fair, "dense, word table")
                facts = {"precision": precision, "batch_size": size}
                self.add("lstm", f"lengths of agnews, batches of {size}", facts, rows)

    def time_schedules(self, berts: Berts, facts: dict[str, Any]) -> None:
        chosen = self.chosen
        for name, size in itertools.product(chosen.lengths_of, chosen.batch_sizes):
            if is_worth_it(name, size, facts["shape"], self.device):
                variants = workloads.pruners(
                    berts, chosen.schedules, chosen.pruning_methods, name, size, chosen.tokens_a_pass
                )
                rows, cell = self.measure(variants, [STOCK], OURS), {"lengths": name, "batch_size": size}
                self.add("bert", f"lengths of {name}, batches of {size}", facts | cell, rows)

    def time_the_rest(self, berts: Berts, facts: dict[str, Any]) -> None:
        schedules, tokens = self.chosen.schedules, self.chosen.tokens_a_pass
        for size in (SMALL, LARGE):
            rows: dict[str, Record] = {}
            for order, variants in workloads.gains(berts, size, tokens).items():
                measured = self.measure(variants, ["stock"], "all")
                rows |= {f"{name} ({order})": row for name, row in measured.items()}
            self.add("gains", f"each gain, sst-2, batches of {size}", facts | {"batch_size": size}, rows)
        facts = facts | {"batch_size": LARGE}
        variants = workloads.first_code(berts, schedules["half"], LARGE, tokens)
        rows = self.measure(variants, ["the first code's way"], "without pruning")
        self.add("first code", "from the first code to here, sst-2", facts, rows)
        if berts.dtype == torch.float32:  # as weights in training always are
            variants = workloads.training_steps(berts, schedules, LARGE, self.accelerator)
            facts["precision"] = devices.precision_name(self.accelerator)
            self.add("training", "a training step, sst-2", facts, self.measure(variants, ["stock"], OURS))

    def measure(self, variants: dict[str, Variant], fair: Sequence[str], dense: str) -> dict[str, Record]:
        """As `timing.measure`, for as long as the settings say."""
        chosen = self.chosen
        often: Any = {"passes": chosen.fewest_passes, "at_least_seconds": chosen.seconds_a_cell}
        return timing.measure(variants, fair=fair, dense=dense, device=self.device, **often)

    def add(self, kind: str, what: str, facts: dict[str, Any], rows: dict[str, Record]) -> None:
        """Adds a cell. what: its title, less the model and the precision. facts: what else to say of it."""
        title = f"{facts.get('shape', 'LSTM')}, {facts['precision']}, {what}"
        self.cells.append({"title": title, "kind": kind, **facts, "rows": rows})
        table = records.markdown(*cell_table(rows))
        print(f"\n{title} ({time.time() - self.started:.0f} s)\n\n{table}", flush=True)

    def write(self, values: dict[str, Any]) -> None:
        """The run's folder. values: of the settings block."""
        record = records.header(self.device, " and ".join(self.precisions), self.started, values)
        record["cells"] = self.cells
        folder = records.folder_of_clock("benchmark", record)
        if any(cell["kind"] == "bert" for cell in self.cells):
            plots.write_speed(folder / "speed.png", self.cells, record["device"])
        parts = [(cell["title"], cell_table(cell["rows"])) for cell in self.cells]
        write_run(folder, record, "Speed", LEGEND, parts)


def write_run(
    folder: Path, record: Record, title: str, legend: str, parts: Sequence[tuple[str, Table]]
) -> None:
    """Writes a page of tables and, last, the record of a study by the clock. parts: headings and tables."""
    minutes = record["wall_seconds"] / 60
    page = f"# {title} on {record['device']} ({record['processor']})\n\n"
    page += f"`python -m studies.{folder.parent.name}`, {minutes:.0f} minutes.\n\n{legend}"
    for heading, table in parts:
        page += f"\n## {heading}\n\n{records.markdown(*table)}\n"
    records.write_text(folder / "tables.md", page)
    records.write(folder / records.RECORD, record)
    print(f"\n{legend}\nRecords: {folder}  ({minutes:.1f} minutes)")


def is_worth_it(lengths: str, size: int, shape: str, device: torch.device) -> bool:
    """On a CPU sequences of one length are timed at one batch size: 128 tokens one by one, 512 by 8 in the
    small shape. All the others would take most of an hour."""
    if device.type != "cpu" or not lengths.isdigit():
        return True
    return size == 1 if int(lengths) <= timing.PADDED else size == 8 and shape != "BERT-Base"


def main() -> None:
    block = settings.Block.read(globals(), BenchmarkSettings)
    chosen = block.for_task(settings.OTHER)  # no setting here differs by task
    set_seed(0)
    benchmark = Benchmark(chosen, devices.pick_device(in_several_processes=False))
    benchmark.time_all()
    benchmark.write(block.values)


if __name__ == "__main__":
    run_script(main)
