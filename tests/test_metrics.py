"""Metrics, FLOPs and timing."""

import numpy as np
import pytest
import torch
from conftest import build
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertLayer

from ModifiedModelingBert import PrunedBertConfig
from pruning import flops, layers, metrics, timing
from pruning.layers import FastPaths, run_layers
from pruning.lstm_model import PrunedLstmClassifier
from pruning.plan import LayoutOptions
from pruning.tasks import AGNEWS, GLUE
from pruning.tokens import FlatTokens


def test_metrics_by_hand():
    labels, answers = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert metrics.compute(GLUE["mrpc"], labels, answers) == pytest.approx({"f1": 2 / 3, "accuracy": 0.6})
    matthews = (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2)
    assert metrics.compute(GLUE["cola"], labels, answers)["matthews"] == pytest.approx(matthews)
    scores = metrics.compute(GLUE["sts-b"], [1, 2, 3, 4], [1, 2, 3, 10])
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2, 3, 10])[0, 1])
    assert metrics.compute(AGNEWS, [0, 1, 2, 3], [0, 1, 2, 2]) == {"accuracy": 0.75}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("labels", "answers"), [([1, 2, 3], [2, 2, 2]), ([2, 2, 2], [1, 2, 3]), ([1], [2])])
def test_a_correlation_with_what_is_constant_is_undefined(labels, answers):
    assert metrics.compute(GLUE["sts-b"], labels, answers) == {"pearson": None, "spearman": None}
    [fifth] = metrics.compute_by_length(GLUE["sts-b"], labels[:1], answers[:1], torch.tensor([7]))
    assert fifth == {"shortest": 7, "longest": 7, "examples": 1, "pearson": None}


@pytest.mark.filterwarnings("error")
def test_answers_of_one_class_have_metrics():
    assert metrics.compute(GLUE["cola"], [1, 1], [1, 1])["matthews"] == 0
    assert metrics.compute(GLUE["cola"], [0, 1, 1], [1, 1, 1])["matthews"] == 0
    assert metrics.compute(GLUE["mrpc"], [0, 1, 1], [0, 0, 0]) == {"f1": 0, "accuracy": pytest.approx(1 / 3)}


def test_fifths_by_length():
    lengths = torch.arange(100).flip(0)
    labels = [1.0] * 100
    answers = [float(length >= 20) for length in lengths]
    fifths = metrics.compute_by_length(GLUE["sst-2"], labels, answers, lengths)
    assert [f["accuracy"] for f in fifths] == [0, 1, 1, 1, 1]
    assert [(f["shortest"], f["longest"], f["examples"]) for f in fifths[:2]] == [(0, 19, 20), (20, 39, 20)]


def test_answers_of_classes_and_scores():
    logits = torch.tensor([[0.1, 0.9], [3.0, 1.0]])
    assert metrics.predictions_of(GLUE["sst-2"], logits) == [1, 0]
    assert metrics.predictions_of(GLUE["sts-b"], logits[:, :1]) == pytest.approx([0.1, 3.0])


def test_paired_differences_are_the_difference_and_its_spread():
    labels = [i % 2 for i in range(200)]
    right, wrong = labels, [1 - label if i < 20 else label for i, label in enumerate(labels)]
    found = metrics.paired_differences(GLUE["sst-2"], labels, [(right, wrong)] * 3, 400)
    assert found.mean() == pytest.approx(0.1, abs=0.01)
    assert found.std() == pytest.approx((0.1 * 0.9 / 200) ** 0.5, rel=0.15)
    same = metrics.paired_differences(GLUE["sst-2"], labels, [(wrong, wrong)], 10)
    assert not same.any()


