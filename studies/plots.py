"""Pictures of the studies: speed against tokens kept, a search, accuracy against FLOPs and against time."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pruning.plots import COLOURS, KEPT, LINES, MARKERS, level, plt, save
from pruning.records import DENSE


def write_speed(path: Path, cells: list[dict[str, Any]], device: str) -> None:
    """Speed-up against tokens kept: a panel for each shape and precision, a line for each batch size. Of the
    cells of studies/benchmark.py those of the kind "bert" are shown."""
    shown: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["kind"] == "bert":
            shown[cell["shape"], cell["precision"]].append(cell)
    rows, columns = -(-len(shown) // 2), min(2, len(shown))
    size = (6.5 * columns, 4.6 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in panels.flat[len(shown) :]:
        axes.set_visible(False)
    for axes, (names, found) in zip(panels.flat, shown.items(), strict=False):
        _speed_against_kept(axes, found)
        axes.set_title(", ".join(names))
    figure.suptitle(f"Pruned by the student, {device}")
    save(figure, path)


def _speed_against_kept(axes: Any, cells: list[dict[str, Any]]) -> None:
    bounds: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for i, cell in enumerate(cells):
        rows = {k: row for k, row in cell["rows"].items() if k.endswith("student") or k == "ours, dense"}
        points = sorted((100 * row["token_layers_kept"], row["against_dense"]) for row in rows.values())
        for variant, row in rows.items():
            bounds[variant].append((100 * row["token_layers_kept"], row["bound"]))
        label = f"{cell['lengths']}, batches of {cell['batch_size']}"
        axes.plot(*zip(*points, strict=True), marker=MARKERS[i % len(MARKERS)], label=label)
    mean = sorted(tuple(np.mean(points, axis=0)) for points in bounds.values())
    axes.plot(*zip(*mean, strict=True), color="grey", linestyle="--", label="FLOPs bound (mean)")
    axes.set(xlabel=KEPT, ylabel="speed-up against ours dense, pruner included", ylim=(0, None))
    axes.legend()


def write_search(path: Path, record: dict[str, Any]) -> None:
    """Metric against speed-up of every schedule that was evaluated, the front, and what was chosen, by a
    record of studies/search.py."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    points = {tuple(schedule): (speedup, 100 * metric) for schedule, metric, speedup, _ in record["points"]}
    front = [points[tuple(schedule)] for schedule in record["front"]]
    speedups, metrics = zip(*points.values(), strict=True)
    axes.scatter(speedups, metrics, s=14, color="lightgrey", label="evaluated")
    axes.plot(*zip(*front, strict=True), marker="o", label="front, estimated")
    for row in {str(row["schedule"]): row for row in record["chosen"] if row["speedup"]}.values():
        x, y, label = row["speedup"], 100 * row["held_out"], str(row["schedule"])
        axes.plot(x, y, marker="*", markersize=14, linestyle="none", label=label)
    level(axes, [100 * record["dense_held_out"]], "dense", "--")
    mean = ", mean" if len(record["dense"]) > 1 else ""
    axes.set_xlabel("times as fast as stock transformers, length-sorted (stars: by the clock)")
    axes.set_ylabel(f"metric × 100, held-out sentences{mean}")
    axes.legend()
    figure.suptitle(", ".join(record["dense"]))
    save(figure, path)


def write_comparison(
    path: Path, series: dict[str, list[tuple[float, float, str]]], tasks: Sequence[str]
) -> None:
    """Metric against FLOPs: series → share of the dense model's FLOPs, change of the metric and name; dense
    models as levels."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    for i, (name, points) in enumerate(series.items()):
        shares, values, labels = zip(*sorted(points), strict=True)
        x, y = np.multiply(100, shares), np.multiply(100, values)
        if name.startswith(DENSE):
            level(axes, [y[0]], name, LINES.get(name, ":"))
            continue
        is_alone = len(points) == 1 and name != "recipe"  # the legend names it
        axes.plot(x, y, marker=MARKERS[i % len(MARKERS)], label=labels[0] if is_alone else name)
        if is_alone:
            continue
        where: Any = {"xytext": (-7, 4), "ha": "right"} if name == "recipe" else {"xytext": (7, -11)}
        for place, label in zip(zip(x, y, strict=True), labels, strict=True):
            axes.annotate(label, place, textcoords="offset points", fontsize=8, **where)
    metric = f"points against dense, mean of {', '.join(tasks)}"
    axes.set(xlabel="FLOPs, % of dense", ylabel=metric, xlim=(0, 105))
    axes.legend()
    save(figure, path)


def write_front(path: Path, panels: dict[str, list[tuple[str, str, float, float]]], task: str) -> None:
    """Metric against milliseconds, a panel for each batch size: every model in every engine, its name at the
    fastest of them, and the front over all.

    Args:
        panels: title → model, engine, ms of an example, metric × 100.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(7.5 * len(panels), 5.5), layout="constrained")
    engines = list(dict.fromkeys(engine for points in panels.values() for _, engine, _, _ in points))
    for panel, (title, points) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for engine, marker in zip(engines, MARKERS, strict=False):
            for is_cut, colour in ((False, COLOURS[0]), (True, COLOURS[1])):
                label = f"{engine}, {'only cut' if is_cut else 'dense or pruned'}"
                places = [
                    (ms, metric)
                    for model, other, ms, metric in points
                    if other == engine and (model.startswith("cut to") and "," not in model) == is_cut
                ]
                x, y = zip(*places, strict=True) if places else ((), ())
                panel.plot(x, y, marker, color=colour, label=label, alpha=0.7)
        for model, _, ms, metric in {p[0]: p for p in sorted(points, key=lambda p: -p[2])}.values():
            panel.annotate(model, (ms, metric), xytext=(4, 4), textcoords="offset points", fontsize=8)
        best = front([(ms, metric) for _, _, ms, metric in points])
        panel.plot(*zip(*best, strict=True), color="grey", linewidth=1, zorder=0, label="front")
        panel.set(title=title, xlabel="ms an example", ylabel=f"metric × 100, {task}, dev", xscale="log")
        for formatter in (panel.xaxis.set_major_formatter, panel.xaxis.set_minor_formatter):
            formatter("{x:g}")
    panel.legend()
    save(figure, path)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those with no other that is as fast and better."""
    best: list[tuple[float, float]] = []
    for ms, metric in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or metric > best[-1][1]:
            best.append((ms, metric))
    return best
