"""Whether two images show the same picture, decided by their pixels and not by the features of a network.

The calibration of the threshold of duplicates needs pairs of images that are certainly not duplicates. Features cannot tell
them apart before there is a threshold. Small versions of the images can: those of a re-encoded, downscaled or cropped copy
correlate by more than 0.98, those of different photographs by less than 0.95.

B boxes, P pixels of a small version, 3 color channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image

_SIDE, _SOURCE_SIDE = 32, 96  # pixels of a small version, and of the image that it is cut from
_SCALES = (1.0, 0.95, 0.9, 0.8)  # of the part of an image that may be the whole of the other one
_COVERED = 0.15  # share of the pixels that may differ in any way, for logos and watermarks
_SAME = 0.96  # least correlation of the same picture
_FLAT = 2.0  # gray levels: deviations of an image without content, which are noise
_COLORLESS = 3.0  # gray levels: largest mean difference between the channels of a gray image
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # of red, green and blue, ITU-R BT.601, as Pillow converts to gray
_ALIGNED = 3  # best alignments that are looked at closely
_PAIRS = 50  # pairs of images whose correlation is taken as typical


@dataclasses.dataclass(frozen=True)
class SmallVersions:
    """An image and its parts, all resized to 32 x 32 pixels without keeping the aspect ratio."""

    color: np.ndarray
    """Pixels of each part, (B, P, 3) uint8; the first part is the whole image."""

    @classmethod
    def of(cls, image: Image.Image) -> SmallVersions:
        """Resize an image and its parts.

        Args:
            image: Image, RGB.

        Returns:
            The small versions.
        """
        source = image.resize((_SOURCE_SIDE, _SOURCE_SIDE), Image.Resampling.BOX, reducing_gap=2.0)
        parts = [source.resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=box) for box in _BOXES]
        return cls(np.stack([np.asarray(part).reshape(-1, 3) for part in parts]))

    @property
    def is_gray(self) -> bool:
        """Whether the image has no colors."""
        return float(np.ptp(self.color[0], axis=1).mean()) < _COLORLESS


def _boxes() -> list[tuple[float, float, float, float]]:
    """Parts of the source, in its pixels: the center, the corners and the middles of the sides, for each scale."""
    boxes = []
    for scale in _SCALES:
        places = (0.5,) if scale == 1 else (0.0, 0.5, 1.0)
        corners = [(_SOURCE_SIDE * x * (1 - scale), _SOURCE_SIDE * y * (1 - scale)) for x in places for y in places]
        boxes += [(left, top, left + _SOURCE_SIDE * scale, top + _SOURCE_SIDE * scale) for left, top in corners]
    return boxes


_BOXES = _boxes()


def correlate(one: SmallVersions, other: SmallVersions) -> float:
    """Correlate two images, at the best of several alignments.

    Either image may be a part of the other. At each alignment, the 15% of the pixels that differ most are left out. Changes
    of brightness and contrast have no effect. Colors count if both images have some.

    Args:
        one: Small versions of an image.
        other: Small versions of another image.

    Returns:
        Pearson correlation of the pixels, at most 1.

    Examples:
        >>> noise = np.random.default_rng(0).integers(0, 256, (2, 6, 8, 3), np.uint8)
        >>> first, second = (Image.fromarray(pixels).resize((80, 60)) for pixels in noise)
        >>> halved = first.resize((40, 30))
        >>> correlate(SmallVersions.of(first), SmallVersions.of(halved)) > 0.99
        True
        >>> correlate(SmallVersions.of(first), SmallVersions.of(second)) < 0.9
        True
    """
    colors = [one.color.astype(np.float32), other.color.astype(np.float32)]
    if one.is_gray or other.is_gray:
        colors = [(color @ _LUMINANCE)[:, :, None] for color in colors]
    left, right = (_normalize(color) for color in colors)
    return max(_best(left, right[:1]), _best(right, left[:1]))


def _normalize(color: np.ndarray) -> np.ndarray:
    """Bring (B, P, C) pixels to mean 0 and standard deviation 1 per part."""
    centered = color - color.mean((1, 2), keepdims=True)
    return centered / np.maximum(centered.std((1, 2), keepdims=True), _FLAT)


def _best(parts: np.ndarray, whole: np.ndarray) -> float:
    """Largest correlation of the parts (B, P, C) with the whole (1, P, C), without the pixels that differ most."""
    aligned = np.argsort(np.einsum("bpc,opc->b", parts, whole))[-_ALIGNED:]
    parts = parts[aligned]
    differences = ((parts - whole) ** 2).sum(2)  # (B, P)
    count = round(differences.shape[1] * (1 - _COVERED))
    kept = np.argpartition(differences, count, axis=1)[:, :count]
    left = np.take_along_axis(parts, kept[:, :, None], 1)
    right = np.take_along_axis(np.broadcast_to(whole, parts.shape), kept[:, :, None], 1)
    left, right = left - left.mean((1, 2), keepdims=True), right - right.mean((1, 2), keepdims=True)
    lengths = np.sqrt((left**2).sum((1, 2)) * (right**2).sum((1, 2)))
    return float(((left * right).sum((1, 2)) / np.maximum(lengths, 1e-6)).max())


def same_picture_limit(images: Sequence[SmallVersions]) -> float:
    """Return the least correlation of two images that show the same picture.

    It is 0.96, and higher if most images resemble each other, such as pages of text or images of one fixed camera. It is
    then midway between the typical correlation of two images and 1. Most pairs are no duplicates however many images are.

    Args:
        images: Small versions of a random sample of images.

    Returns:
        A correlation.
    """
    count = len(images)
    if count < 3:
        return _SAME
    one, other = np.random.default_rng(0).integers(0, (count, count - 1), (_PAIRS, 2)).T
    typical = np.median([correlate(images[row], images[column + (column >= row)]) for row, column in zip(one, other, strict=True)])
    return max(_SAME, (1 + float(typical)) / 2)
