"""Retrieval of landmarks: the revisited Oxford and Paris sets (Table 3).

The final-norm [CLS] token of the last block, L2-normalised; the database is ranked by cosine to each query. Pictures keep
their shape: they are shrunk to fit in a square (Lanczos) and never enlarged. At several scales (1, 1/sqrt 2, 1/2) the raw
features are averaged and divided by their length. Sources: eval_image_retrieval.py of facebookresearch/dino, and
evaluate.py of revisitop for the scores: average precision by trapezoids, with junk taken out of the ranking.

The paper queries with the whole picture; the benchmark's own protocol cuts queries to their box (`query_crop`). The
released code divides the several-scale feature by the length of the batch, which is right for its batches of one;
here every picture is divided by its own. Pictures of equal size share a batch. The released code fills truncated files
with grey; here they are named and refused. The released code leaves the order of equal cosines open; here the earlier
image comes first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from typing import TYPE_CHECKING

import numpy as np

from dinoeval.data.retrieval import LEVELS, PUBLISHED, Name, Query, open_retrieval
from dinoeval.data.transforms import MULTISCALE, Thumbnail
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls
from dinoeval.maths.ranks import order_of, positive_ranks, score_ranks
from dinoeval.protocols._instances import (
    Descriptors,
    bootstrap_metrics,
    common_requirements,
    first_reason,
    network_name,
    open_image_folder,
    ranking_result,
    resolve_root,
)
from dinoeval.results import Reference

if TYPE_CHECKING:
    from dinoeval.features.extract import Features
    from dinoeval.results import Result
    from dinoeval.session import Session

VERSION = 1
KS = (1, 5, 10)
SETTINGS: dict[Name, tuple[int, bool]] = {"roxford5k": (224, False), "rparis6k": (512, True)}
"""Image size, and whether at several scales (README of facebookresearch/dino and its issue 90, for the GLDv2 model)."""
_GLDV2 = "vit_s16_landmarks"
_TABLE3 = {  # Oxford medium, hard, Paris medium, hard
    "timm/deit_small_patch16_224": (33.5, 8.9, 63.0, 37.2),
    "resnet50": (35.4, 11.1, 55.9, 27.5),
    "vit_s16": (41.8, 13.7, 63.1, 34.4),
    _GLDV2: (51.5, 24.3, 75.3, 51.6),
}
PAPER = {
    (name, dataset, level): Reference(metric=f"mAP_{level}", value=values[2 * column + row], decimals=1, source="Table 3")
    for name, values in _TABLE3.items()
    for column, dataset in enumerate(SETTINGS)
    for row, level in enumerate(("medium", "hard"))
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Retrieval on the revisited Oxford and Paris sets."""

    dataset: Name = "roxford5k"
    """Which of the two."""
    data: str | None = None
    """The folder that holds roxford5k/ or rparis6k/, each with its gnd_*.pkl and jpg/; by default $DINOEVAL_DATA."""
    image_size: int | None = None
    """Pictures are shrunk to fit in a square of so many pixels. Where it is left out: the published setting of the set, 224 for Oxford,
    512 at several scales for Paris."""
    multiscale: bool = False
    """Average the features at the scales 1, 0.71 and 0.5."""
    query_crop: bool = False
    """Cut queries to their box, as the benchmark's own protocol does and the paper does not."""
    distractors: str | None = None
    """A folder of images that are added to the database, such as revisitop's one million."""
    whitening: str | None = None
    """A folder of images to learn a whitening from; the paper's retrieval has none."""
    center_whitening: bool = False
    """Whiten by the covariance about the mean, not by the uncentred one that the paper's copy detection has."""


def run(config: Config, session: Session) -> Result:
    """Rank the database for every query; mean average precision and precision at 1, 5 and 10, in percent.

    The metrics are mAP_LEVEL and mP@K_LEVEL, for the levels easy, medium and hard.
    """
    began = time.monotonic()
    size, scales = settle(config)
    transform = Thumbnail(size, scales, *session.normalization())
    root = resolve_root(config.data, "", f"the folder that holds {config.dataset}/")
    opened = open_retrieval(root, config.dataset)
    queries = opened.cropped() if config.query_crop else opened.queries
    strangers, whitening = open_image_folder(config.distractors, "distractors"), open_image_folder(config.whitening, "whitening")
    vectors = Descriptors(session, Cls(), transform, seconds={"open": time.monotonic() - began})
    found = vectors.extract("queries", queries), vectors.extract("database", opened.database)
    if whitening:
        vectors.learn_whitening(whitening, config.center_whitening)
    cosines, closer = vectors.compare(*found, strangers)
    outcomes = score_queries(cosines, closer, *found, opened.truth)
    reason, notes = _comparable(config, session, vectors)
    spreads = {metric: spread for metric, spread in bootstrap_metrics(outcomes).items() if metric.startswith("mAP")}
    return ranking_result(
        "retrieval",
        VERSION,
        config,
        vectors,
        str(root),
        outcomes,
        found[0].images.paths,
        settled={"image_size": size, "multiscale": scales != (1.0,), "ground_truth": _digest(opened.truth)},
        notes=notes,
        references=[] if reason else [PAPER[network_name(session), config.dataset, level] for level in ("medium", "hard")],
        not_comparable=reason,
        table=[{"metric": metric, "low": spread.low, "high": spread.high} for metric, spread in spreads.items()],
        seconds={**vectors.seconds, "total": time.monotonic() - began},
    )


