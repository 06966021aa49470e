"""Copy detection on Copydays (Table 4): find the original of each attacked picture, among distractors.

The final-norm [CLS] token of the last block and the generalised mean (p = 4) of its patch tokens, side by side; whitened
by what another set of images says; L2-normalised; originals and distractors ranked by cosine. Pictures are squashed to a
square with PIL's bicubic filter. The score is the mean over the strong copies of the average precision, by trapezoids,
of the first 20 places: a copy whose original comes first scores 1, second 0.25, beyond the twentieth 0. Source:
eval_copy_detection.py of facebookresearch/dino; the paper names neither the power, the square, the cut nor the
uncentred covariance of the whitening.

Beside it stands the same over the whole ranking (`mAP_full_strong`); the table has both for every block.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.copydays import BLOCKS, ORIGINAL, PUBLISHED, STRONG, Copydays, open_copydays
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.readout import ClsGem
from dinoeval.maths.ranks import order_of, positive_ranks, trapezoid_precision
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
PAPER_POWER, PAPER_TOP = 4.0, 20
PAPER_DISTRACTORS, PAPER_WHITENING = 10_000, 20_000
SIZES = {"timm/deit_base_patch16_224": 224, "vit_b16": 224, "vit_b8": 320}
"""Image sizes of Table 4's rows."""
PAPER = {
    name: Reference(metric=f"mAP_{STRONG}", value=value, decimals=1, source="Table 4")
    for name, value in {"timm/deit_base_patch16_224": 76.4, "vit_b16": 81.7, "vit_b8": 85.5}.items()
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Copy detection on Copydays."""

    data: str | None = None
    """The folder that holds original/, strong/, jpegqual/ and crops/; by default $DINOEVAL_DATA/copydays."""
    distractors: str | None = None
    """A folder of images that are added to the originals; the paper's are 10,000 of YFCC100M."""
    whitening: str | None = None
    """A folder of images to learn the whitening from; the paper's are 20,000 others of YFCC100M."""
    center_whitening: bool = False
    """Whiten by the covariance about the mean; the paper's scores come from an uncentred one."""
    image_size: int | None = None
    """Pictures are squashed to a square of so many pixels; by default 320, and 224 for networks of 16-pixel patches, as in Table 4."""
    gem_p: float = PAPER_POWER
    """The power of the generalised mean."""
    top: int = PAPER_TOP
    """Only so many first places count; mAP_full_strong counts all."""


def run(config: Config, session: Session) -> Result:
    """Search the original of every picture; mean average precision of each block, in percent.

    The metrics are mAP_BLOCK, of which the paper has mAP_strong, and mAP_full_strong.
    """
    began = time.monotonic()
    size = _settle(config, session)
    transform = CenterCrop(size, size, "bicubic", *session.normalization(), squash=True)
    root = resolve_root(config.data, "copydays", "the folder that holds original/ and strong/")
    opened = open_copydays(root, allow_missing=session.config.bad_images == "skip")
    strangers, whitening = open_image_folder(config.distractors, "distractors"), open_image_folder(config.whitening, "whitening")
    vectors = Descriptors(session, ClsGem(config.gem_p), transform, seconds={"open": time.monotonic() - began})
    images = vectors.extract("images", opened.images)
    if whitening:
        vectors.learn_whitening(whitening, config.center_whitening)
    originals = images.pick(opened.blocks[ORIGINAL])
    if not len(originals):
        raise DataError(f"no original of {root} can be read")
    cosines, closer = vectors.compare(images, originals, strangers)
    outcomes, table = _of_blocks(*score_copies(cosines, closer, opened.scenes[images.rows], opened.scenes[originals.rows], config.top),
                                 images, opened)  # fmt: skip
    reason, notes = _comparable(config, session, vectors, opened, size)
    return ranking_result(
        "copydays",
        VERSION,
        config,
        vectors,
        str(root),
        outcomes,
        images.images.paths,
        settled={"image_size": size},
        notes=notes,
        references=[] if reason else [PAPER[network_name(session)]],
        not_comparable=reason,
        table=table,
        seconds={**vectors.seconds, "total": time.monotonic() - began},
    )


def _settle(config: Config, session: Session) -> int:
    """Check the options; the image size."""
    if config.image_size is not None and config.image_size < 1:
        raise ConfigError(f"image size must be 1 or more: {config.image_size}")
    if not 0 < config.gem_p < math.inf:
        raise ConfigError(f"the power of the generalised mean must be above 0, and a number: {config.gem_p}")
    if config.top < 1:
        raise ConfigError(f"top must be 1 or more: {config.top}")
    if config.center_whitening and config.whitening is None:
        raise ConfigError("--center-whitening is about --whitening, which is left out")
    return config.image_size or SIZES.get(network_name(session)) or (224 if session.backbone.patch_size == 16 else 320)


def score_copies(
    cosines: np.ndarray, closer: np.ndarray | None, scenes: np.ndarray, originals: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
    """Average precision (Q,) of the first `top` places, and of all, as fractions.

    `cosines` (Q, N) to the originals, `closer` (Q, N) as from closer_strangers, `scenes` (Q,), `originals` (N,) their scenes.
    A scene whose original could not be read is not found.
    """
    order = order_of(cosines)
    cut, full = np.zeros((2, len(cosines)))
    for query, scene in enumerate(scenes):
        ranks = positive_ranks(order[query], np.flatnonzero(originals == scene), (), None if closer is None else closer[query])
        cut[query], full[query] = trapezoid_precision(ranks[ranks < top], 1), trapezoid_precision(ranks, 1)
    return cut, full


def _of_blocks(cut: np.ndarray, full: np.ndarray, images: Features, opened: Copydays) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Outcomes by metric, NaN for the pictures of other blocks, strong first; and a row of a table for each block."""
    outcomes, table = {}, []
    for block in (block for block in (STRONG, *BLOCKS[:1], *BLOCKS[2:]) if block in opened.blocks):
        inside = np.isin(images.rows, opened.blocks[block])
        outcomes[f"mAP_{block}"] = np.where(inside, cut, np.nan)
        if block == STRONG:
            outcomes["mAP_full_strong"] = np.where(inside, full, np.nan)
        spreads = bootstrap_metrics({"mAP": cut[inside], "mAP_full": full[inside]})
        row: dict[str, Any] = {"block": block, "images": int(inside.sum())}
        for metric, spread in spreads.items():
            row |= {metric: spread.mean, f"{metric} low": spread.low, f"{metric} high": spread.high}
        table.append(row)
    return outcomes, table


def _comparable(config: Config, session: Session, vectors: Descriptors, opened: Copydays, size: int) -> tuple[str | None, list[str]]:
    """Why the published number cannot be compared with, or None; and what is to be known of this run."""
    name = network_name(session)
    notes = []
    if absent := [block for block in BLOCKS if block not in opened.blocks]:
        notes.append(f"blocks that are not there: {', '.join(absent)}")
    if opened.missing:
        notes.append(f"images that are not there: {', '.join(opened.missing)}")
    counts = {block: len(rows) for block, rows in opened.blocks.items()}
    reasons = [
        *_sets(vectors),
        (counts[ORIGINAL] != PUBLISHED[ORIGINAL] or counts[STRONG] != PUBLISHED[STRONG], f"the published set has {PUBLISHED[ORIGINAL]} "
         f"originals and {PUBLISHED[STRONG]} strong copies, this one {counts[ORIGINAL]} and {counts[STRONG]}"),
        (name in SIZES and size != SIZES[name], f"images were of {size} pixels, the paper's of {SIZES.get(name)}"),
        (config.gem_p != PAPER_POWER, f"the power of the generalised mean is {config.gem_p:g}, the paper's {PAPER_POWER:g}"),
        (config.top != PAPER_TOP, f"the first {config.top} places count, the paper's first {PAPER_TOP}"),
        (config.center_whitening, "the covariance of the whitening is centred, the paper's is not"),
        *common_requirements(session, name in PAPER, any(one.bad for one in vectors.features.values())),
    ]  # fmt: skip
    reason = first_reason(reasons)
    if not reason:
        notes.append("which images of YFCC100M the paper used is not known of these folders: only their numbers are the same")
    return reason, notes


def _sets(vectors: Descriptors) -> list[tuple[bool, str]]:
    """Whether distractors and the whitening set are there, and as many as the paper's."""
    reasons = []
    for kind, wanted in (("distractors", PAPER_DISTRACTORS), ("whitening", PAPER_WHITENING)):
        number = len(vectors.features[kind]) if kind in vectors.features else 0
        what = {"distractors": "distractors", "whitening": "images to learn the whitening from"}[kind]
        told = f"there are {number:,} {what}" if number else f"no {what} were given (--{kind})"
        reasons.append((number != wanted, f"{told}, the paper has {wanted:,}"))
    return reasons
