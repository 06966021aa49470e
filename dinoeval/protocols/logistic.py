"""Logistic regression on frozen features by cyanure (Table 10).

The features of k-NN: the final-norm [CLS] token of the last block on central crops, L2-normalised. Multinomial logistic
regression, L2 penalty, no intercept, lambda = 0.1 / n. Not in the released code; source: issue 121 of
facebookresearch/dino, where the authors name 0.01, 0.1 and 1 as the values they tried, and cyanure's author shows that
lambda has to be divided by the number of images. Which value was taken for which number of Table 10 is not published, nor
are the images of its 1 % and 10 % of ImageNet.

Where images may be of several classes (VOC07 in Table 10) each class is fitted against all others, by the images that are
not difficult for it, and the metrics are mean average precisions. The paper names no metric for VOC07: both that are in
use are given, the area under the exact precision-recall curve and VOC 2007's mean over 11 recalls. Their standard errors
are deviations over draws of the evaluation images with replacement.
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
from dinoeval.models.zoo import ZOO
from dinoeval.protocols._classification import (
    Scores,
    extract_subsets,
    labels_of,
    open_labeled,
    resolve_dataset,
    score_classes,
    score_predictions,
    subset_result,
    training_subsets,
)
from dinoeval.results import Reference, Result

if TYPE_CHECKING:
    from dinoeval.features.extract import Features
    from dinoeval.session import Session

VERSION = 1
LAMBDA, TOLERANCE = 0.1, 1e-3  # issue 121
HELD_OUT = 0.1
_TABLE_10 = {"vit_s16": 75.7, "resnet50": 72.1}
PAPER = {
    name: Reference(metric="top1", value=_TABLE_10[row.arch], decimals=1, source="Table 10 of the paper")
    for name, row in ZOO.items()
    if name.removesuffix("_full") in _TABLE_10
}
LOW_SHOT = {"vit_s16": {12_811: 64.5, 128_116: 72.2}, "resnet50": {12_811: 55.1, 128_116: 67.8}}  # Table 10, by number of images
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Logistic regression on frozen features."""

    data: str | None = None
    """As for knn: a folder, a CSV table or a name; by default $DINOEVAL_DATA/imagenet, or else the built-in digits."""
    lambdas: tuple[float, ...] = (LAMBDA,)
    """Weights of the penalty, to be divided by the number of training images. Of several, the one that is best on a tenth of the
    training images, held out, is fitted again on all."""
    solver: Literal["cyanure", "sklearn"] = "cyanure"
    """cyanure is the paper's; scikit-learn's L-BFGS ends at the same minimum, sooner or later depending on the features."""
    tolerance: float = TOLERANCE
    """The fit ends when the objective is above its minimum by at most this share of it, as the duality gap tells."""
    max_iter: int = 2000
    """Passes over the images, or steps of scikit-learn, after which the fit ends in any case; a note says so."""
    train_subset: str | None = None
    """1pct, 10pct, any <number>pct of every class, or a file that lists image names, to train on; by default all."""
    subset_seeds: int = 3
    """For a percentage: how many random subsets to average over."""


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What was found on one part of the training images."""

    scored: Scores
    gap: float
    table: list[dict[str, Any]]
    unlearnt: list[str]
    """Classes that cannot be told from others by this part."""


def run(config: Config, session: Session) -> Result:
    """Fit classifiers on the session's features of a labelled data set, and score them in percent.

    The metrics are top1 and top5, or mAP and mAP_11point where images may be of several classes.
    """
    began = time.monotonic()
    _check(config)
    name, notes = resolve_dataset(config.data, session.backbone.arch)
    train_images, val_images = open_labeled(name)
    parts = training_subsets(train_images, config.train_subset, config.subset_seeds)
    _announce(config, max(map(len, parts)), session.backbone.dim, train_images)
    opened = time.monotonic()
    trains, val = extract_subsets(session, train_images, parts, val_images)
    extracted = time.monotonic()
    # One process fits; its threads are all there are.
    fitted = distributed.broadcast(_fit_parts(config, trains, val) if distributed.rank() == 0 else None)
    assert fitted is not None
    worst = max(one.gap for one in fitted)
    return subset_result(
        "logistic",
        VERSION,
        config,
        session,
        name,
        trains,
        val,
        [one.scored for one in fitted],
        total=len(train_images),
        paper=PAPER,
        low_shot=LOW_SHOT,
        reasons=departures(config, worst),
        settled={"lambdas": list(config.lambdas)},
        notes=[*notes, *_notes(config, fitted, worst)],
        table=[row for one in fitted for row in one.table] + _precisions(fitted, val),
        seconds={
            "open": opened - began,
            "train features": sum(train.seconds for train in trains),
            "val features": val.seconds,
            "fit": time.monotonic() - extracted,
            "total": time.monotonic() - began,
        },
    )


def departures(config: Config, gap: float) -> list[tuple[bool, str]]:
    """In what a run may depart from the paper's, each with whether it does."""
    return [
        (config.lambdas != (LAMBDA,), f"the lambdas are {config.lambdas}, the recipe's is {LAMBDA}"),
        (gap > TOLERANCE, f"the fit did not converge: its duality gap is {gap:.1e}, the recipe's {TOLERANCE}"),
    ]


