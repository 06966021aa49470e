"""Multinomial logistic regression without intercept, by cyanure (the solver of the paper) or scikit-learn.

Both solvers minimize the same objective: the mean over N images of the softmax cross-entropy, plus strength / (2 N)
times the squared norm of the weights. In cyanure lambda_1 = strength / N, in scikit-learn C = 1 / strength. Source:
issue 121 of facebookresearch/dino.

N images, D dimensions, C classes, Q queries, R ranks.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import math
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from dinoeval.maths.neighbors import load_faiss

Solver = Literal["cyanure", "sklearn"]
_GAP_INTERVAL = 10  # passes between evaluations of the duality gap by cyanure (issue 121)
_MARGIN = 10  # safety factor for objectives from 1 down to 0.01
_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Logistic:
    """A fitted linear classifier, with the accuracy of the fit."""

    weights: np.ndarray
    """Weights, (D, C) float32."""
    classes: np.ndarray
    """Labels as passed to the fit, (C,), ascending."""
    objective: float
    """Value of the objective at the weights."""
    gap: float
    """Relative duality gap: an upper bound of (objective - minimum) / objective."""
    passes: int
    """Iterations, as the solver counts them."""

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Score every class.

        Args:
            features: Features, (Q, D) float32.

        Returns:
            Logits, (Q, C) float32.
        """
        return features @ self.weights

    def rank(self, features: np.ndarray, ranks: int = 5) -> np.ndarray:
        """Predict the classes with the largest scores.

        Args:
            features: Features, (Q, D) float32.
            ranks: Number of classes R to return per query.

        Returns:
            Labels, (Q, min(R, C)), best first. Ties go to the earlier class.
        """
        ranks = min(ranks, len(self.classes))
        ranked = np.empty((len(features), ranks), np.int64)
        step = max(1, _BLOCK_BYTES // (4 * len(self.classes)))
        for start in range(0, len(features), step):
            scores = self.scores(features[start : start + step])
            queries = np.arange(len(scores))
            for place in range(ranks):
                best = scores.argmax(1)  # the first of equal scores
                ranked[start : start + step, place] = best
                scores[queries, best] = -np.inf
        return self.classes[ranked]


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, *, strength: float, solver: Solver, tolerance: float = 1e-3, max_iter: int = 2000
) -> Logistic:
    """Fit a multinomial logistic regression.

    Args:
        features: Features, (N, D) float32.
        labels: Labels, (N,), of any sortable type.
        strength: Regularization strength, positive.
        solver: `cyanure` or `sklearn`.
        tolerance: Stop when the relative duality gap is below this value.
        max_iter: Largest number of iterations. `Logistic.gap` shows which limit ended the fit.

    Returns:
        The fitted classifier.

    Raises:
        ValueError: If there are fewer than two classes.
        ImportError: If cyanure is requested but not installed.

    Examples:
        >>> features = np.array([[1, 0], [0.8, 0.6], [0, 1], [-1, 0]], np.float32)
        >>> model = fit_logistic(features, np.array(["east", "east", "north", "west"]), strength=0.1, solver="sklearn")
        >>> model.rank(np.array([[0.9, 0.1]], np.float32), ranks=2).tolist()
        [['east', 'north']]
        >>> model.gap < 1e-3
        True
    """
    classes, targets = np.unique(labels, return_inverse=True)  # cyanure predicts by argmax and fails on gaps in the labels
    if len(classes) < 2:
        raise ValueError(f"classification needs at least 2 classes, got {len(classes)}")
    solve = _fit_cyanure if solver == "cyanure" else _fit_sklearn
    # In single precision, the duality gap that cyanure computes has an error of about 1% with many classes, so cyanure
    # never stops. The line search of scikit-learn ends early. Issue 121 also uses double precision.
    features = np.ascontiguousarray(features, np.float64)
    # Two classes need one column w. The equivalent softmax has the columns w/2 and -w/2; their squared norms sum to half
    # of that of w. With two columns, cyanure would use the squared loss.
    binary = len(classes) == 2
    weights, passes = solve(features, targets, strength / 2 if binary else strength, tolerance, max_iter)
    if binary:
        weights = weights * [-0.5, 0.5]
    objective, gap = duality_gap(features, targets, weights, strength)
    return Logistic(weights.astype(np.float32), classes, objective, gap, passes)


def fit_one_vs_rest(
    features: np.ndarray, labels: np.ndarray, *, strength: float, solver: Solver, tolerance: float = 1e-3, max_iter: int = 2000
) -> Logistic:
    """Fit one binary logistic regression per class of a multi-label dataset.

    The N of an objective is the number of images that are not excluded. A class that is present in all or none of its
    images gets zero weights.

    Args:
        features: Features, (N, D) float32.
        labels: 1 present, 0 absent, -1 excluded from the fit of that class, (N, C) int.
        strength: Regularization strength, positive.
        solver: `cyanure` or `sklearn`.
        tolerance: Stop each fit when its relative duality gap is below this value.
        max_iter: Largest number of iterations of each fit.

    Returns:
        One classifier with the classes 0, ..., C-1. It holds the mean objective, the largest gap and the largest number
        of iterations.
    """
    weights = np.zeros((features.shape[1], labels.shape[1]), np.float32)
    fits = []
    for column in range(labels.shape[1]):
        known = np.flatnonzero(labels[:, column] >= 0)
        present = labels[known, column]
        if present.any() and not present.all():
            # Two columns with twice the strength are regularized like one column that is their difference.
            fit = fit_logistic(features[known], present, strength=2 * strength, solver=solver, tolerance=tolerance, max_iter=max_iter)
            weights[:, column] = fit.weights[:, 1] - fit.weights[:, 0]
            fits.append(fit)
    objective = sum(fit.objective for fit in fits) / max(1, len(fits))
    gap, passes = max((fit.gap for fit in fits), default=0.0), max((fit.passes for fit in fits), default=0)
    return Logistic(weights, np.arange(labels.shape[1]), objective, gap, passes)


