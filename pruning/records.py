"""Records: what a run leaves behind.

Every finished run has a folder of its own, records/<model>/<task>/<method>-seed<n>-<key>/, with record.json
and page.html; the key is a hash of everything that affects the outcome. Beside the tasks lies a summary that
a person reads. A run with a record, and a whole model where it keeps one, is finished.
"""

import hashlib
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pruning.caches import whole_file
from pruning.devices import device_name

RECORDS = Path("records")
RECORD = "record.json"
PAGE = "page.html"
INDEX = "index.html"  # of all records
MODELS = ("BERT", "LSTM")
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "scikit-learn", "scipy", "numpy")
DENSE = "dense"
BAG_OF_WORDS = "bag of words"
FAIR = ("dense, stock", "dense, packed")  # variants of a timing that speed-ups are against
OURS, PRUNED = "dense, ours", "pruned"  # and those that are this repository's
LONGEST_SLUG = 29  # so that no path of a record reaches 80 characters


def key_of(key_fields: dict[str, Any]) -> str:
    """Eight hex digits of SHA-256 over everything that affects a run."""
    text = json.dumps(key_fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def slug(name: str) -> str:
    """A name as part of a file's, also on Windows."""
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:LONGEST_SLUG].strip("-")


def folder_of(model: str, key_fields: dict[str, Any]) -> Path:
    """records/<model>/<task>/<method>-seed<n>-<key>, by the fields `task`, `method` and `seed`."""
    name = f"{slug(key_fields['method'])}-seed{key_fields['seed']}-{key_of(key_fields)}"
    return RECORDS / model / key_fields["task"] / name


def folder_of_clock(study: str, record: dict[str, Any]) -> Path:
    """records/<study>/<device>-<key>, of what was timed on a device with some settings by some code."""
    fields = {name: record[name] for name in ("device", "processor", "settings")}
    key = key_of(fields | {"git_commit": record["environment"]["git_commit"]})
    return RECORDS / study / f"{slug(record['device'])}-{key}"


