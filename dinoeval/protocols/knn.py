"""Weighted k-NN classification on frozen features, the paper's first score (Tables 2, 7, 9, 10, 13).

The final-norm [CLS] token of the last block, L2-normalised; the k nearest training images by cosine, exactly; each votes
for its class with weight exp(cosine / 0.07). k = 20 is the paper's. Source: eval_knn.py of facebookresearch/dino.

Where the released code leaves an answer to chance, a rule is fixed: of equal cosines the earlier training image counts;
of equal sums the earlier class; and a class without any vote is no prediction, while the released top-5 takes such
classes in whatever order a sort of zeros gives them. top-5 is therefore lower than the released one at k below about 20.

With a part of the training images (Table 10), only the bank is smaller. Where images may be of several classes (VOC07 in
Table 10), a class's score is the weight of the neighbours that have it over the weight of all, and the metrics are mean
average precisions; the paper names neither a score nor a metric for such a set.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from dinoeval import distributed
from dinoeval.errors import ConfigError
from dinoeval.maths.neighbors import multilabel_scores, nearest, vote
from dinoeval.models.zoo import ZOO
from dinoeval.protocols._classification import (
    Scores,
    extract_subsets,
    labels_of,
    merge_scores,
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
PAPER_K = 20
PAPER_TEMPERATURE = 0.07
PAPER = {
    name: Reference(metric=f"top1@{PAPER_K}", value=row.published["knn"], decimals=1, source=row.source)
    for name, row in ZOO.items()
    if "knn" in row.published and row.kind != "linear head"
}
LOW_SHOT = {"vit_s16": {12_811: 61.3, 128_116: 69.1}, "resnet50": {12_811: 47.2, 128_116: 59.3}}  # Table 10, by number of images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Weighted k-NN classification."""

    data: str | None = None
    """A folder with train/ and val/ (or test/), a CSV table with columns path, label (or labels) and split, or a name: digits, cifar10,
    cifar100, flowers102, imagenet, places365, places205, voc07, cars, inat18, inat19. By default $DINOEVAL_DATA/imagenet, or else the
    built-in digits."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours; all are answered by one search."""
    temperature: float = PAPER_TEMPERATURE
    """A neighbour votes with weight exp(cosine / temperature)."""
    train_subset: str | None = None
    """1pct, 10pct, any <number>pct of every class, or a file that lists image names, to search among; by default all."""
    subset_seeds: int = 3
    """For a percentage: how many random subsets to average over."""


def run(config: Config, session: Session) -> Result:
    """Score the session's backbone on a labelled data set, in percent.

    The metrics are top1@k and top5@k, or mAP@k and mAP_11point@k where images may be of several classes.
    """
    began = time.monotonic()
    _check(config)
    name, notes = resolve_dataset(config.data, session.backbone.arch)
    train_images, val_images = open_labeled(name)
    parts = training_subsets(train_images, config.train_subset, config.subset_seeds)
    fitting_ks(config.k, min(map(len, parts)))  # refuses what cannot fit before anything is computed
    opened = time.monotonic()
    trains, val = extract_subsets(session, train_images, parts, val_images)
    ks, note = fitting_ks(config.k, min(map(len, trains)))
    runs, seconds = _score_parts(config, ks, trains, val)
    return subset_result(
        "knn",
        VERSION,
        config,
        session,
        name,
        trains,
        val,
        runs,
        total=len(train_images),
        paper=PAPER,
        low_shot=LOW_SHOT,
        reasons=departures(config, ks),
        settled={"k": ks},
        notes=[*notes, *note],
        seconds={
            "open": opened - began,
            "train features": sum(train.seconds for train in trains),
            "val features": val.seconds,
            **seconds,
            "total": time.monotonic() - began,
        },
    )


def _check(config: Config) -> None:
    if not isinstance(config.k, tuple) or not config.k or min(config.k) < 1:
        raise ConfigError(f"k must be a tuple of numbers from 1 up, such as (10, 20): {config.k}")
    if not 0 < config.temperature < math.inf:
        raise ConfigError(f"temperature must be above 0, and a number: {config.temperature}")


def _score_parts(config: Config, ks: list[int], trains: list[Features], val: Features) -> tuple[list[Scores], dict[str, float]]:
    """Search each part and let the neighbours vote; also the seconds that both took."""
    # Each process searches for its own share of the queries.
    mine = np.array_split(np.arange(len(val)), distributed.world_size())[distributed.rank()]
    queries, truth = val.numpy()[mine], labels_of(val.images)
    runs, seconds = [], {"search": 0.0, "vote": 0.0}
    for train in trains:
        began = time.monotonic()
        cosines, rows = nearest(queries, train.blocks(), max(ks))
        searched = time.monotonic()
        labels = labels_of(train.images)
        if val.images.multi_label:
            found = multilabel_scores(cosines, labels, rows, ks=ks, temperature=config.temperature)  # (ks, Q, C)
        else:
            found = vote(cosines, labels[rows], ks=ks, temperature=config.temperature, num_classes=len(train.images.classes))  # (ks, Q, 5)
        found = np.concatenate(distributed.all_gather(found), axis=1)
        score = score_classes if val.images.multi_label else score_predictions
        runs.append(merge_scores([score(found[position], truth, f"@{k}") for position, k in enumerate(ks)]))
        seconds["search"] += searched - began
        seconds["vote"] += time.monotonic() - searched
    return runs, seconds


def departures(config: Config, ks: list[int]) -> list[tuple[bool, str]]:
    """In what the options may depart from the paper's, each with whether they do."""
    return [
        (config.temperature != PAPER_TEMPERATURE, f"the temperature is {config.temperature}, the paper's {PAPER_TEMPERATURE}"),
        (PAPER_K not in ks, f"k = {PAPER_K}, the paper's, is not among {ks}"),
    ]


def fitting_ks(asked: tuple[int, ...], bank: int) -> tuple[list[int], list[str]]:
    """Cut the default list to the size of the bank; a k that was asked for and does not fit is an error."""
    ks = sorted(set(asked))
    fitting = [k for k in ks if k <= bank]
    if len(fitting) == len(ks):
        return ks, []
    left_out = ", ".join(str(k) for k in ks if k > bank)
    if asked != Config().k:
        raise ConfigError(f"k = {left_out} is more than the {bank} training images there are")
    return fitting or [bank], [f"k = {left_out} left out: there are only {bank} training images"]
