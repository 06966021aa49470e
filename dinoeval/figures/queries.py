"""The attention of chosen tokens to the patches of an image, and the patches under points.

A heads, Q queries, h x w patches of p pixels.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dinoeval.errors import ConfigError
from dinoeval.figures.preprocessing import FigureTransform

if TYPE_CHECKING:
    from dinoeval.models.backbone import Backbone

_MANY_PATCHES = 10_000
_log = logging.getLogger(__name__)


def attention_rows(backbone: Backbone, name: str, pixels: np.ndarray, transform: FigureTransform, queries: Sequence[int]) -> np.ndarray:
    """Compute the attention of some tokens to the patches.

    Args:
        backbone: A vision transformer.
        name: Name of the image, for messages.
        pixels: (h*p, w*p, 3) uint8.
        transform: Normalizes the pixels.
        queries: Numbers of Q tokens: 0 is [CLS], patches follow in row-major order.

    Returns:
        Attention, (A, Q, h, w) float32.

    Raises:
        DataError: If it is NaN or infinite.
    """
    h, w = backbone.grid(*pixels.shape[:2])
    if h * w > _MANY_PATCHES:
        _log.warning("%s has %s patches, which is slow: time grows with their square. --image-size 480 is faster", name, f"{h * w:,}")
    rows = backbone.attention(transform.batch(pixels), queries)[..., 1:]  # (1, A, Q, h*w)
    backbone.check_finite(rows, [name])
    return rows[0].unflatten(-1, (h, w)).cpu().numpy()


def check_points(points: Sequence[tuple[float, float]], name: str, size: tuple[int, int]) -> None:
    """Check that points are inside an image.

    Args:
        points: (x, y) in pixels.
        name: Name of the image, for the message.
        size: Its width and height in pixels.

    Raises:
        ConfigError: If a point is outside.
    """
    for x, y in points:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise ConfigError(
                f"point {x:g},{y:g} is outside {name}, which has {size[0]} x {size[1]} pixels: "
                "--points takes X,Y with x from left to right and y from top to bottom"
            )


def patch_at(point: tuple[float, float], size: tuple[int, int], transform: FigureTransform, grid: tuple[int, int]) -> tuple[int, int]:
    """Find the patch under a point.

    Args:
        point: (x, y) in pixels of the image.
        size: Width and height of the image in pixels.
        transform: From the image to the input of the network.
        grid: Rows and columns of patches.

    Returns:
        Row and column of the patch, or of the nearest patch if the point is in the cropped remainder.
    """
    width, height = transform.size or size
    row, column = int(point[1] * height / size[1]) // transform.patch, int(point[0] * width / size[0]) // transform.patch
    return min(row, grid[0] - 1), min(column, grid[1] - 1)
