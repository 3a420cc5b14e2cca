"""Every table of figures in README.md and on the pages beside this file, made from its records.

    records/published/*.json  →  the lines between <!-- table NAME --> and <!-- end -->

`python -m studies.tables` (or `make tables`) writes them again. The functions that turn the records of a
study into rows are pure, and the studies print their own tables with them. A published study is

    study, command   its name, and what makes its records
    records          as the study wrote them, but for sentences of the data sets
    intervals        of the comparison only: see `intervals`
"""

import functools
import json
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pruning.metrics import paired_differences
from pruning.records import HEADER, markdown, mean_sd, summary_rows
from pruning.tasks import GLUE

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "records" / "published"
PAGES = [ROOT / "README.md", ROOT / "studies" / "ACCURACY.md", ROOT / "studies" / "SPEED.md"]
MARKED = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Record = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # header, rows
Line = tuple[str, str]  # a method and the name of its schedule, "" where there is none
Answers = dict[str, dict[int, Record]]  # task → seed → what a record says of the dev set

DENSE = "dense"
RECIPE = "ideal gradients student"  # the method that the others are compared with
# The recipe's schedule → how far below the better dense model it was to stay, and the tasks left out of that.
ASKED = {"half": (0.005, ()), "third": (0.01, ()), "fifth": (0.025, ("cola",))}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


# --- Comparison of trained pruners -------------------------------------------------------------


def name_of(line: Line) -> str:
    """Method and schedule, or the method alone."""
    return ", ".join(filter(None, line))


def lines_of(records: Iterable[Record]) -> dict[Line, Answers]:
    """The trained models, without those that still lack a task that the dense model has."""
    found: dict[Line, Answers] = defaultdict(lambda: defaultdict(dict))
    for record in records:
        if "dev" in record:
            found[record["method"], record["schedule"]][record["task"]][record["seed"]] = record["dev"]
    wanted = set(found[DENSE, ""])
    return {line: answers for line, answers in found.items() if set(answers) == wanted}


def metric_of(judgement: Record) -> float:
    """The task's metric, which is the first one; a fraction."""
    return next(iter(judgement["metrics"].values()))


def kept_of(judgement: Record) -> float:
    return judgement["token_layers_kept"]


def mean_of(answers: Answers, value: Callable[[Record], float] = metric_of) -> float:
    """The mean over the tasks of the mean over the seeds."""
    return statistics.mean(statistics.mean(map(value, by_seed.values())) for by_seed in answers.values())


def better_dense(lines: dict[Line, Answers]) -> Line:
    """Of the dense model and the dense model trained on, the one with the higher mean."""
    return max((line for line in lines if line[0].startswith(DENSE)), key=lambda line: mean_of(lines[line]))


def in_common(ours: Answers, theirs: Answers, without: Iterable[str] = ()) -> tuple[Answers, Answers]:
    """Both, with the seeds that both have of each task."""
    seeds = {task: set(ours[task]) & set(theirs[task]) for task in ours if task not in without}

    def cut(answers: Answers) -> Answers:
        return {task: {seed: answers[task][seed] for seed in sorted(seeds[task])} for task in seeds}

    return cut(ours), cut(theirs)


def change(ours: Answers, theirs: Answers, without: Iterable[str] = ()) -> float:
    """Our mean less theirs, over the seeds that both have."""
    ours, theirs = in_common(ours, theirs, without)
    return mean_of(ours) - mean_of(theirs)


def pairs_of(lines: dict[Line, Answers]) -> list[tuple[Line, Line]]:
    """What is compared: every line with the better dense model; the recipe's lines with the dense model; and
    with every other line the recipe's that keeps about as many token-layers."""
    best = better_dense(lines)
    recipe = [line for line in lines if line[0] == RECIPE]
    others = [line for line in lines if line[0] != RECIPE and not line[0].startswith(DENSE)]
    kept = {line: mean_of(answers, kept_of) for line, answers in lines.items()}
    pairs = [(line, best) for line in lines if line != best] + [(line, (DENSE, "")) for line in recipe]
    if recipe:
        pairs += [(min(recipe, key=lambda r: abs(kept[r] - kept[line])), line) for line in others]
    return list(dict.fromkeys(pairs))


