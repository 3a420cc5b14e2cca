"""The tables of studies/engines.py, made from its record. What a cell holds is said there."""

from typing import Any

from pruning.records import DENSE
from studies.comparison_tables import Record, Table, table_of

Rows = dict[str, dict[str, Record]]  # model → engine → what was timed

STOCK, PLAIN = "stock transformers", "PyTorch fp32"
MOST_LOST = 0.005  # of the metric, more than which an engine in bf16 or int8 is pointed at
HALF, HEAVY = "half, ideal gradients student", "heavy, ideal gradients student"
ASKED = {  # lengths, batch size → model → how many times as fast it was to be
    ("sst-2", 32): {"5 whole": 2.0, "3 whole": 3.1, "2 whole": 4.0, HALF: 1.5, HEAVY: 2.3},
    ("sst-2", 8): {"5 whole": 1.8, "3 whole": 2.6, "2 whole": 3.4, HALF: 1.3, HEAVY: 1.7},
    ("sst-2", 1): {"5 whole": 1.35, "3 whole": 1.7, "2 whole": 2.0, HALF: 1.0, HEAVY: 1.0},
    ("128", 1): {"5 whole": 1.9, "3 whole": 2.9, "2 whole": 3.9},
}


def cells_of(record: Record, **wanted: Any) -> list[Record]:
    """The cells that have all these fields."""
    return [cell for cell in record["cells"] if wanted.items() <= cell.items()]


def milliseconds(rows: Rows, model: str) -> dict[str, float]:
    """Engine → ms of an example. A few models are timed at a time, beside the dense one each time: what is
    compared is the ratio to it, and all are scaled to the dense model's first time."""
    return {engine: rows[DENSE][engine]["ms"] / row["against_dense"] for engine, row in rows[model].items()}


def fastest(rows: Rows, *models: str) -> tuple[float, str]:
    """The least ms of an example that any of these models needs, and in which engine."""
    return min((ms, engine) for model in models for engine, ms in milliseconds(rows, model).items())


def gain(rows: Rows, model: str) -> float:
    """How many times as fast as the fastest dense model a model is, both in any engine."""
    return fastest(rows, STOCK, DENSE)[0] / fastest(rows, model)[0]


def clock_table(cell: Record) -> Table:
    """One row for each model, one column for each engine: ms of an example, and the share of what FLOPs
    promise against the dense model in that engine. Then what the fastest engine gains."""
    rows, table = cell["rows"], []
    stock = milliseconds(rows, STOCK)[PLAIN]
    for model, by_engine in rows.items():
        row = {"ms an example": model, "FLOPs": f"{1 / by_engine[PLAIN]['bound']:.0%}"}
        for engine, ms in milliseconds(rows, model).items():
            share = "" if model in (STOCK, DENSE) else f" ({by_engine[engine]['share_of_bound']:.0%})"
            row[engine] = f"{ms:.1f}{share}"
        row["against stock"] = f"× {stock / fastest(rows, model)[0]:.2f}"
        row["against the fastest dense"] = f"× {gain(rows, model):.2f}"
        table.append(row)
    return table_of(table, ["ms an example", "FLOPs", *rows[DENSE]])  # which is in every engine


def asked_table(record: Record) -> Table:
    """The speed-up of each model in its fastest engine against the fastest dense model in any engine; and the
    goal for it, which was set before anything was timed."""
    rows = {model: {"reached, of what was asked": model} for model in next(iter(ASKED.values()))}
    for (lengths, size), goals in ASKED.items():
        [cell] = cells_of(record, kind="random", lengths=lengths, batch_size=size)
        for model, row in rows.items():
            goal = f" of {goals[model]:g}" if model in goals else ""
            row[f"{lengths}, batch {size}"] = f"× {gain(cell['rows'], model):.2f}{goal}"
    return table_of(rows.values())


def trained_table(record: Record) -> Table:
    """One row for each trained model: its metric in each engine, and its fastest engine by batch size."""
    table = []
    for model, by_engine in record["judged"].items():
        row, others = {"metric × 100": model}, []
        for engine, found in by_engine.items():
            lost, changed = by_engine[PLAIN]["metric"] - found["metric"], found["sets"] + found["ties"]
            loss = f", loses {100 * lost:.1f}" if lost > MOST_LOST else ""
            row[engine] = f"{100 * found['metric']:.1f}{loss}"
            if changed:
                others.append(f"{engine} {changed:,} of {found['examples']:,}")
        row["other kept tokens"] = "; ".join(others)
        for cell in cells_of(record, kind="trained"):
            ms, engine = fastest(cell["rows"], model)
            row[f"batch {cell['batch_size']}"] = f"{ms:.1f} ms, × {gain(cell['rows'], model):.2f}, {engine}"
        table.append(row)
    return table_of(table)


def points_of(record: Record) -> dict[str, list[tuple[str, str, float, float]]]:
    """For a picture: batch size → model, engine, ms of an example, metric × 100."""
    return {
        f"batch {cell['batch_size']}": [
            (model, engine, ms, 100 * record["judged"][model][engine]["metric"])
            for model in cell["rows"]
            if model in record["judged"]
            for engine, ms in milliseconds(cell["rows"], model).items()
        ]
        for cell in cells_of(record, kind="trained")
    }
