"""The tables of README and of the studies' pages: what they say of records, and that pages are up to date."""

import re

import pytest
from matplotlib.colors import rgb_to_hsv, to_rgb

from studies import comparison_tables, picture, tables

STUDENT = "ideal gradients student"
OURS = dict.fromkeys(("half", "third", "fifth"), STUDENT)  # the recipe


def answer(task, value, kept=1.0, predictions=()):
    metric = {"sst-2": "accuracy", "cola": "matthews"}[task]
    return {"metrics": {metric: value, "other": 0}, "token_layers_kept": kept, "predictions": predictions}


def trained(method, schedule, values, kept=1.0):
    """Records of one line. values: task → metric of each seed."""
    return [
        {"task": task, "method": method, "schedule": schedule, "seed": seed, "dev": answer(task, value, kept)}
        for task, by_seed in values.items()
        for seed, value in enumerate(by_seed)
    ]


@pytest.fixture
def comparison():
    """Dense models and the recipe at two seeds, a cut BERT at one; a line that lacks a task."""
    return [
        *trained("dense", "", {"sst-2": [0.9, 0.8], "cola": [0.3, 0.5]}),
        *trained("dense, trained on", "", {"sst-2": [0.9, 0.88], "cola": [0.5, 0.5]}),
        *trained(STUDENT, "half", {"sst-2": [0.8, 0.9], "cola": [0.4, 0.2]}, kept=0.5),
        *trained(STUDENT, "third", {"sst-2": [0.7, 0.7], "cola": [0.1, 0.3]}, kept=0.35),
        *trained(STUDENT, "fifth", {"sst-2": [0.87], "cola": [0.0]}, kept=0.2),
        *trained("first 2 layers", "", {"sst-2": [0.6], "cola": [0.2]}, kept=0.33),
        *trained("random", "third", {"sst-2": [0.6]}, kept=0.35),
        {"task": "sst-2", "method": "frozen", "seed": 0, "oracles": {}},
    ]


# --- Comparison -----------------------------------------------------------------------------------


def test_a_line_is_the_mean_over_tasks_of_the_mean_over_seeds(comparison):
    found = [
        {"line": f"{STUDENT}, half", "against": "dense, trained on"}
        | {"change": -0.12, "low": -0.2, "high": 0.011}
    ]
    header, rows = comparison_tables.comparison_table(comparison, found)
    assert header[3:] == [
        "token-layers", "sst-2 accuracy", "cola matthews", "mean", "against “dense, trained on”"
    ]  # fmt: skip
    by_line = {(row[0], row[1]): row[2:] for row in rows}
    assert by_line["dense", ""] == ["2", "100%", "85.0 ± 7.1", "40.0 ± 14.1", "62.5", ""]
    half = ["2", "50%", "85.0 ± 7.1", "30.0 ± 14.1", "57.5", "-12.0 (-20.0 to +1.1)"]
    assert by_line[STUDENT, "half"] == half
    assert by_line["first 2 layers", ""] == ["1", "33%", "60.0", "20.0", "40.0", ""]
    assert ("random", "third") not in by_line  # not yet run on every task


def test_held_out_rows_have_a_column_where_all_lines_were_asked(comparison):
    asked = [record for record in comparison if "dev" in record]
    for record, value in zip(asked, range(len(asked)), strict=True):
        metric = next(iter(record["dev"]["metrics"]))
        record["held_out"] = {"examples": 9, "metrics": {metric: value / 100, "other": 1}}
    header, rows = comparison_tables.comparison_table(comparison, [])
    by_line = {(row[0], row[1]): row[-1] for row in rows}
    assert header[-1] == "held-out mean"
    assert by_line["dense", ""] == "1.5" and by_line["first 2 layers", ""] == "18.5"
    del asked[0]["held_out"]
    assert "held-out mean" not in comparison_tables.comparison_table(comparison, [])[0]


def test_the_better_dense_model_has_all_seeds(comparison):
    better = comparison_tables.better_dense
    assert better(comparison_tables.lines_of(comparison)) == ("dense, trained on", "")
    fewer = [r for r in comparison if (r["method"], r["seed"]) != ("dense, trained on", 1)]
    assert better(comparison_tables.lines_of(fewer)) == ("dense", "")


