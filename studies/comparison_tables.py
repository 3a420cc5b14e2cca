"""Tables of the comparison, from its records: pure functions.

A *line* is a method (in the comparison's own words) and the budget, or schedule, that it was trained for. Its
*answers* are what its records say of the dev sets, and of held-out rows, of all tasks and seeds.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np

from pruning.metrics import paired_differences
from pruning.records import DENSE, mean_sd
from pruning.tasks import GLUE

Record = dict[str, Any]
Table = tuple[list[str], list[list[str]]]  # header, rows
Line = tuple[str, str]  # a method and the name of its budget or schedule, "" where there is none
Answers = dict[tuple[str, int], Record]  # task, seed → what is known there, see `lines_of`

LONGER = "dense, trained on"
CUT = "first "  # how the lines begin of BERTs that are only cut
GRID = "grid"  # the budget of dense models whose learning rate and epochs were not chosen
ASKED = {"half": 0.002, "third": 0.01, "fifth": 0.025}  # how far below the better dense model at most


def table_of(rows: Collection[dict[str, str]], first: Iterable[str] = ()) -> Table:
    """A table of rows, each heading → text. Its columns are `first` and all other headings that a row has, as
    they come; what a row lacks is empty."""
    header = list(dict.fromkeys(chain(first, *rows)))
    return header, [[row.get(name, "") for name in header] for row in rows]


def percent(value: float) -> str:
    return f"{100 * value:z.1f}"


def name_of(line: Line) -> str:
    """Method and schedule, or the method alone."""
    return ", ".join(filter(None, line))


def lines_of(records: Iterable[Record]) -> dict[Line, Answers]:
    """The trained models, without those that still lack a task that the dense model has.

    Their answers are what records say of the dev set. In place of the judgements themselves stand `dev` and,
    where a record has it, `held_out`: the task's metric there, a fraction."""
    found: dict[Line, Answers] = defaultdict(dict)
    for record in records:
        if "dev" in record and record["schedule"] != GRID:
            line, place = (record["method"], record["schedule"]), (record["task"], record["seed"])
            metrics = {part: metric_of(record[part]) for part in ("dev", "held_out") if part in record}
            found[line][place] = record["dev"] | metrics
    tasks = {line: {task for task, _ in answers} for line, answers in found.items()}
    return {line: answers for line, answers in found.items() if tasks[line] == tasks[DENSE, ""]}


def packed(predictions: Iterable[float]) -> str | list[float]:
    """Predictions as a record has them: of classes a digit each, of scores numbers with two digits."""
    short = [round(value, 2) for value in predictions]
    if all(value in range(10) for value in short):
        return "".join(str(int(value)) for value in short)
    return short


def unpacked(predictions: str | list[float]) -> list[float]:
    """The inverse of `packed`."""
    return [*map(float, predictions)]


def metric_of(judgement: Record) -> float:
    """The task's metric, which is the first one; a fraction."""
    return next(iter(judgement["metrics"].values()))


def by_task(answers: Answers, name: str = "dev") -> dict[str, list[Any]]:
    """Task → what the answers of each seed have by this name."""
    found: dict[str, list[Any]] = defaultdict(list)
    for (task, _), answer in answers.items():
        found[task].append(answer[name])
    return found


def mean_of(answers: Answers, name: str = "dev") -> float:
    """The mean over the tasks of the mean over the seeds."""
    return statistics.mean(map(statistics.mean, by_task(answers, name).values()))


def better_dense(lines: dict[Line, Answers]) -> Line:
    """Of the dense model and the dense model trained on, which has to have all its seeds, the one with the
    higher mean."""
    whole = [line for line, answers in lines.items() if answers.keys() >= lines[DENSE, ""].keys()]
    return max((line for line in whole if line[0].startswith(DENSE)), key=lambda line: mean_of(lines[line]))


def in_common(ours: Answers, theirs: Answers, without: Iterable[str] = ()) -> tuple[Answers, Answers]:
    """Both, with the seeds that both have of each task."""
    shared = [place for place in ours if place in theirs and place[0] not in without]
    return {place: ours[place] for place in shared}, {place: theirs[place] for place in shared}


def change(ours: Answers, theirs: Answers, without: Iterable[str] = ()) -> float:
    """Our mean less theirs, over the seeds that both have."""
    ours, theirs = in_common(ours, theirs, without)
    return mean_of(ours) - mean_of(theirs)


def pairs_of(lines: dict[Line, Answers], recipe: dict[str, str]) -> list[tuple[Line, Line]]:
    """What is compared: every line with the better dense model, and the recipe's line of a budget with the
    others of that budget. recipe: budget → method."""
    best = better_dense(lines)
    pairs = [(line, best) for line in lines if line != best]
    for method, budget in lines:
        ours = recipe.get(budget, method), budget
        if ours[0] != method and ours in lines:
            pairs.append((ours, (method, budget)))
    return pairs


