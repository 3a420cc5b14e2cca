"""What a pass and a training step ask of a GPU, seen without one: operations, and what the host waits for.

The device is PyTorch's "meta": tensors with shapes and without data. What would make a host wait for a GPU
fails there or is seen on its way: data read from the device, shapes that depend on data, copies of pageable
memory.
"""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import build
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertForSequenceClassification

from pruning import batches, layers, plan, training
from pruning.batches import BertExamples, Ragged
from pruning.devices import Memory, best_precision, check_build
from pruning.errors import UserError
from pruning.schedules import FOR_TWELVE_LAYERS, resolve, stretched

LENGTHS = [5, 40, 17, 19, 9, 23, 6, 31]
LAYERS = 12
STUDENT = "ideal gradients student"
HALF = stretched([0, 0, 0.3, 0.9, 0, 0], LAYERS)
CLS_ALONE = [0] * 5 + [1] + [0] * 6
NO_LAUNCH = ("detach", "_unsafe_view", "lift_fresh", "alias")  # as views: no work on the device
WAITS = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "lift_fresh",
)  # the last: torch.tensor(list, device)


def tensors(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


class Device(TorchDispatchMode):
    """Counts what the device is asked for, in `operations`, and lists what the host waits for, in `waits`."""

    def __init__(self, pinned):
        super().__init__()
        self.pinned, self.operations, self.waits = pinned, Counter(), []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        given = tensors((args, kwargs))
        if any(tensor.is_meta for tensor in given) and (name in WAITS or self.by_mask(name, args)):
            self.waits.append(name)
            if name == "_local_scalar_dense":
                return 0
        result = function(*args, **kwargs)
        if any(tensor.is_meta for tensor in tensors(result)):
            from_host = [tensor for tensor in given if not tensor.is_meta]
            if from_host and not (kwargs.get("non_blocking") and from_host[0].data_ptr() in self.pinned):
                self.waits.append(name)
            if not function.is_view and name not in NO_LAUNCH:
                self.operations[name] += 1
        return result

    def by_mask(self, name, args):
        return name == "index" and any(index.dtype == torch.bool for index in tensors(args[1]))


class Calls(TorchFunctionMode):
    """What no dispatcher sees. The fused attention, of which "meta" has none: one operation, and before it
    one that makes numbers of a boolean mask (PyTorch's `convert_boolean_attn_mask`). A list that becomes a
    tensor on the device: a copy of pageable memory."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not scaled_dot_product_attention:
            result = function(*args, **(kwargs or {}))
            if function in (torch.tensor, torch.as_tensor) and result.is_meta:
                self.device.waits.append("tensor")
            return result
        mask = (kwargs or {}).get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            torch.zeros_like(mask)
        return 1 * args[0]


@pytest.fixture
def pinned(monkeypatch):
    """Addresses of page-locked memory, which "meta" takes from here on."""
    addresses = set()

    def pin_memory(tensor):
        addresses.add(tensor.data_ptr())
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(plan, "PINNED", ("meta",))
    return addresses


def examples():
    flat = torch.randint(5, 64, (sum(LENGTHS),))
    return BertExamples(Ragged.of(flat, LENGTHS), torch.ones(8), torch.full((8,), 3, dtype=torch.int32))


def count(model, pinned):
    """Of one pass, the batch's own copies left out."""
    batch = batches.to_device(examples().batch(torch.arange(8)), torch.device("meta"))
    model.to("meta").eval()
    with torch.no_grad(), Device(pinned) as device, Calls(device):
        model(**batch)
    return device


@pytest.fixture
def stock(pinned):
    return count(BertForSequenceClassification(build(num_hidden_layers=LAYERS).config), pinned)


@pytest.mark.parametrize("varlen", [False, True])
@pytest.mark.parametrize(
    ("schedule", "method", "removed_tokens"),
    [
        (None, "head", "gone"),
        (HALF, STUDENT, "fused"),
        (HALF, STUDENT, "gone"),
        (CLS_ALONE, "tail", "readable"),
        *((resolve(name, LAYERS, "pair"), STUDENT, "readable") for name in FOR_TWELVE_LAYERS),
    ],
)
def test_a_pass_waits_for_nothing_and_asks_for_no_more_than_stock(
    stock, pinned, monkeypatch, schedule, method, removed_tokens, varlen
):
    if varlen:
        monkeypatch.setattr(layers, "has_varlen", lambda *_: True)
        monkeypatch.setattr(layers, "varlen_attn", lambda query, *_, **__: 1 * query)
    layers_left = LAYERS if schedule is None else len(schedule)
    model = build(schedule, method, num_hidden_layers=layers_left, removed_tokens=removed_tokens)
    ours = count(model, pinned)
    assert ours.waits == []
    assert ours.operations.total() <= stock.operations.total()
    assert ours.operations["_to_copy"] <= 1  # of all tables together


@pytest.mark.parametrize("method", ["frequency", "column mean", "random", STUDENT])
@pytest.mark.parametrize("removed_tokens", ["fused", "readable"])
def test_no_pass_waits(pinned, method, removed_tokens):
    model = build([0.3, 0.5, 0.4], method, removed_tokens=removed_tokens)
    assert count(model, pinned).waits == []


def test_tables_begin_where_a_gpu_reads_16_bytes_at_once(pinned):
    arrays = [np.zeros(count, dtype) for dtype in (bool, np.float32, np.int64) for count in (1, 2, 3, 7)]
    sent = plan.send(arrays, torch.device("meta"))
    assert all(table.storage_offset() * table.element_size() % 16 == 0 for table in sent)
    assert [table.shape for table in sent] == [array.shape for array in arrays]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.tensor([1, 2], device=x.device),
        lambda x: torch.arange(3).to(x.device, non_blocking=True),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
    ],
)
def test_a_wait_is_seen(pinned, wait):
    seen = False
    with Device(pinned) as device, Calls(device):
        try:
            wait(torch.zeros(3, device="meta"))
        except (NotImplementedError, RuntimeError):  # no data to read
            seen = True
    assert seen or device.waits


