"""The pages that a person opens: an index of all records, and for every run its sentences.

Each is one file, opened from the disk: its styles, script and figures are inside. The templates are in
pruning/templates/.
"""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_hex
from matplotlib.ticker import MaxNLocator

from pruning import records
from pruning.records import DENSE, FIGURES, Line

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("pruning"),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
FEWER_IS_BETTER = "token-layers kept"
# Okabe and Ito's colours, which colour-blind readers tell apart; with the shapes in index.html 42 marks
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
SHAPES = 7
AXES = {"left": 46, "right": 388, "top": 12, "bottom": 226}  # of a panel, in pixels
SHADES = LinearSegmentedColormap.from_list("early to late", ["#dde9f8", "#6c9cd6"])  # black is legible on all

# --- The page of a run -----------------------------------------------------------------------


def sentence_page(record: dict[str, Any], dense: dict[str, Any] | None) -> str:
    """An HTML page of the sentences in `record["shown"]`, with the words that went, and before which layer.

    Args:
        record: of the run.
        dense: the record of the run that it started from; None for a dense run.
    """
    lines = records.summary_lines([record] if dense is None else [dense, record])
    return TEMPLATES.get_template("page.html").render(
        record=record,
        lines=[line for line in lines if line.runs[0] is record],
        shades=shades(record["pruned_layers"]),
        zip=zip,
    )


def shades(layers: Sequence[str]) -> dict[str, str]:
    """Layer → its colour: light where words go early, dark where late."""
    steps = np.linspace(0, 1, len(layers))
    return {layer: to_hex(SHADES(step)) for layer, step in zip(layers, steps, strict=True)}


# --- The index -------------------------------------------------------------------------------


def write_index() -> None:
    """Writes records/index.html from all records of both models."""
    found = [line for model in records.MODELS for line in records.summary_lines(records.read_all(model))]
    records.write_text(records.RECORDS / records.INDEX, index_page(found))


def index_page(found: list[Line]) -> str:
    """An HTML page with a table of all lines, and a figure of metric against speed-up. Links are relative to
    records/; a run without a page has none."""
    methods = sorted({line.runs[0]["method"] for line in found if line.figures["speed-up"]})
    return TEMPLATES.get_template("index.html").render(
        found=found,
        best=best(found),
        panels=panels(found),
        axes=AXES,
        marks={name: (COLOURS[i % len(COLOURS)], i % SHAPES) for i, name in enumerate(methods)},
        link=link,
        header=records.HEADER,
        figures=FIGURES,
        fewer_is_better=FEWER_IS_BETTER,
        legend=records.LEGEND,
        mean=statistics.mean,
    )


def link(record: dict[str, Any]) -> str | None:
    """Where the page of a run is, seen from records/; None where it has none."""
    page = records.folder_of(record["model"], record["key_fields"]) / records.PAGE
    return quote(page.relative_to(records.RECORDS).as_posix()) if page.is_file() else None


def best(found: list[Line]) -> list[set[str]]:
    """For each line the columns in which it is the best of its model, task and split; lines that print the
    same are all best, unless all do. Upper bounds take no part, what is not pruned only in "value"."""
    rivals: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, line in enumerate(found):
        if not line.runs[0]["untimed"]:
            rivals[line.runs[0]["model"], line.cells["task"]].append(i)
    marked: list[set[str]] = [set() for _ in found]
    for group in rivals.values():
        for column, show in FIGURES.items():
            lines = {i: found[i] for i in group if column == "value" or found[i].runs[0]["pruning"]}
            means = {i: statistics.mean(v) for i, line in lines.items() if (v := line.figures[column])}
            texts = {i: show([value]) for i, value in means.items()}
            if len(set(texts.values())) > 1:
                choose = min if column == FEWER_IS_BETTER else max
                top = texts[choose(means, key=lambda i: means[i])]
                for i, text in texts.items():
                    if text == top:
                        marked[i].add(column)
    return marked


# --- The figure ------------------------------------------------------------------------------


def panels(found: list[Line]) -> list[dict[str, Any]]:
    """A panel for each model and task in which something was timed."""
    by_task: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in found:
        if line.split == "dev" and line.figures["value"]:
            by_task[line.runs[0]["model"], line.runs[0]["task"]].append(line)
    return [
        panel(model, task, lines)
        for (model, task), lines in by_task.items()
        if any(line.figures["speed-up"] for line in lines)
    ]


def panel(model: str, task: str, lines: list[Line]) -> dict[str, Any]:
    """Where the points, their error bars (± sd over seeds), the levels of dense models and the ticks lie."""
    timed = [line for line in lines if line.figures["speed-up"]]
    speeds = [mean_and_spread(line.figures["speed-up"]) for line in timed]
    values = [mean_and_spread([100 * value for value in line.figures["value"]]) for line in timed]
    unpruned = [line.figures["value"] for line in lines if line.runs[0]["method"] == DENSE]
    levels = [100 * statistics.mean(each) for each in unpruned]
    across = Axis("left", "right", 0.02, [x + sign * dx for x, dx in speeds for sign in (-1, 1)] + [1])
    up = Axis("bottom", "top", 0.5, [y + sign * dy for y, dy in values for sign in (-1, 1)] + levels)
    points = []
    for line, (x, dx), (y, dy) in zip(timed, speeds, values, strict=True):
        flat = across(x - dx), up(y), across(x + dx), up(y)
        upright = across(x), up(y - dy), across(x), up(y + dy)
        bars = [flat, upright] if len(line.runs) > 1 else []
        points.append({"line": line, "x": across(x), "y": up(y), "bars": bars})
    return {
        "model": model,
        "task": task,
        "metric": timed[0].metric,
        "levels": [up(level) for level in levels],
        "baseline": across(1),
        "across": across.ticks,
        "up": up.ticks,
        "points": points,
    }


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


class Axis:
    """Values → pixels between two ends of AXES, with at least `room` beside the outermost values."""

    def __init__(self, start: str, end: str, room: float, values: list[float]):
        room = max(room, 0.06 * (max(values) - min(values)))
        self._ends, self._pixels = (min(values) - room, max(values) + room), (AXES[start], AXES[end])
        marked = [v for v in MaxNLocator(5).tick_values(*self._ends) if self._ends[0] <= v <= self._ends[1]]
        self.ticks = [(self(value), f"{value:.4g}") for value in marked]

    def __call__(self, value: float) -> float:
        return round(float(np.interp(value, self._ends, self._pixels)), 1)