def test_lines_stand_by_token_layers_then_by_their_mean(comparison):
    _, rows = comparison_tables.comparison_table(comparison, [])
    assert [row[0] for row in rows[:2]] == ["dense, trained on", "dense"]
    assert [row[1] or row[0] for row in rows[2:]] == ["half", "third", "first 2 layers", "fifth"]


def test_a_change_counts_the_seeds_that_both_lines_have(comparison):
    lines = comparison_tables.lines_of(comparison)
    ours, dense = lines["first 2 layers", ""], lines["dense", ""]
    assert comparison_tables.change(ours, dense) == pytest.approx((0.6 + 0.2) / 2 - (0.9 + 0.3) / 2)
    assert comparison_tables.change(ours, dense, without=["cola"]) == pytest.approx(0.6 - 0.9)


def test_the_recipe_is_compared_with_what_has_the_same_budget(comparison):
    comparison += trained("first 4 layers", "third", {"sst-2": [0.6], "cola": [0.2]}, kept=0.33)
    lines = comparison_tables.lines_of(comparison)
    pairs = comparison_tables.pairs_of(lines, OURS)
    best = "dense, trained on", ""
    assert {line for line, against in pairs if against == best} == set(lines) - {best}
    assert pairs[len(lines) - 1 :] == [((STUDENT, "third"), ("first 4 layers", "third"))]


def test_what_was_asked_is_of_the_seeds_and_tasks_that_count(comparison):
    header, rows = comparison_tables.asked_table(comparison, OURS)
    assert header[3:] == ["reached", "without cola", "reached there"]
    assert rows == [
        [f"{STUDENT}, half", "0.2", "12.0", "no", "4.0", "no"],  # 69.5 - 57.5, 89 - 85
        [f"{STUDENT}, third", "1.0", "24.5", "no", "19.0", "no"],
        [f"{STUDENT}, fifth", "2.5", "26.5", "no", "3.0", "no"],  # of seed 0: 70 - 43.5, 90 - 87
    ]
    comparison[4]["dev"]["metrics"]["accuracy"] = 0.2  # the better dense model is now the other one
    better = [*trained(STUDENT, "half", {"sst-2": [0.85, 0.85], "cola": [0.398, 0.398]}, kept=0.5)]
    half = comparison_tables.asked_table(comparison + better, OURS)[1][0]
    assert half[1:] == ["0.2", "0.1", "yes", "0.0", "yes"]


def test_a_line_that_is_not_finished_has_its_values_under_their_tasks():
    """Of one line the second seed of a task is there before the first of another."""
    runs = [("dense", "", "sst-2", 0.9), ("dense", "", "cola", 0.5)]
    runs += [("random", "half", "cola", 0.4), ("random", "half", "sst-2", 0.8)]
    records = [
        {"task": task, "method": method, "schedule": schedule, "seed": 0, "dev": answer(task, value, 0.5, [])}
        for method, schedule, task, value in runs
    ]
    header, rows = comparison_tables.comparison_table(records, [])
    column = header.index("sst-2 accuracy")
    assert {row[0]: row[column] for row in rows} == {"dense": "90.0", "random": "80.0"}


def test_intervals_hold_the_change_and_its_spread_over_examples():
    labels = [i % 2 for i in range(200)]
    wrong = [1 - label if i < 20 else label for i, label in enumerate(labels)]
    records = [
        {"task": "sst-2", "method": method, "schedule": schedule, "seed": seed}
        | {"dev": answer("sst-2", value, kept, predictions)}
        for method, schedule, seeds, value, kept, predictions in (
            ("dense", "", (0, 1, 2), 1.0, 1.0, labels),
            (STUDENT, "half", (0, 1), 0.9, 0.5, wrong),
            ("random", "half", (1, 2), 0.9, 0.5, wrong),
        )
        for seed in seeds
    ]
    found = comparison_tables.intervals(records, {"sst-2": labels}, OURS, draws=400)
    by_pair = {(i["line"], i["against"]): i for i in found}
    student = by_pair[f"{STUDENT}, half", "dense"]
    assert student["seeds"] == [0, 1] and student["change"] == pytest.approx(-0.1)
    spread = 1.96 * (0.1 * 0.9 / 200) ** 0.5
    assert student["low"] == pytest.approx(-0.1 - spread, abs=0.012)
    assert student["high"] == pytest.approx(-0.1 + spread, abs=0.012)
    same = by_pair[f"{STUDENT}, half", "random, half"]
    assert same["seeds"] == [1] and same["change"] == same["low"] == same["high"] == 0
    assert comparison_tables.pairs_table(records, found)[1] == [
        [f"{STUDENT}, half", "random, half", "1", "+0.0 (+0.0 to +0.0)"]
    ]


