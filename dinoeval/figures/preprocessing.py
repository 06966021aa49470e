"""Pictures as figures show them: any file, upright, in the size that the network sees."""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from dinoeval.data.images import ImageSet, in_memory
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import MAX_PIXELS, MEAN, STD, normalize_images, parse_transform
from dinoeval.errors import BadImage, ConfigError, DataError

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.models.backbone import Backbone

Picture = str | Path | Image.Image
VERSION = 1
NATIVE = "native"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureTransform:
    """From an RGB picture to the network's input: resized (PIL, bilinear), then cut to whole patches (visualize_attention.py)."""

    size: tuple[int, int] | None
    """Width and height to resize to, without regard to the aspect; None keeps the picture's."""
    patch: int
    exif_transpose: bool = True
    """Turn pictures by their EXIF tag; the released code does not. Pillow turns TIFF files as it reads them, whatever is said here."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def id(self) -> str:
        how = "native" if self.size is None else f"{self.size[0]}x{self.size[1]}:bilinear"
        numbers = ["/".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        own = "" if (self.mean, self.std) == (MEAN, STD) else f":{':'.join(numbers)}"
        return f"figure@{VERSION}:{how}{'' if self.exif_transpose else ':as-stored'}{own}"

    def picture(self, images: ImageSet, row: int) -> Image.Image:
        """Open a picture of a set, in RGB, before it is resized. Raises BadImage."""
        picture = dataclasses.replace(images, reader=_EightBits(images.reader)).open(row)
        return ImageOps.exif_transpose(picture) if self.exif_transpose else picture

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """RGB picture -> uint8 (H, W, 3), H and W multiples of the patch. Raises BadImage where it is smaller than a patch."""
        width, height = self.size or picture.size
        if min(width, height) < self.patch:
            raise BadImage(f"{width} x {height} pixels are smaller than a patch of {self.patch}; --image-size enlarges it")
        resized = picture.resize((width, height), Image.Resampling.BILINEAR)  # a copy where the size is the same
        return np.asarray(resized)[: height - height % self.patch, : width - width % self.patch]

    def batch(self, pixels: np.ndarray) -> Tensor:
        """uint8 (H, W, 3) -> normalised (1, 3, H, W)."""
        import torch

        return normalize_images(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None], self.mean, self.std)


def figure_transform(backbone: Backbone, image_size: int | str, exif_transpose: bool, transform: str = "auto") -> FigureTransform:
    """How this network is shown pictures: `image_size` is a side, WIDTHxHEIGHT or `native`; colours are those of --transform."""
    if backbone.patch_size is None:
        raise ConfigError(f"{backbone.arch} has no patches to draw. Its readouts: {', '.join(backbone.config.readouts)}.")
    if transform not in ("auto", "dino"):
        raise ConfigError(f"figures resize in their own way: leave out --transform {transform}, use --image-size")
    chosen = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    size = parse_size(image_size)
    if size and min(size) < backbone.patch_size:
        raise ConfigError(f"image size {image_size} is smaller than a patch of {backbone.patch_size}")
    return FigureTransform(size=size, patch=backbone.patch_size, exif_transpose=exif_transpose, mean=chosen.mean, std=chosen.std)


def parse_size(image_size: int | str) -> tuple[int, int] | None:
    """`480` -> (480, 480), `640x480` -> (640, 480), `native` -> None."""
    if image_size == NATIVE:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(image_size))
    if match is None:
        raise ConfigError(f"image size '{image_size}' is none: 480 (a square), 640x480 (width and height) or native")
    width, height = int(match[1]), int(match[2] or match[1])
    if width * height > MAX_PIXELS:
        raise ConfigError(f"image size {image_size} is beyond {MAX_PIXELS:,} pixels")
    return width, height


def open_pictures(images: Picture | Iterable[Picture]) -> ImageSet:
    """Open a folder, files, or PIL images as a set. Raises DataError."""
    if isinstance(images, Image.Image):
        images = [images]
    if isinstance(images, (str, Path)):
        return open_images(images)
    images = list(images)
    if strangers := [type(image).__name__ for image in images if not isinstance(image, (str, Path, Image.Image))]:
        raise DataError(f"figures take paths and PIL images, not {strangers[0]}; PIL.Image.fromarray makes one of an array")
    if not any(isinstance(image, Image.Image) for image in images):
        return open_images(images)  # type: ignore[arg-type]
    return in_memory([image if isinstance(image, Image.Image) else _one(image) for image in images])


def _one(path: str | Path) -> Image.Image:
    try:
        return open_images(path).open(0)
    except BadImage as fault:
        raise DataError(f"{path} cannot be read: {fault}") from fault


def folder_names(paths: Sequence[str]) -> list[str]:
    """A name for each picture's files: its stem, with a number where another has that name already."""
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        stem = name = stem if stem.strip(".") else "image"  # `..` of `...jpg` is another folder
        number = 1
        while name.casefold() in taken:  # names that differ in case alone are one file on some disks
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


@dataclasses.dataclass(frozen=True)
class _EightBits:
    """A reader that brings pictures of 16 bits to 8: PIL's conversion would turn all but the darkest white."""

    reader: Callable[[int], bytes | Image.Image]

    def __call__(self, row: int) -> bytes | Image.Image:
        content = self.reader(row)
        try:
            picture = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))
            if not picture.mode.startswith("I"):
                return content
            values = np.asarray(picture, np.float64)
        except Exception:  # noqa: BLE001  ImageSet.open meets the same fault and names it
            return content
        return Image.fromarray(np.rint(values.clip(0, 65535) / 257).astype(np.uint8))
