"""Masks in the encodings that tools write, some of which store no labels, and damaged ones."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.davis import ANNOTATIONS, FRAMES, open_davis
from dinoeval.data.masks import palette, read_mask
from dinoeval.data.segmentation_sets import open_segmentation
from dinoeval.errors import DataError
from hostile.changes import changed, choose

SIZE = (24, 16)
LEVELS = (
    *((0, 1), (0, 1, 2), (0, 255), (0, 128, 255), (100, 200), (0, 1, 255), (0, 253, 254, 255), (1, 2), (0,), (255,)),
    *((0, 38, 75), (0, 7, 230)),
)
ORIENTATION = 0x0112
ENCODINGS = (
    *("indexed", "other palette", "gray palette", "gray", "RGB", "luma", "16 bit", "alpha", "one bit", "smoothed"),
    *("JPEG", "EXIF", "APNG"),
)


def _image(generator: np.random.Generator, labels: np.ndarray, encoding: str) -> tuple[Image.Image, str, dict[str, object]]:
    """Return a mask as an image, its format, and options of saving it."""
    image, options = Image.fromarray(labels), {}
    colors = palette()[labels]
    match encoding:
        case "indexed" | "other palette" | "gray palette":
            table = palette() if encoding == "indexed" else generator.permutation(palette())
            image.putpalette((np.repeat(np.arange(256), 3).astype(np.uint8) if encoding == "gray palette" else table).tobytes())
        case "RGB":
            image = Image.fromarray(colors)
        case "luma":
            image = Image.fromarray(colors).convert("L")
        case "16 bit":
            image = Image.fromarray(labels.astype(np.uint16) * choose(generator, (1, 257)))
        case "alpha":
            image = Image.fromarray(np.dstack([colors, labels]))
        case "one bit":
            image = image.point(lambda value: 255 * (value > 0)).convert("1")
        case "smoothed":
            image = image.resize((9, 7), Image.Resampling.BILINEAR).resize(SIZE, Image.Resampling.BILINEAR)
        case "JPEG":
            return image, "JPEG", {}
        case "EXIF":
            exif = Image.Exif()
            exif[ORIENTATION] = int(generator.integers(2, 9))
            options["exif"] = exif.tobytes()
        case "APNG":
            options |= {"save_all": True, "append_images": [image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)]}
    return image, "PNG", options


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write one mask, as the annotation of a sequence of one frame and as the mask of an image."""
    labels = np.zeros(SIZE[::-1], np.uint8)
    for level in choose(generator, LEVELS):
        top, left = generator.integers(0, 12), generator.integers(0, 18)
        labels[top : top + 5, left : left + 9] = level
    encoding = choose(generator, ENCODINGS)
    image, name, options = _image(generator, labels, encoding)
    target = io.BytesIO()
    image.save(target, name, **options)
    content = target.getvalue()
    if generator.random() < 0.25:
        encoding, content = f"changed {name}", changed(generator, content)
    frame = Image.fromarray(generator.integers(0, 256, (SIZE[1], SIZE[0], 3)).astype(np.uint8))
    for part, stem in ((f"{FRAMES}/clip", "00000"), ("images", "x")):
        (folder / part).mkdir(parents=True)
        frame.save(folder / part / f"{stem}.jpg")
    for part, stem in ((f"{ANNOTATIONS}/clip", "00000"), ("masks", "x")):
        (folder / part).mkdir(parents=True)
        (folder / part / f"{stem}.png").write_bytes(content)
    return encoding, folder


def readers(home: Path) -> dict[str, Callable[[Path], np.ndarray]]:
    """Return the functions that read masks: labels of objects (H, W) uint8, without void."""

    def davis(folder: Path) -> np.ndarray:
        return open_davis(folder, ["clip"])[0].first_mask

    def segment(folder: Path) -> np.ndarray:
        return _without_void(open_segmentation(folder).read_mask(0))

    def propagate(folder: Path) -> np.ndarray:
        mask = _without_void(read_mask(folder / "masks/x.png"))
        if not mask.any():  # as the other two
            raise DataError("no object")
        return mask

    return {"davis": davis, "segment": segment, "propagate": propagate}


def _without_void(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == 255, 0, mask).astype(np.uint8)
