"""Metrics, FLOPs and timing."""

import numpy as np
import pytest
import torch

from ModifiedModelingBert import PrunedBertConfig
from pruning import metrics, timing
from pruning.layers import FastPaths, run_layers
from pruning.tasks import AGNEWS, GLUE


def test_metrics_by_hand():
    labels, answers = [1, 1, 1, 0, 0], [1, 1, 0, 1, 0]
    assert metrics.judge(GLUE["mrpc"], labels, answers) == pytest.approx({"f1": 2 / 3, "accuracy": 0.6})
    matthews = (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2)
    assert metrics.judge(GLUE["cola"], labels, answers)["matthews"] == pytest.approx(matthews)
    scores = metrics.judge(GLUE["sts-b"], [1, 2, 3, 4], [1, 2, 3, 10])
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2, 3, 10])[0, 1])
    assert metrics.judge(AGNEWS, [0, 1, 2, 3], [0, 1, 2, 2]) == {"accuracy": 0.75}


def test_constant_answers_correlate_with_nothing():
    assert metrics.judge(GLUE["sts-b"], [1, 2, 3], [2, 2, 2]) == {"pearson": 0, "spearman": 0}


def test_fifths_by_length():
    lengths = torch.arange(100).flip(0)
    labels = [1.0] * 100
    answers = [float(length >= 20) for length in lengths]
    fifths = metrics.judge_by_length(GLUE["sst-2"], labels, answers, lengths)
    assert [f["accuracy"] for f in fifths] == [0, 1, 1, 1, 1]
    assert [(f["shortest"], f["longest"], f["examples"]) for f in fifths[:2]] == [(0, 19, 20), (20, 39, 20)]


def test_answers_of_classes_and_scores():
    logits = torch.tensor([[0.1, 0.9], [3.0, 1.0]])
    assert metrics.predictions_of(GLUE["sst-2"], logits) == [1, 0]
    assert metrics.predictions_of(GLUE["sts-b"], logits[:, :1]) == pytest.approx([0.1, 3.0])


def test_flops_of_a_layer_are_those_of_its_products():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.bert.modeling_bert import BertLayer

    config = PrunedBertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    config._attn_implementation = "eager"
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        BertLayer(config).eval()(torch.randn(1, 23, 64))
    assert timing.bert_layer_flops(config, 23) == counter.get_total_flops()


def test_flops_of_a_last_layer_that_only_cls_asks():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.bert.modeling_bert import BertLayer

    config = PrunedBertConfig(hidden_size=64, num_attention_heads=4, intermediate_size=96)
    plain = FastPaths(one_projection=False, fused_product=False)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mask = torch.ones(1, 23).bool()
        run_layers([BertLayer(config).eval()], torch.randn(1, 23, 64), mask, [23], plain, only_first=True)
    attention = 2 * 2 * 23 * 64  # the counter does not see the fused one
    assert timing.bert_layer_flops(config, 23, queries=1) == counter.get_total_flops() + attention


def test_flops_of_the_lstm_are_those_of_its_gates():
    assert timing.lstm_flops(300, 300, 10) == 10 * 2 * (4 * 300) * 600


def test_runs_take_turns_and_the_first_turn_does_not_count():
    calls = []
    runs = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    seconds = timing.interleaved(runs, torch.device("cpu"), passes=2)
    assert calls == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
