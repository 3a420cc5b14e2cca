"""Every table of figures in README.md and on the pages beside this file, made from its records.

    records/published/*.json  →  the lines between <!-- table NAME --> and <!-- end -->

`python -m studies.tables` (or `make tables`) writes them again. The functions that turn the records of a
study into rows are pure, and the studies print their own tables with them. A published study is

    study, command   its name, and what makes its records
    records          as the study wrote them, five digits each, but for sentences of the data sets and, of the
                     comparison, curves of the loss; its FLOPs are those of passes on the CPU
    recipe, intervals    of the comparison only: budget → its first line; see `intervals`
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pruning.records import DENSE, HEADER, OF_CLOCK, markdown, mean_sd, summary_lines
from studies import comparison_tables as compare
from studies.comparison_tables import Answers, Record, Table, by_task, mean_of, name_of, percent, table_of
from studies.engine_tables import asked_table, cells_of, clock_table, trained_table

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "records" / "published"
PAGES = [ROOT / "README.md", ROOT / "studies" / "ACCURACY.md", ROOT / "studies" / "SPEED.md"]
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Text = Callable[[Record, Record], str]  # what is said of a cell of the benchmark and one of its rows

RECIPE = "ideal gradients student"  # the method that the others are compared with


# --- Rules on a frozen model -------------------------------------------------------------------


def rules_table(records: list[Record], schedule: str) -> Table:
    """One row for each rule on the frozen dense model, as an oracle and as a student, best first.

    records: those of the comparison with oracles and students; schedule: its name there."""
    oracles: dict[str, Answers] = defaultdict(dict)
    students: dict[str, Answers] = defaultdict(dict)
    for record in records:
        place = record["task"], record["seed"]
        for rule, value in {DENSE: record["dense"], **record["oracles"][schedule]}.items():
            oracles[rule][place] = {"dev": value}
        for rule, value in record["students"][schedule].items():
            students[rule][place] = {"dev": value}
    rows = []
    for rule in sorted(oracles, key=lambda rule: mean_of(students.get(rule, oracles[rule])), reverse=True):
        row = {"rule": rule}
        for kind, answers in (("oracle", oracles[rule]), ("student", students.get(rule))):
            if answers:
                row |= {f"{kind}: {task}": mean_sd(values) for task, values in by_task(answers).items()}
                row[f"{kind}: mean"] = percent(mean_of(answers))
        rows.append(row)
    return table_of(rows)


# --- Search ------------------------------------------------------------------------------------


def search_table(record: Record) -> Table:
    """The dense model, then the schedule that a search chose for each budget.

    Speed-ups are against stock transformers, by the clock and as the search had estimated them.
    """
    tasks = record["dense"]
    metrics = map(percent, [*tasks.values(), record["dense_held_out"]])
    rows = [["dense", "× 1 (stock)", "", "100%", *metrics, ""]]
    for chosen in sorted(record["chosen"], key=lambda chosen: -chosen["token_layers_kept"]):
        budget, speedup = chosen["budget"], chosen["speedup"]
        if not isinstance(budget, str):
            budget = f"× {budget:g}" + (" (not reached)" if speedup < budget else "")
        clock, promised = (f"× {s:.2f}" if s else "" for s in (speedup, chosen["speedup_promised"]))
        metrics = map(percent, [*(chosen["dev_by_task"][task] for task in tasks), chosen["held_out"]])
        rates = ", ".join(f"{rate:g}" for rate in chosen["schedule"])
        rows.append([budget, clock, promised, f"{chosen['token_layers_kept']:.0%}", *metrics, f"`[{rates}]`"])
    header = ["budget", "speed-up", "promised", "token-layers", *tasks, "held out"]
    return [*header, "`pruning_schedule`"], rows


# --- Benchmark ---------------------------------------------------------------------------------

CELL: dict[str, tuple[str, Callable[[Any], str]]] = {  # heading → key of a row, how it is written
    "ms": ("ms", "{:.2f}".format),
    "examples/s": ("examples_per_second", "{:,.0f}".format),
    "speed-up": ("speedup", "× {:.2f}".format),
    "slowest and fastest pass": ("spread", lambda ends: "{:,.0f} to {:,.0f}".format(*ends)),
    "token-layers": ("token_layers_kept", "{:.0%}".format),
    "MFLOP": ("flops", lambda flops: f"{flops / 1e6:,.0f}"),
    "against ours dense": ("against_dense", "× {:.2f}".format),
    "FLOPs bound": ("bound", "× {:.2f}".format),
    "share of it": ("share_of_bound", "{:.0%}".format),
    "peak MiB": ("peak_memory", lambda peak: f"{peak / 2**20:,.0f}"),
}
PADDED, STOCK, OURS = "stock, padded to 128", "stock, length-sorted", "ours, dense"
ENGINES = (STOCK, OURS, "dense, ")  # how the dense variants begin that a speed-up may be against
BY_STUDENT = f"^{OURS}$|^{STOCK}$|, {RECIPE}$"  # variants: dense ones, and those that the student prunes
FASTEST = "against the fastest dense"


def cell_table(rows: dict[str, Record]) -> Table:
    """The rows of one cell of the benchmark, by variant, with the columns that any of them has."""
    used = {
        heading: (key, text)
        for heading, (key, text) in CELL.items()
        if any(row.get(key) is not None for row in rows.values())
    }
    return ["variant", *used], [
        [variant, *("" if row.get(key) is None else text(row[key]) for key, text in used.values())]
        for variant, row in rows.items()
    ]


def speedup_text(cell: Record, row: Record) -> str:
    """The speed-up against the first row."""
    return f"× {row['speedup']:.2f}"


def side_by_side(
    record: Record, kind: str, heading: str, text: Text = speedup_text, shown: str = ""
) -> Table:
    """One row for each variant and one column for each cell of a kind; of BERT, which has many cells, the
    other way round. Empty where a cell lacks a variant. shown: a regular expression for variants."""
    by_cell = []
    for cell in cells_of(record, kind=kind):
        facts = [cell.get(name) for name in ("shape", "lengths", "precision")]
        row = {heading: ", ".join([*filter(None, facts), f"batch {cell['batch_size']}"])}
        by_cell.append(row | {v: text(cell, own) for v, own in cell["rows"].items() if re.search(shown, v)})
    header, rows = table_of(by_cell)
    if kind == "bert":
        return header, rows
    first, *others = map(list, zip(header, *rows, strict=True))  # rows as columns
    return first, others


def against_fastest(cell: Record, row: Record) -> float:
    """The speed-up against the fastest dense engine of a cell, padded as little as can be."""
    engines = {v: each["speedup"] for v, each in cell["rows"].items() if v.startswith(ENGINES)}
    fastest = max(engines, key=lambda variant: engines[variant])
    return row["against_dense"] if fastest == OURS else row["speedup"] / engines[fastest]


def against_fastest_text(cell: Record, row: Record) -> str:
    """That speed-up, and what share it is of what FLOPs promise; of the engine itself examples a second."""
    speedup = against_fastest(cell, row)
    if speedup == 1:
        return f"{row['examples_per_second']:,.0f} examples/s"
    share = "" if row.get("token_layers_kept", 1) == 1 else f" ({row['share_of_bound']:.0%})"
    return f"× {speedup:.2f}{share}"


def batch_text(cell: Record, row: Record) -> str:
    """Milliseconds of a whole batch."""
    return f"{cell['batch_size'] * row['ms']:.1f}"


# --- LSTM --------------------------------------------------------------------------------------


def summary(records: list[Record]) -> list[dict[str, str]]:
    """The summary that the runners print, each row by its headings."""
    return [line.cells for line in summary_lines(records)]


def metrics_table(records: list[Record]) -> Table:
    """The summary without the clock, which ran beside other trainings."""
    shown = [name for name in HEADER if name not in OF_CLOCK]
    return shown, [[row[name] for name in shown] for row in summary(records)]


def tasks_table(records: list[Record]) -> Table:
    """One row for each method, one column for each task: the metric."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in summary(records):
        cell = {f"{row['task']} {row['metric']}": row["value"]}
        found[row["method"]] |= {"method": row["method"]} | cell
    return table_of(found.values())


