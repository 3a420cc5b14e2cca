"""Shows by the clock what pruning gains: BERT and LSTM with random weights, so no data and no training.

    nothing  →  records/speed/<device>.json, .md and .png

Run it without parameters (or `make bench`); it takes under 10 minutes on two CPU cores. Change what is
between the two rulers below. Every comparison is made within one cell: the variants take turns, round by
round, so that a machine whose speed drifts is as fast or slow for all of them; the first round is not
counted. A speed-up is the median over the rounds of (seconds of the baseline ÷ seconds of the variant).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import transformers
from accelerate.utils import set_seed
from torch import Tensor
from transformers import BertForSequenceClassification

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification
from pruning import batches, plots, records, selection, teachers, timing, training
from pruning.batches import Examples, Ragged
from pruning.layers import FastPaths, run_layers
from pruning.lstm import PrunedLstmClassifier
from RunBert4Glue import flops_of

# ----------------------------------------------------------------------------------------------
# Settings

bert_shapes = ["BERT-Base", "6 layers"]  # see SHAPES
lengths_of = ["sst-2", "128", "512"]  # see LENGTHS; a number: every sequence is that long
batch_sizes = [1, 8, 32, 128]
schedules = {  # where, as a share of the layers, and the rate before that layer; the token-layers kept:
    "light": [(1 / 3, 0.3)],  # 80%
    "half": [(1 / 6, 0.4), (1 / 3, 0.3), (2 / 3, 0.3)],  # 50%
    "heavy": [(1 / 6, 0.8), (1 / 2, 0.5)],  # 28%
}
pruning_methods = [
    "random",
    "head",
    "tail",
    "frequency",
    "ideal gradients student",
]  # all with the schedule "half"
lstm_batch_sizes = [1, 32, 256]
lstm_rates = [0, 0.3, 0.6, 0.9]
tokens_a_round = 400  # about as many real tokens go through each variant, in at least one batch
compiled_lengths = []  # such as [16, 32, 64, 128]: torch.compile too, half a minute of compiling each
seconds_a_cell = 15  # in which a cell makes as many rounds as it can, but at least
fewest_rounds = 4
# ----------------------------------------------------------------------------------------------

SHAPES = {
    "BERT-Base": {},
    "6 layers": {  # the sample's all-MiniLM-L6-v2
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "intermediate_size": 1536,
    },
}
# Every twentieth quantile of the token counts on the official dev (AG News: test) sets, [CLS] and [SEP]
# included; AG News in words.
LENGTHS = {
    "cola": [5, 6, 7, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11, 12, 13, 14, 15, 16, 18, 21, 35],
    "sst-2": [4, 10, 12, 14, 16, 17, 19, 20, 21, 23, 24, 26, 27, 29, 30, 32, 34, 37, 40, 44, 55],
    "sts-b": [11, 16, 17, 18, 19, 20, 21, 22, 23, 25, 28, 30, 33, 35, 38, 41, 43, 46, 51, 60, 87],
    "mrpc": [26, 32, 37, 40, 42, 44, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63, 64, 67, 70, 74, 86],
    "agnews": [13, 23, 27, 29, 31, 32, 33, 34, 35, 36, 37, 39, 40, 41, 42, 43, 45, 47, 49, 55, 138],
}
LEGEND = """Time and FLOPs are those of one example; FLOPs by formula, as executed. Speed-up: against the row
that has × 1.00 (stock transformers or the dense LSTM, length-sorted, padded per batch); median, and slowest
and fastest round. The bound is what FLOPs promise against ours dense, the share of it is what the clock
shows of that.