def intervals(records: list[Record], labels: dict[str, list[float]], draws: int = 500) -> list[Record]:
    """What the lines of `pairs_of` differ by, with 95% intervals over examples and seeds.

    Args:
        records: of the comparison; each with task, method, schedule (its name, or ""), seed and dev (metrics,
            token_layers_kept, predictions). Those without dev do not count.
        labels: of each task's dev set.
        draws: of the paired bootstrap (`metrics.paired_differences`).

    Returns:
        For each pair: line and against (as `name_of` writes them), seeds (those that both have), change (of
        the mean over the tasks), low and high (of its interval). Fractions, not percent.

    Raises:
        ValueError: if no record is of the dense model.
    """
    lines, found = lines_of(records), []
    for line, against in pairs_of(lines):
        ours, theirs = in_common(lines[line], lines[against])
        differences = []
        for task, by_seed in ours.items():
            pairs = [(by_seed[seed]["predictions"], theirs[task][seed]["predictions"]) for seed in by_seed]
            differences.append(paired_differences(GLUE[task], labels[task], pairs, draws))
        low, high = np.percentile(np.mean(differences, axis=0), [2.5, 97.5])
        seeds = sorted({seed for by_seed in ours.values() for seed in by_seed})
        names = {"line": name_of(line), "against": name_of(against), "seeds": seeds}
        found.append(names | {"change": change(ours, theirs), "low": float(low), "high": float(high)})
    return found


def interval_text(interval: Record) -> str:
    middle, low, high = (f"{100 * interval[name]:+.1f}" for name in ("change", "low", "high"))
    return f"{middle} ({low} to {high})"


def comparison_table(records: list[Record], found: list[Record]) -> Table:
    """One row for each trained model, most token-layers first.

    Args:
        found: what `intervals` returned for these records.
    """
    lines = lines_of(records)
    best = better_dense(lines)
    changes = {i["line"]: interval_text(i) for i in found if i["against"] == name_of(best)}

    def rank(line: Line) -> tuple[float, float]:
        return -round(mean_of(lines[line], kept_of), 2), -mean_of(lines[line])

    rows = []
    for line in sorted(lines, key=rank):
        by_task = [list(map(metric_of, by_seed.values())) for by_seed in lines[line].values()]
        seeds, kept = str(max(map(len, by_task))), f"{mean_of(lines[line], kept_of):.0%}"
        values = [*(mean_sd(values, 100) for values in by_task), percent(mean_of(lines[line]))]
        rows.append([*line, seeds, kept, *values, changes.get(name_of(line), "")])
    tasks = [f"{task} {GLUE[task].metrics[0]}" for task in lines[best]]
    header = ["method", "schedule", "seeds", "token-layers", *tasks, "mean"]
    return [*header, f"against “{name_of(best)}”"], rows


def pairs_table(records: list[Record], found: list[Record]) -> Table:
    """The other pairs of `intervals`: the recipe against dense, and against what keeps about as much."""
    best = name_of(better_dense(lines_of(records)))
    rows = [
        [i["line"], i["against"], ", ".join(map(str, i["seeds"])), interval_text(i)]
        for i in found
        if i["against"] != best
    ]
    return ["line", "against", "seeds of both", "change of the mean"], rows


def kept_table(records: list[Record]) -> Table:
    """The share of the token-layers that every trained model kept, task by task: mean over the seeds."""
    lines = {line: answers for line, answers in lines_of(records).items() if not line[0].startswith(DENSE)}
    rows = [
        [*line, *(f"{statistics.mean(map(kept_of, by_seed.values())):.0%}" for by_seed in answers.values())]
        for line, answers in sorted(lines.items(), key=lambda item: -mean_of(item[1], kept_of))
    ]
    return ["method", "schedule", *next(iter(lines.values()), [])], rows


