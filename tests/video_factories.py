"""Small DAVIS datasets: squares that move over a synthetic image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from factories import synthetic_images
from PIL import Image

from dinoeval.data.masks import write_mask


def synthetic_video(
    frames: int = 5, size: tuple[int, int] = (128, 64), objects: int = 2, seed: int = 0
) -> list[tuple[Image.Image, np.ndarray]]:
    """Make frames with masks, in which squares of one color move a few pixels per frame.

    Args:
        frames: Number of frames.
        size: Width and height in pixels.
        objects: Number of squares.
        seed: Random seed.

    Returns:
        Pairs of an RGB image and its mask, (H, W) uint8.
    """
    width, height = size
    background = np.asarray(synthetic_images(1, size, seed=seed)[0])
    random = np.random.default_rng(seed)
    side = min(size) // 3
    starts = random.integers(0, np.maximum(1, np.array(size) - side), (objects, 2))
    steps, colors = random.integers(-3, 4, (objects, 2)), random.integers(0, 256, (objects, 3))
    video = []
    for frame in range(frames):
        pixels, mask = background.copy(), np.zeros((height, width), np.uint8)
        for label in range(objects):
            left, top = (starts[label] + frame * steps[label]).clip(0, np.array(size) - side)
            pixels[top : top + side, left : left + side] = colors[label]
            mask[top : top + side, left : left + side] = label + 1
        video.append((Image.fromarray(pixels), mask))
    return video


def davis_tree(root: Path, videos: dict[str, list[tuple[Image.Image, np.ndarray]]], *, year: int = 2017, first_only: bool = False) -> Path:
    """Write JPEGImages, Annotations and the list of sequences.

    Args:
        root: Folder to create.
        videos: Frames and masks by the name of the sequence, as from synthetic_video.
        year: 2017 for indexed masks, 2016 for gray masks with 255 for all objects.
        first_only: Whether only first frames get annotations.

    Returns:
        `root`.
    """
    for name, video in videos.items():
        images, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number, (image, mask) in enumerate(video):
            image.save(images / f"{number:05d}.jpg", quality=95)
            if number and first_only:
                continue
            if year == 2016:
                Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(masks / f"{number:05d}.png")
            else:
                write_mask(masks / f"{number:05d}.png", mask)
    list_file = root / f"ImageSets/{year}/val.txt"
    list_file.parent.mkdir(parents=True)
    list_file.write_text("".join(f"{name}\n" for name in videos))
    return root
