"""A tiny world to run the scripts in: data in the official layouts, a BERT of 3 layers, 4 folders."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))
pytest.register_assert_rewrite("kills")

from ModifiedModelingBert import PrunedBertConfig, PrunedBertForSequenceClassification  # noqa: E402
from pruning.methods import set_frequencies  # noqa: E402

LAYERS = 3
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
GOOD, BAD = ["good", "great", "superb"], ["bad", "awful", "dull"]
PLAIN = [
    *("the", "a", "film", "was", "seen", "by", "many", "people", "in", "this", "old", "town", "on"),
    *("monday", "and", "it", "then", "went", "to", "us"),
]


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The models are too small for two."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def no_precision_of_other_tests():
    """accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(True)


def tiny_config(**changes) -> dict:
    """A BERT configuration small enough for tests."""
    return {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 160,
    } | changes


def build(schedule=None, methods="head", **changes) -> PrunedBertForSequenceClassification:
    """A tiny pruned BERT in evaluation mode, students and frequencies at random.

    Its weights are large enough for attention to matter: with BERT's own start it is nearly uniform.
    """
    torch.manual_seed(0)
    config = PrunedBertConfig(
        **tiny_config(**{"initializer_range": 0.2} | changes),
        num_labels=2,
        pruning_schedule=schedule,
        pruning_methods=methods,
    )
    model = PrunedBertForSequenceClassification(config).eval()
    set_frequencies(model, 1 + torch.rand(64).argsort())
    with torch.no_grad():
        for pruner in model.bert.encoder.pruners.parameters():
            pruner.normal_()  # students as they come would hardly tell tokens apart
        for fusion in model.bert.encoder.fusions.parameters():
            fusion.normal_(std=0.1)  # and removed tokens would leave nothing
    return model


@pytest.fixture
def batch():
    """Four examples of 17, 9, 4 and 1 real tokens."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([17, 9, 4, 1])
    mask = (torch.arange(17) < lengths[:, None]).long()
    ids = torch.randint(5, 64, (4, 17), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(17) > 5) * mask}


def sentence(rng: random.Random, label: int) -> str:
    words = rng.choices(PLAIN, k=rng.randint(4, 14))
    words.insert(rng.randint(0, len(words)), rng.choice(GOOD if label else BAD))
    return " ".join(words)


def write_task(folder: Path, header: str | None, row, train: int = 24, dev: int = 12) -> None:
    """train.tsv and dev.tsv of rows made by `row(rng, index)`."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for name, count in (("train", train), ("dev", dev)):
        lines = ([header] if header else []) + [row(rng, i) for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sst2_row(rng: random.Random, index: int) -> str:
    return f"{sentence(rng, index % 2)}\t{index % 2}"


def mrpc_row(rng: random.Random, index: int) -> str:
    label = index % 2
    return f"{label}\t1\t2\t{sentence(rng, 1)}\t{sentence(rng, label)}"


def stsb_row(rng: random.Random, index: int) -> str:
    pair = f"{sentence(rng, 1)}\t{sentence(rng, 0)}"
    return f"{index}\tg\tf\t2012\t1\tn\tn\t{pair}\t{(index % 11) * 0.48:.2f}"


def write_agnews(folder: Path, train: int = 24, dev: int = 12) -> None:
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for name, count in (("train.csv", train), ("test.csv", dev)):
        rows = [f'"{i % 4 + 1}","{sentence(rng, 1)}","{sentence(rng, 0)}"' for i in range(count)]
        (folder / name).write_text("\n".join(rows) + "\n", encoding="utf-8")


def write_vocabulary(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(SPECIAL + GOOD + BAD + sorted(set(PLAIN))) + "\n", encoding="utf-8")


def make_world(folder: Path) -> None:
    """The four names in `folder`, a vocabulary and a tiny BERT."""
    for name in ("data", "bert", "cache", "records"):
        (folder / name).mkdir()
    write_vocabulary(folder / "bert" / "vocab.txt")
    write_bert(folder / "bert")


def write_bert(folder: Path, **changes) -> None:
    """A tiny BERT: configuration and weights."""
    from transformers import BertConfig, BertModel

    (folder / "config.json").write_text(json.dumps(tiny_config(**changes)))
    torch.manual_seed(0)
    torch.save(BertModel(BertConfig(**tiny_config(**changes))).state_dict(), folder / "pytorch_model.bin")


def write_data(data: Path) -> None:
    """Single sentences, pairs, graded pairs and AG News."""
    write_task(data / "SST-2", "sentence\tlabel", sst2_row)
    write_task(data / "MRPC", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", mrpc_row)
    header = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    write_task(data / "STS-B", header.replace(" ", "\t"), stsb_row)
    write_agnews(data / "ag_news_csv")


@pytest.fixture
def world(tmp_path, monkeypatch) -> Path:
    """An empty folder with the four names, a vocabulary and a tiny BERT; the current folder."""
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def full_world(world) -> Path:
    """A world with data."""
    write_data(world / "data")
    return world