def _check(config: Config) -> None:
    if not isinstance(config.lambdas, tuple) or not config.lambdas or not all(0 < value < math.inf for value in config.lambdas):
        raise ConfigError(f"lambdas must be a tuple of numbers above 0, such as (0.01, 0.1, 1): {config.lambdas}")
    if not 0 < config.tolerance < 1:
        raise ConfigError(f"tolerance must be between 0 and 1: {config.tolerance}")
    if config.max_iter < 1:
        raise ConfigError(f"max_iter must be 1 or more: {config.max_iter}")
    if config.solver == "cyanure":
        try:
            import cyanure.estimators  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"the solver cyanure cannot be imported ({error}); it has wheels for Python 3.12 and older. Install it there, or say "
                "--solver sklearn, which ends at the same minimum."
            ) from error


def _announce(config: Config, size: int, dim: int, images: ImageSet) -> None:
    """Say the memory that the fit will take, before hours of extraction."""
    classes = len(images.classes)
    needed = memory_needed(size, dim, 2 if images.multi_label else classes)
    rows = 4 * size * dim * (2 if len(config.lambdas) > 1 else 1)  # of several lambdas a part is held out, and the rest copied
    _log.info("%s will fit %s rows of %d numbers to %d classes, in about %.2f GB of memory beside the %.2f GB of the rows",
              config.solver, f"{size:,}", dim, classes, needed / 1e9, rows / 1e9)  # fmt: skip


def _fit_parts(config: Config, trains: Sequence[Features], val: Features) -> list[Fitted]:
    queries = l2_normalize(val.numpy())
    several = len(trains) > 1
    return [_fit_part(config, seed, train, queries, val, {"seed": seed} if several else {}) for seed, train in enumerate(trains)]


def _fit_part(config: Config, seed: int, train: Features, queries: np.ndarray, val: Features, row: dict[str, Any]) -> Fitted:
    rows, labels, truth = l2_normalize(train.numpy()), labels_of(train.images), labels_of(val.images)
    strength, table, unlearnt = config.lambdas[0], [], _unlearnt(train, truth)
    if len(config.lambdas) > 1:
        kept, held = hold_out(labels, HELD_OUT, seed)
        scores = [_held_out(config, strength, rows, labels, kept, held) for strength in config.lambdas]
        strength = config.lambdas[int(np.argmax(scores))]  # of equals the first
        table = [
            {**row, "lambda": one, "held_out": score, "chosen": one == strength} for one, score in zip(config.lambdas, scores, strict=True)
        ]
    model = _fit(config, strength, rows, labels)
    return Fitted(_score(model, queries, truth), model.gap, table, unlearnt)


def _unlearnt(train: Features, truth: np.ndarray) -> list[str]:
    """The classes of the evaluation images that these training images do not tell from the others."""
    labels = labels_of(train.images)
    if labels.ndim == 1:
        numbers = np.setdiff1d(truth, labels)
    else:
        numbers = np.flatnonzero(~((labels == 1).any(0) & (labels == 0).any(0)))
        if len(numbers) == labels.shape[1]:
            raise DataError(f"nothing can be learnt from the {len(labels)} training images: no class is of some of them and not of others")
    return [train.images.classes[number] for number in numbers]


def _held_out(config: Config, strength: float, rows: np.ndarray, labels: np.ndarray, kept: np.ndarray, held: np.ndarray) -> float:
    """The score, in percent, of training images that were held out: top-1, or mean average precision."""
    scored = _score(_fit(config, strength, rows[kept], labels[kept]), rows[held], labels[held])
    score = next(iter(scored.metrics.values()))
    if math.isnan(score):
        raise DataError("lambda cannot be chosen: the images held out are of no class. Give one of --lambdas, or more training images.")
    return score


def _fit(config: Config, strength: float, rows: np.ndarray, labels: np.ndarray) -> Logistic:
    solve = fit_logistic if labels.ndim == 1 else fit_one_vs_rest
    return solve(rows, labels, strength=strength, solver=config.solver, tolerance=config.tolerance, max_iter=config.max_iter)


def _score(model: Logistic, queries: np.ndarray, truth: np.ndarray) -> Scores:
    return score_predictions(model.rank(queries), truth) if truth.ndim == 1 else score_classes(model.scores(queries), truth)


def _notes(config: Config, fitted: Sequence[Fitted], gap: float) -> list[str]:
    notes = []
    if gap > config.tolerance:
        notes.append(
            f"not converged in {config.max_iter} passes: the duality gap is {gap:.1e} of the objective, more than "
            f"{config.tolerance:g}; raise --max-iter"
        )
    if unlearnt := sorted({name for one in fitted for name in one.unlearnt}):
        notes.append(f"{len(unlearnt)} classes could not be learnt from these training images: {join_names(unlearnt)}")
    return notes


def _precisions(fitted: Sequence[Fitted], val: Features) -> list[dict[str, Any]]:
    """The average precision of every class, in percent, over all runs; None for a class without an image."""
    found = fitted[0].scored.per_class
    if not found:
        return []
    means = {f"AP{metric.removeprefix('mAP')}": np.mean([one.scored.per_class[metric] for one in fitted], axis=0) for metric in found}
    images = (labels_of(val.images) == 1).sum(0).tolist()
    return [
        {
            "class": name,
            "images": images[number],
            **{column: None if math.isnan(ap[number]) else float(ap[number]) for column, ap in means.items()},
        }
        for number, name in enumerate(val.images.classes)
    ]
