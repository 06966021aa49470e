"""Segmentation by attention (Figure 4): how well the attention of [CLS] in the last block covers the objects of an image.

The mask of a head consists of the patches that hold 60% of its attention to patches, enlarged to pixels. The score of an
object is the Jaccard index with the mask of the best head. The metric is the mean over the objects of an image, then over
images. No code was released for it. The mask is that of visualize_attention.py; the score follows the description of an
author (issue 54 of facebookresearch/dino).

The best head is chosen per object with the ground truth, so scores rise with the number of heads. Two metrics avoid this
in part or fully. `jaccard_fixed_head` uses one head for all objects, the best on the evaluated images; the table lists
every head. `jaccard_mean_head` uses the mask of the mean attention over heads and chooses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image

from dinoeval import distributed
from dinoeval.data.masks import VOID
from dinoeval.data.segmentation_sets import MaskedImages, Objects, object_labels, open_segmentation
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.figures.preprocessing import FigureTransform, figure_transform, parse_size
from dinoeval.maths.segmentation import jaccard_indices
from dinoeval.progress import Progress
from dinoeval.protocols._instances import query_scores, resolve_root
from dinoeval.run_record import SplitRecord

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.results import Result
    from dinoeval.session import Session

VERSION = 1
MASS, IMAGE_SIZE = 0.6, 480
"""The main text keeps 60% of the attention, the appendix 80% with the same scores; visualize_attention.py uses 480 pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Segment objects by the attention of the last block."""

    data: str | None = None
    """Folder of VOC 2012 (VOC2012/ or a folder above it), or folder with images/ and masks/ of equal names (default:
    $DINOEVAL_DATA/VOCdevkit)."""
    mass: float = MASS
    """Fraction of the attention that a mask keeps, above 0 and at most 1. The paper uses 0.6 in the main text and 0.8 in the appendix,
    with the same scores."""
    image_size: int | Literal["native"] = IMAGE_SIZE
    """Side in pixels of the square that images are resized to, without keeping the aspect ratio; or native (the size of the image,
    cropped to whole patches)."""
    objects: Objects = "instance"
    """Objects of VOC: single instances, or all instances of a class together. Not used with images/ and masks/."""
    void: Literal["ignored", "background"] = "ignored"
    """Handling of pixels with label 255: left out of the score, or counted as background."""


def run(config: Config, session: Session) -> Result:
    """Compare every object with the mask of every head.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with the mean Jaccard indices `jaccard` (the best head of each object, as in the paper),
        `jaccard_fixed_head` and `jaccard_mean_head`, in percent.

    Raises:
        ConfigError: If an option is out of range, or the attention of the network cannot be read.
        DataError: If the dataset cannot be used.
    """
    record = session.record("segment", VERSION, config)
    with record.stage("open"):
        if not 0 < config.mass <= 1:
            raise ConfigError(f"--mass must be above 0 and at most 1, got {config.mass}")
        root = resolve_root(config.data, "VOCdevkit", "the folder with VOCdevkit/, or one with images/ and masks/")
        least = 1 if parse_size(config.image_size) else session.backbone.patch_size or 1
        skip_bad = session.config.bad_images == "skip"
        opened = open_segmentation(root, config.objects, min_side=least, skip_bad=skip_bad, rule=session.rule)
        transform = figure_transform(session.backbone, config.image_size, session.rule, session.config.transform)
    with record.stage("scores"):
        parts = distributed.all_gather(dict(_score_images(config, session, opened, transform)))
    found = {row: scores for part in parts for row, (scores, _) in part.items()}
    lost = sum(number for part in parts for _, number in part.values())
    rows = [row for row in sorted(found) if len(found[row])]
    if not rows:
        raise DataError(f"no object of {root} is left in the masks after resizing by {transform.id}: pass a larger --image-size")
    images, masks = opened.images.subset(rows), opened.masks.subset(rows)
    record.use_data(str(root), images=SplitRecord(images, list(opened.bad), opened.remarks), masks=SplitRecord(masks, []))
    record.transform = transform.id
    record.resolved["objects"] = config.objects if opened.voc else "masks/"
    record.details |= {"voc": opened.voc, "images": len(opened.images) + len(opened.empty)}
    record.notes += _notes(config, session, opened, vanished=len(found) - len(rows), lost=lost)
    outcomes, table = summarize([found[row] for row in rows])
    return record.result(query_scores(record, outcomes, images.paths, unit="images", table=table))


def _score_images(
    config: Config, session: Session, opened: MaskedImages, transform: FigureTransform
) -> Iterator[tuple[int, tuple[np.ndarray, int]]]:
    """Yield the row of each image of this process, its scores (O, A + 1), and how many objects vanish in the resized mask."""
    import torch

    from dinoeval.data.transforms import normalize_images

    backbone = session.backbone
    own_rows = list(distributed.shard(len(opened.images)))
    # Images that keep their sizes are processed one at a time.
    step = (session.config.batch_size or backbone.fast_batch(max(transform.size))) if transform.size else 1
    with Progress("images", len(own_rows), "images") as progress:
        for start in range(0, len(own_rows), step):
            rows = own_rows[start : start + step]
            pixels = np.stack([transform(transform.open(opened.images, row)) for row in rows])  # (N, H, W, 3)
            batch = normalize_images(torch.from_numpy(pixels).to(backbone.device).permute(0, 3, 1, 2), transform.mean, transform.std)
            attention = backbone.attention(batch, queries=(0,))[:, :, 0, 1:]  # (N, A, h*w)
            backbone.check_finite(attention, [opened.images.paths[row] for row in rows])
            maps = attention.unflatten(-1, backbone.grid(*batch.shape[-2:])).cpu()  # (N, A, h, w)
            for row, of_image in zip(rows, maps, strict=True):
                mask = opened.read_mask(row)
                scores = score_masks(of_image, resized(mask, transform.size, batch.shape[-2:]), mass=config.mass, void=config.void)
                yield row, (scores, len(object_labels(mask)) - len(scores))
            progress.update(len(rows))


def resized(ids: np.ndarray, size: tuple[int, int] | None, kept: tuple[int, ...]) -> np.ndarray:
    """Resize and crop a mask as its image is resized and cropped for the network.

    Args:
        ids: Labels, (H, W) uint8.
        size: Width and height in pixels to resize to (nearest pixel); None keeps the size.
        kept: Height and width of the network input; the remainder on the right and at the bottom is cut off.

    Returns:
        Labels, (*kept,) uint8.
    """
    if size:
        ids = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    return ids[: kept[0], : kept[1]]


def score_masks(attention: Tensor, ids: np.ndarray, *, mass: float, void: Literal["ignored", "background"]) -> np.ndarray:
    """Compute the Jaccard index of every object with the mask of every head.

    Args:
        attention: Attention of [CLS] to patches, (A, h, w).
        ids: Labels, (h * patch, w * patch) uint8.
        mass: Fraction of the attention that a mask keeps.
        void: Whether void pixels are left out or count as background.

    Returns:
        Fractions, (O, A + 1). The last column is the mask of the mean attention over heads. O is 0 if there is no object.
    """
    import torch

    from dinoeval.maths.attention import mass_masks

    objects = object_labels(ids)
    if not len(objects):
        return np.empty((0, len(attention) + 1))
    patch = ids.shape[0] // attention.shape[1]
    masks = mass_masks(torch.cat((attention, attention.mean(0, keepdim=True))), mass).numpy()
    masks = masks.repeat(patch, 1).repeat(patch, 2)  # from patches to pixels
    return jaccard_indices(ids == objects[:, None, None], masks, ids != VOID if void == "ignored" else None)


def summarize(scores: list[np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Summarize the scores of all images.

    Args:
        scores: Result of `score_masks` for each of N images, O at least 1.

    Returns:
        Fractions (N,) by metric, and one table row per head.
    """
    heads = np.stack([one[:, :-1].mean(0) for one in scores])  # (N, A)
    best = int(heads.mean(0).argmax())
    outcomes = {
        "jaccard": np.array([one[:, :-1].max(1).mean() for one in scores]),
        "jaccard_fixed_head": heads[:, best],
        "jaccard_mean_head": np.array([one[:, -1].mean() for one in scores]),
    }
    chosen = np.concatenate([one[:, :-1].argmax(1) for one in scores])  # ties go to the first head
    table = [
        {
            "head": head,
            "jaccard": 100 * float(heads[:, head].mean()),
            "best for % of objects": 100 * float(np.mean(chosen == head)),
            "fixed": head == best,
        }
        for head in range(heads.shape[1])
    ]
    return outcomes, table


def _notes(config: Config, session: Session, opened: MaskedImages, vanished: int, lost: int) -> list[str]:
    objects = f"{config.objects} masks, " if opened.voc else ""
    notes = [
        f"assumed, because the paper does not state it: image size {config.image_size}, {objects}void pixels {config.void}, ground truth "
        f"resized to the network input, mass {config.mass:g} (the paper has 0.6 and 0.8 for the same scores)",
        "jaccard and jaccard_fixed_head are optimistically biased: the ground truth chooses the best head, per object or for all images",
    ]
    counted = [
        ("images without an object, left out: {}", opened.empty),
        ("masks without an image: {}", opened.unmatched_masks),
        ("masks without background: {}", opened.full),
    ]
    notes += [text.format(f"{len(names)} ({join_names(names)})") for text, names in counted if names]
    if lost:
        notes.append(f"objects that vanish in the resized masks and do not count: {lost}")
    if vanished:
        notes.append(f"images whose objects all vanish in the resized masks, left out: {vanished}")
    if session.backbone.arch.startswith("timm/"):
        notes.append("timm resamples position embeddings differently from the released code")
    return notes
