"""The speed benchmark: what it counts, and that all of it runs and leaves its records."""

import json

import pytest
import torch

import BenchmarkSpeed
from BenchmarkSpeed import STUDENT, Berts, Variant, bert_variant
from pruning.layers import FastPaths
from pruning.timing import bert_head_flops, bert_layer_flops

TINY = {"hidden_size": 24, "num_hidden_layers": 6, "intermediate_size": 32, "num_attention_heads": 2}
CPU = torch.device("cpu")


@pytest.fixture
def berts(monkeypatch):
    monkeypatch.setattr(BenchmarkSpeed, "SHAPES", {"tiny": TINY})
    return Berts.build("tiny", CPU, torch.float32)


def batch_of(lengths):
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": torch.randint(1_000, 2_000, mask.shape) * mask, "attention_mask": mask.long()}


def test_flops_and_token_layers_are_those_of_what_runs(berts):
    batch, config = batch_of([20, 20, 10]), berts.dense.config
    head = 3 * bert_head_flops(config)
    stock = bert_variant(berts.stock, [batch])
    assert stock.flops == 3 * 6 * bert_layer_flops(config, 20) + head  # with the padding
    assert stock.token_layers == 6 * 50
    dense = bert_variant(berts.dense, [batch])
    assert dense.flops == head + sum(5 * bert_layer_flops(config, n) for n in (20, 20, 10)) + sum(
        bert_layer_flops(config, n, 1) for n in (20, 20, 10)
    )
    pruned = berts.pruned("heavy", STUDENT)  # 0.8 before layer 1, 0.5 before layer 3
    assert bert_variant(pruned, [batch]).token_layers == 50 + 2 * (4 + 4 + 2) + 3 * (2 + 2 + 1)
    pruned.bert.encoder.fast_paths = FastPaths(no_padding=False, cls_only=False)
    student = pruned.bert.encoder.pruners["1"].flops()
    residue = pruned.bert.encoder.residues["1"].flops
    assert pruned.flops(batch["attention_mask"]) == head + 3 * (
        bert_layer_flops(config, 20)
        + 20 * student
        + residue(20)
        + 2 * bert_layer_flops(config, 4)
        + 4 * student
        + residue(4)
        + 3 * bert_layer_flops(config, 2)
    )


def test_speed_ups_are_taken_round_by_round(monkeypatch):
    seconds = {"stock": [1.0, 2.0, 9.0], "ours": [0.5, 1.0, 3.0], "slow": [2.0, 4.0, 9.0]}
    monkeypatch.setattr(BenchmarkSpeed.timing, "interleaved", lambda *_: seconds)
    variants = {
        name: Variant(lambda: None, 10, flops) for name, flops in zip(seconds, (40, 20, 40), strict=True)
    }
    stock, ours, slow = BenchmarkSpeed.measure(variants, "stock", "ours", CPU)
    assert stock["speedup"] == 1 and ours["speedup"] == 2 and slow["speedup"] == 0.5
    assert ours["spread"] == [2, 3] and ours["ms"] == 100
    assert slow["against_dense"] == 0.25 and slow["bound"] == 0.5 and slow["share_of_bound"] == 0.5


def test_lengths_follow_the_table():
    lengths = BenchmarkSpeed.draw_lengths("sst-2").double()
    assert abs(lengths.mean() - 25.2) < 0.5 and lengths.min() == 4 and lengths.max() == 55
    assert set(BenchmarkSpeed.draw_lengths("512").tolist()) == {512}


def test_the_shipped_schedules_keep_what_their_comments_say():
    for layers in (6, 12, 24):
        for name, share in {"light": 0.8, "half": 0.5, "heavy": 0.28}.items():
            alive, total = 1.0, 0.0
            for rate in BenchmarkSpeed.schedule_of(name, layers):
                alive *= 1 - rate
                total += alive / layers
            assert abs(total - share) < 0.01


def test_all_of_it_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BenchmarkSpeed, "SHAPES", {"tiny": TINY})
    small = {
        "bert_shapes": ["tiny"],
        "lengths_of": ["sst-2", "128"],
        "batch_sizes": [1, 4],
        "pruning_methods": ["head", STUDENT],
        "lstm_batch_sizes": [4],
        "lstm_rates": [0.9],
        "tokens_a_round": 60,
        "seconds_a_cell": 0,
        "fewest_rounds": 1,
    }
    for name, value in small.items():
        monkeypatch.setattr(BenchmarkSpeed, name, value)
    BenchmarkSpeed.main()
    folder = tmp_path / "records" / "speed"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".md", ".png"}
    record = json.loads(next(folder.glob("*.json")).read_text())
    kinds = [cell["kind"] for cell in record["cells"]]
    assert set(kinds) == {"bert", "gains", "first code", "training", "lstm"}
    assert record["settings"]["lstm_rates"] == [0.9] and record["processor"]
    cell = record["cells"][0]
    assert [row["variant"] for row in cell["rows"]][:3] == [
        "stock, padded to 128",
        "stock, length-sorted",
        "ours, dense",
    ]
