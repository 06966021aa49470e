"""Copy detection on Copydays (Table 4): find the original of each attacked image, among distractors.

The descriptor is the final-norm [CLS] token of the last block, concatenated with the generalized mean (p = 4) of its patch
tokens; whitened by statistics of another image set; L2-normalized. Originals and distractors are ranked by cosine. Images
are resized to a square without keeping the aspect ratio (PIL, bicubic). The score is the mean over the strong copies of the
average precision of the first 20 ranks, by trapezoids. A copy whose original comes first scores 1, second 0.25, beyond the
twentieth 0. Source: eval_copy_detection.py of facebookresearch/dino. The paper names neither the power, the square, the
cutoff nor the uncentered covariance of the whitening.

`mAP_full_strong` is the same over the whole ranking; the table has both for every block.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.copydays import BLOCKS, ORIGINAL, STRONG, Copydays, open_copydays
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.readout import ClsGem
from dinoeval.maths.ranks import positive_ranks, rank_by_similarity, trapezoid_precision
from dinoeval.protocols._instances import (
    Descriptors,
    bootstrap_metrics,
    folder_names,
    open_image_folder,
    query_scores,
    resolve_root,
)

if TYPE_CHECKING:
    from dinoeval.features.features import Features
    from dinoeval.results import Result
    from dinoeval.session import Session

VERSION = 1
GEM_POWER, AP_CUTOFF = 4.0, 20  # eval_copy_detection.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Detect image copies on Copydays."""

    data: str | None = None
    """Folder with original/, strong/, jpegqual/ and crops/ (default: $DINOEVAL_DATA/copydays)."""
    distractors: str | None = None
    """Folder of images to add to the originals; the paper uses 10,000 of YFCC100M (default: none)."""
    whitening: str | None = None
    """Folder of images to learn the whitening from; the paper uses 20,000 others of YFCC100M (default: none)."""
    center_whitening: bool = False
    """Whiten by the covariance about the mean; the paper uses an uncentered one."""
    image_size: int | None = None
    """Side in pixels of the square that images are resized to, without keeping the aspect ratio (default: 224 for networks with 16-pixel
    patches, else 320, as in Table 4)."""
    gem_p: float = GEM_POWER
    """Power of the generalized mean."""
    ap_cutoff: int = AP_CUTOFF
    """Number of first ranks that count in average precision; mAP_full_strong counts all."""


def run(config: Config, session: Session) -> Result:
    """Search for the original of every image.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with `mAP_BLOCK` for each block, of which the paper reports `mAP_strong`, and `mAP_full_strong`, in percent.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the dataset cannot be used.
    """
    record = session.record("copydays", VERSION, config)
    _check(config)
    with record.stage("open"):
        root = resolve_root(config.data, "copydays", "the folder with original/ and strong/")
        opened = open_copydays(root, allow_missing=session.config.bad_images == "skip")
        distractors = open_image_folder(config.distractors, "distractors")
        whitening = open_image_folder(config.whitening, "whitening")
        size = config.image_size or (224 if session.backbone.patch_size == 16 else 320)
        transform = CenterCrop(size, size, "bicubic", *session.normalization(), squash=True)
    record.use_data(str(root))
    record.resolved |= {"image_size": size, **folder_names(config)}
    record.details["block_images"] = {block: len(rows) for block, rows in opened.blocks.items()}
    record.notes += _notes(opened)
    descriptors = Descriptors(record, ClsGem(config.gem_p), transform)
    images = descriptors.extract("images", opened.images)
    if whitening:
        descriptors.learn_whitening(whitening, config.center_whitening)
    originals = images.pick(opened.blocks[ORIGINAL])
    if not len(originals):
        raise DataError(f"no original of {root} can be read")
    cosines, closer = descriptors.compare(images, originals, distractors)
    precisions = score_copies(cosines, closer, opened.scenes[images.rows], opened.scenes[originals.rows], config.ap_cutoff)
    outcomes, table = _by_block(*precisions, images, opened)
    return record.result(query_scores(record, outcomes, images.images.paths, table=table))


def _check(config: Config) -> None:
    if config.image_size is not None and config.image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, got {config.image_size}")
    if not 0 < config.gem_p < math.inf:
        raise ConfigError(f"--gem-p must be a positive number, got {config.gem_p}")
    if config.ap_cutoff < 1:
        raise ConfigError(f"--ap-cutoff must be at least 1, got {config.ap_cutoff}")
    if config.center_whitening and config.whitening is None:
        raise ConfigError("--center-whitening requires --whitening")


def score_copies(
    cosines: np.ndarray, closer: np.ndarray | None, scenes: np.ndarray, originals: np.ndarray, cutoff: int
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the average precision of every image, cut off and in full.

    Args:
        cosines: (Q, N) of images and originals.
        closer: (Q, N) number of distractors closer than each original, or None.
        scenes: (Q,) scene of each image.
        originals: (N,) scene of each original.
        cutoff: Ranks that count, at least 1.

    Returns:
        Two arrays (Q,) of fractions; 0 if the original of a scene could not be read.
    """
    order = rank_by_similarity(cosines)
    cut, full = np.zeros((2, len(cosines)))
    for query, scene in enumerate(scenes):
        ranks = positive_ranks(order[query], np.flatnonzero(originals == scene), (), None if closer is None else closer[query])
        cut[query], full[query] = trapezoid_precision(ranks[ranks < cutoff], 1), trapezoid_precision(ranks, 1)
    return cut, full


def _by_block(cut: np.ndarray, full: np.ndarray, images: Features, opened: Copydays) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Return outcomes by metric, NaN for images of other blocks, strong first; and one table row per block."""
    outcomes, table = {}, []
    for block in (block for block in (STRONG, *BLOCKS[:1], *BLOCKS[2:]) if block in opened.blocks):
        inside = np.isin(images.rows, opened.blocks[block])
        outcomes[f"mAP_{block}"] = np.where(inside, cut, np.nan)
        if block == STRONG:
            outcomes["mAP_full_strong"] = np.where(inside, full, np.nan)
        row: dict[str, Any] = {"block": block, "images": int(inside.sum())}
        for metric, estimate in bootstrap_metrics({"mAP": cut[inside], "mAP_full": full[inside]}).items():
            row |= {metric: estimate.mean, f"{metric} low": estimate.low, f"{metric} high": estimate.high}
        table.append(row)
    return outcomes, table


def _notes(opened: Copydays) -> list[str]:
    notes = []
    if absent := [block for block in BLOCKS if block not in opened.blocks]:
        notes.append(f"missing blocks: {', '.join(absent)}")
    if opened.missing:
        notes.append(f"missing images: {', '.join(opened.missing)}")
    return notes
