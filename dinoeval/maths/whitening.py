"""Whitening: turn and stretch features so that those of another set would be uncorrelated and of variance 1.

N rows, D dims.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

_FLOOR = 1e-5  # of the largest eigenvalue: the smaller are raised to it (PCA.train_pca, utils.py)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """What was learned: subtract `mean`, then project."""

    mean: np.ndarray
    """(D,) float64."""
    projection: np.ndarray
    """(D, D) float64, one direction a row, that of the largest eigenvalue first."""

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Whiten rows (N, D); float32, not normalised."""
        return ((rows - self.mean) @ self.projection.T).astype(np.float32)


def learn_whitening(blocks: Iterable[np.ndarray], centred: bool = False) -> Whitening:
    """Learn from features (N, D), given in blocks; none is kept.

    As released, the mean is subtracted from what is whitened, but the covariance is that of the features as they are,
    neither centred nor normalised (eval_copy_detection.py). `centred` takes the covariance about the mean.
    """
    count, total, products = 0, np.float64(0), np.float64(0)
    for block in blocks:
        block = np.asarray(block, np.float64)
        count, total, products = count + len(block), total + block.sum(0), products + block.T @ block
    mean, covariance = np.atleast_1d(total / count), np.atleast_2d(products / count)
    if centred:
        covariance = covariance - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _FLOOR * values[-1])
    return Whitening(mean, (vectors / np.sqrt(values)).T[::-1].copy())
