"""Read the frames of a video: image files in a folder, or an animated image such as a GIF. N frames."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from dinoeval.data.image_files import read_file
from dinoeval.data.loading import DEFAULT_RULE, EXTENSIONS, ImageRule
from dinoeval.data.names import is_hidden
from dinoeval.data.pillow import open_image, without_warnings
from dinoeval.errors import BadImage, DataError

_VIDEO_EXTENSIONS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")
_MAX_MISSING = 100  # A number far from the others may be a date, so the list of missing frames is capped.


class Animation:
    """The frames of an animated image, decoded one at a time; fastest in their order.

    Args:
        content: The content of an image file.
        rule: The rule by which frames are decoded.

    Raises:
        BadImage: If the content is not an image.
    """

    def __init__(self, content: bytes, rule: ImageRule = DEFAULT_RULE) -> None:
        self.rule = rule
        try:
            with without_warnings():
                self._image = open_image(io.BytesIO(content))
                self._count = int(getattr(self._image, "n_frames", 1))
        except (BadImage, MemoryError):
            raise
        except Exception as error:  # Pillow raises many types of exceptions for corrupted files.
            raise BadImage(str(error).strip() or type(error).__name__) from error

    def __len__(self) -> int:
        return self._count

    def __call__(self, number: int) -> Image.Image:
        """Decode a frame.

        Args:
            number: Number of the frame, 0 <= number < N.

        Returns:
            The RGB image.

        Raises:
            BadImage: If the frame cannot be decoded.
        """
        return self.rule.render(self._image, number)

    @property
    def milliseconds(self) -> float | None:
        """Duration of the frame that was decoded last; None if the file does not state it."""
        return self._image.info.get("duration")


def frame_header(path: Path, rule: ImageRule = DEFAULT_RULE) -> tuple[tuple[int, int], set[str]]:
    """Read the size of a frame and the remarks about it.

    The frame is decoded only if its format requires that.

    Args:
        path: An image file.
        rule: The rule by which it will be decoded.

    Returns:
        Width and height in pixels, and the remarks.

    Raises:
        DataError: If the file is not an image.
    """
    content = read_frame_file(path)
    try:
        return rule.size(content), rule.remarks(content)
    except BadImage as error:
        raise _unreadable(path, error) from error


def read_frame(path: Path, rule: ImageRule = DEFAULT_RULE) -> Image.Image:
    """Read a frame.

    Args:
        path: An image file.
        rule: The rule by which it is decoded.

    Returns:
        The RGB image.

    Raises:
        DataError: If the file cannot be decoded.
    """
    try:
        return rule.decode(read_frame_file(path))
    except BadImage as error:
        raise _unreadable(path, error) from error


def read_frames(where: Path, rule: ImageRule = DEFAULT_RULE) -> tuple[list[str], Iterator[Image.Image]]:
    """Read the frames of a video.

    Args:
        where: A folder of frames, or an animated image.
        rule: The rule by which frames are decoded.

    Returns:
        The names of the frames without endings, and an iterator that decodes one frame at a time, in the same order.

    Raises:
        DataError: If there is no frame, or a frame cannot be decoded.
    """
    if where.is_dir():
        paths = list_frames(where)
        return [path.stem for path in paths], (read_frame(path, rule) for path in paths)
    try:
        animation = Animation(read_frame_file(where), rule)
    except BadImage as error:
        raise _unreadable(where, error) from error
    return [f"{number:05d}" for number in range(len(animation))], _read_animation(where, animation)


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


def _read_animation(path: Path, animation: Animation) -> Iterator[Image.Image]:
    for number in range(len(animation)):
        try:
            yield animation(number)
        except BadImage as error:
            raise DataError(f"frame {number} of {path} cannot be decoded: {error}") from error


def read_frame_file(path: Path) -> bytes:
    """Read the content of the file of a frame.

    Args:
        path: An image file.

    Returns:
        Its content.

    Raises:
        DataError: If it cannot be read, or is not an image file.
    """
    try:
        return read_file(path)
    except BadImage as error:
        raise _unreadable(path, error) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _unreadable(path: Path, error: BadImage) -> DataError:
    video = path.suffix.lower() in _VIDEO_EXTENSIONS
    advice = ". Extract the frames of a video with: ffmpeg -i VIDEO -start_number 0 -q:v 2 FRAMES/%05d.jpg" if video else ""
    return DataError(f"{path} cannot be decoded: {error}{advice}")
