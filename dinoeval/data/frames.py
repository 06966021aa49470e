"""Read the frames of a video: image files in a folder, or an animated image such as a GIF.

Unlike images of other datasets, frames are rotated by their EXIF orientation, as OpenCV does.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dinoeval.data.folders import is_hidden
from dinoeval.data.loading import EXTENSIONS
from dinoeval.errors import DataError

_VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
_EXIF_ORIENTATION = 0x0112
_EXIF_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_MAX_MISSING = 100  # A number far from the others may be a date, so the list of missing frames is capped.
_DECODING_ERRORS = (OSError, SyntaxError, TypeError, ValueError, EOFError)


def frame_size(path: Path) -> tuple[int, int]:
    """Read the size of a frame without decoding it.

    Args:
        path: An image file.

    Returns:
        Width and height in pixels, after applying the EXIF orientation.

    Raises:
        DataError: If the file is not an image.
    """
    with _open(path) as image:
        sideways = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_SIDEWAYS
        return (image.height, image.width) if sideways else image.size


def read_frame(path: Path) -> Image.Image:
    """Read a frame.

    Args:
        path: An image file.

    Returns:
        The RGB image, rotated by its EXIF orientation.

    Raises:
        DataError: If the file cannot be decoded.
    """
    with _open(path) as image:
        return _decode(image, str(path))


def read_frames(where: Path) -> tuple[list[str], Iterator[Image.Image]]:
    """Read the frames of a video.

    Args:
        where: A folder of frames, or an animated image.

    Returns:
        The names of the frames without endings, and an iterator that decodes one frame at a time, in the same order.

    Raises:
        DataError: If there is no frame, or a frame cannot be decoded.
    """
    if where.is_dir():
        paths = list_frames(where)
        return [path.stem for path in paths], map(read_frame, paths)
    with _open(where) as image:
        try:
            count = getattr(image, "n_frames", 1)
        except _DECODING_ERRORS as error:
            raise DataError(f"{where} cannot be decoded: {error}") from error
    return [f"{number:05d}" for number in range(count)], _read_animation(where)


def list_frames(folder: Path) -> list[Path]:
    """List the frames in a folder.

    Args:
        folder: A folder of image files. Hidden files are ignored.

    Returns:
        Paths sorted by name, with the numbers in names compared by value.

    Raises:
        DataError: If there is no frame, or two frames have the same name without its ending.
    """
    try:
        entries = [entry for entry in folder.iterdir() if entry.suffix.lower() in EXTENSIONS and not is_hidden(entry.name)]
    except OSError as error:
        raise DataError(f"folder {folder} cannot be read: {error.strerror}") from error
    if not entries:
        raise DataError(f"{folder} contains no frame. Supported endings: {', '.join(EXTENSIONS)}")
    paths = sorted(entries, key=_natural_order)
    for one, other in itertools.pairwise(paths):
        if one.stem == other.stem:
            raise DataError(f"{folder} contains two frames of the same name: remove {one.name} or {other.name}")
    return paths


def missing_frames(paths: list[Path]) -> list[str]:
    """Find gaps in the numbering of frames.

    Args:
        paths: Frames in order. The smallest distance between two numbers is taken as the step.

    Returns:
        The names that are missing, at most the first 100. Empty if a name is not a number.

    Examples:
        >>> missing_frames([Path("00001.jpg"), Path("00002.jpg"), Path("00005.jpg")])
        ['00003', '00004']
    """
    if not all(path.stem.isdecimal() for path in paths):
        return []
    numbers, width = [int(path.stem) for path in paths], len(paths[0].stem)
    step = max(1, min((after - before for before, after in itertools.pairwise(numbers)), default=1))
    gaps = (range(before + step, after, step) for before, after in itertools.pairwise(numbers))
    return [f"{number:0{width}d}" for number in itertools.islice(itertools.chain.from_iterable(gaps), _MAX_MISSING)]


def _natural_order(path: Path) -> list[tuple[int, str]]:
    """Return a sort key that compares the numbers in a name by value, and places them after text."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.stem)]


def _read_animation(path: Path) -> Iterator[Image.Image]:
    with _open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            try:
                image.seek(number)
            except _DECODING_ERRORS as error:
                raise DataError(f"frame {number} of {path} cannot be decoded: {error}") from error
            yield _decode(image, f"frame {number} of {path}")


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError as error:
        video = path.suffix.lower() in _VIDEO_EXTENSIONS
        advice = ". Extract the frames of a video with: ffmpeg -i VIDEO -start_number 0 -q:v 2 FRAMES/%05d.jpg" if video else ""
        raise DataError(f"{path} is an unsupported or corrupted image file{advice}") from error
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _decode(image: Image.Image, name: str) -> Image.Image:
    try:
        rotated = ImageOps.exif_transpose(image)
        assert rotated is not None
        if rotated.mode.startswith("I"):  # 16-bit gray: PIL would clip values above 255 instead of scaling them.
            rotated = Image.fromarray((np.asarray(rotated) >> 8).clip(0, 255).astype(np.uint8))
        return rotated.convert("RGB")
    except _DECODING_ERRORS as error:
        raise DataError(f"{name} cannot be decoded: {error}") from error