def header(device: torch.device, precision: str, started: float, settings: dict[str, Any]) -> dict[str, Any]:
    """What every record says of its making. started: in seconds since the epoch."""
    environment = {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "git_commit": git_commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {
        "device": device_name(device),
        "processor": processor(),
        "precision": precision,
        "wall_seconds": round(time.time() - started, 1),
        "settings": settings,
        "environment": environment,
    }


def processor() -> str:
    """The CPU's name, where the platform tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """The commit that the code stands at, "+changes" if it was edited since; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        command = ["git", *words]
        done = subprocess.run(command, cwd=here, capture_output=True, check=True, timeout=10)
        return done.stdout.decode(errors="replace").strip()  # file names may be in any letters

    try:
        if git("rev-parse", "--show-prefix"):  # below the root of somebody else's repository
            return None
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a record and its checksum, whole or not at all. Raises ValueError for NaN or infinity: they are
    no JSON."""
    content = record | {"checksum": key_of(record)}
    write_text(path, json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def read(folder: Path) -> dict[str, Any] | None:
    """The record in a run's folder; None where there is none that is whole and its own."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        is_whole = record.pop("checksum", None) in (None, key_of(record))  # older ones have none
        is_own = record["key"] == key_of(record["key_fields"]) and folder.name.endswith(record["key"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return record if is_whole and is_own else None


def read_all(model: str) -> list[dict[str, Any]]:
    """Every record under records/<model>/, by path, but for damaged ones and those of other projects."""
    return [record for record in _by_folder(model).values() if record is not None]


def _by_folder(model: str) -> dict[Path, dict[str, Any] | None]:
    """Folder → its record, None where that is damaged or foreign."""
    folders = sorted(path.parent for path in (RECORDS / model).glob(f"*/*/{RECORD}"))
    return {folder: read(folder) for folder in folders}


# --- The summary -----------------------------------------------------------------------------


def mean_sd(values: list[float], sign: str = "") -> str:
    """× 100."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):{sign}.1f}{spread}"


def _groups(all_records: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Records that differ in nothing but the seed, in the order of task, dense first, method."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in all_records:
        fields = {k: v for k, v in record["key_fields"].items() if k != "seed"}
        is_pruned = record["method"] not in (DENSE, BAG_OF_WORDS)
        group = (record["task"], record["training"], is_pruned, record["method"], key_of(fields))
        groups.setdefault(group, []).append(record)
    return [groups[group] for group in sorted(groups)]


# Column of figures → how the values of the seeds are shown
FIGURES: dict[str, Callable[[list[float]], str]] = {
    "value": mean_sd,
    "against dense": lambda values: mean_sd(values, sign="+"),
    "token-layers kept": lambda values: f"{100 * statistics.mean(values):.0f}%",
    "examples/s": lambda values: f"{statistics.mean(values):,.0f}",
    "speed-up": lambda values: f"× {statistics.mean(values):.2f}",
    "(vs padded)": lambda values: f"× {statistics.mean(values):.2f}",
}
OF_CLOCK = ("examples/s", "speed-up", "(vs padded)")
HEADER = ["task", "method", "pruning", "seeds", "metric", *FIGURES]


@dataclass(frozen=True)
class Line:
    """A line of the summary: runs that differ in nothing but the seed, on one of their splits."""

    runs: list[dict[str, Any]]
    split: str
    metric: str
    figures: dict[str, list[float]]  # column of figures → the seeds' values; empty where there are none

    @property
    def cells(self) -> dict[str, str]:
        """Column → text."""
        first = self.runs[0]
        task = first["task"] + ("" if self.split == "dev" else f" ({self.split})")
        texts = [task, first["method"], first["pruning"], str(len(self.runs)), self.metric]
        missing = {"value": "–", "examples/s": first["untimed"]}
        figures = [
            show(self.figures[name]) if self.figures[name] else missing.get(name, "")
            for name, show in FIGURES.items()
        ]
        return dict(zip(HEADER, texts + figures, strict=True))


def summary_lines(all_records: list[dict[str, Any]]) -> list[Line]:
    """The summary: a line for each task, split, method and pruning.

    The change against dense is taken seed by seed, against the dense run that the method started from: a bag
    of words has none.
    """
    dense = {r["key"]: r for r in all_records if r["method"] == DENSE}
    found = []
    for group in _groups(all_records):
        starts = [
            dense[r["dense_key"]] for r in group if r["dense_key"] in dense and r["method"] != BAG_OF_WORDS
        ]
        for split, evaluation in group[0]["splits"].items():
            metric = next(iter(evaluation["metrics"]))
            values = [r["splits"][split]["metrics"][metric] for r in group]
            baselines = [r["splits"][split]["metrics"][metric] for r in starts]
            compared = len(baselines) == len(group) and None not in (*values, *baselines)
            kept = [r["splits"][split]["token_layers_kept"] for r in group]
            figures = {
                "value": [] if None in values else values,
                "against dense": np.subtract(values, baselines).tolist() if compared else [],
                "token-layers kept": [] if None in kept else kept,
            }
            found.append(Line(group, split, metric, figures | _speeds(group)))
    return found


def _speeds(group: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Examples per second, and the factors against the fair and against the padded baseline: of the pruned
    model, or of the dense one as this repository runs it."""
    timings = [r["timings"] for r in group if r["timings"]]
    own = [timing[own_variant(timing)] for timing in timings]
    fair = [row["speedup"] for row in own]
    padded = [x / timing["dense, padded to 128"]["speedup"] for x, timing in zip(fair, timings, strict=True)]
    speeds = [row["examples_per_second"] for row in own]
    return {"examples/s": speeds, "speed-up": fair, "(vs padded)": padded}


def own_variant(timing: Collection[str]) -> str:
    """Of the variants that are timed the run's own model: the pruned one, or the dense one."""
    return PRUNED if PRUNED in timing else OURS


def summary_rows(all_records: list[dict[str, Any]]) -> list[list[str]]:
    """The cells of the summary, by line, in the order of HEADER; seeds as mean ± sd."""
    return [list(line.cells.values()) for line in summary_lines(all_records)]


LEGEND = (
    "Metrics × 100 on the dev set; ± is the standard deviation over seeds. "
    "Token-layers: real tokens processed, summed over the layers (LSTM: words), against dense. "
    "Speed-up: against stock dense, length-sorted and padded per batch (the fair baseline; LSTM: or packed, "
    "the faster of the two); beside it against stock dense padded to 128. Dense rows: this repository's "
    "model. Timed on a part of the dev set (timing_examples). "
    "A teacher is an upper bound, not a speed-up: it looks at what deployment does not have."
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, its columns aligned so that it is one in a terminal too."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *rows]
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def summary(all_records: list[dict[str, Any]]) -> str:
    """The table and how to read it; before it a warning if there are figures of sample data."""
    warning = "**Sample data: these figures say that everything works, nothing more.**\n\n"
    sample = warning if any(r["sample"] for r in all_records) else ""
    return f"{sample}{markdown(HEADER, summary_rows(all_records))}\n\n{LEGEND}"


def write_summary(model: str) -> None:
    """Writes records/<model>/summary.md from all records there."""
    write_text(RECORDS / model / "summary.md", f"# records/{model}\n\n{summary(read_all(model))}\n")


def print_table(model: str, keys: Collection[str]) -> None:
    """Prints the summary of the runs with these keys, as a runner's last words; before it, a line for each
    folder that holds no sound record."""
    by_folder = _by_folder(model)
    for folder, record in by_folder.items():
        if record is None:
            print(f"{folder}: no record of this project, or a damaged one; left out", file=sys.stderr)
    own = [record for record in by_folder.values() if record and record["key"] in keys]
    print(f"\n{summary(own)}\nAll records: {RECORDS / INDEX}")
