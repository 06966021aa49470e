"""Frames of videos, and how they come into the network for label propagation (eval_video_segmentation.py).

The short side becomes 480 pixels, the other is cut down to a multiple of 64, which changes the aspect a little; the red
channel is divided by 0.228. The released code resizes with OpenCV, whose arithmetic is followed here to the last bit.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, assert_never

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dinoeval.data.loading import EXTENSIONS
from dinoeval.data.transforms import MEAN, STD, normalize_images
from dinoeval.errors import ConfigError, DataError

DAVIS_STD = (0.228, 0.224, 0.225)  # sic, eval_video_segmentation.py
SIDE, MULTIPLE = 480, 64
ResizeBackend = Literal["opencv", "pil", "torchvision"]
VERSION = 1
_UPRIGHT = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_ORIENTATION = 0x0112
_MOST_MISSING = 100  # a stray number may be a date
_BITS = 11  # OpenCV's INTER_RESIZE_COEF_BITS


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """From a frame to the network's input."""

    side: int = SIDE
    """Pixels of the short side."""
    reading: ResizeBackend = "opencv"
    """Whose bilinear filter: OpenCV's on bytes, PIL's, which antialiases, or torchvision's on tensors without antialiasing."""
    patch: int = 16
    """Sides that it does not divide are cut down to a multiple of it."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = DAVIS_STD

    def __post_init__(self) -> None:
        if self.side < max(MULTIPLE, self.patch):
            raise ConfigError(f"frames must have {max(MULTIPLE, self.patch)} pixels or more on the short side: {self.side}")

    @property
    def id(self) -> str:
        statistics = "" if (self.mean, self.std) == (MEAN, DAVIS_STD) else f":{self.mean}:{self.std}".replace(" ", "")
        return f"davis@{VERSION}:{self.side}/{MULTIPLE}/{self.patch}:{self.reading}{statistics}"

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the input for a frame of these; a square one counts as landscape."""
        if height > width:
            width, height = self.side, int(self.side * height / width // MULTIPLE * MULTIPLE)
        else:
            width, height = int(self.side * width / height // MULTIPLE * MULTIPLE), self.side
        return width // self.patch * self.patch, height // self.patch * self.patch

    def __call__(self, picture: Image.Image) -> Tensor:
        """PIL RGB image -> normalised float32 tensor (3, H, W)."""
        width, height = self.size(*picture.size)
        match self.reading:
            case "opencv":
                pixels = torch.from_numpy(opencv_resize(np.asarray(picture), width, height)).permute(2, 0, 1)
            case "pil":
                pixels = torch.from_numpy(np.array(picture.resize((width, height), Image.Resampling.BILINEAR))).permute(2, 0, 1)
            case "torchvision":
                whole = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
                pixels = torch.nn.functional.interpolate(whole, (height, width), mode="bilinear", antialias=False)[0]
            case _:
                assert_never(self.reading)
        return normalize_images(pixels[None], self.mean, self.std)[0]


def frame_transform(side: int, reading: ResizeBackend, patch: int, mean: tuple[float, ...], std: tuple[float, ...]) -> FrameTransform:
    """The transform for a network of this mean and deviation; ImageNet's deviation becomes that of the released script."""
    return FrameTransform(side=side, reading=reading, patch=patch, mean=mean, std=DAVIS_STD if std == STD else std)


def opencv_resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Resize (H, W, C) uint8 bilinearly without antialiasing, in OpenCV's fixed-point arithmetic: equal to cv2.resize."""
    columns, across = _places(pixels.shape[1], width, clip=True)
    rows, down = _places(pixels.shape[0], height, clip=False)
    used = np.unique(rows)  # each row of the source is stretched once
    source = pixels[used]
    lines = source[:, columns[0]] * across[0][:, None] + source[:, columns[1]] * across[1][:, None]  # int32
    lines >>= 4
    upper, lower = (lines[np.searchsorted(used, row)] * weight[:, None, None] >> 16 for row, weight in zip(rows, down, strict=True))
    return ((upper + lower + 2) >> 2).astype(np.uint8)


def _places(length: int, wanted: int, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    """The two source places of each pixel along an axis, (2, wanted), and their weights times 2048."""
    at = ((np.arange(wanted) + 0.5) * (1 / (wanted / length)) - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int64)
    part = at - first.astype(np.float32)
    if clip:
        part[(first < 0) | (first >= length - 1)] = 0
        first = first.clip(0, length - 1)
    weights = np.rint(np.stack([1 - part, part]) * np.float32(1 << _BITS)).astype(np.int32)
    return np.stack([first, first + 1]).clip(0, length - 1), weights


def frame_size(path: Path) -> tuple[int, int]:
    """Width and height of a frame as it stands upright, from the head of its file. Raises DataError."""
    with _open(path) as picture:
        turned = picture.getexif().get(_ORIENTATION) in _UPRIGHT
        return (picture.height, picture.width) if turned else picture.size


def open_frame(path: Path) -> Image.Image:
    """Decode a frame to RGB, turned upright by its EXIF tag, as OpenCV does. Raises DataError."""
    with _open(path) as picture:
        return _decoded(picture, str(path))


def read_frames(where: Path) -> tuple[list[str], Iterator[Image.Image]]:
    """The names and the pictures of the frames in a folder, or in an animated file such as a GIF, in order.

    Pictures are decoded one at a time. Raises DataError.
    """
    if where.is_dir():
        paths = frames_in(where)
        return [path.stem for path in paths], map(open_frame, paths)
    with _open(where) as picture:
        try:
            count = getattr(picture, "n_frames", 1)
        except (OSError, SyntaxError, TypeError, ValueError) as error:
            raise DataError(f"{where} cannot be decoded: {error}") from error
    return [f"{number:05d}" for number in range(count)], _animated(where)


def frames_in(folder: Path) -> list[Path]:
    """The pictures of a folder by name, numbers in names by value. Raises DataError where there are none, or two of one name."""
    try:
        entries = [entry for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS and not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    if not entries:
        raise DataError(f"{folder} holds no frame; known endings: {', '.join(EXTENSIONS)}")
    paths = sorted(
        entries, key=lambda path: [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
    )
    for one, other in itertools.pairwise(paths):
        if one.stem == other.stem:
            raise DataError(f"{folder} holds two frames of one name, {one.name} and {other.name}")
    return paths


def missing_frames(paths: list[Path]) -> list[str]:
    """Names that the numbering of frames leaves out, the first of them where they are many; none where names are no numbers."""
    if not all(path.stem.isdecimal() for path in paths):
        return []
    numbers, width = [int(path.stem) for path in paths], len(paths[0].stem)
    step = max(1, min((after - before for before, after in itertools.pairwise(numbers)), default=1))
    gaps = (range(before + step, after, step) for before, after in itertools.pairwise(numbers))
    return [f"{number:0{width}d}" for number in itertools.islice(itertools.chain.from_iterable(gaps), _MOST_MISSING)]


def _animated(where: Path) -> Iterator[Image.Image]:
    with _open(where) as picture:
        for number in range(getattr(picture, "n_frames", 1)):
            try:
                picture.seek(number)
            except (OSError, SyntaxError, TypeError, ValueError, EOFError) as error:
                raise DataError(f"frame {number} of {where} cannot be decoded: {error}") from error
            yield _decoded(picture, f"frame {number} of {where}")


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError as error:
        advice = (
            ". Take a video apart with: ffmpeg -i VIDEO -start_number 0 -q:v 2 FRAMES/%05d.jpg" if path.suffix.lower() in _VIDEOS else ""
        )
        raise DataError(f"{path} is no image in a format that is known{advice}") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


_VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")


def _decoded(picture: Image.Image, name: str) -> Image.Image:
    try:
        exif_transpose = ImageOps.exif_transpose(picture)
        assert exif_transpose is not None
        if exif_transpose.mode.startswith("I"):  # 16 bits of grey: PIL would cut off what is above 255
            exif_transpose = Image.fromarray((np.asarray(exif_transpose) >> 8).clip(0, 255).astype(np.uint8))
        return exif_transpose.convert("RGB")
    except (OSError, SyntaxError, TypeError, ValueError, EOFError) as error:
        raise DataError(f"{name} cannot be decoded: {error}") from error