# --- README's headline -------------------------------------------------------------------------

LSTM_METHOD, LSTM_RATES = "integrated gradients student", ("0.6", "0.9")
LSTM_CELL: Record = {"kind": "lstm", "batch_size": 256, "precision": "fp32"}


def headline_table(
    trained: list[Record],
    clock: list[Record],
    agnews: list[Record],
    benchmark: list[Record],
    recipe: dict[str, str],
) -> Table:
    """What pruning costs and gains on real data: the recipe and the cut BERT at each budget, most work first,
    and one row for each of LSTM_RATES.

    The metric is the better dense model's and ours, over the seeds that both have.
    """
    of_lstm = {(row["method"], row["pruning"]): row for row in summary(agnews)}
    lines = compare.lines_of(trained)
    best = lines[compare.better_dense(lines)]
    rows = []
    for line, answers in sorted(lines.items(), key=lambda item: -mean_of(item[1], "flops_kept")):
        if line[0] == recipe.get(line[1]) or line[0].startswith(compare.CUT):
            both = compare.in_common(best, answers)
            columns = [" → ".join(percent(mean_of(part, of)) for part in both) for of in ("dev", "held_out")]
            work = f"{mean_of(answers, 'flops_kept'):.0%}"
            rows.append(["GLUE", line[0], *columns, work, f"× {compare.speed_of(clock, name_of(line)):.2f}"])
    [words] = cells_of(benchmark[0], **LSTM_CELL)
    for rate in LSTM_RATES:
        row, timed = of_lstm[LSTM_METHOD, f"{rate}, fused"], words["rows"][f"{rate} removed, student"]
        metrics = f"{of_lstm[DENSE, '']['value']} → {row['value']}"
        what = ["AG News", f"LSTM, student, {rate}, fused", metrics, ""]
        rows.append([*what, row["token-layers kept"], f"× {against_fastest(words, timed):.2f}"])
    return ["data", "method", "metric, dense → pruned", "held out", "work", "speed-up"], rows


