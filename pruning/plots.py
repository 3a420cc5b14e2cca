"""Pictures of records: metric against tokens kept, and the curves of the loss."""

import re
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from pruning.caches import whole_file
from pruning.methods import is_teacher
from pruning.records import BAG_OF_WORDS, DENSE, RECORDS

MARKERS = "osD^vP*X<>hp"
COLOURS = [plt.get_cmap("tab10")(i) for i in range(10) if i != 7]  # grey is for what is not pruned
LINES = {DENSE: "--", BAG_OF_WORDS: ":"}  # what has no token-layers to show is a level


def write_plots(model: str, task: str, found: list[dict[str, Any]]) -> None:
    """Writes records/<model>/<task>.png from the records of one task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    styles = _styles(found)
    _metric_against_kept(left, found, styles)
    _loss_curves(right, found, styles)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9)
    sample = " (sample data)" if any(r["sample"] for r in found) else ""
    figure.suptitle(f"{task}, {model}{sample}")
    _save(figure, RECORDS / model / f"{task}.png")


def write_speed(path: Path, cells: list[dict[str, Any]], device: str) -> None:
    """Speed-up against tokens kept: a panel for each shape and precision, a line for each batch size.

    Args:
        cells: of studies/benchmark.py; those of the kind "bert" are shown.
    """
    shown: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        if cell["kind"] == "bert":
            shown[cell["shape"], cell["precision"]].append(cell)
    size = (6.5 * len(shown), 4.6)
    figure, panels = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    for axes, (names, found) in zip(panels[0], shown.items(), strict=True):
        _speed_against_kept(axes, found)
        axes.set_title(", ".join(names))
    figure.suptitle(f"Pruned by the student, {device}")
    _save(figure, path)


def write_search(path: Path, record: dict[str, Any]) -> None:
    """Metric against speed-up of every schedule that was evaluated, the front, and what was chosen.

    Args:
        record: of studies/search.py.
    """
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    points = {tuple(schedule): (speedup, 100 * metric) for schedule, metric, speedup, _ in record["points"]}
    front = [points[tuple(schedule)] for schedule in record["front"]]
    speedups, metrics = zip(*points.values(), strict=True)
    axes.scatter(speedups, metrics, s=14, color="lightgrey", label="evaluated")
    axes.plot(*zip(*front, strict=True), marker="o", label="front, by the table")
    for row in {str(row["schedule"]): row for row in record["chosen"] if row["speedup"]}.values():
        x, y, label = row["speedup"], 100 * row["held_out"], str(row["schedule"])
        axes.plot(x, y, marker="*", markersize=14, linestyle="none", label=label)
    axes.axhline(100 * record["dense_held_out"], color="grey", linestyle="--", label="dense")
    axes.set_xlabel("times as fast as stock transformers, length-sorted (stars: by the clock)")
    axes.set_ylabel("metric × 100, held-out sentences" + (", mean" if len(record["dense"]) > 1 else ""))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.suptitle(", ".join(record["dense"]))
    _save(figure, path)


def write_comparison(
    path: Path, points: dict[tuple[str, str], tuple[float, float]], tasks: Sequence[str]
) -> None:
    """Metric against token-layers: a line for each method through its schedules, dense models as levels.

    Args:
        points: method and schedule ("" where there is only one) → share of the token-layers, metric.
    """
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (method, schedule), (kept, value) in points.items():
        if not schedule:
            method = re.sub(r" \d+", "", method)  # one line for all depths
        lines[method].append((100 * kept, 100 * value))
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    for i, (method, found) in enumerate(lines.items()):
        if method.startswith(DENSE):
            style = "--" if method == DENSE else ":"
            axes.axhline(found[0][1], color="grey", linewidth=1, linestyle=style, label=method)
        else:
            marker = MARKERS[i % len(MARKERS)]
            axes.plot(*zip(*sorted(found), strict=True), marker=marker, label=method)
    axes.set_xlabel("token-layers kept, % of dense (real tokens)")
    axes.set_ylabel(f"metric × 100, dev, mean of {', '.join(tasks)}")
    axes.set_xlim(0, 105)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    plt.close(figure)
    with whole_file(path) as file:
        file.write(picture.getvalue())


def _styles(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method → colour and marker, the same in both panels; teachers hollow."""
    styles = {}
    for i, method in enumerate(sorted({r["method"] for r in found} - set(LINES))):
        colour = COLOURS[i % len(COLOURS)]
        hollow = is_teacher(method)
        styles[method] = {
            "color": colour,
            "marker": MARKERS[i % len(MARKERS)],
            "markerfacecolor": "none" if hollow else colour,
        }
    return styles


def _metric_against_kept(axes: Any, found: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    by_method: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in found:
        split = record["splits"]["dev"]
        metric, value = next(iter(split["metrics"].items()))
        by_method[record["method"]].append((100 * (split["token_layers_kept"] or 1), 100 * value))
    for method, points in sorted(by_method.items()):
        if method in LINES:
            for i, (_, value) in enumerate(points):
                label = method if i == 0 else None
                axes.axhline(value, color="grey", linewidth=1, linestyle=LINES[method], label=label)
            continue
        label = f"{method} (upper bound)" if is_teacher(method) else method
        axes.plot(*zip(*points, strict=True), linestyle="none", label=label, **styles[method])
    axes.set_xlabel("token-layers kept, % of dense")
    axes.set_ylabel(f"{metric} × 100, dev")
    axes.set_xlim(0, 105)
    axes.grid(alpha=0.3)


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
    axes.set_xlabel("token-layers kept, % of dense")
    axes.set_ylabel("speed-up against ours dense, pruner included")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _loss_curves(axes: Any, found: list[dict[str, Any]], styles: dict[str, Any]) -> None:
    for record in found:
        if not record["loss_curve"]:
            continue
        steps, losses = zip(*record["loss_curve"], strict=True)
        colour = styles[record["method"]]["color"] if record["method"] in styles else "grey"
        axes.plot(steps, losses, color=colour, linewidth=1)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (students: plus ranking loss)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
