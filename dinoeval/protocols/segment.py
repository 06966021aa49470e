"""Segmentation by attention (Figure 4): how well the last block's attention of [CLS] covers the objects of an image.

The mask of a head consists of the patches that hold 60 % of its attention to patches, enlarged to pixels. The score of an
object is the Jaccard index with the mask of the best head; the metric is the mean over the objects of an image, then over
images. No code was released for it: the mask is that of visualize_attention.py, the rest is what an author described
(issue 54 of facebookresearch/dino).

The best head is chosen per object with the ground truth, so more heads score higher. Two metrics avoid this in part or
fully: one head for all objects (`jaccard_fixed_head`, the best head on the evaluated images; the table lists every head),
and the mask of the mean attention over heads (`jaccard_mean_head`), which chooses nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from dinoeval import distributed
from dinoeval.data.masks import VOID
from dinoeval.data.segmentation_sets import MaskedImages, Objects, object_labels, open_segmentation
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.figures.preprocessing import FigureTransform, figure_transform
from dinoeval.maths.segmentation import jaccard_indices
from dinoeval.protocols._instances import query_scores, resolve_root
from dinoeval.session import SplitRecord

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.results import Result
    from dinoeval.session import Session

VERSION = 1
MASS, IMAGE_SIZE = 0.6, 480
"""The main text keeps 60 % of the attention, the appendix 80 % with the same scores; visualize_attention.py uses 480 pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Segmentation by the last block's attention."""

    data: str | None = None
    """The folder that holds VOCdevkit/VOC2012/ (or is one of those), or one with images/ and masks/ of equal names; by default
    $DINOEVAL_DATA/VOCdevkit."""
    mass: float = MASS
    """A mask keeps so much of the attention; the paper's main text has 0.6, its appendix 0.8 with the same scores."""
    image_size: int | Literal["native"] = IMAGE_SIZE
    """Images and masks are squashed to a square of so many pixels, or keep their size; what exceeds whole patches is cut off."""
    objects: Objects = "instance"
    """What one object is in VOC: every instance, or all of a class together. A folder's masks are taken as they are."""
    void: Literal["ignored", "background"] = "ignored"
    """What pixels of id 255 count as."""


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
        transform = figure_transform(session.backbone, config.image_size, exif_transpose=False, transform=session.config.transform)
        root = resolve_root(config.data, "VOCdevkit", "the folder that holds VOCdevkit/, or one with images/ and masks/")
        least = 1 if transform.size else transform.patch
        opened = open_segmentation(root, config.objects, min_side=least, skip_bad=session.config.bad_images == "skip")
    with record.stage("scores"):
        parts = distributed.all_gather(dict(_score_images(config, session, opened, transform)))
    found = {row: scores for part in parts for row, (scores, _) in part.items()}
    lost = sum(number for part in parts for _, number in part.values())
    rows = [row for row in sorted(found) if len(found[row])]
    if not rows:
        raise DataError(f"no object of {root} is left in masks resized by {transform.id}")
    images, masks = opened.images.subset(rows), opened.masks.subset(rows)
    record.use_data(str(root), images=SplitRecord(images, list(opened.bad)), masks=SplitRecord(masks, []))
    record.transform = transform.id
    record.resolved["objects"] = config.objects if opened.voc else "masks/"
    record.details |= {"voc": opened.voc, "images": len(opened.images) + len(opened.empty)}
    record.notes += _notes(config, session, opened, vanished=len(found) - len(rows), lost=lost)
    outcomes, table = summarize([found[row] for row in rows])
    return record.result(query_scores(record, outcomes, images.paths, unit="images", table=table))


