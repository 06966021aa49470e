"""Inputs that are made from seeds: images, labeled datasets, weights; and calls of the command line."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import dinoeval
from dinoeval.cli import main
from dinoeval.data.published_lists import VOC_CLASSES

TINY = "vit_xs4_16"  # 17 tokens of 96 dimensions
SMALL = "vit_xs8_32"
PATCH16, PATCH8 = "vit_xs16", "vit_xs8"  # for images of 224 pixels
WORDS = ("boat", "cat", "dog", "train", "tree")


def make_image(number: int, size: tuple[int, int] = (24, 20), seed: int = 0) -> Image.Image:
    """Make a gradient of two colors with noise and three rectangles.

    Args:
        number: Number of the image in the series of a seed.
        size: Width and height in pixels.
        seed: Seed of the series.
    """
    random = np.random.default_rng((seed, number))
    width, height = size
    across = np.linspace(0, 1, width)[None, :, None] * random.uniform(0, 160, 3)
    down = np.linspace(0, 1, height)[:, None, None] * random.uniform(0, 80, 3)
    pixels = across + down + random.uniform(0, 30, (height, width, 3))
    for _ in range(3):
        left, top = random.integers(0, width * 2 // 3), random.integers(0, height * 2 // 3)
        pixels[top : top + height // 3, left : left + width // 3] += random.uniform(-70, 90, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def make_images(count: int, size: tuple[int, int] = (24, 20), seed: int = 0) -> list[Image.Image]:
    """Make several images of one seed."""
    return [make_image(number, size, seed) for number in range(count)]


def tinted_image(number: int, label: int, seed: int, strength: float = 25.0) -> Image.Image:
    """Make an image whose color depends on its class, with enough noise that some images are misclassified."""
    tint = np.array([label >> bit & 1 for bit in range(3)]) * strength
    pixels = np.asarray(make_image(number, seed=seed), np.float32) * 0.7 + tint
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save an image, and create its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def image_folder(folder: Path, count: int, size: tuple[int, int] = (24, 20), seed: int = 0) -> Path:
    """Make a folder of images without classes."""
    for number, image in enumerate(make_images(count, size, seed)):
        save(image, folder / f"{number:04d}.png")
    return folder


def class_folders(root: Path, classes: int = 7, train: int = 8, val: int = 4) -> Path:
    """Make `train/<class>/<n>.png` and `val/<class>/<n>.png`."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            for number in range(count):
                image = tinted_image(number, label, seed=10 * label + 1000 * (split == "val"))
                save(image, root / split / f"class{label}" / f"{number:02d}.png")
    return root


def label_table(root: Path, train: int = 30, val: int = 14) -> Path:
    """Make a CSV table of a multi-label dataset."""
    lines, random = ["path,labels,split"], np.random.default_rng(5)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            marks = random.random(len(WORDS)) < 0.4
            marks[number % len(WORDS)] |= number < len(WORDS)
            name = f"pictures/{split}{number:02d}.png"
            code = int(marks @ (1 << np.arange(len(WORDS))))
            save(tinted_image(number, code, seed=77 + (split == "val")), root / name)
            lines.append(f"{name},{';'.join(word for word, mark in zip(WORDS, marks, strict=True) if mark)},{split}")
    table = root / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def voc07(root: Path, trainval: int = 24, test: int = 16) -> Path:
    """Make `<root>/voc07` with the class lists of VOC 2007, in which images may be difficult for a class."""
    base, first, classes = root / "voc07/VOCdevkit/VOC2007", 1, np.arange(len(VOC_CLASSES))
    (base / "ImageSets/Main").mkdir(parents=True)
    for split, count in (("trainval", trainval), ("test", test)):
        names = [f"{number:06d}" for number in range(first, first + count)]
        marks = np.random.default_rng(count).choice([-1, -1, -1, 0, 1], (count, len(classes)))
        marks[classes % count, classes] = 1
        for number, name in enumerate(names):
            save(tinted_image(number, number % 8, seed=first), base / f"JPEGImages/{name}.jpg", quality=95)
        (base / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for column, kind in enumerate(VOC_CLASSES):
            lines = [f"{name} {mark:2d}\n" for name, mark in zip(names, marks[:, column], strict=True)]
            (base / f"ImageSets/Main/{kind}_{split}.txt").write_text("".join(lines))
        first += count
    return root


def image_modes(folder: Path) -> Path:
    """Make images other than RGB PNG: gray, with a palette, with alpha, of 16 bits, compressed."""
    image = make_image(0, (40, 30), seed=18)
    for name, mode in (("gray", "L"), ("palette", "P"), ("alpha", "RGBA"), ("binary", "1")):
        save(image.convert(mode), folder / f"{name}.png")
    for extension in ("jpg", "webp", "bmp", "tif", "ppm"):
        save(image, folder / f"{extension}.{extension}")
    save(image.convert("CMYK"), folder / "cmyk.jpg")
    save(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200), folder / "bits16.png")
    return folder


def random_state(arch: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Draw weights with NumPy for the state dict of a network; matrices have a standard deviation of 0.05."""
    random, state = np.random.default_rng(seed), {}
    for name, tensor in sorted(dinoeval.load(arch, weights="random", device="cpu").network.state_dict().items()):
        values = random.standard_normal(tuple(tensor.shape), dtype=np.float32) * np.float32(0.05)
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            values += 1
        state[name] = torch.from_numpy(values)
    return state


def network(folder: Path, arch: str = TINY, precision: Any = "fp32", seed: int = 0) -> dinoeval.Backbone:
    """Load a network with the weights of `random_state` from a file."""
    path = folder / f"{arch}_{seed}.pth"
    if not path.exists():
        torch.save(random_state(arch, seed), path)
    return dinoeval.load(arch, weights=path, device="cpu", precision=precision)


def command(*words: object) -> int:
    """Call the command line in this process and return its exit code, 0 or 1."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code or 0
            if code in (0, 1):
                return int(code)
            raise RuntimeError(f"dinoeval {' '.join(map(str, words))}: {errors.getvalue()}") from stop
    raise AssertionError("the command line must end by SystemExit")
