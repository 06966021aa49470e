"""How figures prepare images: in the size of the network input.

H x W pixels.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinoeval.data.images import ImageSet
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.data.opening import open_images, open_mixed
from dinoeval.data.transforms import MAX_PIXELS, MEAN, STD, normalize_images, parse_transform
from dinoeval.errors import BadImage, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.models.backbone import Backbone

ImageSource = str | Path | Image.Image
"""An image file, or an open image."""
VERSION = 1
NATIVE = "native"
"""Image size that keeps the size of each image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureTransform:
    """The transform from an RGB image to the network's input.

    Images are resized (PIL, bilinear), then cropped at the right and bottom to whole patches (visualize_attention.py).
    """

    size: tuple[int, int] | None
    """Width and height in pixels, without keeping the aspect ratio; None keeps the size of each image."""
    patch: int
    """Pixels."""
    rule: ImageRule = DEFAULT_RULE
    """The rule by which images are decoded."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @property
    def id(self) -> str:
        """Identifier of the transform, such as `figure@1:480x480:bilinear`."""
        size = "native" if self.size is None else f"{self.size[0]}x{self.size[1]}:bilinear"
        numbers = ["/".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        statistics = "" if (self.mean, self.std) == (MEAN, STD) else f":{':'.join(numbers)}"
        return f"figure@{VERSION}:{size}{'' if self.rule.exif_transpose else ':as-stored'}{statistics}"

    def open(self, images: ImageSet, row: int) -> Image.Image:
        """Open an image of a set, before it is resized.

        Args:
            images: The image set.
            row: Number of the image.

        Returns:
            The RGB image.

        Raises:
            BadImage: If it cannot be decoded.
        """
        return images.with_rule(self.rule).open(row)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Resize and crop an image.

        Args:
            image: RGB.

        Returns:
            Pixels, (H, W, 3) uint8, where H and W are multiples of the patch size.

        Raises:
            BadImage: If the image is smaller than a patch.
        """
        width, height = self.size or image.size
        if min(width, height) < self.patch:
            raise BadImage(f"{width} x {height} pixels are smaller than a patch of {self.patch}: pass a larger --image-size")
        resized = image.resize((width, height), Image.Resampling.BILINEAR)  # A copy if the size is the same.
        return np.asarray(resized)[: height - height % self.patch, : width - width % self.patch]

    def batch(self, pixels: np.ndarray) -> Tensor:
        """Turn the pixels of one image into a batch for the network.

        Args:
            pixels: (H, W, 3) uint8.

        Returns:
            Normalized float32 tensor (1, 3, H, W).
        """
        import torch

        return normalize_images(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None], self.mean, self.std)


def figure_transform(backbone: Backbone, image_size: int | str, rule: ImageRule, transform: str = "auto") -> FigureTransform:
    """Return the transform of figures for a network.

    Args:
        backbone: A network with patches.
        image_size: Side in pixels, `WIDTHxHEIGHT`, or `native`.
        rule: The rule by which images are decoded.
        transform: `auto` or `dino`: selects the mean and standard deviation, as the option --transform does.

    Returns:
        The transform.

    Raises:
        ConfigError: If the network has no patches, or the size or the transform cannot be used.
    """
    if backbone.patch_size is None:
        raise ConfigError(f"{backbone.arch} has no patches, which are needed here: pass the --arch of a vision transformer")
    if transform not in ("auto", "dino"):
        raise ConfigError(f"--transform {transform} does not apply here: use --image-size")
    statistics = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    size = parse_size(image_size)
    if size and min(size) < backbone.patch_size:
        raise ConfigError(f"--image-size must be at least the patch size, {backbone.patch_size}, got {image_size}")
    return FigureTransform(size=size, patch=backbone.patch_size, rule=rule, mean=statistics.mean, std=statistics.std)


def parse_size(image_size: int | str) -> tuple[int, int] | None:
    """Parse an image size.

    Args:
        image_size: Side in pixels, `WIDTHxHEIGHT`, or `native`.

    Returns:
        Width and height in pixels, or None for `native`.

    Raises:
        ConfigError: If it is none of these, or too large.

    Examples:
        >>> parse_size(480), parse_size("640x480"), parse_size("native")
        ((480, 480), (640, 480), None)
    """
    if image_size == NATIVE:
        return None
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(image_size))
    if match is None:
        raise ConfigError(f"invalid --image-size '{image_size}': expected 480 (a square), 640x480 (width x height) or native")
    width, height = int(match[1]), int(match[2] or match[1])
    if width * height > MAX_PIXELS:
        raise ConfigError(f"--image-size {image_size} exceeds {MAX_PIXELS:,} pixels")
    return width, height


def open_figure_images(images: ImageSource | Iterable[ImageSource]) -> ImageSet:
    """Open images as a set.

    Args:
        images: A folder, a file, an open image, or several of them.

    Returns:
        The image set.

    Raises:
        DataError: If an argument is neither a path nor a PIL image, or a file does not exist.
    """
    if isinstance(images, Image.Image):
        images = [images]
    return open_images(images) if isinstance(images, (str, Path)) else open_mixed(list(images))


def folder_names(paths: Sequence[str]) -> list[str]:
    """Return a distinct folder name for the figures of each image.

    Args:
        paths: Paths of the images.

    Returns:
        The stem of each path, with a number if it occurred before.

    Examples:
        >>> folder_names(["a/x.jpg", "b/x.png", "y.jpg"])
        ['x', 'x-2', 'y']
    """
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = Path(path).stem
        stem = name = stem if stem.strip(".") else "image"  # The stem of `...jpg` is `..`, which is another folder.
        number = 1
        while name.casefold() in taken:  # Names that differ in case only are one file on some disks.
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names
