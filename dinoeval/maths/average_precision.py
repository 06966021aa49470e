"""Average precision of each class of a multi-label dataset.

Q images, C classes, B bootstrap draws, T distinct scores.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Area = Literal["exact", "11-point"]
_DRAWS = 100  # The standard error is then itself accurate to 7%.


@dataclasses.dataclass(frozen=True)
class MeanAveragePrecision:
    """Average precision of every class and its mean, as fractions."""

    per_class: np.ndarray
    """Average precision of each class, (C,) float64; NaN for a class without a positive image."""
    mean: float
    """Mean over the classes that have a positive image; NaN if there are none."""
    error: float
    """Standard error of the mean, from bootstrap draws of the images."""


def average_precision(scores: np.ndarray, present: np.ndarray, area: Area = "exact") -> float:
    """Compute the average precision of one class.

    Args:
        scores: Score of each image, (Q,) float.
        present: Whether the class is present, (Q,) bool or 0/1.
        area: `exact` is the area under the stepwise precision-recall curve, equal to scikit-learn's
            `average_precision_score`. `11-point` is the mean over the recalls 0, 0.1, ..., 1 of the best precision at that
            recall or above, as in VOC 2007.

    Returns:
        Average precision, a fraction; NaN if the class is present in no image. Images with equal scores form one step,
        so their order does not matter.

    Examples:
        The positives have ranks 1 and 3, with precisions 1/1 and 2/3:

        >>> round(average_precision(np.array([0.9, 0.7, 0.5]), np.array([1, 0, 1])), 4)
        0.8333
    """
    return float(_average(scores, np.asarray(present, bool), np.ones((1, len(scores)), np.int64), area)[0])


def mean_average_precision(scores: np.ndarray, labels: np.ndarray, area: Area = "exact") -> MeanAveragePrecision:
    """Compute the average precision of every class, its mean and standard error.

    Args:
        scores: Score of each image for each class, (Q, C) float.
        labels: 1 present, 0 absent, -1 excluded from the scores of that class, (Q, C) int.
        area: As in `average_precision`.

    Returns:
        Average precision per class, and the mean with its standard error. The draws depend on Q only.

    Examples:
        Class 0 has its positives at ranks 1 and 3; class 1 is present in no image:

        >>> scores, labels = np.array([[0.9, 0.1], [0.7, 0.2], [0.5, 0.3]]), np.array([[1, 0], [0, 0], [1, 0]])
        >>> found = mean_average_precision(scores, labels)
        >>> found.per_class.round(4).tolist(), round(found.mean, 4)
        ([0.8333, nan], 0.8333)
    """
    counts = np.random.default_rng(0).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), _DRAWS)
    counts = np.concatenate((np.ones_like(counts[:1]), counts))  # (1 + B, Q): all images once, then the draws
    precisions = np.full((scores.shape[1], len(counts)), np.nan)
    for column, class_labels in enumerate(labels.T):
        known = class_labels >= 0
        precisions[column] = _average(scores[known, column], class_labels[known] == 1, counts[:, known], area)
    defined = ~np.isnan(precisions)
    means = np.where(defined, precisions, 0).sum(0) / np.maximum(defined.sum(0), 1)  # (1 + B,)
    mean = float(means[0]) if defined[:, 0].any() else np.nan
    return MeanAveragePrecision(precisions[:, 0], mean, float(means[1:].std(ddof=1)))


def _average(scores: np.ndarray, present: np.ndarray, counts: np.ndarray, area: Area) -> np.ndarray:
    """Average precision (B,) if image q occurs counts[b, q] times; NaN if the class is present in no image."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)[: len(order)])  # the last image of each score
    counts = counts[:, order]
    hits = np.cumsum(counts * present[order], axis=1)[:, ends]  # (B, T)
    retrieved = np.cumsum(counts, axis=1)[:, ends]  # (B, T)
    precision = hits / np.maximum(retrieved, 1)
    total = hits[:, -1:] if len(ends) else np.zeros((len(counts), 1), np.int64)
    if area == "exact":
        averages = (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / np.maximum(total[:, 0], 1)
    else:  # Recalls are compared as integers because 0.3 is not exact in binary: 3 of 10 must reach it.
        best = [np.where(10 * hits >= tenths * total, precision, 0).max(1, initial=0) for tenths in range(11)]
        averages = np.mean(best, axis=0)
    return np.where(total[:, 0] > 0, averages, np.nan)
