"""Areas of data: the inputs themselves, subsets of training images, transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from dinoeval.data.frame_transforms import FrameTransform, opencv_resize
from dinoeval.data.opening import open_splits
from dinoeval.data.subsets import hold_out, sample_rows, subset_rows
from dinoeval.data.transforms import MULTISCALE, CenterCrop, RandomResizedCrop, Thumbnail, normalize_images, parse_transform
from regression_areas.datasets import boxes_mask, video
from regression_areas.inputs import TINY, class_folders, make_image, make_images, random_state, tinted_image
from regression_areas.recording import Recorder


def inputs(record: Recorder, folder: Path) -> None:
    """The images and weights that all other areas use. If these differ, the cause is not dinoeval."""
    record.add("pictures", np.stack([np.asarray(image) for image in make_images(3)]))
    record.add("tinted_picture", np.asarray(tinted_image(0, 3, seed=1)))
    frames = video()
    record.add("frames", np.stack([np.asarray(image) for image, _ in frames]))
    record.add("masks", np.stack([mask for _, mask in frames]))
    record.add("boxes", boxes_mask((75, 50), (1, 2), 0))
    record.add("resized_picture", np.asarray(make_image(0, (97, 61)).resize((40, 30))))
    record.add_state("weights", random_state(TINY))


def subsets(record: Recorder, folder: Path) -> None:
    """Rows of a percentage, listed rows, held-out rows."""
    train, _ = open_splits(str(class_folders(folder / "classes", train=9)))
    for part in ("10pct", "50pct", "33.3pct"):
        for seed in (0, 1):
            record.add(f"percent/{part}/seed{seed}", subset_rows(train, part, seed))
    names = folder / "names.txt"
    names.write_text("class1/03.png\nclass0/00.png\nclass3/08.png\n")
    record.add("listed", subset_rows(train, str(names), 0))
    labels = np.random.default_rng(6).choice(5, 203, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    marks = np.random.default_rng(7).integers(0, 2, (203, 4))
    for percent in (0.3, 1.0, 12.5):
        record.add(f"labels/{percent}", sample_rows(labels, percent, 3))
        record.add(f"marks/{percent}", sample_rows(marks, percent, 3))
    for held in (1, 20, 0.1, 0.333):
        record.add_all(f"held_out/{held}", dict(zip(("kept", "held"), hold_out(labels, held, 2), strict=True)))
    record.add("held_out/of_marks", hold_out(marks, 0.1, 0)[1])


def transforms(record: Recorder, folder: Path) -> None:
    """Pixels after each transform."""
    images = {"wide": (97, 61), "tall": (50, 83), "small": (13, 9), "large": (400, 300)}
    for name, size in images.items():
        image = make_image(1, size, seed=3)
        for text in ("auto", "dino", "dino:40/32", "dino:16/16"):
            record.add(f"central/{name}/{text}", parse_transform(text, 32)(image))
        record.add(f"squashed/{name}", CenterCrop(48, 48, squash=True)(image))
        record.add(f"bilinear/{name}", CenterCrop(36, 30, "bilinear", (0.5,) * 3, (0.5,) * 3)(image))
        record.add(f"thumbnail/{name}", Thumbnail(64)(image))
        record.add_all(f"random_crop/{name}", {f"seed{seed}": RandomResizedCrop(32)(image, seed) for seed in (0, 1, 2)})
    for backend in ("opencv", "pil", "torchvision"):
        for side, patch in ((64, 16), (120, 8)):
            transform = FrameTransform(side=side, resize_backend=backend, patch=patch)
            frames = {name: transform(make_image(2, images[name], seed=3)) for name in ("wide", "tall")}
            record.add_all(f"frame/{backend}/{side}/{patch}", frames)
    record.add("opencv_resize", opencv_resize(np.asarray(make_image(3, (60, 44))), 97, 31))
    whole = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    record.add_all("normalized", {"imagenet": normalize_images(whole), "half": normalize_images(whole, (0.5,) * 3, (0.5,) * 3)})
    record.add("scales", MULTISCALE)
