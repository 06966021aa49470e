"""Small segmentation datasets, in the layout of VOC and as folders of images and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from factories import synthetic_images
from PIL import Image

from dinoeval.data.masks import VOID, write_mask

SIZES = ((75, 50), (50, 66), (64, 64))
"""Width and height of the images, in turn."""


def synthetic_mask(size: tuple[int, int], objects: Sequence[int], seed: int) -> np.ndarray:
    """Make a mask of boxes with a border of void.

    Args:
        size: Width and height in pixels.
        objects: Labels of the boxes.
        seed: Random seed.

    Returns:
        Labels, (H, W) uint8.
    """
    random, (width, height) = np.random.default_rng(seed), size
    mask = np.zeros((height, width), np.uint8)
    step = width // len(objects)
    for number, label in enumerate(objects):
        top, left = int(random.integers(2, height // 3)), number * step + int(random.integers(1, step // 3))
        bottom, right = int(random.integers(height // 2, height - 2)), left + step // 2
        mask[top - 1 : bottom + 1, left - 1 : right + 1] = VOID
        mask[top:bottom, left:right] = label
    return mask


def voc_tree(root: Path, images: int = 3) -> Path:
    """Write `root/VOCdevkit/VOC2012` with two instances of class 15 per image; the list is in descending order.

    Args:
        root: Folder to create.
        images: Number of images.

    Returns:
        `root`.
    """
    voc = root / "VOCdevkit/VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationObject", "SegmentationClass"):
        (voc / folder).mkdir(parents=True)
    names = [f"2007_{number:06}" for number in range(images, 0, -1)]
    for number, name in enumerate(names):
        size = SIZES[number % len(SIZES)]
        synthetic_images(number + 1, size)[number].save(voc / f"JPEGImages/{name}.jpg", quality=95)
        mask = synthetic_mask(size, (1, 2), number)
        write_mask(voc / f"SegmentationObject/{name}.png", mask)
        write_mask(voc / f"SegmentationClass/{name}.png", np.where((mask > 0) & (mask < VOID), 15, mask).astype(np.uint8))
    (voc / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")
    return root


def masked_folder(root: Path, images: int = 3, objects: Sequence[int] = (1, 2)) -> Path:
    """Write `root/images/N.jpg` and `root/masks/N.png`.

    Args:
        root: Folder to create.
        images: Number of images.
        objects: Labels in each mask.

    Returns:
        `root`.
    """
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for number in range(images):
        size = SIZES[number % len(SIZES)]
        synthetic_images(number + 1, size)[number].save(root / f"images/{number}.jpg", quality=95)
        Image.fromarray(synthetic_mask(size, objects, number)).save(root / f"masks/{number}.png")
    return root


def slow_boundary(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return the pixels that differ from their right, lower or lower right neighbor inside the image."""
    height, width = mask.shape
    return [
        (row, column)
        for row in range(height)
        for column in range(width)
        if any(
            mask[row + down, column + right] != mask[row, column]
            for down, right in ((0, 1), (1, 0), (1, 1))
            if row + down < height and column + right < width
        )
    ]