"""
EXAMPLES = 1_024  # in a cell, of which a few batches at even distances are timed
PADDED = 128  # what the first code, and most papers, pad every input to
MOST_BATCHES = 8
PADDED_ROWS = 8  # of a batch are timed at that length on a CPU, which is as fast for each row of a larger one
STUDENT = "ideal gradients student"
STOCK, OURS = "stock, length-sorted", "ours, dense"
VOCABULARY, LSTM_VOCABULARY = 30_522, 30_000

Batch = dict[str, Tensor]


@dataclass
class Variant:
    """One way to do the same work.

    Attributes:
        run: does all of it once.
        examples: how many it treats.
        flops: by formula, as executed; None where they are not counted.
        token_layers: real tokens processed, summed over the layers.
    """

    run: Callable[[], Any]
    examples: int
    flops: int | None = None
    token_layers: float | None = None


def measure(
    variants: dict[str, Variant], baseline: str, dense: str, device: torch.device, inference: bool = True
) -> list[dict]:
    """Times the variants in turns.

    Args:
        baseline: what speed-ups are against.
        dense: our unpruned variant, which the share of the bound is against.

    Returns:
        For each variant a row: name, milliseconds (median, of one example), examples_per_second, speedup
        against `baseline` and against `dense` with its slowest and fastest round, flops of one example,
        token_layers_kept, bound (what FLOPs promise against `dense`), share_of_bound, peak_memory.
    """
    runs = {name: variant.run for name, variant in variants.items()}
    with torch.inference_mode(inference):
        seconds = timing.interleaved(runs, device, fewest_rounds, seconds_a_cell)
        memory = {name: timing.peak_memory(v.run, device) for name, v in variants.items()}
    each = {name: [s / v.examples for s in seconds[name]] for name, v in variants.items()}
    own = variants[dense]
    rows = []
    for name, variant in variants.items():
        against = {
            other: sorted(a / b for a, b in zip(each[other], each[name], strict=True))
            for other in (baseline, dense)
        }
        middle = statistics.median(each[name])
        row = {
            "variant": name,
            "ms": 1_000 * middle,
            "examples_per_second": 1 / middle,
            "speedup": statistics.median(against[baseline]),
            "spread": [against[baseline][0], against[baseline][-1]],
            "against_dense": statistics.median(against[dense]),
            "peak_memory": memory[name],
        }
        if variant.flops and own.flops:
            bound = (own.flops / own.examples) / (variant.flops / variant.examples)
            row |= {
                "flops": variant.flops / variant.examples,
                "bound": bound,
                "share_of_bound": row["against_dense"] / bound,
            }
        if variant.token_layers and own.token_layers:
            row["token_layers_kept"] = variant.token_layers / own.token_layers
        row["rounds"] = len(each[name])
        rows.append(row)
    return rows


# --- Work to do --------------------------------------------------------------------------------


def draw_lengths(name: str) -> Tensor:
    """EXAMPLES lengths spread evenly over a distribution, shuffled; or all of the one that `name` says."""
    if name.isdigit():
        return torch.full((EXAMPLES,), int(name))
    table = torch.tensor(LENGTHS[name], dtype=torch.float64)
    at = torch.linspace(0, len(table) - 1, EXAMPLES, dtype=torch.float64)
    low = at.floor().long().clamp(max=len(table) - 2)
    lengths = table[low] + (at - low) * (table[low + 1] - table[low])
    return lengths.round().long()[torch.randperm(EXAMPLES)]


def draw_examples(name: str, vocabulary: int) -> Examples:
    """Random tokens in sequences of real lengths."""
    lengths = draw_lengths(name)
    words = torch.randint(1_000, vocabulary, (int(lengths.sum()),))
    return Examples(Ragged.of(words, lengths), torch.zeros(len(lengths)))


def pick_batches(examples: Examples, size: int) -> list[Tensor]:
    """Length-sorted batches at even distances, with about `tokens_a_round` tokens together."""
    todo = batches.sorted_batches(examples.lengths, size)
    count = round(tokens_a_round / (size * float(examples.lengths.double().mean())))
    count = min(max(1, count), MOST_BATCHES)
    middles = (torch.arange(count) + 0.5) / count
    return [todo[int(middle * len(todo))] for middle in middles]


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """fp32, and bf16 where the device computes in it."""
    precision, why = training.best_precision()
    if precision == "bf16":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}
    print(f"bf16 is left out: {why}.")
    return {"fp32": torch.float32}


# --- BERT --------------------------------------------------------------------------------------


def schedule_of(name: str, layers: int) -> list[float]:
    """A schedule of the settings for so many layers."""
    rates = [0.0] * layers
    for where, rate in schedules[name]:
        rates[round(where * layers)] = rate
    return rates


@dataclass
class Berts:
    """Models of one shape with the same weights."""

    stock: BertForSequenceClassification
    dense: PrunedBertForSequenceClassification
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def build(cls, shape: str, device: torch.device, dtype: torch.dtype) -> "Berts":
        config = PrunedBertConfig(**SHAPES[shape], num_labels=2, attn_implementation="sdpa")
        dense = PrunedBertForSequenceClassification(config)
        stock = BertForSequenceClassification(config)
        stock.load_state_dict(dense.state_dict())
        return cls(stock.to(device, dtype).eval(), dense.to(device, dtype).eval(), device, dtype)

    def pruned(self, schedule: str, method: str) -> PrunedBertForSequenceClassification:
        """The same weights with pruners."""
        config = PrunedBertConfig(**self.dense.config.to_dict())
        config.pruning_schedule = schedule_of(schedule, config.num_hidden_layers)
        config.pruning_methods = method
        model = PrunedBertForSequenceClassification.from_pretrained(
            None, config=config, state_dict=self.dense.state_dict(), attn_implementation="sdpa"
        )
        model.set_frequencies(torch.rand(config.vocab_size))
        return model.to(self.device, self.dtype).eval()


def bert_batches(
    berts: Berts, examples: Examples, chosen: Sequence[Tensor], width: int | None = None
) -> list[Batch]:
    """Batches on the device, padded to their longest or to `width`."""
    return [batches.to_device(batches.bert_batch(examples, rows, width), berts.device) for rows in chosen]


def bert_variant(model: Any, todo: Sequence[Batch]) -> Variant:
    """A model over batches."""

    def run() -> None:
        for batch in todo:
            model(**batch).logits  # noqa: B018

    masks = [batch["attention_mask"] for batch in todo]
    lengths = [n for mask in masks for n in mask.sum(dim=1).tolist()]
    alive, token_layers = lengths, 0
    for rate in getattr(model.bert.encoder, "schedule", [0.0] * model.config.num_hidden_layers):
        alive = [selection.count_kept(n, rate) for n in alive]
        token_layers += sum(alive)
    return Variant(run, len(lengths), sum(flops_of(model, batch) for batch in todo), token_layers)


def bert_cell(berts: Berts, lengths: str, batch_size: int) -> list[dict]:
    """Stock and ours, dense and pruned, on the same batches."""
    examples = draw_examples(lengths, VOCABULARY)
    chosen = pick_batches(examples, batch_size)
    todo = bert_batches(berts, examples, chosen)
    variants = {}
    if int(examples.lengths.max()) < PADDED:
        some = chosen
        if berts.device.type == "cpu" and batch_size > 1:
            some = [chosen[len(chosen) // 2][:PADDED_ROWS]]
        padded = bert_variant(berts.stock, bert_batches(berts, examples, some, PADDED))
        variants[f"stock, padded to {PADDED}"] = replace(padded, token_layers=None)  # of other examples
    variants[STOCK] = bert_variant(berts.stock, todo)
    variants[OURS] = bert_variant(berts.dense, todo)
    for schedule in schedules:
        for method in pruning_methods if schedule == "half" else [STUDENT]:
            model = berts.pruned(schedule, method)
            variants[f"{schedule}, {method}"] = bert_variant(model, todo)
    return measure(variants, STOCK, OURS, berts.device)


def ablation_cell(berts: Berts, batch_size: int) -> list[dict]:
    """Every gain alone, all of them, and all but one, without pruning."""
    examples = draw_examples("sst-2", VOCABULARY)
    chosen = pick_batches(examples, batch_size)
    unsorted = [torch.arange(batch_size)]  # lengths are drawn in random order
    off = FastPaths(**{field.name: False for field in fields(FastPaths)})
    alone = {f"only {f.name}": replace(off, **{f.name: True}) for f in fields(FastPaths)}
    without = {f"all but {f.name}": replace(FastPaths(), **{f.name: False}) for f in fields(FastPaths)}
    every: dict[str, FastPaths | None] = {"stock layers": None, **alone, **without, "all": FastPaths()}
    todo = {"sorted": (chosen, every)}
    if batch_size > 1:
        todo["as they come"] = (unsorted, {name: every[name] for name in ("only no_padding", "all")})
    rows = []
    for order, (groups, settings) in todo.items():
        made = bert_batches(berts, examples, groups)
        variants = {"stock": bert_variant(berts.stock, made)}
        for name, paths in settings.items():
            berts.dense.bert.encoder.fast_paths = paths
            variant = bert_variant(berts.dense, made)
            variants[name] = replace(variant, run=partial(with_paths, berts.dense, paths, variant.run))
        found = measure(variants, "stock", "all", berts.device)
        rows += [row | {"variant": f"{row['variant']} ({order})"} for row in found]
    berts.dense.bert.encoder.fast_paths = FastPaths()
    return rows


def with_paths(model: Any, paths: FastPaths | None, run: Callable[[], Any]) -> None:
    model.bert.encoder.fast_paths = paths
    run()


def first_code_cell(berts: Berts, batch_size: int) -> list[dict]:
    """From the first code's way of working to ours, one change after the other.

    It padded every input to 128, asked the teacher (ideal emission rate) with a full pass, and pruned
    by that. All prune by the same schedule, which removes half of the token-layers.
    """
    examples = draw_examples("sst-2", VOCABULARY)
    chosen = pick_batches(examples, batch_size)
    by_teacher, by_student = berts.pruned("half", "ideal emission rate"), berts.pruned("half", STUDENT)
    schedule = by_teacher.config.pruning_schedule
    wanted = {layer: "ideal emission rate" for layer, rate in enumerate(schedule) if rate}

    def teach(todo: list[Batch]) -> None:
        for batch in todo:
            scores = teachers.bert_scores(berts.dense, batch, wanted)
            with_paths(by_teacher, None, partial(by_teacher, **batch, teacher_scores=scores))

    padded = bert_batches(berts, examples, chosen, PADDED)
    for batch in padded:  # the first code counted padding as tokens
        batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    todo, count = bert_batches(berts, examples, chosen), sum(map(len, chosen))
    student = bert_variant(by_student, todo)
    variants = {
        "the first code's way": Variant(partial(teach, padded), count),
        "no padding": Variant(partial(teach, todo), count),
        "student, no teacher": replace(student, run=partial(with_paths, by_student, None, student.run)),
        "free gains": replace(student, run=partial(with_paths, by_student, FastPaths(), student.run)),
        "without pruning": bert_variant(berts.dense, todo),
    }
    return measure(variants, "the first code's way", "without pruning", berts.device)


def compile_cell(berts: Berts, batch_size: int) -> list[dict]:
    """The layers of the dense model as one compiled graph for each of a few fixed lengths, weights frozen."""
    from torch._inductor import config as inductor

    encoder = berts.dense.bert.encoder
    layers = encoder.layer
    paths = FastPaths(one_projection=False, fused_product=False)  # the compiler fuses for itself
    rows = []
    for length in compiled_lengths:
        shape = (batch_size, length, berts.dense.config.hidden_size)
        states = torch.randn(shape, device=berts.device, dtype=berts.dtype)
        mask = torch.ones(shape[:2], dtype=torch.bool, device=berts.device)
        run = partial(run_layers, layers, states, mask, [length] * batch_size, only_first=True)
        torch.compiler.reset()  # or the compiler gives up after its eighth graph
        with inductor.patch(freezing=True), torch.no_grad():
            started = time.perf_counter()
            compiled = torch.compile(partial(run, paths=paths), mode="reduce-overhead", dynamic=False)
            compiled()
            seconds = time.perf_counter() - started
            variants = {
                f"ours, {length} tokens": Variant(partial(run, paths=FastPaths()), batch_size),
                f"compiled in {seconds:.0f} s": Variant(compiled, batch_size),
            }
            first = next(iter(variants))
            rows += measure(variants, first, first, berts.device, inference=False)
    return rows


def training_cell(berts: Berts, batch_size: int) -> list[dict]:
    """A step of fine-tuning. The teacher's scores are there: the runners compute them once for a task."""
    examples = draw_examples("sst-2", VOCABULARY)
    rows = pick_batches(examples, batch_size)[0]
    batch = batches.to_device(batches.bert_batch(examples, rows), berts.device)
    batch["labels"] = torch.zeros(len(rows), dtype=torch.long, device=berts.device)
    models: dict[str, tuple[Any, list[float]]] = {"stock": (berts.stock, []), OURS: (berts.dense, [])}
    for name in ("half", "heavy"):
        model = berts.pruned(name, STUDENT)
        models[f"{name}, {STUDENT}"] = (model, model.config.pruning_schedule)
    variants = {}
    for name, (model, schedule) in models.items():
        scores = {
            i: torch.rand(batch["input_ids"].shape, device=berts.device) for i, r in enumerate(schedule) if r
        }
        optimizer = training.build_optimizer(model.train(), training.Schedule(1, batch_size, 5e-5))
        extra = {"teacher_scores": scores} if schedule else {}
        variants[name] = Variant(partial(train_step, model, optimizer, batch | extra), len(rows))
    return measure(variants, "stock", OURS, berts.device, inference=False)


