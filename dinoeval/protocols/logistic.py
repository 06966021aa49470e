"""Multinomial logistic regression on frozen features with cyanure (Table 10).

The features are those of k-NN: the final-norm [CLS] token of the last block on center crops, L2-normalized. The model has
an L2 penalty, no intercept, and lambda = 0.1 / n. The released code does not contain it. Source: issue 121 of
facebookresearch/dino. There the authors list 0.01, 0.1 and 1 as the values they tried, and the author of cyanure shows
that lambda must be divided by the number of images. The paper publishes neither the value behind each number of Table 10
nor the images of its 1% and 10% of ImageNet.

If images may belong to several classes (VOC07 in Table 10), each class is fitted against all others, on the images that
are not difficult for it. The metrics are mean average precisions. The paper names no metric for VOC07, so both common ones
are reported: the area under the exact precision-recall curve, and the 11-point mean of VOC 2007. Their standard errors are
standard deviations over bootstrap samples of the evaluation images.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.subsets import hold_out
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.maths.logistic import Logistic, fit_logistic, fit_one_vs_rest, memory_needed
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.progress import Progress
from dinoeval.protocols._classification import (
    MultilabelScores,
    dataset_notes,
    extract_subsets,
    labels_of,
    open_labeled,
    resolve_dataset,
    score_multilabel,
    score_predictions,
    subset_scores,
    training_subsets,
)
from dinoeval.results import Result, Scores

if TYPE_CHECKING:
    from dinoeval.features.features import Features
    from dinoeval.session import Session

VERSION = 1
LAMBDA, TOLERANCE = 0.1, 1e-3  # issue 121
HELD_OUT = 0.1
"""Fraction of the training images that chooses one of several values of lambda."""
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Fit logistic regression on frozen features."""

    data: str | None = None
    """Folder, CSV table or name, as `dinoeval knn` takes (default: $DINOEVAL_DATA/imagenet, else the built-in digits)."""
    lambdas: tuple[float, ...] = (LAMBDA,)
    """Weights of the L2 penalty, before division by the number of training images. If there are several, the best on a held-out tenth
    of the training images is chosen and refitted on all of them."""
    solver: Literal["cyanure", "sklearn"] = "cyanure"
    """Solver. The paper uses cyanure. sklearn (L-BFGS) reaches the same minimum; which is faster depends on the features."""
    tolerance: float = TOLERANCE
    """Stop when the relative duality gap is below this value."""
    max_iter: int = 2000
    """Largest number of passes over the images, or of L-BFGS steps; a note reports a fit that did not converge."""
    train_subset: str | None = None
    """Part of the training images: <number>pct of every class, such as 1pct, or a file that lists image names (default: all)."""
    subset_seeds: int = 3
    """Random subsets to average if --train-subset is a percentage."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A classifier that was fitted to one training subset and scored."""

    scores: Scores
    gap: float
    """Relative duality gap."""
    table: list[dict[str, Any]]
    unlearned: list[str]
    """Classes without positive or without negative images in this subset."""


def run(config: Config, session: Session) -> Result:
    """Fit classifiers to the session's features of a labeled dataset and score them.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with `top1` and `top5`, or `mAP` and `mAP_11point` for a multi-label dataset, in percent.

    Raises:
        ConfigError: If an option is out of range or the solver is not installed.
        DataError: If the dataset cannot be used.
    """
    record = session.record("logistic", VERSION, config)
    _check(config)
    with record.stage("open"):
        name = resolve_dataset(config.data)
        train_images, val_images = open_labeled(name, session.config.bad_images)
        subsets = training_subsets(train_images, config.train_subset, config.subset_seeds)
        _log_memory(config, max(map(len, subsets)), session.backbone.dim, train_images)
    trains, val = extract_subsets(session, train_images, subsets, val_images)
    record.use_data(name, train=trains[0], val=val)
    record.seconds |= {"train features": sum(train.seconds for train in trains), "val features": val.seconds}
    started = time.monotonic()
    # One process fits, with all threads.
    fitted = distributed.broadcast(_fit_subsets(config, trains, val) if distributed.rank() == 0 else None)
    assert fitted is not None
    record.seconds["fit"] = time.monotonic() - started
    gap = max(one.gap for one in fitted)
    record.details |= {"train_images_total": len(train_images), "duality_gap": gap}
    record.resolved["lambdas"] = list(config.lambdas)
    record.notes += [*dataset_notes(config.data, session.backbone.arch), *_notes(config, fitted, gap)]
    table = [row for one in fitted for row in one.table] + _class_precisions(fitted, val)
    return record.result(subset_scores(record, trains, val, [one.scores for one in fitted], table))


def _check(config: Config) -> None:
    if not isinstance(config.lambdas, tuple) or not config.lambdas or not all(0 < value < math.inf for value in config.lambdas):
        raise ConfigError(f"--lambdas must be positive numbers, such as 0.01 0.1 1, got {' '.join(map(str, config.lambdas)) or 'none'}")
    if not 0 < config.tolerance < 1:
        raise ConfigError(f"--tolerance must be between 0 and 1, got {config.tolerance}")
    if config.max_iter < 1:
        raise ConfigError(f"--max-iter must be at least 1, got {config.max_iter}")
    if config.solver == "cyanure":
        try:
            import cyanure.estimators  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"the solver cyanure cannot be imported ({error}); it has wheels for Python 3.12 and older. Install it, or pass "
                "--solver sklearn, which reaches the same minimum"
            ) from error


