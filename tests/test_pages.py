"""The pages that a person opens: the index of all records and a page of sentences for each run."""

import contextlib
import html
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import make_world, write_data
from matplotlib.colors import to_rgb
from running import BERT, LSTM, found, runner

import PrepareGlue4Bert
import PrepareGlue4Lstm
import RunBert4Glue
import RunLstm4Glue
from pruning import caches, pages, plots, records, results
from pruning.records import Line

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MIXED = " + ".join(["ideal emission rate student", "column mean threshold", "frequency"] * 4)
TWELVE = str([0, 0, 0.123, 0.25, 0.25, 0, 0.5, 0, 0.333, 0, 0.5, 0.125])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world with records of both models; the dense BERT is right in the first half of its answers."""
    folder = tmp_path_factory.mktemp("a world") / "with spaces & more"
    folder.mkdir()
    make_world(folder)
    write_data(folder / "data")
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "write_plots", lambda *_: None)
        PrepareGlue4Bert.main()
        PrepareGlue4Lstm.main()
        bert = runner(RunBert4Glue, BERT | {"shown_examples": 7}, patch)
        bert(pruning_methods=[])
        [dense] = records.read_all("BERT")
        labels = caches.load(Path("cache/bert/sst-2.pt"), "")["splits"]["dev"]["labels"].tolist()
        answers = [float(label if row < 6 else 1 - label) for row, label in enumerate(labels)]
        dense["splits"]["dev"]["predictions"] = answers
        records.write(records.folder_of("BERT", dense["key_fields"]) / records.RECORD, dense)
        bert(pruning_methods=["head", "ideal gradients"])
        runner(RunLstm4Glue, LSTM, patch)(task_names=["mrpc", "sts-b"], pruning_methods=["tail"])
    return folder, labels


@pytest.fixture
def world(trained, tmp_path, monkeypatch):
    """A copy of it, the current folder."""
    folder = shutil.copytree(trained[0] / "records", tmp_path / "with spaces & more/records").parent
    monkeypatch.chdir(folder)
    return folder


def another(record, value, speedup, **fields):
    """Writes the record of a run that differs in `fields` from another's, and its page."""
    changed = (
        record | fields | {"key_fields": record["key_fields"] | fields, "splits": dict(record["splits"])}
    )
    changed["key"] = records.key_of(changed["key_fields"])
    changed["splits"]["dev"] = record["splits"]["dev"] | {"metrics": {"accuracy": value}}
    times = record["timings"]
    changed["timings"] = times | {"pruned": times["pruned"] | {"speedup": speedup}}
    folder = records.folder_of(changed["model"], changed["key_fields"])
    records.write_text(folder / records.PAGE, pages.sentence_page(changed, found("BERT")["dense"]))
    records.write(folder / records.RECORD, changed)


def page_of(record):
    return (records.folder_of(record["model"], record["key_fields"]) / records.PAGE).read_text("utf-8")


class Text(HTMLParser):
    """The words of a page."""

    def __init__(self, page):
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(re.sub(r"(?s)<(style|script)>.*?</\1>", "", page))

    def handle_data(self, data):
        self.words += data.split()

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name == "href" and tag == "a"]


# --- The page of a run -----------------------------------------------------------------------


def test_first_come_the_examples_that_pruning_got_wrong_and_dense_got_right(trained, world):
    labels, record = trained[1], found("BERT")["head"]
    right = [a == b for a, b in zip(record["splits"]["dev"]["predictions"], labels, strict=True)]
    expected = {name: [] for name in results.OUTCOMES}
    for row, mine in enumerate(right):
        lost, won, alike = expected.values()
        (alike if mine == (row < 6) else won if mine else lost).append(row)
    assert record["outcomes"] == {name: len(rows) for name, rows in expected.items()}
    assert all(expected.values())
    names = [(name, row) for name, rows in expected.items() for row in rows][:7]
    assert [example["outcome"] for example in record["shown"]] == [name for name, _ in names]
    assert [example["right"] for example in record["shown"]] == [right[row] for _, row in names]
    assert [example["dense_right"] for example in record["shown"]] == [row < 6 for _, row in names]
    classes = ["negative", "positive"]
    assert [example["label"] for example in record["shown"]] == [classes[int(labels[r])] for _, r in names]
    text = " ".join(Text(page_of(record)).words)
    places = [text.index(f"{name.capitalize()}: {len(rows)} of 12") for name, rows in expected.items()]
    assert places == sorted(places)


def test_a_page_tells_the_run_and_leads_back_to_the_index(world):
    record = found("BERT")["head"]
    page = Text(page_of(record))
    text = " ".join(page.words)
    lines = records.summary_lines(records.read_all("BERT"))
    line = next(line for line in lines if line.cells["method"] == "head")
    assert "sst-2, head, seed 0" in text and "[0, 0.5, 0.5]" in text
    for column in ("value", "against dense", "token-layers kept", "speed-up"):
        assert f"{column} {line.cells[column]}" in text
    [back] = page.links
    folder = records.folder_of("BERT", record["key_fields"])
    assert (folder / back).resolve() == (world / "records/index.html").resolve()


