"""Bootstrap standard error and confidence interval of a mean.

Q values, one per query.
"""

from __future__ import annotations

import dataclasses

import numpy as np

DRAWS, SEED, LEVEL = 10_000, 0, 0.95
_TABLE_COUNTS = 4 << 20  # counts per block of draws, which bounds the memory


@dataclasses.dataclass(frozen=True)
class BootstrapEstimate:
    """A mean with its standard error and confidence interval, in the same unit."""

    mean: float
    error: float | None
    """Standard error: the standard deviation of the means of the draws. None for a single value."""
    low: float
    """Lower bound of the central confidence interval at LEVEL."""
    high: float
    """Upper bound of that interval."""


def bootstrap_mean(values: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> BootstrapEstimate:
    """Estimate a mean, its standard error and its confidence interval.

    Args:
        values: Values, (Q,) float, at least one.
        draws: Number of draws of Q values with replacement.
        seed: Seed of the draws, which depend on Q and the seed only.

    Returns:
        Mean, standard error and central confidence interval at LEVEL.

    Examples:
        The standard error of a mean is close to the standard deviation over the square root of Q, here 0.5 / 10:

        >>> estimate = bootstrap_mean(np.tile([0.0, 1.0], 50))
        >>> estimate.mean, round(estimate.error, 2), round(estimate.low, 1), round(estimate.high, 1)
        (0.5, 0.05, 0.4, 0.6)
    """
    random = np.random.default_rng(seed)
    step = max(1, _TABLE_COUNTS // len(values))
    uniform = np.full(len(values), 1 / len(values))
    blocks = (random.multinomial(len(values), uniform, min(step, draws - first)) for first in range(0, draws, step))
    means = np.concatenate([counts @ values for counts in blocks])
    means /= len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    error = float(means.std(ddof=1)) if len(values) > 1 else None
    return BootstrapEstimate(float(np.mean(values)), error, float(low), float(high))
