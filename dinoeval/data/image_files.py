"""Read image files: only regular files, and which errors are about the image and which about the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

from dinoeval.data.pillow import is_known
from dinoeval.errors import BadImage, DataError

MAX_BYTES = 2 << 30
"""Largest image file that is read, in bytes."""
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
"""Errors of a path that leads to no readable file, such as a broken link. Others are errors of the disk or the system."""
ImageReader = Callable[[int], bytes | Image.Image]
"""Returns the file content of an image, or the opened image, by its row."""


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """Open an image file, if it is a regular file.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        BadImage: If it is a device, a pipe, a folder or the like, or if it is empty or larger than MAX_BYTES.
        OSError: If it cannot be opened.
    """
    _check_regular(os.stat(path))  # noqa: PTH116  before it is opened, because opening some devices has effects
    # A pipe that took the place of the file meanwhile must not block.
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    try:
        _check_regular(os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read an image file, if it is a regular file that begins like an image.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        BadImage: As for `open_file`, or if the first bytes belong to no format that is read.
        OSError: If it cannot be read.
    """
    with open_file(path) as file:
        if not is_known(prefix := file.read(16)):
            raise BadImage("unsupported or corrupted image file")
        return prefix + file.read(os.fstat(file.fileno()).st_size - len(prefix))


def _check_regular(status: os.stat_result) -> None:
    """Raise BadImage if a file cannot be an image. Files of /proc have size 0."""
    if not stat.S_ISREG(status.st_mode):
        raise BadImage("not a regular file")
    if not status.st_size:
        raise BadImage("the file is empty")
    if status.st_size > MAX_BYTES:
        raise BadImage(f"{status.st_size:,} bytes exceed the limit of {MAX_BYTES:,} bytes")


@contextlib.contextmanager
def report_read_errors(name: str) -> Iterator[None]:
    """Turn the errors of reading an image into BadImage or DataError.

    Args:
        name: Name of the image for error messages.

    Yields:
        None.

    Raises:
        BadImage: If the file does not exist or may not be read.
        DataError: If the disk fails, or the memory does not suffice.
    """
    try:
        yield
    except OSError as error:
        if error.errno in ABSENT:
            raise BadImage(error.strerror) from error
        raise DataError(f"{name} cannot be read: {error.strerror}. Rerun the command to resume.") from error
    except MemoryError as error:
        raise DataError(f"not enough memory to decode {name}: use fewer --workers, or a smaller image") from error