# --- Pages -------------------------------------------------------------------------------------

Source = tuple[str, Callable[[Record], bool]]


def is_gpu(record: Record) -> bool:
    return not is_cpu(record)


def is_cpu(record: Record) -> bool:
    return record["device"].startswith("CPU")


def searched(*tasks: str) -> Source:
    """The search on these tasks."""
    return "search", lambda record: {*record["dense"]} == {*tasks}


SOURCES: dict[str, Source] = {  # a study, and which of its records; any other name: all of that study
    "BERT, metrics": ("comparison", lambda record: "dev" in record),
    "BERT, speed": ("comparison", lambda record: "timings" in record),
    "search, twelve": searched("mrpc", "cola", "sts-b"),
    "search, sentences": searched("cola", "sst-2"),
    "search, pairs": searched("mrpc", "sts-b"),
    "benchmark": ("benchmark", is_cpu),
    "LSTM, speed": ("benchmark", is_cpu),
    "training": ("benchmark", is_cpu),
    "benchmark, GPU": ("benchmark", is_gpu),
    "LSTM, metrics": ("lstm", lambda record: record["task"] == "agnews"),
    "glue": ("lstm", lambda record: record["task"] != "agnews"),
}

SHOWN: dict[str, Record] = {"LSTM, speed": LSTM_CELL, "training": {"kind": "training"}}  # of a source's cells


@functools.cache
def published(study: str) -> Record:
    """records/published/<study>.json."""
    return json.loads((PUBLISHED / f"{study}.json").read_text(encoding="utf-8"))


def given(part: str, table: Callable[..., Table], study: str = "comparison") -> Callable[..., Table]:
    """A table that also needs this part of a study."""
    return lambda *records: table(*records, published(study)[part])


def of_one(table: Callable[..., Table], *details: Any) -> Callable[[list[Record]], Table]:
    """A table of the only record."""
    return lambda records: table(records[0], *details)


def in_engines(record: Record, lengths: str, batch_size: int) -> Table:
    return clock_table(*cells_of(record, kind="random", lengths=lengths, batch_size=batch_size))


OF_HEADLINE = ["BERT, metrics", "BERT, speed", "LSTM, metrics", "LSTM, speed"]

