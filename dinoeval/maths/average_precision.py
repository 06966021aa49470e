"""Average precision of a ranked list, for each class of a set whose images may be of several.

Q images, C classes, B bootstrap draws, T distinct scores.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np

Area = Literal["exact", "11-point"]
_DRAWS = 100  # the error of an error is then 7 %


@dataclasses.dataclass(frozen=True)
class MeanPrecision:
    """Average precision of every class and its mean, as fractions."""

    per_class: np.ndarray
    """(C,), NaN for a class without an image."""
    mean: float
    """Over the classes that have one."""
    error: float
    """Standard error of the mean: its deviation over draws of the images with replacement."""


def average_precision(scores: np.ndarray, present: np.ndarray, area: Area = "exact") -> float:
    """Rank images by descending score (Q,) and average the precision over those that are `present` (Q,); a fraction.

    `exact` is the area under the stepwise curve of precision over recall, as scikit-learn's average_precision_score.
    `11-point` is the mean, over the recalls 0, 0.1, ... 1, of the best precision at that recall or above, as in VOC 2007.
    Images of equal score are taken together, in no order. NaN where none is present.
    """
    return float(_average(scores, np.asarray(present, bool), np.ones((1, len(scores)), np.int64), area)[0])


def mean_average_precision(scores: np.ndarray, labels: np.ndarray, area: Area = "exact") -> MeanPrecision:
    """Average precision of every class: scores (Q, C), labels (Q, C) with 1 present, 0 absent, -1 left out for that class."""
    counts = np.random.default_rng(0).multinomial(len(scores), np.full(len(scores), 1 / len(scores)), _DRAWS)
    counts = np.concatenate((np.ones_like(counts[:1]), counts))  # (1 + B, Q): all images once, then the draws
    precisions = np.full((scores.shape[1], len(counts)), np.nan)
    for column, marks in enumerate(labels.T):
        known = marks >= 0
        precisions[column] = _average(scores[known, column], marks[known] == 1, counts[:, known], area)
    have = ~np.isnan(precisions)
    means = np.where(have, precisions, 0).sum(0) / np.maximum(have.sum(0), 1)  # (1 + B,)
    return MeanPrecision(precisions[:, 0], float(means[0]) if have[:, 0].any() else np.nan, float(means[1:].std(ddof=1)))


def _average(scores: np.ndarray, present: np.ndarray, counts: np.ndarray, area: Area) -> np.ndarray:
    """The average precision (B,) where image q is there counts[b, q] times; NaN where none is present."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)[: len(order)])  # the last image of each score
    counts = counts[:, order]
    hits = np.cumsum(counts * present[order], axis=1)[:, ends]  # (B, T)
    found = np.cumsum(counts, axis=1)[:, ends]
    precision = hits / np.maximum(found, 1)
    total = hits[:, -1:] if len(ends) else np.zeros((len(counts), 1), np.int64)
    if area == "exact":
        summed = (np.diff(hits, axis=1, prepend=0) * precision).sum(1) / np.maximum(total[:, 0], 1)
    else:  # a recall of 0.3 is reached by 3 of 10: in whole numbers, since 0.3 is none in binary
        best = [np.where(10 * hits >= tenths * total, precision, 0).max(1, initial=0) for tenths in range(11)]
        summed = np.mean(best, axis=0)
    return np.where(total[:, 0] > 0, summed, np.nan)
