"""Small DAVIS trees: objects that glide over a made-up picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from factories import synthetic_images
from PIL import Image

from dinoeval.data.masks import write_mask


def synthetic_video(
    frames: int = 5, size: tuple[int, int] = (128, 64), objects: int = 2, seed: int = 0
) -> list[tuple[Image.Image, np.ndarray]]:
    """Frames, each with its mask (H, W): squares of one colour each, object by object, that move a few pixels a frame."""
    width, height = size
    ground = np.asarray(synthetic_images(1, size, seed=seed)[0])
    random = np.random.default_rng(seed)
    side = min(size) // 3
    starts = random.integers(0, np.maximum(1, np.array(size) - side), (objects, 2))
    steps, colours = random.integers(-3, 4, (objects, 2)), random.integers(0, 256, (objects, 3))
    video = []
    for frame in range(frames):
        pixels, mask = ground.copy(), np.zeros((height, width), np.uint8)
        for label in range(objects):
            left, top = (starts[label] + frame * steps[label]).clip(0, np.array(size) - side)
            pixels[top : top + side, left : left + side] = colours[label]
            mask[top : top + side, left : left + side] = label + 1
        video.append((Image.fromarray(pixels), mask))
    return video


def davis_tree(root: Path, videos: dict[str, list[tuple[Image.Image, np.ndarray]]], *, year: int = 2017, first_only: bool = False) -> Path:
    """Write JPEGImages, Annotations and the list of sequences; masks of 2016 are grey, with 255 for the object; returns ROOT."""
    for name, video in videos.items():
        pictures, masks = root / "JPEGImages/480p" / name, root / "Annotations/480p" / name
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for number, (picture, mask) in enumerate(video):
            picture.save(pictures / f"{number:05d}.jpg", quality=95)
            if number and first_only:
                continue
            if year == 2016:
                Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8)).save(masks / f"{number:05d}.png")
            else:
                write_mask(masks / f"{number:05d}.png", mask)
    listed = root / f"ImageSets/{year}/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("".join(f"{name}\n" for name in videos))
    return root