def memory_needed(num_images: int, dim: int, num_classes: int) -> int:
    """Estimate the memory that a fit allocates.

    The estimate counts one copy of the features and three (N, C) matrices, such as the dual variables of cyanure.

    Args:
        num_images: Number of images N.
        dim: Number of dimensions D.
        num_classes: Number of classes C.

    Returns:
        Size in bytes.
    """
    return 8 * num_images * (dim + 3 * (1 if num_classes == 2 else num_classes))


def duality_gap(features: np.ndarray, targets: np.ndarray, weights: np.ndarray, strength: float) -> tuple[float, float]:
    """Compute the objective and its relative duality gap.

    With the softmax probabilities minus the one-hot targets as dual variables, the difference of primal and dual is
    the squared norm of the gradient over 2 * strength / N.

    Args:
        features: Features, (N, D) float64.
        targets: Class indices, (N,) int64.
        weights: Weights, (D, C) float64.
        strength: Regularization strength, positive.

    Returns:
        Objective, and duality gap divided by the objective.

    Examples:
        With zero weights the objective is log(2). The gradient is (-1/2, 1/2), its squared norm over 2 is 1/4:

        >>> objective, gap = duality_gap(np.array([[1.0]]), np.array([0]), np.zeros((1, 2)), strength=1)
        >>> round(objective, 4), round(gap * objective, 4)
        (0.6931, 0.25)
    """
    count, penalty = len(features), strength / len(features)
    losses, gradient = 0.0, penalty * count * weights  # (D, C)
    step = max(1, _BLOCK_BYTES // (8 * sum(weights.shape)))
    for start in range(0, count, step):
        block = features[start : start + step]
        own = np.arange(len(block)), targets[start : start + step]
        scores = block @ weights  # (n, C)
        scores -= scores.max(1, keepdims=True)
        losses -= scores[own].sum()
        np.exp(scores, out=scores)
        sums = scores.sum(1)
        losses += np.log(sums).sum()
        scores /= sums[:, None]
        scores[own] -= 1
        gradient += block.T @ scores
    objective = losses / count + penalty / 2 * float((weights**2).sum())
    return float(objective), float((gradient**2).sum() / count**2 / (2 * penalty * objective))


def _fit_cyanure(features: np.ndarray, targets: np.ndarray, strength: float, tolerance: float, max_iter: int) -> tuple[np.ndarray, int]:
    """Return weights (D, C), or (D, 1) for two classes, and the number of iterations."""
    from cyanure import estimators
    from sklearn.exceptions import ConvergenceWarning

    logging.getLogger("Cyanure").setLevel(logging.WARNING)
    classifier: Any = estimators.Classifier  # its annotations declare float parameters as int
    model = classifier(
        loss="multiclass-logistic" if targets.max() > 1 else "logistic",
        penalty="l2",
        fit_intercept=False,
        lambda_1=strength / len(features),
        solver="auto",
        tol=tolerance,
        max_iter=max_iter,
        duality_gap_interval=min(_GAP_INTERVAL, max_iter),
        n_threads=load_faiss().omp_get_max_threads(),  # the weights are equal, bit by bit, for any number
        random_state=0,
        verbose=False,
    )
    with warnings.catch_warnings(), _openmp_settings_kept():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Logistic.gap reports it
        model.fit(features, targets)
    return model.coef_.reshape(features.shape[1], -1), int(model.n_iter_.max())


@contextlib.contextmanager
def _openmp_settings_kept() -> Iterator[None]:
    """Restore the settings of all OpenMP runtimes in this process.

    cyanure 1.2.2 turns on omp_set_dynamic, and FAISS uses the same libgomp. The OpenBLAS of FAISS (faiss-cpu 1.15.1) then gets
    fewer threads than it has divided a product into, and waits for the others forever.
    """
    from threadpoolctl import threadpool_info  # a dependency of scikit-learn

    runtimes = [ctypes.CDLL(runtime["filepath"]) for runtime in threadpool_info() if runtime["user_api"] == "openmp"]
    names = (("get_dynamic", "set_dynamic"), ("get_max_active_levels", "set_max_active_levels"), ("get_max_threads", "set_num_threads"))
    # The OpenMP of Visual C++ lacks some.
    known = [(runtime, get, set_) for runtime in runtimes for get, set_ in names if hasattr(runtime, f"omp_{get}")]
    before = [getattr(runtime, f"omp_{get}")() for runtime, get, _ in known]
    try:
        yield
    finally:
        for (runtime, _, set_), value in zip(known, before, strict=True):
            getattr(runtime, f"omp_{set_}")(value)


def _fit_sklearn(features: np.ndarray, targets: np.ndarray, strength: float, tolerance: float, max_iter: int) -> tuple[np.ndarray, int]:
    """Return weights (D, C), or (D, 1) for two classes, and the number of iterations."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    columns = 1 if targets.max() == 1 else targets.max() + 1
    # scikit-learn stops by the largest entry of the gradient. The duality gap needs a squared norm of the gradient below
    # 2 * penalty * tolerance * objective. The default of 1e-4 stops after two steps if N is large.
    entry = math.sqrt(2 * strength / len(features) * tolerance / (features.shape[1] * columns)) / _MARGIN
    model = LogisticRegression(C=1 / strength, fit_intercept=False, tol=entry, max_iter=max_iter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, targets)
    return model.coef_.T, int(model.n_iter_.max())
