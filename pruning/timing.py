"""What a model costs: floating-point operations by formula, seconds by the clock.

FLOPs count a multiplication and an addition as two, of matrix products only; elementwise work, norms and
softmax are left out, in every variant alike. They are taken over the tensors as executed, padding
included: the clock sees padding too.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

WARM_UP = 1


def bert_layer_flops(config: Any, tokens: int, queries: int | None = None) -> int:
    """One encoder layer on one sequence of n tokens: 2n(4H² + 2HI) + 4n²H.

    H units, I units of the feed-forward; four projections, two feed-forward products, and the two
    products of the attention. Where only q of the tokens ask: 4nH² + 2q(2H² + 2HI) + 4qnH.
    """
    asking = tokens if queries is None else queries
    hidden, inner = config.hidden_size, config.intermediate_size
    keys_and_values = 4 * tokens * hidden**2
    return keys_and_values + 4 * asking * (hidden**2 + hidden * inner) + 4 * asking * tokens * hidden


def attention_weights_flops(config: Any, tokens: int) -> int:
    """Queries, keys and their products on one sequence of n tokens: 4nH² + 2n²H."""
    return 4 * tokens * config.hidden_size**2 + 2 * tokens**2 * config.hidden_size


def bert_head_flops(config: Any) -> int:
    """The pooling layer and the classifier on one sequence: 2H(H + classes)."""
    return 2 * config.hidden_size * (config.hidden_size + config.num_labels)


def stock_bert_flops(config: Any, rows: int, width: int) -> int:
    """Stock BERT on `rows` sequences padded to `width`."""
    layers = config.num_hidden_layers * bert_layer_flops(config, width)
    return rows * (layers + bert_head_flops(config))


def lstm_flops(embedding: int, hidden: int, steps: int) -> int:
    """One sequence through one LSTM layer: 2 · 4 · h(e + h) for each step."""
    return 2 * 4 * hidden * (embedding + hidden) * steps


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def interleaved(
    runs: dict[str, Callable[[], Any]], device: torch.device, passes: int, at_least_seconds: float = 0
) -> dict[str, list[float]]:
    """Seconds of each run in each pass. The runs take turns, so that a machine whose speed drifts
    is as fast or slow for all of them; one pass before the first is not counted.

    Args:
        passes: how many, or more until `at_least_seconds` are over.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    began, turn = time.perf_counter(), 0
    while turn < WARM_UP + passes or time.perf_counter() - began < at_least_seconds:
        for name, run in runs.items():
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if turn >= WARM_UP:
                seconds[name].append(time.perf_counter() - start)
        turn += 1
    return seconds


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes at the peak of one run; None where the platform cannot tell."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device)


def compare(
    runs: dict[str, Callable[[], Any]],
    single: dict[str, Callable[[], Any]],
    flops: dict[str, int],
    *,
    examples: int,
    singles: int,
    device: torch.device,
    passes: int,
    fair: str,
    ours: str,
) -> dict[str, Any]:
    """Times variants of one evaluation side by side.

    Args:
        runs: variant → all examples in batches.
        single: variant → `singles` examples one by one.
        flops: variant → FLOPs of `runs`.
        fair: the variant that speed-ups are against.
        ours: the dense variant that the bound's share is against.

    Returns:
        variant → examples_per_second (median), spread (slowest and fastest pass), latency_ms (of one
        example, median), flops, peak_memory, speedup (against `fair`), and share_of_bound:
        (time `ours` / time) ÷ (FLOPs `ours` / FLOPs).
    """
    with torch.inference_mode():
        seconds = interleaved(runs, device, passes)
        latencies = interleaved(single, device, passes)
        memory = {name: peak_memory(run, device) for name, run in runs.items()}
    median = {name: statistics.median(times) for name, times in seconds.items()}
    result = {}
    for name in runs:
        rates = sorted(examples / s for s in seconds[name])
        result[name] = {
            "examples_per_second": examples / median[name],
            "spread": [rates[0], rates[-1]],
            "latency_ms": 1_000 * statistics.median(latencies[name]) / singles,
            "flops": flops[name],
            "peak_memory": memory[name],
            "speedup": median[fair] / median[name],
            "share_of_bound": (median[ours] / median[name]) / (flops[ours] / flops[name]),
        }
    return result
