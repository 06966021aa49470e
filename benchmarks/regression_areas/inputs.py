"""Inputs of the regression record that are made from seeds: pictures, labeled sets, weights, and calls of the command line."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

TINY = "vit_xs4_16"  # 17 tokens of 96 dimensions
SMALL = "vit_xs8_32"
WORDS = ("boat", "cat", "dog", "train", "tree")
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def picture(number: int, size: tuple[int, int] = (24, 20), seed: int = 0) -> Image.Image:
    """Make a gradient of two colors with noise and three rectangles.

    Args:
        number: Which picture of a seed.
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


def pictures(count: int, size: tuple[int, int] = (24, 20), seed: int = 0) -> list[Image.Image]:
    """Make several pictures of one seed."""
    return [picture(number, size, seed) for number in range(count)]


def tinted(number: int, label: int, seed: int, strength: float = 25.0) -> Image.Image:
    """Make a picture whose colors tell its class, not always clearly."""
    tint = np.array([label >> bit & 1 for bit in range(3)]) * strength
    pixels = np.asarray(picture(number, seed=seed), np.float32) * 0.7 + tint
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    """Save a picture, making its folder first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def flat_folder(folder: Path, count: int, size: tuple[int, int] = (24, 20), seed: int = 0, ending: str = "png") -> Path:
    """Make a folder of pictures without classes."""
    for number, image in enumerate(pictures(count, size, seed)):
        save(image, folder / f"{number:04d}.{ending}")
    return folder


def class_folders(root: Path, classes: int = 7, train: int = 8, val: int = 4) -> Path:
    """Make `train/<class>/<n>.png` and `val/<class>/<n>.png`."""
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            for number in range(count):
                image = tinted(number, label, seed=10 * label + 1000 * (split == "val"))
                save(image, root / split / f"class{label}" / f"{number:02d}.png")
    return root


def label_table(root: Path, train: int = 30, val: int = 14) -> Path:
    """Make a CSV table of pictures with any number of labels each."""
    lines, random = ["path,labels,split"], np.random.default_rng(5)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            marks = random.random(len(WORDS)) < 0.4
            marks[number % len(WORDS)] |= number < len(WORDS)
            name = f"pictures/{split}{number:02d}.png"
            code = int(marks @ (1 << np.arange(len(WORDS))))
            save(tinted(number, code, seed=77 + (split == "val")), root / name)
            lines.append(f"{name},{';'.join(word for word, mark in zip(WORDS, marks, strict=True) if mark)},{split}")
    table = root / "table.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def voc07(root: Path, trainval: int = 24, test: int = 16) -> Path:
    """Make `<root>/voc07` with the class lists of VOC 2007, in which images may be difficult for a class."""
    base, first = root / "voc07/VOCdevkit/VOC2007", 1
    (base / "ImageSets/Main").mkdir(parents=True)
    for split, count in (("trainval", trainval), ("test", test)):
        names = [f"{number:06d}" for number in range(first, first + count)]
        marks = np.random.default_rng(count).choice([-1, -1, -1, 0, 1], (count, len(VOC_CLASSES)))
        marks[np.arange(len(VOC_CLASSES)) % count, np.arange(len(VOC_CLASSES))] = 1
        for number, name in enumerate(names):
            save(tinted(number, number % 8, seed=first), base / f"JPEGImages/{name}.jpg", quality=95)
        (base / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for column, kind in enumerate(VOC_CLASSES):
            lines = [f"{name} {mark:2d}\n" for name, mark in zip(names, marks[:, column], strict=True)]
            (base / f"ImageSets/Main/{kind}_{split}.txt").write_text("".join(lines))
        first += count
    return root


def inat18(root: Path) -> Path:
    """Make `<root>/inat18`, whose lists have images, annotations and categories in different orders."""
    species = {7: "Parus major", 3: "Quercus robur", 5: "Amanita muscaria"}
    for split, count in (("train", 9), ("val", 6)):
        images, annotations = [], []
        for number in range(count):
            kind = list(species)[number % 3]
            name = f"train_val2018/{kind}/{split}{number:04d}.jpg"
            save(tinted(number, kind, seed=50), root / "inat18" / name, quality=95)
            images.append({"id": 1000 + number, "file_name": name})
            annotations.insert(0, {"id": number, "image_id": 1000 + number, "category_id": kind})
        categories = [{"id": identity, "name": name} for identity, name in species.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"inat18/{split}2018.json").write_text(json.dumps(content))
    return root


def cars(root: Path) -> Path:
    """Make `<root>/cars`, three models whose numbers count from 1 in the annotations."""
    base = root / "cars/stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["Hummer 2000", "Sedan 2012", "Van 2012"], object)})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for split, count, table in (("train", 8, "devkit/cars_train_annos.mat"), ("test", 5, "cars_test_annos_withlabels.mat")):
        rows = np.zeros(count, [(field, object) for field in fields])
        for number in range(count):
            save(tinted(number, number * 2 % 3, seed=51), base / f"cars_{split}/{number + 1:05d}.jpg", quality=95)
            rows[number] = (*(np.uint16(corner) for corner in (1, 1, 19, 23)), np.uint8(number * 2 % 3 + 1), f"{number + 1:05d}.jpg")
        savemat(base / table, {"annotations": rows})
    return root


def places205(root: Path) -> Path:
    """Make `<root>/places205` with three of the scenes."""
    for split, count in (("train", 3), ("val", 2)):
        lines = []
        for label, scene in ((0, "a/abbey"), (1, "a/airport_terminal"), (204, "y/yard")):
            for number in range(count):
                name = f"{scene}/{split}{number}.jpg"
                save(tinted(number, label % 7, seed=52), root / "places205" / name, quality=95)
                lines.append(f"{name} {label}\n")
        (root / f"places205/{split}_places205.csv").write_text("".join(lines))
    return root


def image_modes(folder: Path) -> Path:
    """Make pictures of other kinds than RGB: gray, with a palette, with alpha, of 16 bits, compressed."""
    image = picture(0, (40, 30), seed=18)
    for name, mode in (("gray", "L"), ("palette", "P"), ("alpha", "RGBA"), ("binary", "1")):
        save(image.convert(mode), folder / f"{name}.png")
    for ending in ("jpg", "webp", "bmp", "tif", "ppm"):
        save(image, folder / f"{ending}.{ending}")
    save(image.convert("CMYK"), folder / "cmyk.jpg")
    save(Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 200), folder / "bits16.png")
    return folder


def drawn_state(arch: str, seed: int = 0, spread: float = 0.05) -> dict[str, torch.Tensor]:
    """Draw weights with NumPy under the names of a network's state dict; `spread` is the deviation of matrices."""
    import dinoeval

    random, state = np.random.default_rng(seed), {}
    for name, tensor in sorted(dinoeval.load(arch, weights="random", device="cpu").network.state_dict().items()):
        values = random.standard_normal(tuple(tensor.shape), dtype=np.float32) * np.float32(spread)
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            values += 1
        state[name] = torch.from_numpy(values)
    return state


def network(folder: Path, arch: str = TINY, precision: str = "fp32", seed: int = 0) -> Any:
    """Load a network with drawn weights, by way of a file."""
    import dinoeval

    path = folder / f"{arch}_{seed}.pth"
    if not path.exists():
        torch.save(drawn_state(arch, seed), path)
    return dinoeval.load(arch, weights=path, device="cpu", precision=precision)


def command(*words: object) -> tuple[int, str]:
    """Call the command line in this process and return its exit code and what it printed."""
    from dinoeval.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0
            if code not in (0, 1):
                raise RuntimeError(f"dinoeval {' '.join(map(str, words))}: {said.getvalue()}") from stop
            return code, printed.getvalue()
    raise AssertionError("the command line ends by SystemExit")
