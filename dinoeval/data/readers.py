"""Where the images of a set come from: files, arrays and open images, by their rows.

Readers are classes, not closures, so that they can be sent to worker processes.
"""

from __future__ import annotations

import dataclasses
import os
import stat
from typing import BinaryIO

import numpy as np
from PIL import Image

from dinoeval.data.image_files import ABSENT, ImageReader, open_file, read_file

MISSING = -1
"""Size of a file that does not exist."""


@dataclasses.dataclass(frozen=True)
class FileReader:
    """The content of image files."""

    paths: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        """Read an image file.

        Args:
            row: Number of the image.

        Returns:
            The content.

        Raises:
            BadImage: If it is not an image file.
            OSError: If the file cannot be read.
        """
        return read_file(self.paths[row])


@dataclasses.dataclass(frozen=True)
class PixelReader:
    """Images that are the rows of an array."""

    pixels: np.ndarray
    """(N, H, W, 3) uint8."""

    def __call__(self, row: int) -> Image.Image:
        """Return an image.

        Args:
            row: Number of the image.
        """
        return Image.fromarray(self.pixels[row])


@dataclasses.dataclass(frozen=True)
class JoinedReader:
    """Images of several readers."""

    parts: tuple[tuple[ImageReader, int], ...]
    """The reader of each image, and the row in it."""

    def __call__(self, row: int) -> bytes | Image.Image:
        """Return what the reader of an image returns.

        Args:
            row: Number of the image.
        """
        reader, own_row = self.parts[row]
        return reader(own_row)


@dataclasses.dataclass(frozen=True)
class SubsetReader:
    """A part of the images of a reader."""

    reader: ImageReader
    rows: np.ndarray
    """(n,) int."""

    def __call__(self, row: int) -> bytes | Image.Image:
        """Return what the reader of all images returns.

        Args:
            row: Number of the image in the subset.
        """
        return self.reader(int(self.rows[row]))


def open_source(reader: ImageReader, row: int) -> BinaryIO | Image.Image | bytes:
    """Return an image without reading its file in full.

    Args:
        reader: The reader of an image set.
        row: Number of the image.

    Returns:
        The open file, or what the reader returns if its images are not files.

    Raises:
        BadImage: If it is not a regular file.
        OSError: If the file cannot be opened.
    """
    match reader:
        case FileReader():
            return open_file(reader.paths[row])
        case SubsetReader():
            return open_source(reader.reader, int(reader.rows[row]))
        case JoinedReader():
            return open_source(*reader.parts[row])
        case _:
            return reader(row)


def stat_file(path: str) -> tuple[int, int, int]:
    """Find the size and the times of a file.

    Args:
        path: The file.

    Returns:
        The size in bytes, or MISSING; and the times of the last modification and of the last change of the file record, in
        nanoseconds.

    Raises:
        OSError: If the disk fails.
    """
    try:
        found = os.stat(path)  # noqa: PTH116
    except OSError as error:
        if error.errno not in ABSENT:
            raise
        return MISSING, 0, 0
    if not stat.S_ISREG(found.st_mode):  # such as a folder or a named pipe
        return MISSING, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
