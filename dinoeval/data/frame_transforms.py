"""Preprocessing of video frames for label propagation (eval_video_segmentation.py).

The short side is resized to 480 pixels. The other side is cut down to a multiple of 64, which changes the aspect ratio
slightly. The standard deviation of the red channel is 0.228. The released code resizes with OpenCV, and opencv_resize
reproduces its arithmetic bit for bit.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal, assert_never

import numpy as np
from PIL import Image

from dinoeval.data.transforms import MEAN, STD, normalize_images
from dinoeval.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

DAVIS_STD = (0.228, 0.224, 0.225)
"""Standard deviations in eval_video_segmentation.py; the other scripts use 0.229 for red."""
SIDE = 480
"""Pixels of the short side (eval_video_segmentation.py)."""
MULTIPLE = 64
"""Divisor of the long side, in pixels (eval_video_segmentation.py)."""
VERSION = 1
"""Version of the transform in its id."""
ResizeBackend = Literal["opencv", "pil", "torchvision"]
_BITS = 11  # INTER_RESIZE_COEF_BITS of OpenCV


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """The preprocessing of a frame: resize, scale to [0, 1] and normalize."""

    side: int = SIDE
    """Pixels of the short side."""
    resize_backend: ResizeBackend = "opencv"
    """Bilinear filter: of OpenCV on bytes, of PIL with antialiasing, or of torchvision on tensors without antialiasing."""
    patch: int = 16
    """Patch size in pixels; both sides are cut down to a multiple of it."""
    mean: tuple[float, ...] = MEAN
    """Mean of the red, green and blue channel, in [0, 1]."""
    std: tuple[float, ...] = DAVIS_STD
    """Standard deviation of the red, green and blue channel."""

    def __post_init__(self) -> None:
        least = max(MULTIPLE, self.patch)
        if self.side < least:
            raise ConfigError(f"--image-size must be at least {least} pixels, got {self.side}")

    @property
    def id(self) -> str:
        """Name of the transform with all its settings, as stored in a Result."""
        statistics = "" if (self.mean, self.std) == (MEAN, DAVIS_STD) else f":{self.mean}:{self.std}".replace(" ", "")
        return f"davis@{VERSION}:{self.side}/{MULTIPLE}/{self.patch}:{self.resize_backend}{statistics}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Compute the size of the network input.

        Args:
            width: Width of the frame in pixels.
            height: Height of the frame in pixels. A square frame is treated as landscape.

        Returns:
            Width and height of the input in pixels.

        Examples:
            >>> FrameTransform().size(854, 480)
            (832, 480)
        """
        if height > width:
            width, height = self.side, int(self.side * height / width // MULTIPLE * MULTIPLE)
        else:
            width, height = int(self.side * width / height // MULTIPLE * MULTIPLE), self.side
        return width // self.patch * self.patch, height // self.patch * self.patch

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform a frame.

        Args:
            image: An RGB image.

        Returns:
            Normalized pixels, (3, H, W) float32.
        """
        import torch  # imported with the first frame, so that help texts do not wait for it

        width, height = self.size(*image.size)
        match self.resize_backend:
            case "opencv":
                pixels = torch.from_numpy(opencv_resize(np.asarray(image), width, height)).permute(2, 0, 1)
            case "pil":
                pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR))).permute(2, 0, 1)
            case "torchvision":
                full = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
                pixels = torch.nn.functional.interpolate(full, (height, width), mode="bilinear", antialias=False)[0]
            case _:
                assert_never(self.resize_backend)
        return normalize_images(pixels[None], self.mean, self.std)[0]


def frame_transform(
    side: int, resize_backend: ResizeBackend, patch: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> FrameTransform:
    """Make the transform for a network.

    Args:
        side: Pixels of the short side.
        resize_backend: Library whose bilinear filter is used.
        patch: Patch size of the network in pixels.
        mean: Channel means of the network.
        std: Channel standard deviations of the network. Those of ImageNet are replaced by DAVIS_STD, as in the released
            script.

    Returns:
        The transform.

    Raises:
        ConfigError: If `side` is too small.
    """
    return FrameTransform(side=side, resize_backend=resize_backend, patch=patch, mean=mean, std=DAVIS_STD if std == STD else std)


def opencv_resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize an image as cv2.resize does, bit for bit.

    The filter is bilinear without antialiasing, in fixed-point arithmetic.

    Args:
        pixels: (H, W, C) uint8.
        width: Width of the result.
        height: Height of the result.

    Returns:
        (height, width, C) uint8.

    Examples:
        >>> opencv_resize(np.array([[[0], [100]]], np.uint8), 4, 1)[0, :, 0].tolist()
        [0, 25, 75, 100]
    """
    columns, column_weights = _source_positions(pixels.shape[1], width, clip=True)
    rows, row_weights = _source_positions(pixels.shape[0], height, clip=False)
    used = np.unique(rows)  # Each row of the source is resized horizontally once.
    source = pixels[used]
    lines = source[:, columns[0]] * column_weights[0][:, None] + source[:, columns[1]] * column_weights[1][:, None]  # int32
    lines >>= 4
    upper, lower = (lines[np.searchsorted(used, row)] * weight[:, None, None] >> 16 for row, weight in zip(rows, row_weights, strict=True))
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _source_positions(length: int, target: int, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the two source pixels of each target pixel along an axis, (2, target), and their weights times 2048."""
    position = ((np.arange(target) + 0.5) * (1 / (target / length)) - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    fraction = position - first.astype(np.float32)
    if clip:
        fraction[(first < 0) | (first >= length - 1)] = 0
        first = first.clip(0, length - 1)
    weights = np.rint(np.stack([1 - fraction, fraction]) * np.float32(1 << _BITS)).astype(np.int32)
    return np.stack([first, first + 1]).clip(0, length - 1), weights
