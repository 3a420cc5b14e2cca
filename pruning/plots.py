"""Pictures of records: metric against tokens kept, and the curves of the loss."""

from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from pruning.caches import whole_file
from pruning.records import BAG_OF_WORDS, DENSE, RECORDS

MARKERS = "osD^vP*X<>hp"
COLOURS = [plt.get_cmap("tab10")(i) for i in range(10) if i != 7]  # grey is for what is not pruned
LINES = {DENSE: "--", BAG_OF_WORDS: ":"}  # what has no token-layers to show is a level
KEPT = "token-layers kept, % of dense"

plt.rcParams.update({"axes.grid": True, "grid.alpha": 0.3, "legend.fontsize": 8})


def write_plots(model: str, task: str, found: list[dict[str, Any]]) -> None:
    """Writes records/<model>/<task>.png from the records of one task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
    methods = sorted({r["method"] for r in found} - set(LINES))
    colours = {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(methods)}
    _metric_against_kept(left, found, colours)
    for record in found:
        if record["loss_curve"]:
            colour = colours.get(record["method"], "grey")
            right.plot(*zip(*record["loss_curve"], strict=True), color=colour, linewidth=1)
    right.set(xlabel="training step", ylabel="loss (students: plus ranking loss)", ylim=(0, None))
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", fontsize=9)
    sample = " (sample data)" if any(r["sample"] for r in found) else ""
    figure.suptitle(f"{task}, {model}{sample}")
    save(figure, RECORDS / model / f"{task}.png")


def _metric_against_kept(axes: Any, found: list[dict[str, Any]], colours: dict[str, Any]) -> None:
    """Upper bounds are hollow."""
    bounds = {record["method"] for record in found if record["untimed"]}
    by_method: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for record in found:
        split = record["splits"]["dev"]
        metric, value = next(iter(split["metrics"].items()))
        if value is not None:
            by_method[record["method"]].append((100 * (split["token_layers_kept"] or 1), 100 * value))
    for method, points in sorted(by_method.items()):
        if method in LINES:
            level(axes, [value for _, value in points], method, LINES[method])
            continue
        hollow, marker = method in bounds, MARKERS[list(colours).index(method) % len(MARKERS)]
        face = "none" if hollow else colours[method]
        style = {"color": colours[method], "marker": marker, "markerfacecolor": face, "linestyle": "none"}
        label = f"{method} (upper bound)" if hollow else method
        axes.plot(*zip(*points, strict=True), label=label, **style)
    axes.set(xlabel=KEPT, ylabel=f"{metric} × 100, dev", xlim=(0, 105))


def level(axes: Any, values: Sequence[float], label: str, style: str) -> None:
    """A grey line across the panel for each value, one label for all."""
    for i, value in enumerate(values):
        axes.axhline(value, color="grey", linewidth=1, linestyle=style, label=None if i else label)


def save(figure: Any, path: Path) -> None:
    """Writes a picture as PNG, whole or not at all."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    plt.close(figure)
    with whole_file(path) as file:
        file.write(picture.getvalue())