def _score_images(
    config: Config, session: Session, opened: MaskedImages, reading: FigureTransform
) -> Iterator[tuple[int, tuple[np.ndarray, int]]]:
    """Score this process's share of the images: row, (O, A + 1) as from `score`, and the objects that are gone in the resized mask."""
    import torch

    from dinoeval.data.transforms import normalize_images

    backbone = session.backbone
    mine = list(distributed.shard(len(opened.images)))
    # Images of their own sizes go one by one.
    step = (session.config.batch_size or backbone.fast_batch(max(reading.size))) if reading.size else 1
    with tqdm(total=len(mine), desc="images", unit="img", disable=None if distributed.rank() == 0 else True, leave=False) as bar:
        for start in range(0, len(mine), step):
            rows = mine[start : start + step]
            pixels = np.stack([reading(reading.open(opened.images, row)) for row in rows])  # (N, H, W, 3)
            batch = normalize_images(torch.from_numpy(pixels).to(backbone.device).permute(0, 3, 1, 2), reading.mean, reading.std)
            attention = backbone.attention(batch, queries=(0,))[:, :, 0, 1:]  # (N, A, h*w)
            backbone.check_finite(attention, [opened.images.paths[row] for row in rows])
            maps = attention.unflatten(-1, backbone.grid(*batch.shape[-2:])).cpu()  # (N, A, h, w)
            for row, of_image in zip(rows, maps, strict=True):
                whole = opened.read_mask(row)
                scores = score_masks(of_image, resized(whole, reading.size, batch.shape[-2:]), mass=config.mass, void=config.void)
                yield row, (scores, len(object_labels(whole)) - len(scores))
            bar.update(len(rows))


def resized(ids: np.ndarray, size: tuple[int, int] | None, kept: tuple[int, ...]) -> np.ndarray:
    """A mask (H, W) as the network sees its image: squashed to `size` (width, height; nearest pixel), then cut to `kept` (h, w)."""
    if size:
        ids = np.asarray(Image.fromarray(ids).resize(size, Image.Resampling.NEAREST))
    return ids[: kept[0], : kept[1]]


def score_masks(attention: Tensor, ids: np.ndarray, *, mass: float, void: Literal["ignored", "background"]) -> np.ndarray:
    """The Jaccard of every object with the mask of every head, and last with that of the mean over heads: (O, A + 1).

    `attention` (A, h, w) of [CLS] to patches, `ids` (h * patch, w * patch); no rows where they hold no object.
    """
    import torch

    from dinoeval.maths.attention import mass_masks

    objects = object_labels(ids)
    if not len(objects):
        return np.empty((0, len(attention) + 1))
    patch = ids.shape[0] // attention.shape[1]
    masks = mass_masks(torch.cat((attention, attention.mean(0, keepdim=True))), mass).numpy()
    masks = masks.repeat(patch, 1).repeat(patch, 2)  # to pixels, by the nearest
    return jaccard_indices(ids == objects[:, None, None], masks, ids != VOID if void == "ignored" else None)


def summarize(scores: list[np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Outcomes of the images by metric (N,), and a row of a table for each head, from (O, A + 1) of each image."""
    heads = np.stack([one[:, :-1].mean(0) for one in scores])  # (N, A)
    best = int(heads.mean(0).argmax())
    outcomes = {
        "jaccard": np.array([one[:, :-1].max(1).mean() for one in scores]),
        "jaccard_fixed_head": heads[:, best],
        "jaccard_mean_head": np.array([one[:, -1].mean() for one in scores]),
    }
    chosen = np.concatenate([one[:, :-1].argmax(1) for one in scores])  # of equal heads the first
    table = [
        {"head": head, "jaccard": 100 * float(heads[:, head].mean()), "best for % of objects": 100 * float(np.mean(chosen == head)),
         "fixed": head == best} for head in range(heads.shape[1])
    ]  # fmt: skip
    return outcomes, table


def _notes(config: Config, session: Session, opened: MaskedImages, vanished: int, lost: int) -> list[str]:
    objects = f"{config.objects} masks, " if opened.voc else ""
    notes = [
        f"assumed, because the paper does not state it: mass {config.mass:g} (0.6 in the main text, 0.8 in the appendix, with the same "
        f"scores), image size {config.image_size}, {objects}void pixels {config.void}, ground truth resized to the network's input",
        "jaccard_fixed_head uses the head that is best on the evaluated images, so it is too high by some amount; jaccard chooses the head "
        "for every object with its ground truth",
    ]
    counted = [
        ("images without an object, left out: {}", opened.empty),
        ("masks without an image: {}", opened.unmatched_masks),
    ]
    notes += [text.format(f"{len(names)} ({join_names(names)})") for text, names in counted if names]
    if lost:
        notes.append(f"objects that vanish in the resized masks and do not count: {lost}")
    if vanished:
        notes.append(f"images whose objects all vanish in the resized masks, left out: {vanished}")
    if session.backbone.arch.startswith("timm/"):
        notes.append("timm resamples position embeddings in another way than the released code")
    return notes