def settle(config: Config) -> tuple[int, tuple[float, ...]]:
    """The image size and the scales: as given, or those that are published for the set."""
    if config.image_size is not None and config.image_size < 1:
        raise ConfigError(f"image size must be 1 or more: {config.image_size}")
    if config.center_whitening and config.whitening is None:
        raise ConfigError("--center-whitening is about --whitening, which is left out")
    size, several = SETTINGS[config.dataset]
    if config.image_size is not None:
        size, several = config.image_size, config.multiscale
    return size, MULTISCALE if several or config.multiscale else (1.0,)


def score_queries(
    cosines: np.ndarray, closer: np.ndarray | None, queries: Features, database: Features, truth: tuple[Query, ...]
) -> dict[str, np.ndarray]:
    """Average precision and precision at k of every query (Q,) at each level, by metric; fractions.

    Queries that could not be read are not scored. A database image that could not be read is one that was not found.
    """
    order = order_of(cosines)
    place = np.full(database.entry.num_rows, -1)
    place[database.rows] = np.arange(len(database))
    asked = [truth[row] for row in queries.rows]
    outcomes = {}
    for level in LEVELS:
        pairs = [query.truth(level) for query in asked]
        ranks = [
            positive_ranks(order[row], place[right], place[junk], None if closer is None else closer[row])
            for row, (right, junk) in enumerate(pairs)
        ]
        precision, at = score_ranks(ranks, [len(right) for right, _ in pairs], KS)
        outcomes |= {f"mAP_{level}": precision, **{f"mP@{k}_{level}": at[:, column] for column, k in enumerate(KS)}}
    return outcomes


def _comparable(config: Config, session: Session, vectors: Descriptors) -> tuple[str | None, list[str]]:
    """Why the published numbers cannot be compared with, or None; and what is to be known where they can."""
    name, (size, scales) = network_name(session), settle(config)
    counts = tuple(len(vectors.features[kind]) for kind in ("database", "queries"))
    wanted = PUBLISHED[config.dataset]
    own = (size, scales != (1.0,))
    reasons = [
        (counts != wanted, f"the published set has {wanted[0]:,} images and {wanted[1]} queries, this one {counts[0]:,} and {counts[1]}"),
        (own != SETTINGS[config.dataset], f"the published setting is {_told(*SETTINGS[config.dataset])}, this is {_told(*own)}"),
        (config.query_crop, "queries were cut to their boxes, the paper's are whole"),
        (config.distractors is not None, "distractors were added to the database"),
        (config.whitening is not None, "features were whitened, the paper's are not"),
        *common_requirements(session, (name, config.dataset, "hard") in PAPER, any(one.bad for one in vectors.features.values())),
    ]
    reason = first_reason(reasons)
    if reason:
        return reason, []
    notes = [
        "the set is taken for the published one by its numbers of images and queries; its ground truth was not compared",
        "pictures downloaded since June 2022 have blurred faces, those of the paper had not; the files do not tell",
    ]
    if name != _GLDV2:
        notes.append(f"the setting is published for the GLDv2 model ({_GLDV2}) only; the paper does not say that of this row")
    if name.startswith("timm/"):
        notes.append("timm resamples positions in its own way, other than the released code would")
    if name == "resnet50":
        notes.append("the released script cannot make this row: its network ends in a classifier without outputs")
    return None, notes


def _told(size: int, several: bool) -> str:
    return f"{size} pixels at {'several scales' if several else 'one scale'}"


def _digest(truth: tuple[Query, ...]) -> str:
    """16 hex digits of the ground truth's lists and boxes."""
    lists = b";".join(rows.astype("<i8").tobytes() for query in truth for _, rows in sorted(query.lists.items()))
    boxes = repr([query.box for query in truth]).encode()
    return hashlib.sha256(lists + boxes).hexdigest()[:16]