def _log_memory(config: Config, size: int, dim: int, images: ImageSet) -> None:
    """Log the memory of the fit before hours of extraction."""
    classes = len(images.classes)
    needed = memory_needed(size, dim, 2 if images.multi_label else classes)
    features = 4 * size * dim * (2 if len(config.lambdas) > 1 else 1)  # the fit to a part copies the other features
    _log.info(
        "%s fits %s features of %d dimensions to %d classes: about %.2f GB of memory, in addition to %.2f GB of features",
        config.solver,
        f"{size:,}",
        dim,
        classes,
        needed / 1e9,
        features / 1e9,
    )


def _fit_subsets(config: Config, trains: Sequence[Features], val: Features) -> list[Fitted]:
    queries = l2_normalize(val.numpy())
    several = len(trains) > 1
    return [_fit_subset(config, seed, train, queries, val, {"seed": seed} if several else {}) for seed, train in enumerate(trains)]


def _fit_subset(config: Config, seed: int, train: Features, queries: np.ndarray, val: Features, row: dict[str, Any]) -> Fitted:
    features, labels, val_labels = l2_normalize(train.numpy()), labels_of(train.images), labels_of(val.images)
    strength, table, unlearned = config.lambdas[0], [], _unlearned(train, val_labels)
    if len(config.lambdas) > 1:
        split = hold_out(labels, HELD_OUT, seed)
        scores = [_held_out_score(config, strength, features, labels, split) for strength in config.lambdas]
        strength = config.lambdas[int(np.argmax(scores))]  # ties go to the first
        table = [
            {**row, "lambda": one, "held_out": score, "chosen": one == strength} for one, score in zip(config.lambdas, scores, strict=True)
        ]
    model = _fit(config, strength, features, labels)
    return Fitted(_score(model, queries, val_labels), model.gap, table, unlearned)


def _unlearned(train: Features, val_labels: np.ndarray) -> list[str]:
    """List the classes of the evaluation images that these training images do not separate from the others."""
    labels = labels_of(train.images)
    if labels.ndim == 1:
        numbers = np.setdiff1d(val_labels, labels)
    else:
        numbers = np.flatnonzero(~((labels == 1).any(0) & (labels == 0).any(0)))
        if len(numbers) == labels.shape[1]:
            raise DataError(f"no class has both positive and negative images among the {len(labels):,} training images")
    return [train.images.classes[number] for number in numbers]


def _held_out_score(
    config: Config, strength: float, features: np.ndarray, labels: np.ndarray, split: tuple[np.ndarray, np.ndarray]
) -> float:
    """Return the score of held-out training images in percent: top-1, or mean average precision."""
    kept, held = split
    scores = _score(_fit(config, strength, features[kept], labels[kept]), features[held], labels[held])
    score = next(iter(scores.metrics.values()))
    if math.isnan(score):
        raise DataError("--lambdas cannot be compared: the held-out images have no class. Pass one value, or more training images")
    return score


def _fit(config: Config, strength: float, features: np.ndarray, labels: np.ndarray) -> Logistic:
    solve = fit_logistic if labels.ndim == 1 else fit_one_vs_rest
    with Progress(f"fit to {len(features):,} images"):
        return solve(features, labels, strength=strength, solver=config.solver, tolerance=config.tolerance, max_iter=config.max_iter)


def _score(model: Logistic, queries: np.ndarray, labels: np.ndarray) -> Scores:
    if labels.ndim == 1:
        return score_predictions(model.rank(queries), labels)
    return score_multilabel(model.scores(queries), labels)


def _notes(config: Config, fitted: Sequence[Fitted], gap: float) -> list[str]:
    notes = []
    if gap > config.tolerance:
        notes.append(
            f"the fit did not converge in {config.max_iter} iterations: its relative duality gap is {gap:.1e}, above "
            f"{config.tolerance:g}; raise --max-iter"
        )
    if unlearned := sorted({name for one in fitted for name in one.unlearned}):
        notes.append(f"{len(unlearned)} classes could not be learned from these training images: {join_names(unlearned)}")
    return notes


def _class_precisions(fitted: Sequence[Fitted], val: Features) -> list[dict[str, Any]]:
    """Return one row per class with its average precision in percent, averaged over the runs; None without an image."""
    scores = [one.scores for one in fitted if isinstance(one.scores, MultilabelScores)]
    if not scores:
        return []
    means = {
        f"AP{metric.removeprefix('mAP')}": np.mean([one.per_class[metric] for one in scores], axis=0) for metric in scores[0].per_class
    }
    images = (labels_of(val.images) == 1).sum(0).tolist()
    return [
        {
            "class": name,
            "images": images[number],
            **{column: None if math.isnan(ap[number]) else float(ap[number]) for column, ap in means.items()},
        }
        for number, name in enumerate(val.images.classes)
    ]
