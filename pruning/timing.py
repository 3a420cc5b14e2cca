"""Seconds by the clock: variants of the same work, side by side.

A speed-up is a ratio of medians. The variants take turns, so that a machine whose speed drifts is as fast or
slow for all of them.
"""

import copy
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from pruning.pruners import Pruner

PADDED = 128  # the length that the first code, and most papers, pad every input to

K = TypeVar("K", bound=Hashable)  # what variants are told apart by: names


@dataclass
class Variant:
    """One way to do the same work, all of it once."""

    run: Callable[[], Any]
    examples: int
    flops: int | None = None  # by formula, as executed; None where they are not counted
    token_layers: float | None = None  # real tokens processed, summed over the layers; None as above


def pass_over(model: Any, inputs: Iterable[dict[str, Any]]) -> None:
    """The work that is timed. inputs: a model's arguments, batch by batch."""
    for batch in inputs:
        model(**batch)


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def interleaved(
    runs: dict[K, Callable[[], Any]], device: torch.device, passes: int, at_least_seconds: float = 0
) -> dict[K, list[float]]:
    """Seconds of each run in each pass. The runs take turns; one pass before the first is not counted.

    Args:
        passes: how many, or more until `at_least_seconds` are over.
    """
    seconds: dict[K, list[float]] = {name: [] for name in runs}
    for run in runs.values():  # warm-up
        run()
    began = time.perf_counter()
    while min(map(len, seconds.values())) < passes or time.perf_counter() - began < at_least_seconds:
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that one run takes at its peak, beside what lies there before (all variants' weights and inputs);
    None where the platform cannot tell."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def measure(
    variants: dict[K, Variant],
    *,
    fair: Sequence[K],
    dense: K,
    device: torch.device,
    passes: int,
    at_least_seconds: float = 0,
) -> dict[K, dict[str, Any]]:
    """Times the variants in turns, in inference mode.

    Args:
        fair: what speed-ups are against; of several the fastest.
        dense: our variant without pruning, which the share of the bound is against.

    Returns:
        variant → ms (median, of one example), examples_per_second, spread (of it: slowest and fastest pass),
        speedup (against `fair`), against_dense, peak_memory, passes; where FLOPs are counted flops (of one
        example), bound (what they promise against `dense`) and share_of_bound; where tokens are counted
        token_layers_kept.
    """
    runs = {name: variant.run for name, variant in variants.items()}
    with torch.inference_mode():
        seconds = interleaved(runs, device, passes, at_least_seconds)
        memory = {name: peak_memory(run, device) for name, run in runs.items()}
    each = {name: [s / v.examples for s in seconds[name]] for name, v in variants.items()}
    median = {name: statistics.median(times) for name, times in each.items()}
    baseline, own = min(median[name] for name in fair), variants[dense]
    rows: dict[K, dict[str, Any]] = {}
    for name, variant in variants.items():
        row = rows[name] = {
            "ms": 1_000 * median[name],
            "examples_per_second": 1 / median[name],
            "spread": [1 / max(each[name]), 1 / min(each[name])],
            "speedup": baseline / median[name],
            "against_dense": median[dense] / median[name],
            "peak_memory": memory[name],
            "passes": len(each[name]),
        }
        if variant.flops and own.flops:
            bound = (own.flops / own.examples) / (variant.flops / variant.examples)
            row |= {"flops": variant.flops / variant.examples, "bound": bound}
            row["share_of_bound"] = row["against_dense"] / bound
        if variant.token_layers and own.token_layers:
            row["token_layers_kept"] = variant.token_layers / own.token_layers
    return rows


def with_weights(model: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A model for the clock: on the device, in evaluation mode, its weights in `dtype`. Pruners stay as they
    are, in fp32: scores are formed and compared in it."""
    if dtype == torch.float32:
        return model.to(device).eval()
    timed = copy.deepcopy(model).to(device, dtype).eval()
    for module, own in zip(timed.modules(), model.modules(), strict=True):
        if isinstance(module, Pruner):
            module.float().load_state_dict(own.state_dict())
    return timed
