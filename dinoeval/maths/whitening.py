"""Whitening: a linear map after which the features that it was learned from are uncorrelated with variance 1.

N images, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

_FLOOR = 1e-5  # of the largest eigenvalue; smaller ones are raised to it (PCA.train_pca in utils.py)


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A learned whitening: subtract `mean`, then project."""

    mean: np.ndarray
    """Mean of the features, (D,) float64."""
    projection: np.ndarray
    """Directions, (D, D) float64, one per row, in descending order of the eigenvalue."""

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Whiten features.

        Args:
            features: Features, (N, D) float.

        Returns:
            Whitened features, (N, D) float32, not normalized.
        """
        return ((features - self.mean) @ self.projection.T).astype(np.float32)


def learn_whitening(blocks: Iterable[np.ndarray], center: bool = False) -> Whitening:
    """Learn a whitening from features.

    The released code subtracts the mean from the features that are whitened. However, it computes the covariance from
    uncentered, unnormalized features (eval_copy_detection.py).

    Args:
        blocks: Features in blocks (n, D) float. No block is kept in memory.
        center: Whether to take the covariance about the mean, unlike the released code.

    Returns:
        The whitening.

    Examples:
        The features have variances 1 and 4, so the second dimension has the larger eigenvalue:

        >>> features = np.array([[1, 2], [1, -2], [-1, 2], [-1, -2]])
        >>> whitening = learn_whitening([features])
        >>> np.abs(whitening.projection).round(4).tolist()
        [[0.0, 0.5], [1.0, 0.0]]
        >>> whitening(features).std(0).round(4).tolist()
        [1.0, 1.0]
    """
    count, total, products = 0, np.float64(0), np.float64(0)
    for block in blocks:
        block = np.asarray(block, np.float64)
        count, total, products = count + len(block), total + block.sum(0), products + block.T @ block
    mean, covariance = np.atleast_1d(total / count), np.atleast_2d(products / count)
    if center:
        covariance = covariance - np.outer(mean, mean)
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, _FLOOR * values[-1])
    return Whitening(mean, (vectors / np.sqrt(values)).T[::-1].copy())