def test_every_drop_has_the_number_of_its_layer_and_what_is_kept_has_none(world):
    for record in found("BERT").values():
        dropped = [d for e in record["shown"] for s in e["sentences"] for d in s["dropped"]]
        numbers = re.findall(r"</span><sup>(\d+)</sup></span>", page_of(record))
        assert numbers == [layer.removeprefix("layer ") for layer in dropped if layer]
        assert bool(numbers) == (record["method"] != "dense")


def test_the_page_of_a_dense_run_begins_with_its_errors(world):
    record = found("LSTM", task="mrpc")["dense"]
    assert list(record["outcomes"]) == ["wrong", "right"] and sum(record["outcomes"].values()) == 12
    assert [example["right"] for example in record["shown"]] == sorted(e["right"] for e in record["shown"])
    assert all(example["dense_answer"] is None for example in record["shown"])


def test_a_score_is_wrong_if_it_is_off_by_one(world):
    for record in found("LSTM", task="sts-b").values():
        for example in record["shown"]:
            assert example["right"] == (abs(float(example["answer"]) - float(example["label"])) < 1)


def test_words_are_escaped(world):
    record = found("BERT")["head"] | {"method": "<i>&", "pruned_layers": []}
    sentence = {"words": ["<script>alert(1)</script>", '"&amp;"'], "dropped": [None, None]}
    record["shown"] = [record["shown"][0] | {"sentences": [sentence], "label": "<b>"}]
    page = pages.sentence_page(record, found("BERT")["dense"])
    assert "<script>" not in page and "<i>" not in page and "<b><b>" not in page
    words = Text(page).words
    assert {"<script>alert(1)</script>", '"&amp;"', "<b>"} <= {*words}


def luminance(colour):
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 12, 48])
def test_shades_grow_darker_and_their_words_stay_legible(count):
    """Contrast as WCAG 2 defines it; 4.5 is its level AA."""
    grounds = [luminance(colour) for colour in pages.shades([f"layer {i}" for i in range(count)]).values()]
    assert all(a > b for a, b in itertools.pairwise(grounds))
    assert all((ground + 0.05) / 0.05 >= 4.5 for ground in grounds)  # of black letters


# --- The index -------------------------------------------------------------------------------


def test_the_index_has_a_row_for_every_method_of_both_models_and_links_to_pages_that_are_there(world):
    page = (world / "records/index.html").read_text("utf-8")  # as the runners left it
    rows = re.findall(r'<tr data-task="(.*?)" data-method="(.*?)"', page)
    made = [record for model in ("BERT", "LSTM") for record in records.read_all(model)]
    assert {(r["task"], r["method"]) for r in made} == {*rows} and len(rows) == len(made) == 8
    links = [link for link in Text(page).links if not link.startswith("#")]
    assert sorted((world / "records" / unquote(link)).resolve() for link in links) == sorted(
        path.resolve() for path in world.glob("records/*/*/*/page.html")
    )
    assert len(links) == 7  # a bag of words drops nothing


def test_seeds_share_a_row_and_one_without_a_page_has_no_link(world):
    head = found("BERT")["head"]
    another(head, 0.75, 2.0, seed=1)
    another(head, 0.75, 2.0, seed=2)
    next(world.glob("records/BERT/sst-2/head-seed1-*/page.html")).unlink()
    pages.write_index()
    page = Path("records/index.html").read_text("utf-8")
    row = next(row for row in page.split("<tr ") if 'data-method="head"' in row)
    assert re.findall(r'page of seed (\d)">\1</a>', row) == ["0", "2"] and "<span>1</span>" in row
    assert " ± " in row


def line(method, untimed="", task="sst-2", **figures):
    pruning = "" if method == "dense" else "0.5"
    run = {"model": "BERT", "task": task, "method": method, "pruning": pruning, "untimed": untimed}
    columns = {name: figures.get(name.split("-")[0].split()[0], []) for name in records.FIGURES}
    return Line([run], "dev", "accuracy", columns)


def test_the_best_of_each_column_is_marked_by_task_and_upper_bounds_take_no_part():
    found = [
        line("dense", value=[0.9]),
        line("head", value=[0.7, 0.8], against=[-0.2, -0.1], token=[0.5], speed=[1.5, 1.7]),
        line("student", value=[0.8996], against=[-0.0004], token=[0.6], speed=[1.4]),
        line("teacher", untimed="upper bound", value=[0.95], against=[0.05], token=[0.1]),
        line("head", task="mrpc", value=[0.1], speed=[1.0]),
    ]
    assert pages.best(found) == [
        {"value"},  # 90.0, as is the student's
        {"token-layers kept", "speed-up"},
        {"value", "against dense"},
        set(),
        set(),  # alone in its task
    ]