def intervals(
    records: list[Record], labels: dict[str, list[float]], recipe: dict[str, str], draws: int
) -> list[Record]:
    """What the lines of `pairs_of` differ by, with 95% intervals over examples and seeds.

    Args:
        records: of the comparison; each with task, method, schedule (its name, or ""), seed and dev (metrics,
            token_layers_kept, predictions). Those without dev do not count.
        labels: of each task's dev set.
        recipe: see `pairs_of`.
        draws: of the paired bootstrap (`metrics.paired_differences`).

    Returns:
        For each pair: line and against (as `name_of` writes them), seeds (those that both have), change (of
        the mean over the tasks), low and high (of its interval). Fractions, not percent.
    """
    lines, found = lines_of(records), []
    for line, against in pairs_of(lines, recipe):
        both = in_common(lines[line], lines[against])
        ours, theirs = (by_task(answers, "predictions") for answers in both)
        differences = []
        for task in ours:
            pairs = list(zip(map(unpacked, ours[task]), map(unpacked, theirs[task]), strict=True))
            differences.append(paired_differences(GLUE[task], labels[task], pairs, draws))
        low, high = np.percentile(np.mean(differences, axis=0), [2.5, 97.5])
        names = {"line": name_of(line), "against": name_of(against)}
        seeds = sorted({seed for _, seed in both[0]})
        found.append(
            names | {"seeds": seeds, "change": change(*both), "low": float(low), "high": float(high)}
        )
    return found


def interval_text(interval: Record) -> str:
    middle, low, high = (f"{100 * interval[name]:+.1f}" for name in ("change", "low", "high"))
    return f"{middle} ({low} to {high})"


def kept_text(answers: Answers, name: str) -> str:
    """A share of the work that was kept; in brackets the least and the most of a task."""
    ends = [f"{share:.0%}" for share in sorted(map(statistics.mean, by_task(answers, name).values()))]
    spread = "" if ends[0] == ends[-1] else f" ({ends[0]} to {ends[-1]})"
    return f"{mean_of(answers, name):.0%}{spread}"


