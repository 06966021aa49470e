"""Segmentation by attention (Figure 4): how well the last block's attention of [CLS] covers the objects of an image.

A head's mask is made of the patches that hold 60 % of its attention to patches, enlarged to pixels. An object's score is
the Jaccard with the best head's mask; the metric is its mean over the objects of an image, then over images. No code was
released for it: the mask is that of visualize_attention.py, the rest what the author described (issue 54 of
facebookresearch/dino).

The best head is chosen by looking at the answer, object by object, so that more heads score higher. Beside it stand one
head for all (`jaccard_fixed_head`, the best on these very images; the table has every head), and the mask of the mean
attention over heads (`jaccard_mean_head`), which chooses nothing.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from dinoeval import distributed
from dinoeval.data.masks import VOID
from dinoeval.data.segmentation_sets import VOC_IMAGES, MaskedImages, Objects, ids_of, open_segmentation
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.figures.preprocessing import FigureTransform, figure_transform
from dinoeval.maths.bootstrap import DRAWS, SEED
from dinoeval.maths.segmentation import jaccards
from dinoeval.protocols._instances import bootstrap_metrics, common_requirements, first_reason, network_name, resolve_root
from dinoeval.results import Reference, Result
from dinoeval.session import SplitRecord, describe_data

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.session import Session

VERSION = 1
PAPER_MASS, APPENDIX_MASS, PAPER_SIZE = 0.6, 0.8, 480
# Which ViT-S/8 Figure 4 has is not said: the one of the other tables, or the 300-epoch one that draws the paper's figures.
PAPER = {
    name: Reference(metric="jaccard", value=value, decimals=1, source="Figure 4")
    for name, value in {"vit_s16": 45.9, "vit_s8": 44.7, "vit_s8_300ep": 44.7, "timm/deit_small_patch16_224": 27.3}.items()
}
PAPER_RANDOM = {"vit_s16": 22.0, "vit_s8": 21.8}
"""Figure 4's scores of random weights, by architecture."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Segmentation by the last block's attention."""

    data: str | None = None
    """The folder that holds VOCdevkit/VOC2012/ (or is one of those), or one with images/ and masks/ of equal names; by default
    $DINOEVAL_DATA/VOCdevkit."""
    mass: float = PAPER_MASS
    """A mask keeps so much of the attention; the paper's main text has 0.6, its appendix 0.8 with the same scores."""
    image_size: int | Literal["native"] = PAPER_SIZE
    """Images and masks are squashed to a square of so many pixels, or keep their size; what exceeds whole patches is cut off."""
    objects: Objects = "instance"
    """What one object is in VOC: every instance, or all of a class together. A folder's masks are taken as they are."""
    void: Literal["ignored", "background"] = "ignored"
    """What pixels of id 255 count as."""