def asked_table(records: list[Record]) -> Table:
    """How far the recipe was to stay below the better dense model, and how far below it is."""
    lines, rows = lines_of(records), []
    for schedule, (most, without) in ASKED.items():
        lost = -change(lines[RECIPE, schedule], lines[better_dense(lines)], without)
        what = ", ".join([schedule, *(f"without {task}" for task in without)])
        rows.append([what, percent(most), percent(lost), "yes" if lost <= most else "no"])
    return ["schedule", "points lost, at most", "points lost", "reached"], rows


def rules_table(records: list[Record], schedule: str) -> Table:
    """One row for each rule on the frozen dense model, as an oracle and as a student, best first.

    Args:
        records: those of the comparison with oracles and students: schedule → rule → metric.
        schedule: its name there.
    """
    tasks = list(dict.fromkeys(record["task"] for record in records))
    values: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        values["oracles", DENSE][record["task"]].append(record["dense"])
        for kind in ("oracles", "students"):
            for rule, value in record[kind][schedule].items():
                values[kind, rule][record["task"]].append(value)
    means = {key: statistics.mean(map(statistics.mean, by.values())) for key, by in values.items()}

    def cells(kind: str, rule: str) -> list[str]:
        if (kind, rule) not in values:
            return [""] * (len(tasks) + 1)
        return [*(mean_sd(values[kind, rule][task], 100) for task in tasks), percent(means[kind, rule])]

    def rank(rule: str) -> float:
        return means.get(("students", rule), means["oracles", rule])

    rules = sorted((rule for kind, rule in values if kind == "oracles"), key=rank, reverse=True)
    header = ["rule", *(f"{kind}: {name}" for kind in ("oracle", "student") for name in [*tasks, "mean"])]
    return header, [[rule, *cells("oracles", rule), *cells("students", rule)] for rule in rules]


# --- Search ------------------------------------------------------------------------------------


def search_table(record: Record) -> Table:
    """The schedules that a search chose, the dense model first; budgets with one schedule share a row.

    Speed-ups are against stock transformers, by the clock and as the table of seconds had promised.
    """
    rows = [
        ["dense", "× 1 (stock)", "", "100%"]
        + [percent(value) for value in (*record["dense"].values(), record["dense_held_out"])]
        + [""]
    ]
    by_schedule: dict[str, list[Record]] = defaultdict(list)
    for chosen in sorted(record["chosen"], key=lambda chosen: -chosen["token_layers_kept"]):
        by_schedule[", ".join(f"{rate:g}" for rate in chosen["schedule"])].append(chosen)
    for rates, same in by_schedule.items():
        first, speedups = same[0], [chosen["speedup"] for chosen in same if chosen["speedup"]]
        metrics = [first["dev_by_task"][task] for task in record["dense"]]
        rows.append(
            [
                ", ".join(map(budget_text, same)),
                f"× {speedups[0]:.2f}" if speedups else "",
                f"× {first['speedup_by_table']:.2f}",
                f"{first['token_layers_kept']:.0%}",
                *map(percent, [*metrics, first["held_out"]]),
                f"`[{rates}]`",
            ]
        )
    header = ["budget", "speed-up", "promised", "token-layers", *record["dense"], "held out"]
    return [*header, "`pruning_schedule`"], rows


def budget_text(chosen: Record) -> str:
    budget, speedup = chosen["budget"], chosen["speedup"]
    if isinstance(budget, str):
        return budget
    return f"× {budget:g}" + (" (not reached)" if speedup and speedup < budget else "")


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
STUDENT = f", {RECIPE}"  # how the variants end that are pruned by the student


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


def cells_of(record: Record, kind: str) -> list[Record]:
    return [cell for cell in record["cells"] if cell["kind"] == kind]