# What makes each table, and its sources
TABLES: dict[str, tuple[Callable[..., Table], list[str]]] = {
    "headline": (given("recipe", headline_table), OF_HEADLINE),
    "grid": (compare.grid_table, ["BERT, metrics"]),
    "comparison": (given("intervals", compare.comparison_table), ["BERT, metrics"]),
    "asked": (given("recipe", compare.asked_table), ["BERT, metrics"]),
    "pairs": (given("intervals", compare.pairs_table), ["BERT, metrics"]),
    "lines-speed": (compare.speed_table, ["BERT, speed"]),
    "lengths": (given("recipe", compare.lengths_table), ["BERT, metrics"]),
    "costs": (compare.costs_table, ["costs"]),
    "longer": (compare.longer_table, ["longer"]),
    "six-layers": (given("intervals", compare.comparison_table, "six-layers"), ["six-layers"]),
    "rules": (lambda records: rules_table(records, "46%"), ["rules"]),
    "rules-harder": (lambda records: rules_table(records, "34%"), ["rules"]),
    "search-twelve": (of_one(search_table), ["search, twelve"]),
    "search-sentences": (of_one(search_table), ["search, sentences"]),
    "search-pairs": (of_one(search_table), ["search, pairs"]),
    "speed": (
        of_one(side_by_side, "bert", FASTEST, against_fastest_text, f"{BY_STUDENT}|^{PADDED}$"),
        ["benchmark"],
    ),
    "speed-gpu": (of_one(side_by_side, "bert", "ms a batch", batch_text, BY_STUDENT), ["benchmark, GPU"]),
    "training-step-gpu": (of_one(side_by_side, "training", "against the first row"), ["benchmark, GPU"]),
    "lstm-gpu": (of_one(side_by_side, "lstm", "ms a batch", batch_text), ["benchmark, GPU"]),
    "pruners": (of_one(side_by_side, "bert", FASTEST, against_fastest_text, "^half, "), ["benchmark"]),
    "gains": (of_one(side_by_side, "gains", "no pruning, against stock"), ["benchmark"]),
    "first-code": (of_one(side_by_side, "first code", "against the first row"), ["benchmark"]),
    "training-step": (of_one(side_by_side, "training", "against the first row"), ["training"]),
    "lstm-speed": (of_one(side_by_side, "lstm", FASTEST, against_fastest_text), ["benchmark"]),
    "engines-1": (of_one(in_engines, "sst-2", 1), ["engines"]),
    "engines-8": (of_one(in_engines, "sst-2", 8), ["engines"]),
    "engines-32": (of_one(in_engines, "sst-2", 32), ["engines"]),
    "engines-128": (of_one(in_engines, "128", 1), ["engines"]),
    "engines-asked": (of_one(asked_table), ["engines"]),
    "engines-trained": (of_one(trained_table), ["engines"]),
    "lstm-agnews": (metrics_table, ["LSTM, metrics"]),
    "lstm-glue": (tasks_table, ["glue"]),
}


def caption(command: str, records: list[Record], source: str = "", **shown: Any) -> str:
    """The command, devices, precisions, seeds and training rows behind a table. source: of several, which.
    shown: facts of the cells that the table shows, where records have some."""
    cells = [cell for r in records for cell in (cells_of(r, **shown) if "cells" in r else [r])]
    devices = sorted({" on ".join(filter(None, [r["device"], r.get("processor")])) for r in records})
    named = f"{source}: `{command}`" if source else f"`{command}`"
    parts = [named, " and ".join(devices), " and ".join(sorted({c["precision"] for c in cells}))]
    if "seed" in records[0]:
        rows = {record["task"]: f"{record['task']} {record['training_rows']:,}" for record in records}
        parts.append("seeds " + ", ".join(map(str, sorted({record["seed"] for record in records}))))
        parts.append("training rows: " + ", ".join(rows.values()))
    return f"({'; '.join(parts)})"


def text_of(name: str) -> str:
    """A table and its captions, as they stand on a page. Raises KeyError for a name not in TABLES."""
    table, sources = TABLES[name]
    found, captions = [], []
    for source in sources:
        study, is_chosen = SOURCES.get(source, (source, bool))
        found.append([record for record in published(study)["records"] if is_chosen(record)])
        command = found[-1][0].get("command", published(study)["command"])
        captions.append(
            caption(command, found[-1], source if len(sources) > 1 else "", **SHOWN.get(source, {}))
        )
    return markdown(*table(*found)) + "\n\n" + "  \n".join(captions) + "\n"


def rewritten(page: str) -> str:
    """A page with every table made anew."""
    return MARKED.sub(lambda match: match[1] + text_of(match[2]) + match[3], page)


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(rewritten(text), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {len(MARKED.findall(text))} tables")


if __name__ == "__main__":
    main()
