"""Records: what a run leaves behind.

One JSON file for each task, method, seed and hash of everything that affects the outcome; beside them a
summary that a person reads. A run whose record is there is finished; one that was interrupted left none.
"""

import hashlib
import html
import json
import platform
import statistics
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pruning.caches import whole_file

RECORDS = Path("records")
PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "scikit-learn", "scipy", "numpy")
DENSE = "dense"
BAG_OF_WORDS = "bag of words"
PLAIN = (bool, int, float, str, list, tuple, dict, type(None))


def settings_block(module: dict[str, Any]) -> dict[str, Any]:
    """A runner's settings: its module-level names in lower case that hold plain values.

    Args:
        module: the runner's `globals()`.
    """
    return {
        name: value
        for name, value in module.items()
        if name.islower() and not name.startswith("_") and isinstance(value, PLAIN)
    }


def key_of(affects: dict[str, Any]) -> str:
    """Eight hex digits of SHA-256 over everything that affects a run."""
    text = json.dumps(affects, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def slug(method: str) -> str:
    """A method's name as part of a file's."""
    return "".join(c if c.isalnum() else "-" for c in method)


def path_of(model: str, affects: dict[str, Any]) -> Path:
    """records/<model>/<task>/<method>-seed<seed>-<key>.json."""
    name = f"{slug(affects['method'])}-seed{affects['seed']}-{key_of(affects)}.json"
    return RECORDS / model / affects["task"] / name


def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    return {
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "git_commit": git_commit(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
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
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write(path: Path, record: dict[str, Any]) -> None:
    """Writes a record, whole or not at all."""
    with whole_file(path) as file:
        file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode())


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with whole_file(path) as file:
        file.write(text.encode())


def read_all(model: str) -> list[dict[str, Any]]:
    """Every record under records/<model>/, by path."""
    return [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted((RECORDS / model).glob("*/*.json"))
    ]


# --- The summary -----------------------------------------------------------------------------


def mean_sd(values: list[float], scale: float = 1.0, digits: int = 1, sign: str = "") -> str:
    mean = f"{scale * statistics.mean(values):{sign}.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {scale * statistics.stdev(values):.{digits}f}"


def _groups(found: Iterable[dict[str, Any]]) -> dict[tuple, list[dict[str, Any]]]:
    """Records that differ in nothing but the seed, in the order of task, dense first, method."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for record in found:
        affects = {k: v for k, v in record["affects"].items() if k != "seed"}
        dense_first = record["method"] not in (DENSE, BAG_OF_WORDS)
        group = (record["task"], record["training"], dense_first, record["method"], key_of(affects))
        groups.setdefault(group, []).append(record)
    return dict(sorted(groups.items()))


def summary_rows(found: list[dict[str, Any]]) -> list[list[str]]:
    """The summary table: a line for each task, split, method and pruning; seeds as mean ± sd.

    The change against dense is taken seed by seed, against the dense run that the method started from.
    """
    dense = {r["key"]: r for r in found if r["method"] == DENSE}
    rows = []
    for records in _groups(found).values():
        for split, first in records[0]["splits"].items():
            metric = next(iter(first["metrics"]))
            values = [r["splits"][split]["metrics"][metric] for r in records]
            changes = [
                value - dense[r["dense_key"]]["splits"][split]["metrics"][metric]
                for r, value in zip(records, values, strict=True)
                if r.get("dense_key") in dense
            ]
            kept = [r["splits"][split]["token_layers_kept"] for r in records]
            speeds = [t for r in records if (t := (r.get("timings") or {}).get("pruned"))]
            rows.append(
                [
                    records[0]["task"] + ("" if split == "dev" else f" ({split})"),
                    records[0]["method"],
                    records[0]["pruning"],
                    str(len(records)),
                    metric,
                    mean_sd(values, 100),
                    mean_sd(changes, 100, sign="+") if changes else "",
                    "" if None in kept else f"{100 * statistics.mean(kept):.0f}%",
                    *_speed_cells(records, speeds),
                ]
            )
    return rows


def _speed_cells(records: list[dict[str, Any]], speeds: list[dict[str, Any]]) -> list[str]:
    """Examples per second, and the factors against the fair and against the padded baseline."""
    if not speeds:
        return [records[0].get("untimed", ""), "", ""]
    padded = [
        p["speedup"] / r["timings"]["dense, padded to 128"]["speedup"]
        for r, p in zip(records, speeds, strict=True)
        if "dense, padded to 128" in r["timings"]
    ]
    return [
        f"{statistics.mean(s['examples_per_second'] for s in speeds):,.0f}",
        f"× {statistics.mean(s['speedup'] for s in speeds):.2f}",
        f"× {statistics.mean(padded):.2f}" if padded else "",
    ]


HEADER = [
    "task",
    "method",
    "pruning",
    "seeds",
    "metric",
    "value",
    "against dense",
    "token-layers kept",
    "examples/s",
    "speed-up",
    "(vs padded)",
]
LEGEND = (
    "Metrics × 100 on the dev set; ± is the standard deviation over seeds. "
    "Token-layers: real tokens processed, summed over the layers (LSTM: words), against dense. "
    "Speed-up: against stock dense, length-sorted and padded per batch (the fair baseline); "
    "beside it against stock dense padded to 128. Timed on a subset, see the JSON. "
    "A teacher is an upper bound, not a speed-up: it looks at what deployment has not."
)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, its columns aligned so that it is one in a terminal too."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in table
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def write_summary(model: str) -> str:
    """Writes records/<model>/summary.md from all records there, and returns its table."""
    found = read_all(model)
    table = markdown(HEADER, summary_rows(found))
    sample = (
        "**Sample data: these figures say that everything works, nothing more.**\n\n"
        if any(r["sample"] for r in found)
        else ""
    )
    text = f"# records/{model}\n\n{sample}{table}\n\n{LEGEND}\n"
    write_text(RECORDS / model / "summary.md", text)
    return table


# --- The page of sentences ---------------------------------------------------------------------

PAGE_STYLE = """
body { font: 16px/1.7 system-ui, sans-serif; color: #1a1a1a }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.4rem } .note { color: #555 } .example { border-top: 1px solid #ddd; padding: .8rem 0 }
.answer { font-size: .85rem; color: #555 } .wrong { color: #a40000 } .legend span { margin-right: .4rem }
.gone { text-decoration: line-through }
span.token { padding: 0 .15em; border-radius: .2em; white-space: nowrap }
sub { font-size: .65em; text-decoration: none; display: inline-block }
"""


def _colour(stage: int, stages: int) -> str:
    """Light where a token goes early, dark where it goes late."""
    return f"hsl(18 75% {91 - 21 * stage / max(1, stages - 1):.0f}%)"


def sentence_page(record: dict[str, Any]) -> str:
    """An HTML page of real sentences with what was dropped, and before which layer."""
    stages = record["stages"]
    of_stage = {stage: i for i, stage in enumerate(stages)}

    def token(word: str, gone: str | None) -> str:
        if gone is None:
            return f'<span class="token">{html.escape(word)}</span>'
        style = f"background:{_colour(of_stage[gone], len(stages))}"
        label = f"<sub>{html.escape(gone.split()[-1])}</sub>" if len(stages) > 1 else ""
        return (
            f'<span class="token" style="{style}"><span class="gone">{html.escape(word)}</span>{label}</span>'
        )

    parts = []
    for shown in record["shown"]:
        wrong = "" if shown["right"] else " wrong"
        sentences = [
            " ".join(token(w, g) for w, g in zip(s["words"], s["dropped"], strict=True))
            for s in shown["sentences"]
        ]
        parts.append(
            f'<div class="example">{" &nbsp;|&nbsp; ".join(sentences)}<div class="answer{wrong}">'
            f"answer: {html.escape(shown['answer'])} · label: {html.escape(shown['label'])}</div></div>"
        )
    legend = " ".join(
        f'<span class="token" style="background:{_colour(i, len(stages))}">'
        f"dropped before {html.escape(stage)}</span>"
        for stage, i in of_stage.items()
    )
    title = f"{record['task']}, {record['method']}, seed {record['seed']}"
    sample = "<p class=note>Sample data.</p>" if record["sample"] else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{PAGE_STYLE}</style><h1>{html.escape(title)}</h1>{sample}"
        f'<p class="note">Pruning: {html.escape(record["pruning"])}. The first examples of the dev set. '
        "What is struck through was removed before the layer named beside it.</p>"
        f'<p class="legend">{legend}</p>' + "".join(parts) + "</html>\n"
    )
