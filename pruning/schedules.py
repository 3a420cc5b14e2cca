"""Pruning schedules: one rate for each layer. What they keep, and drawing them at random.

Of the tokens alive, layer l removes the share r_l before it runs: (1 - r_0) … (1 - r_l) of all reach it.
"""

import math
import random
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

# Found for removed tokens that are fused, by `Task.kind`. Counts are rounded down before every layer, so
# short sentences keep more than a list says: GLUE's pairs keep what the name of the list says, CoLA's
# sentences 2 to 5 points more. How these and the next were found: studies/ACCURACY.md.
FOR_SIX_LAYERS = {
    "half": {"sentence": [0, 0, 0.3, 0.9, 0, 0], "pair": [0, 0.2, 0.3, 0.7, 0, 0]},
    "third": {"sentence": [0.2, 0.2, 0.8, 0, 0, 0], "pair": [0, 0.5, 0.6, 0.5, 0, 0]},
    "fifth": {"sentence": [0.5, 0.45, 0.5, 0.5, 0, 0], "pair": [0.5, 0.45, 0.5, 0.5, 0, 0]},
}

# Found for removed tokens that stay readable; k rates leave the first k layers of the BERT. They cost 48, 31
# and 23% of the dense FLOPs.
DEEP = 12
FOR_TWELVE_LAYERS: dict[str, list[float]] = {
    "half": [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
    "third": [0, 0.5, 0, 0, 0, 0],
    "fifth": [0, 0.6, 0, 0, 0],
}


def alive(schedule: Sequence[float]) -> list[float]:
    """The share of all tokens that each layer processes, lengths not rounded."""
    return list(accumulate(schedule, lambda share, rate: share * (1 - rate), initial=1.0))[1:]


def token_layers(schedule: Sequence[float]) -> float:
    """The share of all token-layers that is kept: the mean of `alive`."""
    return sum(alive(schedule)) / len(schedule)


def resolve(schedule: str | Sequence[float], layers: int, kind: str) -> list[float]:
    """The list that a setting stands for: itself, or the default of that name for a BERT of `layers` layers
    and this kind of examples, "sentence" or "pair"; it may have fewer rates than there are layers. Raises
    ValueError for an unknown name."""
    if not isinstance(schedule, str):
        return list(schedule)
    check_name(schedule)
    if layers < DEEP:
        return stretched(FOR_SIX_LAYERS[schedule][kind], layers)
    rates = FOR_TWELVE_LAYERS[schedule]
    return stretched(rates, len(rates) * layers // DEEP)


def check_name(name: str) -> None:
    """Raises ValueError unless a schedule has this name."""
    if name not in FOR_SIX_LAYERS:
        names = ", ".join(FOR_SIX_LAYERS)
        raise ValueError(f"no schedule is called {name!r}: give one rate for each layer, or one of {names}")


def stretched(schedule: Sequence[float], layers: int) -> list[float]:
    """The schedule that leaves as many tokens alive at the same depth of a BERT of `layers` layers."""
    shares = alive(schedule)
    wanted = [shares[layer * len(shares) // layers] for layer in range(layers)]
    return [round(1 - now / before, 3) if before else 0 for before, now in pairwise([1.0, *wanted])]


def draw(layers: int, share: float, rng: random.Random, fewest: int | None = None) -> list[float]:
    """A schedule at random that keeps about `share` of the token-layers of `layers` layers.

    It has `fewest` to `layers` rates (None: one for each layer), all depths as likely, and up to half of the
    schedules leave [CLS] alone in the last of their layers. Of the layers before, about half prune; how hard
    each does in relation to the others is drawn from an exponential distribution, and how hard all do
    together follows from `share`.
    """
    needed = max(1, math.ceil(share * layers))  # as many layers, whole, keep the share
    depth = rng.randint(max(needed, min(layers, fewest or layers)), layers)
    wide = rng.randint(needed, depth) if rng.random() < 0.5 else depth
    weights = [rng.expovariate(1.0) if rng.random() < 0.5 else 0.0 for _ in range(wide)]
    if not any(weights[: max(1, wide // 2)]):
        weights[rng.randrange(max(1, wide // 2))] = 1.0  # late layers alone cannot remove enough
    return (shaped(weights, share * layers / wide) + [1.0] + [0.0] * (depth - wide))[:depth]


def shaped(weights: Sequence[float], share: float) -> list[float]:
    """The schedule that keeps `share` of the token-layers; a share of 1 or more removes nothing. weights: of
    each layer, how hard it prunes in relation to the others; equal ones have equal rates."""

    def scaled(strength: float) -> list[float]:
        return [1 - 2 ** (-strength * weight) for weight in weights]

    weak, strong = 0.0, 1024.0
    for _ in range(40):
        middle = (weak + strong) / 2
        weak, strong = (middle, strong) if token_layers(scaled(middle)) > share else (weak, middle)
    return [round(rate, 3) for rate in scaled(strong)]


def at_random(
    layers: int, shares: Sequence[float], ramp_share: float, seed: int, fewest: int | None = None
) -> Callable[[float], list[float]]:
    """For a model that is to serve every schedule: a new one for every training step (`rates_at` of
    `training.train`).

    Args:
        layers, fewest: as in `draw`.
        shares: the smallest and the largest share of the token-layers to keep, all between as likely.
        ramp_share: of the training, in which these shares fall from 1 to where they are.
    """
    rng = random.Random(seed)

    def rates_at(progress: float) -> list[float]:
        return draw(layers, 1 - _rise(progress, ramp_share) * (1 - rng.uniform(*shares)), rng, fewest)

    return rates_at


def rising(schedule: Sequence[float], ramp_share: float) -> Callable[[float], list[float]]:
    """For a model that is to serve this schedule: its rates rise from 0 in the first `ramp_share` of the
    training (`rates_at` of `training.train`)."""
    return lambda progress: [_rise(progress, ramp_share) * rate for rate in schedule]


def _rise(progress: float, ramp_share: float) -> float:
    return min(1.0, progress / ramp_share) if ramp_share else 1.0