@pytest.mark.parametrize(
    ("capability", "is_served"), [((8, 9), True), ((6, 1), False), ((9, 0), False), ((12, 1), True)]
)
def test_a_card_that_the_build_has_no_kernels_for(monkeypatch, capability, is_served):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_86", "sm_100a", "compute_120"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GTX 1080 Ti")
    said = pytest.raises(UserError, match=r"nothing for GTX 1080 Ti \(compute capability ")
    with nullcontext() if is_served else said:
        check_build(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_arch_list", list)  # a build that does not tell
    check_build(torch.device("cuda"))


@pytest.mark.parametrize(("capability", "precision"), [((7, 5), "fp16"), ((6, 1), "no")])
def test_cards_without_bf16(monkeypatch, capability, precision):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_precision(torch.device("cuda"))[0] == precision
    assert best_precision(torch.device("xpu"))[0] == "no"


def test_without_lengths_the_device_is_asked_once(batch, monkeypatch):
    asked, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: asked.append(tensor.shape) or cpu(tensor))
    model = build([0.3, 0, 0.5], STUDENT)
    with torch.no_grad():
        wanted = model(**batch)
        found = model(**batch, lengths=[17, 9, 4, 1])
    assert asked == [(4, 17)]
    assert torch.equal(found.logits, wanted.logits)
    assert all(torch.equal(*pair) for pair in zip(found.kept, wanted.kept, strict=True))


@pytest.mark.parametrize("removed_tokens", ["fused", "gone", "readable"])
def test_a_training_step_waits_for_nothing(pinned, removed_tokens):
    data = training.Inputs(
        examples(),
        {layer: Ragged.of(torch.rand(sum(LENGTHS)), LENGTHS, torch.float32) for layer in (1, 2)},
        torch.randn(8, 2),
    )
    model = build([0, 0.5, 0.4], STUDENT, removed_tokens=removed_tokens).to("meta").train()
    accelerator = SimpleNamespace(
        device=torch.device("meta"),
        process_index=0,
        num_processes=1,
        autocast=nullcontext,
        backward=torch.Tensor.backward,
        clip_grad_norm_=torch.nn.utils.clip_grad_norm_,
    )
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    arguments = training.Arguments(1, 8, 1e-3, distillation_share=0.5)
    with Device(pinned) as device, Calls(device):
        loss = training.training_step(
            model, optimizer, data, torch.arange(8), arguments, accelerator, Memory()
        )
    assert loss.is_meta and device.operations.total() > 100
    assert device.waits == []


def test_a_training_waits_once_in_50_steps(monkeypatch):
    waits, losses = [], iter(range(120))
    monkeypatch.setattr(training, "training_step", lambda *_: torch.tensor(float(next(losses))))
    for name in ("item", "tolist", "cpu"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, real=real: waits.append(x.shape) or real(x))
    data, arguments = training.Inputs(examples()), training.Arguments(120, 8, 1e-3)
    curve = training.train(build(), data, arguments, "", seed=0, accelerator=Accelerator(cpu=True))
    assert waits == [(50,), (50,), (20,)]
    assert curve[0] == (2, 0.5) and curve[-1] == (120, 118.5) and len(curve) == 60