def grid_table(records: list[Record]) -> Table:
    """Dense models of all learning rates and numbers of epochs that were tried: the metric on held-out rows,
    in brackets on the dev set. Those that were chosen have a star."""
    tried: dict[tuple[float, float, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.get("method") == DENSE and "held_out" in record:
            settings = record["settings"]
            tried[settings["learning_rate"], settings["dense_epochs"], record["task"]].append(record)
    rows: dict[tuple[float, float], dict[str, str]] = defaultdict(dict)
    for (rate, epochs, task), found in sorted(tried.items(), key=lambda item: item[0][:2]):
        held_out, dev = (mean_sd([metric_of(r[part]) for r in found]) for part in ("held_out", "dev"))
        row = rows[rate, epochs]
        row["learning rate"] = np.format_float_scientific(rate, trim="-", exp_digits=1)
        row["epochs"] = f"{epochs:g}"
        row[task] = f"{held_out} ({dev})" + ("" if found[0]["schedule"] == GRID else " *")
    return table_of(rows.values(), ["learning rate", "epochs"])


def comparison_table(records: list[Record], found: list[Record]) -> Table:
    """One row for each trained model, most token-layers first; a column of FLOPs, and one of the mean on
    held-out rows, where all records have them.

    Args:
        found: what `intervals` returned for these records.
    """
    lines = lines_of(records)
    best = name_of(better_dense(lines))
    changes = {i["line"]: interval_text(i) for i in found if i["against"] == best}
    known = [answer for answers in lines.values() for answer in answers.values()]
    with_flops = all("flops_kept" in answer for answer in known)
    with_held_out = all("held_out" in answer for answer in known)

    def rank(line: Line) -> tuple[float, float]:
        return -round(mean_of(lines[line], "token_layers_kept"), 2), -mean_of(lines[line])

    rows = []
    for line in sorted(lines, key=rank):
        answers = lines[line]
        row = {"method": line[0], "budget": line[1], "seeds": str(max(map(len, by_task(answers).values())))}
        row["token-layers"] = kept_text(answers, "token_layers_kept")
        if with_flops:
            row["FLOPs"] = kept_text(answers, "flops_kept")
        for task, values in by_task(answers).items():
            row[f"{task} {GLUE[task].metrics[0]}"] = mean_sd(values)
        row["mean"] = percent(mean_of(answers))
        row[f"against “{best}”"] = changes.get(name_of(line), "")
        if with_held_out:
            row["held-out mean"] = percent(mean_of(answers, "held_out"))
        rows.append(row)
    return table_of(rows)


def pairs_table(records: list[Record], found: list[Record]) -> Table:
    """The other pairs of `intervals`: the recipe against what has the same budget."""
    best = name_of(better_dense(lines_of(records)))
    rows = [
        [i["line"], i["against"], ", ".join(map(str, i["seeds"])), interval_text(i)]
        for i in found
        if i["against"] != best
    ]
    return ["line", "against", "seeds of both", "change of the mean"], rows


def asked_table(records: list[Record], recipe: dict[str, str]) -> Table:
    """How far the recipe was to stay below the better dense model, and how far below it is."""
    lines, rows = lines_of(records), []
    best = lines[better_dense(lines)]
    for budget, most in ASKED.items():
        if (line := (recipe.get(budget, ""), budget)) not in lines:
            continue
        row = [name_of(line), percent(most)]
        for without in ((), ("cola",)):
            lost = -change(lines[line], best, without)
            row += [percent(lost), "yes" if lost <= most else "no"]
        rows.append(row)
    header = ["recipe", "points lost, at most", "points lost", "reached", "without cola", "reached there"]
    return header, rows


def lengths_table(records: list[Record], recipe: dict[str, str]) -> Table:
    """The metric of the dense model, the recipe and the cut BERTs in each fifth of a task's examples, by
    length; means over the seeds."""
    rows = []
    for line, answers in lines_of(records).items():
        if line[0] not in (DENSE, recipe.get(line[1])) and not line[0].startswith(CUT):
            continue
        for task, parts in by_task(answers, "metrics_by_length").items():
            means = [
                percent(statistics.mean(part[GLUE[task].metrics[0]] or 0.0 for part in fifth))
                for fifth in zip(*parts, strict=True)
            ]
            lengths = [f"{part['shortest']} to {part['longest']}" for part in parts[0]]
            if line == (DENSE, ""):
                rows.append([task, "tokens", *lengths])
            rows.append([task, name_of(line), *means])
    rows.sort(key=itemgetter(0))
    return ["task", "", "shortest", "short", "middle", "long", "longest"], rows


def costs_table(records: list[Record]) -> Table:
    """What trainings took against the dense one, with all that each needs: the dense model, its answers to
    the copies, its teacher's scores. In processor time, which other work on the machine still lengthens;
    means over tasks and seeds."""
    kinds = ("answers", "scores", "training")
    records = [record for record in records if record.get("processor_seconds") and record["schedule"] != GRID]
    dense = [record for record in records if record["method"] == DENSE]
    whole = {(r["task"], r["seed"]): r["processor_seconds"]["training"] for r in dense}
    found: dict[Line, list[list[float]]] = defaultdict(list)
    for record in records:
        place = record["task"], record["seed"]
        if record["method"] != DENSE and place in whole:
            shares = [record["processor_seconds"].get(kind, 0.0) / whole[place] for kind in kinds]
            found[record["method"], record["schedule"]].append(shares)
    rows = []
    for line, parts in found.items():
        means = [statistics.mean(shares) for shares in zip(*parts, strict=True)]
        rows.append([name_of(line), *(f"{mean:.2f}" for mean in means), f"{1 + sum(means):.2f}"])
    return ["line", *kinds, "all, with dense"], rows


def longer_table(records: list[Record]) -> Table:
    """One line trained for more and more epochs, from the same dense model: the metric on the dev set and on
    held-out rows, and the processor time of all that it needs against the dense model's."""
    rows = []
    order = sorted(records, key=lambda r: (r["task"], r["method"] != DENSE, r["settings"]["pruned_epochs"]))
    for record in order:
        is_dense, seconds = record["method"] == DENSE, record["processor_seconds"]
        whole = seconds.get("training" if is_dense else DENSE)
        cost = f"{1 if is_dense else sum(seconds.values()) / whole:.2f}" if whole else ""
        epochs = "" if is_dense else f"{record['settings']['pruned_epochs']:g}"
        metrics = [percent(metric_of(record[part])) for part in ("dev", "held_out")]
        rows.append([record["task"], record["method"], epochs, *metrics, cost])
    return ["task", "line", "pruned epochs", "dev", "held out", "all, with dense"], rows


def speed_table(records: list[Record]) -> Table:
    """How many times as fast as the dense model, ours, each line is on each task, with so many examples at
    once. records: those of the clock."""
    rows: dict[str, dict[str, str]] = defaultdict(dict)
    for record in records:
        for size, timings in record["timings"].items():
            for name, row in timings.items():
                rows[name]["line"] = name
                rows[name][f"{record['task']}, batch {size}"] = f"× {row['against_dense']:.2f}"
    return table_of(rows.values(), ["line"])


def speed_of(records: list[Record], name: str) -> float:
    """How many times as fast as the dense model a line is in the largest batches: the geometric mean over
    the tasks. records: those of the clock."""
    largest = [list(record["timings"].values())[-1] for record in records]
    return statistics.geometric_mean(rows[name]["against_dense"] for rows in largest)


def series_of(records: list[Record], recipe: dict[str, str]) -> dict[str, list[tuple[float, float, str]]]:
    """What a picture shows: series → share of the FLOPs, change of the metric against the better dense model,
    and name of each of its lines. The recipe is one, and so are lines whose names differ by numbers."""
    series: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    lines = lines_of(records)
    best = lines[better_dense(lines)]
    for (method, budget), answers in lines.items():
        name = "recipe" if recipe.get(budget) == method else re.sub(r"\d+", "k", method)
        series[name].append((mean_of(answers, "flops_kept"), change(answers, best), method))
    return series