def fastest_dense(cell: Record) -> str:
    """The dense variant with the least time, padded as little as can be."""
    variants = [variant for variant in cell["rows"] if variant.startswith(ENGINES)]
    return max(variants, key=lambda variant: cell["rows"][variant]["speedup"])


def engines(cells: list[Record]) -> str:
    """The fastest dense engine, in other cells perhaps another: for the head of a column."""
    return " or ".join(sorted({f"“{fastest_dense(cell)}”" for cell in cells}))


def fastest_text(cell: Record, row: Record) -> str:
    """The speed-up against the fastest dense engine of a cell."""
    fastest = fastest_dense(cell)
    speedup = row["speedup"] / cell["rows"][fastest]["speedup"]
    return f"× {row['against_dense'] if fastest == OURS else speedup:.2f}"


def share_text(cell: Record, row: Record) -> str:
    """The speed-up against the fastest dense engine, and what share that is of what FLOPs promise."""
    share = "" if row["token_layers_kept"] == 1 else f" ({row['share_of_bound']:.0%})"
    return fastest_text(cell, row) + share


def baseline_text(_cell: Record, row: Record) -> str:
    return f"× {row['speedup']:.2f}"


def speed_table(record: Record) -> Table:
    """One row for each shape, lengths and batch size: stock, ours, and pruned by the student."""
    cells = cells_of(record, "bert")
    students = [variant for variant in cells[0]["rows"] if variant.endswith(STUDENT)]
    header = ["shape", "precision", "lengths", "batch", PADDED, "stock, sorted: examples/s", OURS]
    for variant in students:
        kept = sorted({f"{cell['rows'][variant]['token_layers_kept']:.0%}" for cell in cells})
        share = " to ".join(dict.fromkeys([kept[0], kept[-1]]))
        header.append(f"{variant.removesuffix(STUDENT)} ({share}) against {engines(cells)}")
    rows = []
    for cell in cells:
        by_variant, lengths = cell["rows"], cell["lengths"]
        what = [cell["shape"], cell["precision"], lengths + " tokens" * lengths.isdigit()]
        padded = baseline_text(cell, by_variant[PADDED]) if PADDED in by_variant else ""
        stock = f"{by_variant[STOCK]['examples_per_second']:,.0f}"
        ours = baseline_text(cell, by_variant[OURS])
        pruned = [share_text(cell, by_variant[variant]) for variant in students]
        rows.append([*what, str(cell["batch_size"]), padded, stock, ours, *pruned])
    return header, rows


def across(cells: list[Record], heading: str, text: Callable[[Record, Record], str]) -> Table:
    """One row for each variant, one column for each cell; empty where a cell lacks the variant."""
    header = [heading]
    for cell in cells:
        parts = [cell.get(name) for name in ("shape", "lengths", "precision")]
        header.append(", ".join([*filter(None, parts), f"batch {cell['batch_size']}"]))
    variants = dict.fromkeys(variant for cell in cells for variant in cell["rows"])
    return header, [
        [variant, *(text(c, c["rows"][variant]) if variant in c["rows"] else "" for c in cells)]
        for variant in variants
    ]


def pruners_table(record: Record) -> Table:
    """One schedule with every pruner, on lengths of sst-2, against the fastest dense engine."""
    cells = [cell for cell in cells_of(record, "bert") if cell["lengths"] == "sst-2"]
    header, rows = across(cells, f"against {engines(cells)}", fastest_text)
    return header, [row for row in rows if row[0].startswith("half, ")]


def lstm_speed_table(record: Record) -> Table:
    """The LSTM at every rate, against the fastest dense engine."""
    cells = cells_of(record, "lstm")
    return across(cells, f"against {engines(cells)}", share_text)


# --- LSTM --------------------------------------------------------------------------------------


def summary(records: list[Record]) -> list[dict[str, str]]:
    """The summary that the runners print, each row by its headings."""
    return [dict(zip(HEADER, row, strict=True)) for row in summary_rows(records)]