def run(config: Config, session: Session) -> Result:
    """Compare every object with every head's mask; mean Jaccards in percent.

    The metrics are jaccard (the paper's: the best head of each object), jaccard_fixed_head and jaccard_mean_head.
    """
    began = time.monotonic()
    if not 0 < config.mass <= 1:
        raise ConfigError(f"mass must be above 0 and at most 1: {config.mass}")
    reading = figure_transform(session.backbone, config.image_size, exif_transpose=False, transform=session.config.transform)
    root = resolve_root(config.data, "VOCdevkit", "the folder that holds VOCdevkit/, or one with images/ and masks/")
    least = 1 if reading.size else reading.patch
    opened = open_segmentation(root, config.objects, least_side=least, skip_bad=session.config.bad_images == "skip")
    before = time.monotonic()
    parts = distributed.all_gather(dict(_score_images(config, session, opened, reading)))
    found = {row: scores for part in parts for row, (scores, _) in part.items()}
    lost = sum(number for part in parts for _, number in part.values())
    rows = [row for row in sorted(found) if len(found[row])]
    if not rows:
        raise DataError(f"no object of {root} is left in masks of {reading.id}")
    outcomes, table = summarise([found[row] for row in rows])
    spreads = bootstrap_metrics(outcomes)
    reason, notes = _comparable(config, session, opened, vanished=len(found) - len(rows), lost=lost)
    images, masks = opened.images.subset(rows), opened.masks.subset(rows)
    return Result(
        protocol="segment",
        version=VERSION,
        metrics={metric: spread.mean for metric, spread in spreads.items()},
        standard_errors={metric: spread.error for metric, spread in spreads.items() if spread.error is not None},
        config={**dataclasses.asdict(config), "data": str(root), "objects": config.objects if opened.voc else "masks/"},
        backbone=session.describe_backbone(),
        data=describe_data(str(root), images=SplitRecord(images, list(opened.bad)), masks=SplitRecord(masks, [])),
        transform=reading.id,
        machine=session.machine,
        seconds={"open": before - began, "scores": time.monotonic() - before, "total": time.monotonic() - began},
        references=[] if reason else [PAPER[network_name(session)]],
        not_comparable=reason,
        notes=notes,
        table=table,
        samples={"path": list(images.paths), **{metric: values.tolist() for metric, values in outcomes.items()}},
    )


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
            pixels = np.stack([reading(reading.picture(opened.images, row)) for row in rows])  # (N, H, W, 3)
            batch = normalize_images(torch.from_numpy(pixels).to(backbone.device).permute(0, 3, 1, 2), reading.mean, reading.std)
            attention = backbone.attention(batch, queries=(0,))[:, :, 0, 1:]  # (N, A, h*w)
            backbone.check_finite(attention, [opened.images.paths[row] for row in rows])
            maps = attention.unflatten(-1, backbone.grid(*batch.shape[-2:])).cpu()  # (N, A, h, w)
            for row, of_image in zip(rows, maps, strict=True):
                whole = opened.ids(row)
                scores = score_masks(of_image, resized(whole, reading.size, batch.shape[-2:]), mass=config.mass, void=config.void)
                yield row, (scores, len(ids_of(whole)) - len(scores))
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

    objects = ids_of(ids)
    if not len(objects):
        return np.empty((0, len(attention) + 1))
    patch = ids.shape[0] // attention.shape[1]
    masks = mass_masks(torch.cat((attention, attention.mean(0, keepdim=True))), mass).numpy()
    masks = masks.repeat(patch, 1).repeat(patch, 2)  # to pixels, by the nearest
    return jaccards(ids == objects[:, None, None], masks, ids != VOID if void == "ignored" else None)


def summarise(scores: list[np.ndarray]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
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


def _comparable(config: Config, session: Session, opened: MaskedImages, vanished: int, lost: int) -> tuple[str | None, list[str]]:
    """Why the published number cannot be compared with, or None; and what is to be known of this run."""
    name, number = network_name(session), len(opened.images) + len(opened.empty)
    reasons = [
        (not opened.voc or number != VOC_IMAGES, f"the published set is VOC 2012's segmentation val, {VOC_IMAGES:,} images, this one "
         f"has {number:,}{'' if opened.voc else ' in a folder of another layout'}"),
        (config.mass not in (PAPER_MASS, APPENDIX_MASS), f"masks keep {config.mass:g} of the attention, the paper's {PAPER_MASS} or "
         f"{APPENDIX_MASS}"),
        (config.image_size != PAPER_SIZE, f"image size is {config.image_size}, that of the released visualize_attention.py {PAPER_SIZE}"),
        *common_requirements(session, name in PAPER, bool(opened.bad)),
    ]  # fmt: skip
    notes = [
        "assumed, because the paper leaves it open: "
        f"mass {config.mass:g} (0.6 in the main text, 0.8 in the appendix, with the same scores), image size {config.image_size}, "
        f"{'' if not opened.voc else f'{config.objects} masks, '}void pixels {config.void}, truth resized to the network's input",
        "jaccard_fixed_head is of the head that is best on these very images, so it is too high by some amount; jaccard chooses the head "
        "anew for every object by looking at its mask",
        f"errors are of {DRAWS:,} draws of the images with replacement, seed {SEED}",
    ]
    if opened.empty:
        notes.append(f"images without an object, left out: {len(opened.empty)} ({join_names(opened.empty)})")
    if lost:
        notes.append(f"objects that are gone once their masks are resized, and do not count: {lost}")
    if opened.alone:
        notes.append(f"masks without an image: {len(opened.alone)} ({join_names(opened.alone)})")
    if vanished:
        notes.append(f"images whose objects are all gone once their masks are resized, left out: {vanished}")
    if session.backbone.provenance.random and session.backbone.arch in PAPER_RANDOM:
        notes.append(f"Figure 4 has {PAPER_RANDOM[session.backbone.arch]} for random weights of this network")
    if name.startswith("vit_s8"):
        notes.append("the paper does not say which of its two ViT-S/8 Figure 4 has")
    if session.backbone.arch.startswith("timm/"):
        notes.append("timm resamples positions in its own way, other than the released code would")
    return first_reason(reasons), notes
