"""Weighted k-NN classification on frozen features, the paper's first score (Tables 2, 7, 9, 10, 13).

The final-norm [CLS] token of the last block, L2-normalised; the k nearest training images by cosine, exactly; each votes
for its class with weight exp(cosine / 0.07). k = 20 is the paper's. Source: eval_knn.py of facebookresearch/dino.

Where the released code leaves an answer to chance, a rule is fixed: of equal cosines the earlier training image counts;
of equal sums the earlier class; and a class without any vote is no prediction, while the released top-5 takes such
classes in whatever order a sort of zeros gives them. top-5 is therefore lower than the released one at k below about 20.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING

import numpy as np

from dinoeval import distributed
from dinoeval.classification import choose_data, published, result_of, sizes_of
from dinoeval.data.images import ImageSet, open_splits
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls
from dinoeval.maths.neighbors import nearest, vote
from dinoeval.models.zoo import ZOO
from dinoeval.results import Reference, Result, proportion_error

if TYPE_CHECKING:
    from dinoeval.session import Session

VERSION = 1
PAPER_K = 20
PAPER_TEMPERATURE = 0.07
PAPER = {
    name: Reference(metric=f"top1@{PAPER_K}", value=row.published["knn"], decimals=1, source=row.source)
    for name, row in ZOO.items()
    if "knn" in row.published and row.kind != "linear head"
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Weighted k-NN classification."""

    data: str | None = None
    """A folder with train/ and val/ (or test/), a CSV table with columns path, label and split, or a name: digits, cifar10, cifar100,
    flowers102, imagenet. By default $DINOEVAL_DATA/imagenet, or else the built-in digits."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours; all are answered by one search."""
    temperature: float = PAPER_TEMPERATURE
    """A neighbour votes with weight exp(cosine / temperature)."""


def run(config: Config, session: Session) -> Result:
    """Score the session's backbone on a labelled data set; a Result whose metrics are top1@k and top5@k in percent."""
    began = time.monotonic()
    if not isinstance(config.k, tuple) or not config.k or min(config.k) < 1:
        raise ConfigError(f"k must be a tuple of numbers from 1 up, such as (10, 20): {config.k}")
    if not 0 < config.temperature < math.inf:
        raise ConfigError(f"temperature must be above 0, and a number: {config.temperature}")
    name, notes = choose_data(config.data, session.backbone.arch)
    train_images, val_images = open_splits(name)
    fitting_ks(config.k, len(train_images))  # refuses what cannot fit before anything is computed
    opened = time.monotonic()
    train, val = session.features(train_images, Cls()), session.features(val_images, Cls())
    ks, note = fitting_ks(config.k, len(train))
    notes += note
    extracted = time.monotonic()

    # Each process searches for its own share of the queries.
    mine = np.array_split(np.arange(len(val)), distributed.world())[distributed.rank()]
    cosines, rows = nearest(val.numpy()[mine], train.blocks(), max(ks))
    searched = time.monotonic()
    labels, truth = _labels(train.images), _labels(val.images)
    voted = vote(cosines, labels[rows], ks=ks, temperature=config.temperature, num_classes=len(train.images.classes))
    predictions = np.concatenate(distributed.gather(voted), axis=1)  # (ks, Q, 5)
    seconds = {
        "open": opened - began,
        "train features": train.seconds,
        "val features": val.seconds,
        "search": searched - extracted,
        "vote": time.monotonic() - searched,
        "total": time.monotonic() - began,
    }
    correct = predictions == truth[:, None]  # (ks, Q, 5)
    outcomes = {}
    for position, k in enumerate(ks):
        outcomes[f"top1@{k}"] = correct[position, :, 0]
        outcomes[f"top5@{k}"] = correct[position].any(1)
    metrics = {metric: 100 * float(hits.mean()) for metric, hits in outcomes.items()}
    references, why_not = published(PAPER, session, sizes_of(train, val), departures(config, ks))
    return result_of(
        "knn",
        VERSION,
        config,
        session,
        name,
        {"train": train, "val": val},
        metrics=metrics,
        standard_errors={metric: proportion_error(value, len(val)) for metric, value in metrics.items()},
        settled={"k": ks},
        seconds=seconds,
        references=references,
        not_comparable=why_not,
        notes=notes,
        samples={
            "path": list(val.images.paths),
            "label": truth.tolist(),
            **{f"prediction@{k}": predictions[position, :, 0].tolist() for position, k in enumerate(ks)},
            **{metric: hits.astype(int).tolist() for metric, hits in outcomes.items()},
        },
    )


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


def _labels(images: ImageSet) -> np.ndarray:
    assert images.labels is not None
    return images.labels