def tasks_table(records: list[Record]) -> Table:
    """One row for each method, one column for each task: the metric, and the speed-up where there is one."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for row in summary(records):
        text = f"{row['value']} ({row['speed-up']})" if row["speed-up"] else row["value"]
        found[row["method"]][f"{row['task']} {row['metric']}"] = text
    tasks = dict.fromkeys(task for by_task in found.values() for task in by_task)
    return ["method", *tasks], [[m, *(by.get(task, "") for task in tasks)] for m, by in found.items()]


# --- README's headline -------------------------------------------------------------------------

BERT_LINES = [(RECIPE, "half"), ("first 3 layers", ""), (RECIPE, "third"), ("first 2 layers", "")]
BERT_CELL = {"kind": "bert", "shape": "6 layers", "lengths": "sst-2", "batch_size": 32, "precision": "fp32"}
LSTM_LINES = [("integrated gradients student", "0.6"), ("integrated gradients student", "0.9")]


def headline_table(comparison: Record, benchmark: Record, lstm: Record) -> Table:
    """What pruning costs and gains on real data, one row for each of BERT_LINES and LSTM_LINES.

    The metric is the better dense model's and ours, over the seeds that both have. The speed-up is the
    benchmark's at about as many token-layers, against the fastest dense engine.

    Args:
        comparison, benchmark, lstm: published studies.
    """
    machine = benchmark["records"][0]
    bert = next(cell for cell in machine["cells"] if BERT_CELL.items() <= cell.items())
    words = max(cells_of(machine, "lstm"), key=lambda cell: cell["batch_size"])
    students = [row for variant, row in bert["rows"].items() if variant.endswith(STUDENT)]
    agnews = [row for row in summary(lstm["records"]) if row["task"] == "agnews"]
    dense_agnews = next(row["value"] for row in agnews if row["method"] == DENSE)
    lines = lines_of(comparison["records"])

    def speed(cell: Record, row: Record) -> str:
        return f"{fastest_text(cell, row)} at {row['token_layers_kept']:.0%}"

    rows = []
    for line in BERT_LINES:
        both = in_common(lines[better_dense(lines)], lines[line])
        kept = mean_of(lines[line], kept_of)
        near = min(students, key=lambda row: abs(row["token_layers_kept"] - kept))
        metrics = " → ".join(percent(mean_of(answers)) for answers in both)
        timed = speed(bert, near) if line[1] else "not timed"
        rows.append(
            [f"GLUE, mean of {len(both[1])}", "BERT, 6 layers", name_of(line), metrics, f"{kept:.0%}", timed]
        )
    for method, rate in LSTM_LINES:
        row = next(row for row in agnews if (row["method"], row["pruning"]) == (method, rate))
        metrics, timed = (
            f"{dense_agnews} → {row['value']}",
            speed(words, words["rows"][f"{rate} removed, student"]),
        )
        rows.append(["AG News", "LSTM", f"{method}, {rate}", metrics, row["token-layers kept"], timed])
    return ["data", "model", "method", "metric × 100, dense → pruned", "token-layers", "speed-up"], rows


# --- Pages -------------------------------------------------------------------------------------


@functools.cache
def published(study: str) -> Record:
    """records/published/<study>.json."""
    return json.loads((PUBLISHED / f"{study}.json").read_text(encoding="utf-8"))


def caption(command: str, records: list[Record]) -> str:
    """The command, devices, precisions, seeds and training rows behind a table."""
    cells = [cell for record in records for cell in record.get("cells", [record])]
    devices = sorted({" on ".join(filter(None, [r["device"], r.get("processor")])) for r in records})
    parts = [f"`{command}`", " and ".join(devices), " and ".join(sorted({c["precision"] for c in cells}))]
    if "seed" in records[0]:
        rows = {record["task"]: f"{record['task']} {record['training_rows']:,}" for record in records}
        parts.append("seeds " + ", ".join(map(str, sorted({record["seed"] for record in records}))))
        parts.append("training rows: " + ", ".join(rows.values()))
    return f"({'; '.join(parts)})"


def text_of(
    study: str, table: Callable[[list[Record]], Table], chosen: Callable[[Record], bool] = bool
) -> Callable[[], str]:
    """What makes the text of a table: of a published study, of whose records some are chosen."""

    def text() -> str:
        records = [record for record in published(study)["records"] if chosen(record)]
        command = records[0].get("command", published(study)["command"])
        return f"{markdown(*table(records))}\n\n{caption(command, records)}\n"

    return text


def headline() -> str:
    """README's first table; under it what its figures come from."""
    comparison, benchmark, lstm = map(published, ("comparison", "benchmark", "lstm"))
    bert = [record for record in comparison["records"] if "dev" in record]
    agnews = [record for record in lstm["records"] if record["task"] == "agnews"]
    captions = [caption(comparison["command"], bert), caption(agnews[0]["command"], agnews)]
    captions.append(
        f"(speed-up: `{benchmark['command']}`, {benchmark['records'][0]['device']}, fp32, batches of 32 and, "
        "LSTM, 256; against the fastest dense engine, ours without pruning and the padded LSTM, at the "
        "token-layers named)"
    )
    table = markdown(*headline_table(comparison, benchmark, lstm))
    return table + "\n\n" + "  \n".join(captions) + "\n"


