"""Weighted k-NN classification on frozen features (Tables 2, 7, 9, 10, 13).

The final-norm [CLS] token of the last block is L2-normalized. The k nearest training images by cosine, found exactly,
vote for their class with weight exp(cosine / 0.07). The paper reports k = 20. Source: eval_knn.py of facebookresearch/dino.

The released code breaks ties arbitrarily; here fixed rules apply. For equal cosines, the earlier training image is nearer.
For equal sums, the earlier class wins. A class without a vote is not a prediction, while the released top-5 includes such
classes in arbitrary order. Therefore top-5 is lower than the released one for k below about 20.

With a training subset (Table 10), only the set of neighbors is smaller. If images may belong to several classes (VOC07 in
Table 10), the score of a class is the weight of the neighbors that have it, divided by the weight of all neighbors. The
metrics are mean average precisions. The paper names neither a score nor a metric for such a dataset.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from dinoeval import distributed
from dinoeval.errors import ConfigError
from dinoeval.maths.neighbors import multilabel_scores, nearest, vote
from dinoeval.progress import Progress
from dinoeval.protocols._classification import (
    dataset_notes,
    extract_subsets,
    labels_of,
    merge_scores,
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
PAPER_TEMPERATURE = 0.07  # eval_knn.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Classify images by weighted k-NN on frozen features."""

    data: str | None = None
    """Folder with train/ and val/ (or test/); CSV table with columns path, label (or labels) and split; or a name: digits, cifar10,
    cifar100, flowers102, imagenet, places365, places205, voc07, cars, inat18, inat19 (default: $DINOEVAL_DATA/imagenet, else the
    built-in digits)."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbors k; one search serves all values."""
    temperature: float = PAPER_TEMPERATURE
    """Temperature of the weights exp(cosine / temperature)."""
    train_subset: str | None = None
    """Part of the training images: <number>pct of every class, such as 1pct, or a file that lists image names (default: all)."""
    subset_seeds: int = 3
    """Random subsets to average if --train-subset is a percentage."""


def run(config: Config, session: Session) -> Result:
    """Score the session's backbone on a labeled dataset.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with `top1@k` and `top5@k`, or `mAP@k` and `mAP_11point@k` for a multi-label dataset, in percent.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the dataset cannot be used.
    """
    record = session.record("knn", VERSION, config)
    _check(config)
    with record.stage("open"):
        name = resolve_dataset(config.data)
        train_images, val_images = open_labeled(name, session.config.bad_images)
        subsets = training_subsets(train_images, config.train_subset, config.subset_seeds)
        fitting_ks(config.k, min(map(len, subsets)))  # rejects what cannot fit before anything is computed
    record.notes += dataset_notes(config.data, session.backbone.arch)
    trains, val = extract_subsets(session, train_images, subsets, val_images)
    record.use_data(name, train=trains[0], val=val)
    record.details["train_images_total"] = len(train_images)
    record.seconds |= {"train features": sum(train.seconds for train in trains), "val features": val.seconds}
    ks, cut = fitting_ks(config.k, min(map(len, trains)))
    record.resolved["k"] = ks
    record.notes += cut
    runs, seconds = _score_subsets(config, ks, trains, val)
    record.seconds |= seconds
    return record.result(subset_scores(record, trains, val, runs))


def _check(config: Config) -> None:
    if not isinstance(config.k, tuple) or not config.k or min(config.k) < 1:
        raise ConfigError(f"--k must be numbers of at least 1, such as 10 20, got {' '.join(map(str, config.k)) or 'none'}")
    if not 0 < config.temperature < math.inf:
        raise ConfigError(f"--temperature must be a positive number, got {config.temperature}")


def _score_subsets(config: Config, ks: list[int], trains: list[Features], val: Features) -> tuple[list[Scores], dict[str, float]]:
    """Search each subset and count the votes; also return the seconds of both stages."""
    # Each process searches for its own share of the queries.
    mine = np.array_split(np.arange(len(val)), distributed.world_size())[distributed.rank()]
    queries, val_labels = val.numpy()[mine], labels_of(val.images)
    multi_label = val.images.multi_label
    runs, seconds = [], {"search": 0.0, "vote": 0.0}
    for train in trains:
        started = time.monotonic()
        cosines, rows = nearest(queries, _blocks(train), max(ks))
        searched = time.monotonic()
        labels = labels_of(train.images)
        if multi_label:
            found = multilabel_scores(cosines, labels, rows, ks=ks, temperature=config.temperature)  # (ks, Q, C)
        else:
            num_classes = len(train.images.classes)
            found = vote(cosines, labels[rows], ks=ks, temperature=config.temperature, num_classes=num_classes)  # (ks, Q, 5)
        found = np.concatenate(distributed.all_gather(found), axis=1)
        score = score_multilabel if multi_label else score_predictions
        runs.append(merge_scores([score(found[position], val_labels, f"@{k}") for position, k in enumerate(ks)]))
        seconds["search"] += searched - started
        seconds["vote"] += time.monotonic() - searched
    return runs, seconds


def _blocks(train: Features) -> Iterator[np.ndarray]:
    """Yield the features block by block, and show how many are searched."""
    with Progress("searched train images", len(train), "images") as progress:
        for block in train.blocks():
            yield block
            progress.update(len(block))


def fitting_ks(requested: tuple[int, ...], images: int) -> tuple[list[int], list[str]]:
    """Cut the default list of k to the number of training images.

    Args:
        requested: The values of --k.
        images: Number of training images.

    Returns:
        The values that fit, ascending, and a note about those left out.

    Raises:
        ConfigError: If a k that the user passed does not fit.

    Examples:
        >>> fitting_ks((10, 20, 100, 200), 120)[0]
        [10, 20, 100]
    """
    ks = sorted(set(requested))
    fitting = [k for k in ks if k <= images]
    if len(fitting) == len(ks):
        return ks, []
    too_large = ", ".join(str(k) for k in ks if k > images)
    if requested != Config().k:
        raise ConfigError(f"--k {too_large} exceeds the {images:,} training images: pass --k {images} or less")
    return fitting or [images], [f"k = {too_large} left out: there are only {images:,} training images"]
