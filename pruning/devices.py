"""The device, its precision, and its memory."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env
from accelerate.utils.memory import should_reduce_batch_size
from tqdm import tqdm

from pruning.errors import UserError

SHAPE_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # oneDNN's, and PyTorch's own
SHAPES = "256"

F = TypeVar("F", bound=Callable[..., Any])


def pick_device(in_several_processes: bool = True) -> Accelerator:
    """GPU if there, else Apple's, else the CPU; bf16 or fp16 where the device computes in it. Prints why.

    Raises UserError if it runs in several processes and may not.
    """
    keep_few_shapes()
    precision, why = best_precision(find_device())
    accelerator = Accelerator(mixed_precision=precision)
    processes = accelerator.num_processes
    if processes > 1 and not in_several_processes:
        raise UserError("this script runs in one process: start it with python, not with accelerate launch")
    number = f"{processes} process{'es' if processes > 1 else ''}"  # a launcher may start fewer than asked
    name = f"{device_name(accelerator.device)}, {number}"
    say(f"Device: {name}. Precision of the training: {precision_name(accelerator)}, {why}.")
    return accelerator


def keep_few_shapes() -> None:
    """Lets oneDNN keep its code for the last 256 shapes of products only, unless the user has said how many.
    To be called before the first product.

    By itself it keeps 1,024, twice, of 1 to 2 MB each in bf16. Batches without padding have ever new shapes:
    a training of 1,000 steps came to 5 GB. With 256 the first 240 steps take 2.4, and no more time.
    """
    for name in SHAPE_CACHES:
        os.environ.setdefault(name, SHAPES)


def find_device() -> torch.device:
    """The same without a word, set up for exact fp32. Raises UserError for a card that cannot be used."""
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # accelerate launch --cpu
    state = PartialState(cpu=cpu, timeout=timedelta(days=30))  # others wait while one waits for a claim
    check_build(state.device)
    torch.backends.cudnn.allow_tf32 = False  # what is called fp32 is fp32, in an LSTM too
    torch.backends.cuda.enable_cudnn_sdp(False)  # off for the stock layers too: see `layers.run_layers`
    return state.device


def check_build(device: torch.device) -> None:
    """Raises UserError for an NVIDIA card that this build of PyTorch has no kernels for."""
    if device.type != "cuda" or torch.version.hip:
        return
    major, minor = torch.cuda.get_device_capability(device)
    archs = torch.cuda.get_arch_list()  # "sm_86": for 8.6 to 8.9; "compute_90": for 9.0 and whatever comes
    for arch in archs:
        kind, number = arch.split("_")
        own = divmod(int(re.sub(r"\D", "", number)), 10)
        if own <= (major, minor) and (kind == "compute" or own[0] == major):
            return
    if archs:  # a build may not tell
        what = f"this build of PyTorch has nothing for {device_name(device)}"
        where = "Install another (README.md, Old cards), or hide the card: CUDA_VISIBLE_DEVICES=-1"
        raise UserError(f"{what} (compute capability {major}.{minor}). {where}")


def say(text: str) -> None:
    """Prints a line, in one of the processes that train together."""
    if PartialState().is_main_process:
        with tqdm.external_write_mode():  # above the bars
            print(text, flush=True)


def best_precision(device: torch.device) -> tuple[str, str]:
    """accelerate's name of a precision, and the reason for it: what the device has, never a clock."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in it"
        if torch.cuda.get_device_capability(device) >= (7, 0):  # Volta; older ones are slow in it, or wrong
            return "fp16", "this GPU computes in it, and not in bf16"
        return "no", "this GPU computes neither in bf16 nor in fp16"
    if device.type != "cpu":
        return "no", "the precision best supported on this device"
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "this processor has AMX units for it"
    if torch.cpu._is_avx512_bf16_supported():
        return "bf16", "this processor has AVX-512 instructions for it"
    return "no", "this processor has no instructions for bf16"


def precision_name(accelerator: Accelerator) -> str:
    """bf16, fp16 or fp32, for people."""
    return {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)


def weights_type(accelerator: Accelerator) -> torch.dtype:
    """Of the weights of a model that is timed."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return half.get(precision_name(accelerator), torch.float32)


def device_name(device: torch.device) -> str:
    """What a reader of a record wants to know of the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return "Apple GPU (MPS)"
    if device.type != "cpu":
        return device.type
    threads = torch.get_num_threads()
    return f"CPU, {threads} thread{'s' if threads > 1 else ''}"


@dataclass
class Memory:
    """The number of parts that a batch is cut into, because it did not fit whole."""

    parts: int = 1
    may_cut: bool = True

    def cut(self, error: RuntimeError, rows: int) -> None:
        """Twice as many parts, after `error`. Prints a line. Raises `error` if it is another one than missing
        memory, or a batch of so many `rows` is in single ones already."""
        if not self.may_cut or not should_reduce_batch_size(error) or self.parts >= rows:
            raise error
        self.parts *= 2
        same = "results are the same but for what is drawn at random, and thresholds"
        tqdm.write(f"out of memory: batches go in {self.parts} parts from here on; {same}")


def halving(work: F) -> F:
    """`work`, called again with half its `batch_size` whenever memory runs out."""

    @wraps(work)
    def in_parts_that_fit(*inputs: Any, batch_size: int, **others: Any) -> Any:
        memory = Memory()
        while True:
            try:
                return work(*inputs, batch_size=math.ceil(batch_size / memory.parts), **others)
            except RuntimeError as error:
                memory.cut(error, batch_size)

    return cast(F, in_parts_that_fit)