def train_step(model: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> None:
    optimizer.zero_grad(set_to_none=True)
    output = model(**batch)
    loss = output.loss
    if getattr(output, "pruning_loss", None) is not None:
        loss = loss + output.pruning_loss
    loss.backward()
    optimizer.step()


# --- LSTM --------------------------------------------------------------------------------------


def lstm_cell(device: torch.device, batch_size: int) -> list[dict]:
    """Dense, with the packed and the padded nn.LSTM, against pruned at every rate, AG News lengths."""
    examples = draw_examples("agnews", LSTM_VOCABULARY)
    chosen = pick_batches(examples, batch_size)
    todo = [batches.to_device(batches.lstm_batch(examples, rows), device) for rows in chosen]
    dense = PrunedLstmClassifier(LSTM_VOCABULARY, 4, pair=False).to(device).eval()

    def made(
        packed: bool = False, fast: bool = True, method: str | None = None, rate: float = 0.0
    ) -> Variant:
        model = PrunedLstmClassifier(LSTM_VOCABULARY, 4, pair=False, method=method, rate=rate)
        model.load_state_dict(dense.state_dict(), strict=False)
        model.packed, model.fast = packed, fast
        return lstm_variant(model.to(device).eval(), todo)

    variants = {"dense, packed": made(packed=True), "dense, padded": made()}
    for rate in lstm_rates:
        for name, method in {"student": "lstm student", "word table": "frequency"}.items():
            variants[f"{rate} removed, {name}"] = made(method=method, rate=rate)
    heaviest = max(lstm_rates)
    variants[f"{heaviest} removed, student, no fast paths"] = made(False, False, "lstm student", heaviest)
    rows = measure(variants, "dense, padded", "dense, padded", device)
    faster = max(row["speedup"] for row in rows[:2])
    return [row | {"against_faster_dense": row["speedup"] / faster} for row in rows]


def lstm_variant(model: PrunedLstmClassifier, todo: Sequence[Batch]) -> Variant:
    """A model over batches."""

    def run() -> None:
        for batch in todo:
            model(**batch)

    lengths = [n for batch in todo for n in batch["mask"].sum(dim=1).tolist()]
    kept = sum(selection.count_kept(n, model.rate) for n in lengths)
    return Variant(run, len(lengths), sum(model.flops(batch["mask"]) for batch in todo), kept)


# --- All of it ---------------------------------------------------------------------------------

COLUMNS = {  # heading → key, form
    "variant": ("variant", "{}"),
    "ms": ("ms", "{:.2f}"),
    "examples/s": ("examples_per_second", "{:,.0f}"),
    "speed-up": ("speedup", "× {:.2f}"),
    "slowest and fastest round": ("spread", "{0[0]:.2f} to {0[1]:.2f}"),
    "token-layers": ("token_layers_kept", "{:.0%}"),
    "MFLOP": ("mflop", "{:,.0f}"),
    "against ours dense": ("against_dense", "× {:.2f}"),
    "FLOPs bound": ("bound", "× {:.2f}"),
    "share of it": ("share_of_bound", "{:.0%}"),
    "peak MiB": ("peak_mib", "{:,.0f}"),
}


def table(rows: Sequence[dict]) -> str:
    """The rows of a cell as a person reads them."""
    shown = [
        row
        | ({"mflop": row["flops"] / 1e6} if "flops" in row else {})
        | ({"peak_mib": row["peak_memory"] / 2**20} if row["peak_memory"] is not None else {})
        for row in rows
    ]
    used = {head: at for head, at in COLUMNS.items() if any(at[0] in row for row in shown)}
    cells = [[form.format(row[key]) if key in row else "" for key, form in used.values()] for row in shown]
    return records.markdown(list(used), cells)


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    set_seed(0)
    started = time.time()
    accelerator = training.pick_device()
    device = accelerator.device
    cells: list[dict[str, Any]] = []

    def add(title: str, rows: list[dict], **what: Any) -> None:
        cells.append({"title": title, **what, "rows": rows})
        print(f"\n{title} ({time.time() - started:.0f} s)\n\n{table(rows)}", flush=True)

    for precision, dtype in precisions(device).items():
        for shape in bert_shapes:
            berts = Berts.build(shape, device, dtype)
            name = f"{shape}, {precision}"
            for lengths in lengths_of:
                for size in batch_sizes:
                    if is_worth_it(lengths, size, shape, device):
                        what = {"kind": "bert", "shape": shape, "lengths": lengths, "batch_size": size}
                        rows = bert_cell(berts, lengths, size)
                        add(f"{name}, lengths of {lengths}, batches of {size}", rows, **what)
            for size in (1, 32):
                rows = ablation_cell(berts, size)
                add(f"{name}, each gain, sst-2, batches of {size}", rows, kind="gains", shape=shape)
            rows = first_code_cell(berts, 32)
            add(f"{name}, from the first code to here, sst-2", rows, kind="first code", shape=shape)
            for size in (1, 32) if compiled_lengths else ():
                rows = compile_cell(berts, size)
                add(f"{name}, torch.compile, batches of {size}", rows, kind="compiled", shape=shape)
            if dtype == torch.float32:
                rows = training_cell(berts, 32)
                add(f"{name}, a training step, sst-2", rows, kind="training", shape=shape)
    for size in lstm_batch_sizes:
        rows = lstm_cell(device, size)
        add(f"LSTM, fp32, lengths of agnews, batches of {size}", rows, kind="lstm", batch_size=size)
    write(cells, device, time.time() - started)


def is_worth_it(lengths: str, size: int, shape: str, device: torch.device) -> bool:
    """On a CPU sequences of one length are timed at one batch size: 128 tokens one by one, 512 by 8 in the
    small shape. All the others would take most of an hour."""
    if device.type != "cpu" or not lengths.isdigit():
        return True
    return size == 1 if int(lengths) <= PADDED else size == 8 and shape != "BERT-Base"


def write(cells: list[dict[str, Any]], device: torch.device, seconds: float) -> None:
    """records/speed/<device>: everything as JSON, the tables, the picture."""
    name = training.device_name(device)
    path = records.RECORDS / "speed" / records.slug(name)
    record = {
        "device": name,
        "processor": records.processor(),
        "wall_seconds": round(seconds),
        "settings": records.settings_block(globals()),
        "environment": records.environment(),
        "cells": cells,
    }
    tables = "\n\n".join(f"## {cell['title']}\n\n{table(cell['rows'])}" for cell in cells)
    head = f"# Speed on {name} ({record['processor']})\n\n"
    head += f"`python BenchmarkSpeed.py`, {seconds / 60:.0f} minutes.\n\n"
    records.write_text(path.with_suffix(".md"), head + LEGEND + tables + "\n")
    plots.write_speed(path.with_suffix(".png"), [cell for cell in cells if cell["kind"] == "bert"], name)
    records.write(path.with_suffix(".json"), record)
    print(f"\n{LEGEND}\nRecords: {path}.*  ({seconds / 60:.1f} minutes)")


if __name__ == "__main__":
    main()