def test_a_point_lies_at_its_means_and_its_bars_are_as_long_as_the_deviation_over_seeds():
    one = line("head", value=[0.8], speed=[1.5])
    two = replace(line("tail", value=[0.6, 0.7], speed=[1.2, 1.4]), runs=one.runs * 2)
    panel = pages.panel("BERT", "sst-2", [line("dense", value=[0.9]), one, two])

    def place(ticks, value):  # by the first and the last tick
        (start, low), (end, high) = ((pixel, float(text)) for pixel, text in (ticks[0], ticks[-1]))
        return pytest.approx(start + (value - low) / (high - low) * (end - start), abs=0.2)

    first, second = panel["points"]
    assert (first["x"], first["y"], first["bars"]) == (
        *(place(panel["across"], 1.5), place(panel["up"], 80)),
        [],
    )
    across, up = second["bars"]
    sd = 0.1 / 2**0.5
    assert (across[0], across[2]) == (
        place(panel["across"], 1.3 - 2 * sd),
        place(panel["across"], 1.3 + 2 * sd),
    )
    assert (up[1], up[3]) == (place(panel["up"], 65 - 100 * sd), place(panel["up"], 65 + 100 * sd))
    assert panel["levels"] == [place(panel["up"], 90)] and panel["baseline"] == place(panel["across"], 1)


def test_no_two_methods_have_the_same_mark():
    lines = [line(f"method {i}", value=[0.5], speed=[1.5]) for i in range(42)]
    for each in lines:
        each.runs[0] |= {"seed": 0, "sample": False, "key_fields": each.runs[0] | {"seed": 0}}
    page = pages.index_page(lines)
    assert len({*re.findall(r'<use href="#shape(\d)" class="mark" fill="(#.{6})"', page)}) == 42


# --- In a browser ----------------------------------------------------------------------------

LOOK = """
const read = (frame) => {
  const page = frame.contentDocument, root = page.documentElement;
  return {width: root.clientWidth, needed: root.scrollWidth, errors: frame.contentWindow.errors ?? []};
};
const column = (page, i) => [...page.querySelectorAll("tbody tr:not([hidden])")].map(
  row => row.cells[i].dataset.value ?? row.cells[i].textContent);
const use = (frame) => {
  const page = frame.contentDocument, heads = [...page.querySelectorAll("thead th")];
  const value = heads.findIndex(head => head.textContent === "value"), seen = [];
  for (let i = 0; i < 3; i++) {
    heads[value].querySelector("button").click();
    seen.push([heads[value].getAttribute("aria-sort"), column(page, value)]);
  }
  const choose = (name, text) => {
    page.querySelector(`[name=${name}]`).value = text;
    page.querySelector("form").dispatchEvent(new Event("input"));
  };
  choose("task", "sst-2");
  choose("method", "head");
  const rows = [...page.querySelectorAll("tbody tr:not([hidden]) th")];
  const methods = rows.map(head => head.firstChild.data.trim());
  return {sorted: seen, methods, count: page.querySelector("output").value};
};
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  const result = {looks: frames.map(read), used: use(frames[0])};
  document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
});
"""
LISTEN = "<script>errors = []; addEventListener('error', e => errors.push(e.message))</script>"


def browse(paths, folder):
    """What a browser finds on these pages at two widths; on the first it clicks."""
    texts = [html.escape(LISTEN + path.read_text("utf-8")) for path in paths]
    sizes = ('width="390" height="800"', 'width="1280" height="800"')
    frames = "".join(f'<iframe {size} srcdoc="{text}"></iframe>' for size in sizes for text in texts)
    look = folder / "look.html"
    look.write_text(f"<!doctype html><meta charset=utf-8><body>{frames}<script>{LOOK}</script>", "utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
    ]
    command += ["--virtual-time-budget=5000", "--dump-dom", look.as_uri()]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    return json.loads(html.unescape(re.search("RESULT(.*?)END", said)[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_in_a_browser_nothing_fails_nothing_scrolls_sideways_and_the_table_sorts_and_filters(world, tmp_path):
    head = found("BERT")["head"]
    another(head, 0.25, 1.25, seed=1)
    words = {"words": ["x" * 200, "y" * 200], "dropped": [None, "layer 2"]}
    shown = [head["shown"][0] | {"sentences": [words]}]
    another(head, 0.75, 2.0, method=MIXED, pruning=TWELVE, shown=shown)
    pages.write_index()
    index = world / "records/index.html"
    result = browse([index, *sorted(world.glob("records/*/*/*/page.html"))], tmp_path)
    assert len(result["looks"]) == 2 * 10
    for look in result["looks"]:
        assert look["errors"] == [] and look["needed"] <= look["width"], look
    used = result["used"]
    assert [order for order, _ in used["sorted"]] == ["descending", "ascending", None]
    down, up, plain = ([float(value) for value in values if value] for _, values in used["sorted"])
    assert down == sorted(plain, reverse=True) and up == sorted(plain) and plain not in (up, down)
    assert used["methods"] == ["head"] and used["count"] == "1 of 9 rows"


def test_a_metric_that_is_undefined_is_missing_from_the_picture(world):
    of_task = [record for record in records.read_all("LSTM") if record["task"] == "sts-b"]
    for record in of_task:
        record["splits"]["dev"]["metrics"] = {"pearson": None, "spearman": None}
    plots.write_plots("LSTM", "sts-b", of_task)
    assert (world / "records/LSTM/sts-b.png").is_file()