def trained(table: Callable[[list[Record]], Table]) -> Callable[[], str]:
    return text_of("comparison", table, lambda record: "dev" in record)


def frozen(schedule: str) -> Callable[[], str]:
    return text_of("comparison", lambda rs: rules_table(rs, schedule), lambda record: "oracles" in record)


def searched(index: int) -> Callable[[], str]:
    return text_of("search", lambda records: search_table(records[index]))


def timed(table: Callable[[Record], Table]) -> Callable[[], str]:
    return text_of("benchmark", lambda records: table(records[0]))


TABLES: dict[str, Callable[[], str]] = {
    "headline": headline,
    "comparison": trained(lambda records: comparison_table(records, published("comparison")["intervals"])),
    "pairs": trained(lambda records: pairs_table(records, published("comparison")["intervals"])),
    "kept": trained(kept_table),
    "asked": trained(asked_table),
    "rules": frozen("46%"),
    "rules-harder": frozen("34%"),
    "search-sentences": searched(0),
    "search-pairs": searched(1),
    "search-pairs-fused": searched(2),
    "speed": timed(speed_table),
    "pruners": timed(pruners_table),
    "gains": timed(lambda r: across(cells_of(r, "gains"), "no pruning, against stock", baseline_text)),
    "first-code": timed(lambda r: across(cells_of(r, "first code"), "against the first row", baseline_text)),
    "training-step": timed(lambda r: across(cells_of(r, "training"), "against the first row", baseline_text)),
    "lstm-speed": timed(lstm_speed_table),
    "lstm-agnews": text_of(
        "lstm", lambda rs: (HEADER, summary_rows(rs)), lambda record: record["task"] == "agnews"
    ),
    "lstm-glue": text_of("lstm", tasks_table, lambda record: record["task"] != "agnews"),
}


def rewritten(page: str) -> str:
    """A page with every table made anew. Raises KeyError for a name that is not in TABLES."""
    return MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], page)


def stale(pages: Iterable[Path] = PAGES) -> list[str]:
    """The tables whose text is not what their records say."""
    found = [match for page in pages for match in MARKED.finditer(page.read_text(encoding="utf-8"))]
    return [match[2] for match in found if rewritten(match[0]) != match[0]]


def main() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        page.write_text(rewritten(text), encoding="utf-8")
        print(f"{page.relative_to(ROOT)}: {len(MARKED.findall(text))} tables")


if __name__ == "__main__":
    main()