@torch.no_grad()
def counted(run) -> int:
    """FLOPs by PyTorch's counter, which does not see fused attention and nn.LSTM."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.fixture
def layer():
    config = PrunedBertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    config._attn_implementation = "eager"
    return BertLayer(config).eval()


def test_flops_of_a_layer_are_those_of_its_products(layer):
    count = counted(lambda: layer(torch.randn(1, 23, 64)))
    assert flops.bert_layer(layer.attention.self.config, [(1, 23, 23)]) == count


def test_flops_of_a_last_layer_that_only_cls_asks(layer):
    options = LayoutOptions(torch.device("cpu"), 4, unpad=True, readable=False, filled=False)
    tokens = FlatTokens.start(torch.randn(1, 23, 64), np.ones((1, 23), bool), None, [], options)
    config = layer.attention.self.config
    plain = FastPaths(fused_product=False, absorbed=False)
    count = counted(lambda: run_layers([layer], tokens, plain, only_first=True))
    attention = 2 * 2 * 23 * 64  # the counter does not see the fused one
    assert flops.bert_layer(config, [(1, 23, 1)], absorbed=False) == count + attention
    count = counted(lambda: run_layers([layer], tokens, FastPaths(fused_product=False), only_first=True))
    assert flops.bert_layer(config, [(1, 23, 1)]) == count


@pytest.mark.parametrize("method", ["tail", "column mean", "ideal gradients student"])
@pytest.mark.parametrize("removed_tokens", ["fused", "readable", "gone"])
@pytest.mark.parametrize("schedule", [None, [0, 0.5, 0.3], [0.5, 0, 0]])
def test_flops_of_a_pruned_bert_are_those_of_its_products(batch, method, removed_tokens, schedule):
    model = build(schedule, method, removed_tokens=removed_tokens)
    model.set_attn_implementation("eager")  # without the fast paths
    model.bert.encoder.fast_paths = None
    assert flops.pruned_bert(model, batch) == counted(lambda: model(**batch))


@pytest.mark.parametrize("method", ["tail", "ideal gradients student"])
def test_flops_of_readable_tokens_where_padding_is_filled_in(batch, method, monkeypatch):
    """A GPU without varlen keeps readable tokens on one grid: (rows, read width, updated width)."""
    monkeypatch.setattr(layers, "calls_are_dear", lambda _: True)
    model = build([0, 0.5, 0], method, removed_tokens="readable")
    model.bert.encoder.fast_paths = FastPaths(fused_product=False, absorbed=False)
    groups, run = [], layers.run_layers

    def seen(segment, tokens, *rest):
        groups.append(tokens.unpadding.groups)
        return run(segment, tokens, *rest)

    monkeypatch.setattr("ModifiedModelingBert.run_layers", seen)
    with torch.no_grad():
        model(**batch)
    assert groups == [[(4, 17, 17)], [(4, 17, 9)]]
    whole = flops.bert_layer(model.config, groups[0], absorbed=False)
    half = flops.bert_layer(model.config, groups[1], absorbed=False)
    last = flops.bert_layer(model.config, [(4, 17, 1)], absorbed=False)
    scores = model.bert.encoder.pruners["1"].flops(1, 4 * 17)
    assert flops.pruned_bert(model, batch) == whole + half + last + scores + 4 * flops.bert_head(model.config)


def test_flops_of_a_threshold_follow_the_tokens_that_stay(batch):
    model = build([0, 0.5, 0], "column mean threshold")
    model.set_attn_implementation("eager")
    model.bert.encoder.fast_paths = None
    for threshold in (0.0, 0.1, 1.0):  # all stay, some, the first alone
        model.bert.encoder.pruners["1"].threshold.fill_(threshold)
        assert flops.pruned_bert(model, batch) == counted(lambda: model(**batch))


def test_flops_of_stock_bert_are_those_of_its_products(batch):
    stock = BertForSequenceClassification(build().config).eval()
    stock.set_attn_implementation("eager")
    assert flops.stock_bert(stock, batch) == counted(lambda: stock(**batch))


def test_the_fast_paths_count_the_tokens_that_they_process():
    """Sequences of 40 and of 7, 7 and 3 tokens, no padding; the last layer's queries are [CLS] alone."""
    model = build()
    mask = torch.arange(40) < torch.tensor([[40], [7], [7], [3]])
    config = model.config
    layers = sum(
        2 * flops.bert_layer(config, [(1, n, n)]) + flops.bert_layer(config, [(1, n, 1)])
        for n in (40, 7, 7, 3)
    )
    assert flops.pruned_bert(model, {"attention_mask": mask.long()}) == layers + 4 * flops.bert_head(config)


