"""Pictures of records: metric against tokens kept, and the curves of the loss."""

from collections import defaultdict
from io import BytesIO
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from pruning import pruners
from pruning.caches import whole_file
from pruning.records import DENSE, RECORDS

MARKERS = "osD^vP*X<>hp"


def write_plots(model: str, task: str, found: list[dict[str, Any]]) -> None:
    """Writes records/<model>/<task>.png from the records of one task."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    _metric_against_kept(left, found)
    _loss_curves(right, found)
    sample = " (sample data)" if any(r["sample"] for r in found) else ""
    figure.suptitle(f"{task}, {model}{sample}")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    plt.close(figure)
    with whole_file(RECORDS / model / f"{task}.png") as file:
        file.write(picture.getvalue())


def _styles(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Method → colour and marker, the same in both panels; teachers hollow."""
    styles = {}
    for i, method in enumerate(sorted({r["method"] for r in found} - {DENSE})):
        colour = plt.get_cmap("tab10")(i % 10)
        hollow = pruners.is_teacher(method)
        styles[method] = {
            "color": colour,
            "marker": MARKERS[i % len(MARKERS)],
            "markerfacecolor": "none" if hollow else colour,
        }
    return styles


def _metric_against_kept(axes: Any, found: list[dict[str, Any]]) -> None:
    by_method = defaultdict(list)
    for record in found:
        split = record["splits"]["dev"]
        metric, value = next(iter(split["metrics"].items()))
        kept = split["token_layers_kept"]
        by_method[record["method"]].append((100 if kept is None else 100 * kept, 100 * value))
    styles = _styles(found)
    for method, points in sorted(by_method.items()):
        if method == DENSE:
            for _, value in points:
                axes.axhline(value, color="grey", linewidth=0.8, linestyle="--", zorder=0)
            axes.plot([], [], color="grey", linewidth=0.8, linestyle="--", label=DENSE)
            continue
        label = f"{method} (upper bound)" if pruners.is_teacher(method) else method
        axes.plot(*zip(*points, strict=True), linestyle="none", label=label, **styles[method])
    axes.set_xlabel("token-layers kept, % of dense")
    axes.set_ylabel(f"{metric} × 100, dev")
    axes.set_xlim(0, 105)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _loss_curves(axes: Any, found: list[dict[str, Any]]) -> None:
    styles = _styles(found)
    seen = set()
    for record in found:
        if not record["loss_curve"]:
            continue
        method = record["method"]
        steps, losses = zip(*record["loss_curve"], strict=True)
        colour = styles[method]["color"] if method in styles else "grey"
        axes.plot(steps, losses, color=colour, label=None if method in seen else method, linewidth=1)
        seen.add(method)
    axes.set_xlabel("training step")
    axes.set_ylabel("loss (students: plus ranking loss)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
