"""The tables of studies/engines.py, made from its record. What a cell holds is said there."""

from typing import Any

from pruning.records import DENSE
from studies.comparison_tables import Record, Table

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


def engines_of(rows: dict[str, dict[str, Record]]) -> list[str]:
    return list(dict.fromkeys(engine for by_engine in rows.values() for engine in by_engine))


def milliseconds(rows: dict[str, dict[str, Record]], model: str) -> dict[str, float]:
    """Engine → ms of an example. A few models are timed at a time, beside the dense one each time: what is
    compared is the ratio to it, and all are scaled to the dense model's first time."""
    return {engine: rows[DENSE][engine]["ms"] / row["against_dense"] for engine, row in rows[model].items()}


def fastest_dense(rows: dict[str, dict[str, Record]]) -> float:
    """ms of an example, in any engine."""
    return min(min(milliseconds(rows, model).values()) for model in (STOCK, DENSE))


def clock_table(cell: Record) -> Table:
    """One row for each model, one column for each engine: ms of an example, and the share of what FLOPs
    promise against the dense model in that engine. Then what the fastest engine gains."""
    rows, table = cell["rows"], []
    engines = engines_of(rows)
    fair = milliseconds(rows, STOCK)[PLAIN], fastest_dense(rows)
    for model, by_engine in rows.items():
        ms, texts = milliseconds(rows, model), []
        for engine in engines:
            row = by_engine.get(engine)
            share = f" ({row['share_of_bound']:.0%})" if row and model not in (STOCK, DENSE) else ""
            texts.append(f"{ms[engine]:.1f}{share}" if row else "")
        gains = [f"× {dense / min(ms.values()):.2f}" for dense in fair]
        table.append([model, f"{1 / by_engine[PLAIN]['bound']:.0%}", *texts, *gains])
    return ["ms an example", "FLOPs", *engines, "against stock", "against the fastest dense"], table


def asked_table(record: Record) -> Table:
    """The speed-up of each model in its fastest engine against the fastest dense model in any engine; and the
    goal for it, which was set before anything was timed."""
    cells = []
    for lengths, size in ASKED:
        cells += cells_of(record, kind="random", lengths=lengths, batch_size=size)
    table = []
    for model in next(iter(ASKED.values())):
        row = [model]
        for cell, asked in zip(cells, ASKED.values(), strict=True):
            gain = fastest_dense(cell["rows"]) / min(milliseconds(cell["rows"], model).values())
            row.append(f"× {gain:.2f} of {asked[model]:g}" if model in asked else f"× {gain:.2f}")
        table.append(row)
    names = [f"{lengths}, batch {size}" for lengths, size in ASKED]
    return ["reached, of what was asked", *names], table


def trained_table(record: Record) -> Table:
    """One row for each trained model: its metric in each engine, and its fastest engine by batch size."""
    cells, judged = cells_of(record, kind="trained"), record["judged"]
    engines = engines_of(judged)
    table = []
    for model, by_engine in judged.items():
        plain = by_engine[PLAIN]["metric"]
        texts = []
        for engine in engines:
            value = by_engine[engine]["metric"]
            lost = f", loses {100 * (plain - value):.1f}" if plain - value > MOST_LOST else ""
            texts.append(f"{100 * value:.1f}{lost}")
        others = [
            f"{engine} {found['sets'] + found['ties']:,} of {found['examples']:,}"
            for engine, found in by_engine.items()
            if found["sets"] + found["ties"]
        ]
        clocks = []
        for cell in cells:
            ms = milliseconds(cell["rows"], model)
            engine = min(ms, key=ms.__getitem__)
            gain = fastest_dense(cell["rows"]) / ms[engine]
            clocks.append(f"{ms[engine]:.1f} ms, × {gain:.2f}, {engine}")
        table.append([model, *texts, "; ".join(others), *clocks])
    return [
        "metric × 100",
        *engines,
        "other kept tokens",
        *(f"batch {c['batch_size']}" for c in cells),
    ], table


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
