"""What no other test sees: an NVIDIA card computes the same as the CPU, and no pass waits for it, but one
with a threshold: its counts follow from scores."""

import copy

import pytest
import torch
from conftest import build
from torch import nn

from pruning import batches, devices, methods, timing, training
from pruning.batches import BertExamples, Ragged
from pruning.lstm_model import PrunedLstmClassifier
from pruning.training import Arguments, Inputs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA card here")
GPU = torch.device("cuda")
ROWS = 8
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STUDENT = "ideal gradients student"
MODELS = {
    "dense": {},
    "[CLS] alone": {"schedule": [0, 1, 0], "removed_tokens": "readable"},
    "readable": {"schedule": [0, 0.5, 0], "methods": STUDENT, "removed_tokens": "readable"},
    "fused": {"schedule": [0.3, 0, 0.5], "methods": STUDENT, "removed_tokens": "fused"},
    "gone": {"schedule": [0, 0.5, 0.4], "methods": "column mean", "removed_tokens": "gone"},
    "frequency": {"schedule": [0.2, 0.5, 0], "methods": "frequency", "removed_tokens": "readable"},
}
WAITS = {"threshold": {"schedule": [0, 0.5, 0], "methods": "column mean threshold"}}
WIDTHS = [16, 31, 32, 48, 77]  # a mask of 16 columns, or a multiple, is read as it lies


@pytest.fixture(autouse=True)
def the_same_each_time(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def examples(width):
    lengths = [width, *torch.randint(2, width + 1, (ROWS - 1,)).tolist()]
    ids = Ragged.of(torch.randint(5, 64, (sum(lengths),)), lengths)
    return BertExamples(ids, torch.arange(ROWS) % 2.0, torch.tensor(lengths, dtype=torch.int32))


def batch_of(given, device):
    return batches.to_device(given.batch(torch.arange(len(given))), device)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*MODELS, *WAITS])
def test_bert_gives_the_same(name, width):
    model = build(**(MODELS | WAITS)[name])
    data = examples(width)
    with torch.no_grad():
        wanted = model(**batch_of(data, torch.device("cpu")))
        model.to(GPU)
        found = model(**batch_of(data, GPU))
        half = timing.with_weights(model, GPU, torch.bfloat16)(**batch_of(data, GPU))
    torch.testing.assert_close(found.logits.cpu(), wanted.logits, atol=1e-5, rtol=0)
    pairs = zip(found.kept or (), wanted.kept or (), strict=True)
    assert all(torch.equal(own.cpu(), kept) for own, kept in pairs)
    same = half.kept is None or all(map(torch.equal, half.kept, found.kept))
    if same:
        torch.testing.assert_close(half.logits.float().cpu(), wanted.logits, atol=0.1, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_no_pass_waits(name, dtype):
    model = timing.with_weights(build(**MODELS[name]), GPU, dtype)
    batch = batch_of(examples(32), GPU)
    with torch.inference_mode():
        model(**batch)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(name):
    model = build(**MODELS[name], **NO_DROPOUT).train()
    data = examples(32)
    scores = {layer: torch.rand(ROWS, 32) for layer in range(3)}

    def gradients(device, half=False):
        own = copy.deepcopy(model).to(device)
        teacher = {layer: each.to(device) for layer, each in scores.items()}
        given = batch_of(data, device) | {"labels": data.labels.long().to(device), "teacher_scores": teacher}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            output = own(**given)
            loss = output.loss if output.pruning_loss is None else output.loss + output.pruning_loss
        loss.backward()
        return [p.grad.cpu().flatten() for p in own.parameters() if p.grad is not None]

    wanted = gradients(torch.device("cpu"))
    for own, each in zip(gradients(GPU), wanted, strict=True):
        torch.testing.assert_close(own, each, atol=1e-5, rtol=1e-3)
    whole = [torch.cat(parts) for parts in (gradients(GPU, half=True), wanted)]
    assert torch.cosine_similarity(*whole, dim=0) > 0.98


def test_a_training_with_dropout_goes_well():
    """Each batch has another shape, which cuDNN's attention would compile for."""
    accelerator = devices.pick_device()
    parts = [examples(width) for width in range(9, 49)]
    data = Inputs(batches.joined(parts))
    assert not torch.backends.cuda.cudnn_sdp_enabled()
    curve = training.train(build(), data, Arguments(2, ROWS, 1e-4), "", seed=0, accelerator=accelerator)
    assert all(0 < loss < 5 for _, loss in curve)


@pytest.mark.parametrize("removed_tokens", ["fused", "gone"])
@pytest.mark.parametrize("method", [None, "lstm student", "random", "frequency"])
def test_the_lstm_gives_the_same(method, removed_tokens):
    pruning = {"method": method, "rate": 0.5, "removed_tokens": removed_tokens}
    model = PrunedLstmClassifier(50, 4, pair=False, **(pruning if method else {})).eval()
    methods.set_frequencies(model, torch.rand(50))
    if model.fusion is not None:
        nn.init.normal_(model.fusion.weight, std=0.1)
    lengths = torch.tensor([20, 11, 3, 1])
    mask = torch.arange(20) < lengths[:, None]
    batch = {"ids": torch.randint(1, 50, (4, 20)) * mask, "mask": mask}
    with torch.no_grad():
        wanted = model(**batch)
        found = model.to(GPU)(**{name: tensor.to(GPU) for name, tensor in batch.items()})
    torch.testing.assert_close(found.logits.cpu(), wanted.logits, atol=1e-5, rtol=0)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(found.kept or (), wanted.kept or (), strict=True))


def test_the_lstm_learns_in_fp32_where_autocast_is_bf16():
    model = PrunedLstmClassifier(50, 4, pair=False).train()
    training.set_dropout(model, 0.0)
    ids, labels = torch.randint(1, 50, (4, 9)), torch.tensor([0, 1, 2, 3])
    gradients = []
    for device in (torch.device("cpu"), GPU):
        own = copy.deepcopy(model).to(device)
        batch = {"ids": ids.to(device), "mask": torch.ones(4, 9, dtype=torch.bool, device=device)}
        with torch.autocast("cuda", torch.bfloat16, enabled=device == GPU):
            own(**batch, labels=labels.to(device)).loss.backward()
        gradients.append(own.lstm.weight_hh_l0.grad.cpu().flatten())
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