def test_token_layers_that_differ_by_task_stand_in_brackets(comparison):
    comparison[-3]["dev"]["token_layers_kept"] = 0.43  # the cut BERT's on cola
    _, rows = comparison_tables.comparison_table(comparison, [])
    kept = {name: cell for name, _, _, cell, *_ in rows}
    assert kept["first 2 layers"] == "38% (33% to 43%)" and kept["dense"] == "100%"


def test_flops_have_a_column_where_all_records_have_them(comparison):
    for record in comparison[:-1]:
        record["dev"]["flops_kept"] = record["dev"]["token_layers_kept"] / 2
    header, rows = comparison_tables.comparison_table(comparison, [])
    assert header[3:5] == ["token-layers", "FLOPs"] and rows[0][3:5] == ["100%", "50%"]
    series = comparison_tables.series_of(comparison, OURS)
    assert len(series["recipe"]) == 3 and series["first k layers"] == [
        (0.165, pytest.approx((0.6 + 0.2) / 2 - (0.9 + 0.5) / 2), "first 2 layers")  # of seed 0
    ]


def test_lengths_and_costs_are_means_over_seeds(comparison):
    parts = [{"shortest": i, "longest": i + 1, "examples": 2} for i in range(5)]
    for i, record in enumerate(comparison[:-1]):
        metric = "accuracy" if record["task"] == "sst-2" else "matthews"
        record["dev"]["metrics_by_length"] = [part | {metric: record["seed"] / 2} for part in parts]
        record["processor_seconds"] = {"training": 10.0 + i // 4 * 10, "dense": 10.0, "answers": 5.0}
    _, rows = comparison_tables.lengths_table(comparison, {"fifth": STUDENT})
    assert rows[0] == ["cola", "tokens", "0 to 1", "1 to 2", "2 to 3", "3 to 4", "4 to 5"]
    assert ["cola", "dense", *["25.0"] * 5] in rows and ["sst-2", f"{STUDENT}, fifth", *["0.0"] * 5] in rows
    assert not any("half" in row[1] or "trained on" in row[1] for row in rows)
    header, rows = comparison_tables.costs_table(comparison)
    assert header == ["line", "answers", "scores", "training", "all, with dense"]
    assert rows[0] == ["dense, trained on", "0.50", "0.00", "2.00", "3.50"]


def test_longer_trainings_stand_by_the_dense_model():
    def record(method, epochs, metric, seconds):
        answers = {"metrics": {"matthews": metric}}
        own = {"task": "cola", "method": method, "settings": {"pruned_epochs": epochs}, "dev": answers}
        return own | {"held_out": answers, "processor_seconds": seconds}

    seconds = {"dense": 4.0, "answers": 1.0, "scores": 1.0, "training": 6.0}
    records = [
        record("a", 12, 0.3, seconds),
        record("a", 4, 0.2, {}),
        record("dense", 4, 0.4, {"training": 4.0}),
    ]
    assert comparison_tables.longer_table(records)[1] == [
        ["cola", "dense", "", "40.0", "40.0", "1.00"],
        ["cola", "a", "4", "20.0", "20.0", ""],
        ["cola", "a", "12", "30.0", "30.0", "3.00"],
    ]


def test_rules_stand_by_their_students_and_those_without_by_their_oracles():
    records = [
        {"task": task, "seed": seed, "dense": 0.9}
        | {"oracles": {"46%": {"a": 0.8, "free": 0.7, "b": 0.1 + seed / 10}}}
        | {"students": {"46%": {"a": 0.6, "b": 0.75}}}
        for task in ("sst-2", "cola")
        for seed in (0, 1)
    ]
    header, rows = tables.rules_table(records, "46%")
    assert header == [
        "rule", "oracle: sst-2", "oracle: cola", "oracle: mean",
        "student: sst-2", "student: cola", "student: mean",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["dense", "b", "free", "a"]
    assert rows[1][1:] == ["15.0 ± 7.1", "15.0 ± 7.1", "15.0", "75.0 ± 0.0", "75.0 ± 0.0", "75.0"]
    assert rows[2][1:] == ["70.0 ± 0.0", "70.0 ± 0.0", "70.0", "", "", ""]


# --- Search and benchmark ----------------------------------------------------------------------------


def test_a_search_tells_what_it_chose_for_every_budget():
    def chosen(budget, schedule, speedup, kept):
        found = {"budget": budget, "schedule": schedule, "speedup": speedup, "speedup_promised": 2.5}
        return found | {"held_out": 0.6, "dev_by_task": {"cola": 0.25}, "token_layers_kept": kept}

    record = {"dense": {"cola": 0.3}, "dense_held_out": 0.7}
    record["chosen"] = [
        chosen(3, [0.5, 0.0], 2.456, 0.4),
        chosen(1.5, [0.0, 0.25], 1.6, 0.8),
        chosen("half", [0.5, 0.0], None, 0.4),
    ]
    assert tables.search_table(record)[1] == [
        ["dense", "× 1 (stock)", "", "100%", "30.0", "70.0", ""],
        ["× 1.5", "× 1.60", "× 2.50", "80%", "25.0", "60.0", "`[0, 0.25]`"],
        ["× 3 (not reached)", "× 2.46", "× 2.50", "40%", "25.0", "60.0", "`[0.5, 0]`"],
        ["half", "", "× 2.50", "40%", "25.0", "60.0", "`[0.5, 0]`"],
    ]


def row(speedup, against_dense, kept=1.0, share=1.0):
    found = {"ms": 4.0, "examples_per_second": 1_250.4, "speedup": speedup, "against_dense": against_dense}
    return found | {"token_layers_kept": kept, "share_of_bound": share, "peak_memory": None}


def cell(ours=1.25, **rows):
    named = {"stock, length-sorted": row(1.0, 1 / ours), "ours, dense": row(ours, 1.0)}
    named["half, " + STUDENT] = row(2.0, 1.59, 0.53, 0.871)
    what = {"kind": "bert", "shape": "6 layers", "precision": "fp32", "lengths": "sst-2", "batch_size": 32}
    return what | {"rows": named | rows}


def test_a_speed_up_is_against_the_fastest_dense_engine_whose_examples_a_second_are_told():
    table, _ = tables.TABLES["speed"]
    header, rows = table([{"cells": [cell()]}])
    student = f"half, {STUDENT}"
    assert header == ["against the fastest dense", "stock, length-sorted", "ours, dense", student]
    assert rows == [["6 layers, sst-2, fp32, batch 32", "× 0.80", "1,250 examples/s", "× 1.59 (87%)"]]
    slow = cell(ours=0.8, **{"stock, padded to 128": row(0.2, 0.25), "half, random": row(2.1, 1.6, 0.5)})
    header, rows = table([{"cells": [cell(), slow]}])
    assert header[1:] == ["stock, length-sorted", "ours, dense", student, "stock, padded to 128"]
    assert rows[0][-1] == "" and rows[1][1:] == ["1,250 examples/s", "× 0.80", "× 2.00 (87%)", "× 0.20"]


def test_the_pruners_stand_side_by_side_at_one_schedule():
    table, _ = tables.TABLES["pruners"]
    header, rows = table([{"cells": [cell(**{"half, random": row(2.2, 1.7, 0.5, 0.9)})]}])
    assert header[1:] == [f"half, {STUDENT}", "half, random"] and rows[0][1:] == [
        "× 1.59 (87%)",
        "× 1.70 (90%)",
    ]


def test_lstms_are_against_the_faster_of_the_dense_ones():
    rows = {"dense, packed": row(1.25, 1.25), "dense, padded": row(1.0, 1.0)}
    rows |= {"0.6 removed, student": row(2.5, 2.5, 0.4, 0.5)}
    made = {"kind": "lstm", "precision": "bf16", "batch_size": 8, "rows": rows}
    header, rows = tables.TABLES["lstm-speed"][0]([{"cells": [made]}])
    assert header == ["against the fastest dense", "bf16, batch 8"]
    assert rows == [
        ["dense, packed", "1,250 examples/s"],
        ["dense, padded", "× 0.80"],
        ["0.6 removed, student", "× 2.00 (50%)"],
    ]


def test_a_cell_shows_the_columns_that_it_has():
    rows = {"a": row(1.5, 1.2) | {"flops": 12_345_678.0, "spread": [900.4, 1_300.0]}, "b": {"ms": 1.0}}
    header, cells = tables.cell_table(rows)
    assert "peak MiB" not in header and "FLOPs bound" not in header
    first = dict(zip(header, cells[0], strict=True))
    assert first["MFLOP"] == "12" and first["speed-up"] == "× 1.50"
    assert first["slowest and fastest pass"] == "900 to 1,300"
    assert cells[1] == ["b", "1.00", *[""] * (len(header) - 2)]


# --- README's headline -------------------------------------------------------------------------------


def lstm_record(method, rate, seed, value, kept, dense_key):
    dev = {"metrics": {"accuracy": value}, "token_layers_kept": kept}
    key = f"{method}{rate}{seed}"
    record = {"task": "agnews", "method": method, "pruning": rate, "seed": seed, "key": key, "sample": False}
    record |= {"key_fields": {"method": method, "pruning": rate, "seed": seed}, "training": "9 rows"}
    return record | {"dense_key": dense_key, "splits": {"dev": dev}, "timings": None, "untimed": ""}


def test_the_headline_has_dense_and_pruned_of_the_same_seeds(comparison):
    comparison += trained("first 4 layers", "third", {"sst-2": [0.8], "cola": [0.4]}, kept=0.3)
    for record in comparison:
        if "dev" not in record:
            continue
        record["dev"]["flops_kept"] = record["dev"]["token_layers_kept"] - 0.01
        record["held_out"] = {"metrics": {n: m - 0.01 for n, m in record["dev"]["metrics"].items()}}
    names = ("dense", f"{STUDENT}, half", f"{STUDENT}, third", f"{STUDENT}, fifth", "first 4 layers, third")
    one, two = ({name: {"against_dense": f * (1 + i)} for i, name in enumerate(names)} for f in (1, 4))
    clock = [{"task": "a", "timings": {"1": two, "32": one}}, {"task": "b", "timings": {"1": one, "32": two}}]
    lstm = []
    for seed in (0, 1):
        lstm.append(lstm_record("dense", "", seed, 0.8 + seed / 10, 1.0, None))
        for rate, value, kept in (("0.6, fused", 0.85, 0.41), ("0.9, fused", 0.7, 0.11)):
            method = "integrated gradients student"
            lstm.append(lstm_record(method, rate, seed, value, kept, f"dense{seed}"))
    words = {"dense, padded": row(1.0, 1.0), "0.6 removed, student": row(2.2, 2.2, 0.41)}
    words["0.9 removed, student"] = row(5.66, 5.66, 0.12)
    cells = [{"kind": "lstm", "precision": "fp32", "batch_size": 256, "rows": words}]
    benchmark = [{"device": "CPU", "cells": cells}]
    ours = {"half": STUDENT, "third": "another"}
    comparison = [r for r in comparison if r["method"] != "first 2 layers"]
    header, rows = tables.headline_table(comparison, clock, lstm, benchmark, ours)
    assert header[-4:] == ["metric, dense → pruned", "held out", "work", "speed-up"]
    assert rows[0] == ["GLUE", STUDENT, "69.5 → 57.5", "68.5 → 56.5", "49%", "× 4.00"]  # of 2 and 8
    assert rows[1] == ["GLUE", "first 4 layers", "70.0 → 60.0", "69.0 → 59.0", "29%", "× 10.00"]
    assert rows[2][2:] == ["85.0 ± 7.1 → 85.0 ± 0.0", "", "41%", "× 2.20"]
    assert rows[3][2:] == ["85.0 ± 7.1 → 70.0 ± 0.0", "", "11%", "× 5.66"]
    speed_header, rows = comparison_tables.speed_table(clock)
    assert speed_header == ["line", "a, batch 1", "a, batch 32", "b, batch 1", "b, batch 32"]
    assert rows[1] == [f"{STUDENT}, half", "× 8.00", "× 2.00", "× 2.00", "× 8.00"]


def test_tables_of_metrics_leave_the_clock_out_and_compare_no_bag_of_words():
    records = [lstm_record("dense", "", 0, 0.8, 1.0, None), lstm_record("tail", "0.5", 0, 0.7, 0.5, "dense0")]
    records.append(lstm_record("bag of words", "", 0, 0.75, None, "dense0"))
    other = lstm_record("dense", "", 0, 0.6, 1.0, None) | {"task": "sst-2", "key": "other"}
    timing = {"speedup": 2.345, "examples_per_second": 10}
    records[1]["timings"] = {"pruned": timing, "dense, padded to 128": timing}
    assert tables.tasks_table([*records, other]) == (
        ["method", "agnews accuracy", "sst-2 accuracy"],
        [["bag of words", "75.0", ""], ["dense", "80.0", "60.0"], ["tail", "70.0", ""]],
    )
    header, rows = tables.metrics_table(records)
    assert header[-3:] == ["value", "against dense", "token-layers kept"]
    assert [row[-3:] for row in rows] == [["75.0", "", ""], ["80.0", "", "100%"], ["70.0", "-10.0", "50%"]]


# --- Pages and published records ---------------------------------------------------------------------


def test_the_pages_say_what_their_records_say():
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.rewritten(text) == text, "run `make tables`"


def test_every_table_stands_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in tables.PAGES)
    assert {name for _, name, _ in tables.MARKED.findall(pages)} == set(tables.TABLES)
    assert pages.count("<!-- table") == pages.count("<!-- end -->") == len(tables.MARKED.findall(pages))


def test_a_figure_that_was_changed_by_hand_is_written_again(tmp_path, monkeypatch):
    page, right = tmp_path / "page.md", tables.text_of("rules")
    page.write_text(f"a\n<!-- table rules -->\n{right.replace('87.7', '0.4')}<!-- end -->\nb\n")
    monkeypatch.setattr(tables, "PAGES", [page])
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    tables.main()
    assert page.read_text() == f"a\n<!-- table rules -->\n{right}<!-- end -->\nb\n"


def test_a_caption_tells_command_device_precision_seeds_and_training_rows():
    records = [
        {"device": "CPU, 1 thread", "processor": "Xeon", "precision": "bf16", "seed": seed, "task": "cola"}
        | {"training_rows": 7_696}
        for seed in (1, 0)
    ]
    assert tables.caption("python a.py", records) == (
        "(`python a.py`; CPU, 1 thread on Xeon; bf16; seeds 0, 1; training rows: cola 7,696)"
    )


def test_published_records_are_small_and_hold_no_sentences_of_the_data_sets():
    files = [path for path in tables.PUBLISHED.rglob("*") if path.is_file()]
    assert max(path.stat().st_size for path in files) < 1_000_000
    assert sum(path.stat().st_size for path in files) < 6_000_000
    for path in tables.PUBLISHED.glob("*.json"):
        if (study := path.stem) == "sentence":  # a part of a record, behind a picture
            continue
        found = tables.published(study)
        assert found["study"] == study and found["command"].startswith("python ") and found["records"]
        assert not any(record.get("shown") for record in found["records"])


# --- The picture ------------------------------------------------------------------------------------


def test_a_word_is_drawn_until_the_layer_before_which_it_goes():
    sentence = {"schedule": [0, 0.5, 0.5], "words": ["[CLS]", "aa", "bb", "cc"]}
    sentence["dropped"] = [None, "layer 2", "layer 1", "layer 1"]
    figure = picture.draw(sentence)
    axes = figure.axes[0]
    drawn = [(text.get_text(), round(text.get_position()[1])) for text in axes.texts]
    middle = [round(picture.MARGIN + picture.ROW * (layer + 0.5)) for layer in range(3)]
    rows = [{text for text, y in drawn if y == at} for at in middle]
    assert rows[0] == {"layer 0", "4 of 4", "[CLS]", "aa", "bb", "cc"}
    assert rows[1] == {"layer 1", "2 of 4", "[CLS]", "aa", "bb", "cc"}
    assert rows[2] == {"layer 2", "1 of 4", "[CLS]", "aa"}
    assert figure.get_size_inches()[0] * figure.dpi == pytest.approx(1_000)
    shades = [rgb_to_hsv(to_rgb(box.get_facecolor()))[1] for box in axes.patches]
    gone = [shade for shade in shades if shade > 0]  # white has no colour
    assert len(gone) == 3 and gone[2] > gone[0] == gone[1]
    assert [text for text, _ in drawn if re.fullmatch("[0-9]", text)] == ["1", "1", "2"]


def test_a_long_sentence_is_made_to_fit():
    words = ["[CLS]", *["something"] * 20]
    figure = picture.draw({"schedule": [0, 0.5], "words": words, "dropped": [None] * len(words)})
    ends = [box.get_x() + box.get_width() for box in figure.axes[0].patches]
    assert max(ends) <= picture.WIDTH - picture.RIGHT + 1