def test_flops_of_the_lstm_are_those_of_its_gates():
    assert flops.lstm_layer(300, 300, 10) == 10 * 2 * (4 * 300) * 600


def test_flops_of_a_pruned_lstm_are_those_of_its_steps_and_its_student():
    def model(method, removed_tokens="gone"):
        return PrunedLstmClassifier(50, 2, pair=True, method=method, rate=0.5, removed_tokens=removed_tokens)

    mask = torch.arange(12) < torch.tensor([12, 7, 2])[:, None]
    batch = {"mask": mask, "second_mask": mask[:, :6]}
    padded = {None: 12 + 6, "tail": 6 + 3, "lstm student": 6 + 3}
    # of the words that have one before them; few sentences of 12 words are left to the fused LSTM
    products = {None: 11, "tail": 8 + 4, "lstm student": 8 + 4}
    for method in padded:
        tabled, plain = model(method), model(method)
        plain.fast = False
        is_student = method == "lstm student"
        # from the table: for each word 3 rows of 32 are added, then a product with one output
        of_table, of_product = (3 * 32 + 2 * 32, 2 * (3 * 300 * 32 + 32)) if is_student else (0, 0)
        fused = 0 if method else 3 * flops.lstm_layer(300, 300, 12)
        recurrence = fused + products[method] * 2 * 4 * 300 * 300
        assert flops.pruned_lstm(tabled, batch) == recurrence + 3 * (12 + 6) * of_table
        recurrence = 3 * flops.lstm_layer(300, 300, padded[method])
        assert flops.pruned_lstm(plain, batch) == recurrence + 3 * (12 + 6) * of_product
    for fast, products in {True: 0, False: 3 * 2 * 2 * 300 * 300}.items():  # one for each sentence
        fused, gone = model("tail", "fused"), model("tail")
        fused.fast = gone.fast = fast
        assert flops.pruned_lstm(fused, batch) == flops.pruned_lstm(gone, batch) + products
    many = {name: part.repeat(11, 1) for name, part in batch.items()}
    assert flops.pruned_lstm(model(None), many) == 11 * (18 + 11) * 2 * 4 * 300 * 300
    packed = model(None)
    packed.fast, packed.packed = False, True  # no padding is multiplied
    words = sum(int(batch[name].sum()) for name in ("mask", "second_mask"))
    assert flops.pruned_lstm(packed, batch) == flops.lstm_layer(300, 300, words)


def test_runs_take_turns_and_the_first_turn_does_not_count():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = timing.interleaved(runs, torch.device("cpu"), passes=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_speed_up_is_a_ratio_of_medians_against_the_fastest_fair_variant(monkeypatch):
    seconds = {"a": [4.0, 4.0, 9.0], "b": [3.0, 2.0, 3.0], "dense": [2.0] * 3, "pruned": [1.0, 5.0, 1.0]}
    monkeypatch.setattr(timing, "interleaved", lambda *arguments: seconds)
    variants = {name: timing.Variant(lambda: None, 2) for name in "ab"}
    variants["dense"] = timing.Variant(lambda: None, 2, flops=80, token_layers=20)
    variants["pruned"] = timing.Variant(lambda: None, 2, flops=20, token_layers=8)
    rows = timing.measure(variants, fair="ab", dense="dense", device=torch.device("cpu"), passes=3)
    assert rows["pruned"] == {
        "ms": 500,
        "examples_per_second": 2,
        "spread": [0.4, 2],
        "speedup": 3,
        "against_dense": 2,
        "peak_memory": None,
        "passes": 3,
        "flops": 10,
        "bound": 4,
        "share_of_bound": 0.5,
        "token_layers_kept": 0.4,
    }
    assert rows["a"]["speedup"] == 0.75 and "flops" not in rows["a"] and "token_layers_kept" not in rows["a"]
