"""How far a mean over few queries can be trusted: its spread over draws of the queries with replacement."""

from __future__ import annotations

import dataclasses

import numpy as np

DRAWS, SEED, LEVEL = 10_000, 0, 0.95
_TABLE = 4 << 20  # counts made at a time


@dataclasses.dataclass(frozen=True)
class BootstrapEstimate:
    """A mean and what draws of its values say of it, in their unit."""

    mean: float
    error: float | None
    """Deviation of the means of the draws; None of a single value, which has no spread that could be seen."""
    low: float
    high: float
    """Between them lies the central part of those means: LEVEL of them."""


def bootstrap_mean(values: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> BootstrapEstimate:
    """Mean of (Q,) values, at least one, and its bootstrap error and interval; the draws depend on Q and the seed alone."""
    random = np.random.default_rng(seed)
    step = max(1, _TABLE // len(values))
    even = np.full(len(values), 1 / len(values))
    means = np.concatenate([random.multinomial(len(values), even, min(step, draws - first)) @ values for first in range(0, draws, step)])
    means /= len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    error = float(means.std(ddof=1)) if len(values) > 1 else None
    return BootstrapEstimate(float(np.mean(values)), error, float(low), float(high))
