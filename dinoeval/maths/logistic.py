"""Multinomial logistic regression without intercept, by cyanure (the paper's solver) or scikit-learn; both end at the same minimum.

The objective is the mean over N rows of the softmax cross-entropy, plus strength / (2 N) times the squared norm of the
weights: cyanure's lambda_1 = strength / N, scikit-learn's C = 1 / strength. Source: issue 121 of facebookresearch/dino.

N rows, D dims, C classes, Q queries, R ranks.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import warnings
from typing import Any, Literal

import numpy as np

Solver = Literal["cyanure", "sklearn"]
_GAP_INTERVAL = 10  # passes between cyanure's looks at the duality gap (issue 121)
_MARGIN = 10  # for objectives below 1, down to a hundredth
_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Logistic:
    """A fitted classifier, and how well it was fitted."""

    weights: np.ndarray
    """(D, C) float32."""
    classes: np.ndarray
    """(C,) labels as they were given, ascending."""
    objective: float
    gap: float
    """By how much the objective may be above its minimum, at most, as a share of it: the relative duality gap."""
    passes: int
    """Over the rows, as the solver counts them."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Score queries (Q, D) for every class; returns (Q, C)."""
        return features @ self.weights

    def rank(self, features: np.ndarray, ranks: int = 5) -> np.ndarray:
        """The labels of the largest scores of queries (Q, D), best first, (Q, min(R, C)); of equal scores the earlier class."""
        ranks = min(ranks, len(self.classes))
        ranked = np.empty((len(features), ranks), np.int64)
        step = max(1, _BLOCK_BYTES // (4 * len(self.classes)))
        for start in range(0, len(features), step):
            scores = self.scores(features[start : start + step])
            lines = np.arange(len(scores))
            for place in range(ranks):  # argmax takes the first of equals
                best = scores.argmax(1)
                ranked[start : start + step, place] = best
                scores[lines, best] = -np.inf
        return self.classes[ranked]


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, *, strength: float, solver: Solver, tolerance: float = 1e-3, max_iter: int = 2000
) -> Logistic:
    """Fit a classifier to rows (N, D) float32 and their labels (N,), which may be of any kind that sorts.

    Stops where the relative duality gap is below `tolerance`, or after `max_iter`; `Logistic.gap` tells which.
    Raises ValueError for fewer than two classes, ImportError where cyanure is asked for and not installed.
    """
    classes, targets = np.unique(labels, return_inverse=True)  # cyanure answers with argmax, and breaks on gaps
    if len(classes) < 2:
        raise ValueError("a classifier needs two classes at least")
    solve = _cyanure if solver == "cyanure" else _sklearn
    # In single precision cyanure's duality gap is off by a percent with many classes, so that it never stops, and
    # scikit-learn's line search ends early. Issue 121 has doubles, too.
    rows = np.ascontiguousarray(features, np.float64)
    # Of two classes one column is enough: w of the logistic loss is the difference of the softmax's columns w/2 and -w/2,
    # whose squares sum to half of its own. cyanure would take the square loss for the softmax of two.
    two = len(classes) == 2
    weights, passes = solve(rows, targets, strength / 2 if two else strength, tolerance, max_iter)
    if two:
        weights = weights * [-0.5, 0.5]
    objective, gap = duality_gap(rows, targets, weights, strength)
    return Logistic(weights.astype(np.float32), classes, objective, gap, passes)


def fit_one_vs_rest(
    features: np.ndarray, marks: np.ndarray, *, strength: float, solver: Solver, tolerance: float = 1e-3, max_iter: int = 2000
) -> Logistic:
    """Fit every class against all others, by the logistic loss; marks (N, C) are 1 present, 0 absent, -1 left out for that class.

    N of the objective is the number of rows that are not left out. A class whose rows are all present or all absent gets
    weights of 0. Returns the columns as one classifier with the classes 0 .. C-1, the mean objective and the largest gap.
    """
    weights = np.zeros((features.shape[1], marks.shape[1]), np.float32)
    fits = []
    for column in range(marks.shape[1]):
        known = np.flatnonzero(marks[:, column] >= 0)
        present = marks[known, column]
        if present.any() and not present.all():
            # Two columns of twice the strength are as large as one of their difference.
            one = fit_logistic(features[known], present, strength=2 * strength, solver=solver, tolerance=tolerance, max_iter=max_iter)
            weights[:, column] = one.weights[:, 1] - one.weights[:, 0]
            fits.append(one)
    gap, passes = max((one.gap for one in fits), default=0.0), max((one.passes for one in fits), default=0)
    return Logistic(weights, np.arange(marks.shape[1]), sum(one.objective for one in fits) / max(1, len(fits)), gap, passes)


def memory_needed(rows: int, dim: int, classes: int) -> int:
    """Bytes that a fit adds, about: a copy of the rows and some three matrices (N, C), such as cyanure's dual variables."""
    return 8 * rows * (dim + 3 * (1 if classes == 2 else classes))


def _cyanure(features: np.ndarray, targets: np.ndarray, strength: float, tolerance: float, max_iter: int) -> tuple[np.ndarray, int]:
    from cyanure import estimators
    from sklearn.exceptions import ConvergenceWarning

    logging.getLogger("Cyanure").setLevel(logging.WARNING)
    # One thread: after a fit on several, FAISS's OpenBLAS waits for ever in its next search in this process (cyanure 1.2.2,
    # faiss-cpu 1.15.1, both on the same libgomp).
    classifier: Any = estimators.Classifier  # it annotates its floats as integers
    model = classifier(
        loss="multiclass-logistic" if targets.max() > 1 else "logistic", penalty="l2", fit_intercept=False,
        lambda_1=strength / len(features), solver="auto", tol=tolerance, max_iter=max_iter,
        duality_gap_interval=min(_GAP_INTERVAL, max_iter), n_threads=1, random_state=0, verbose=False,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the gap tells
        model.fit(features, targets)
    return model.coef_.reshape(features.shape[1], -1), int(model.n_iter_.max())


def _sklearn(features: np.ndarray, targets: np.ndarray, strength: float, tolerance: float, max_iter: int) -> tuple[np.ndarray, int]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    columns = 1 if targets.max() == 1 else targets.max() + 1
    # It stops by the largest entry of the gradient, whose squared length must be below 2 * penalty * tolerance * objective.
    # The default of 1e-4 would stop it after two steps where there are many rows.
    entry = math.sqrt(2 * strength / len(features) * tolerance / (features.shape[1] * columns)) / _MARGIN
    model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=entry, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, targets)
    return model.coef_.T, int(model.n_iter_.max())


def duality_gap(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> tuple[float, float]:
    """The objective, and its relative duality gap.

    With the softmax's probabilities less the targets as dual variables, primal less dual is the gradient's squared length
    over 2 * penalty.
    """
    count, penalty = len(features), strength / len(features)
    losses, gradient = 0.0, penalty * count * weights  # (D, C)
    step = max(1, _BLOCK_BYTES // (8 * sum(weights.shape)))
    for start in range(0, count, step):
        rows = features[start : start + step]
        own = np.arange(len(rows)), targets[start : start + step]
        scores = rows @ weights  # (n, C)
        scores -= scores.max(1, keepdims=True)
        losses -= scores[own].sum()
        np.exp(scores, out=scores)
        sums = scores.sum(1)
        losses += np.log(sums).sum()
        scores /= sums[:, None]
        scores[own] -= 1
        gradient += rows.T @ scores
    objective = losses / count + penalty / 2 * float((weights**2).sum())
    return objective, float((gradient**2).sum()) / count**2 / (2 * penalty * objective)
