"""The image files of an index as they are now: deleted, changed, linked, and how copies of an image differ."""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np

from dinoeval.data.image_files import read_file
from dinoeval.data.loading import DEFAULT_RULE
from dinoeval.errors import BadImage, DataError
from dinoeval.search.records import FileRecord
from dinoeval.search.store import StoredIndex


@dataclasses.dataclass(frozen=True)
class FileStates:
    """Which images of an index are still the files that were indexed."""

    rows: np.ndarray
    """Rows of the unchanged images, one per file, (n,) int64, ascending."""
    links: dict[int, list[str]]
    """Other paths of the same file, by its row: hard links, symbolic links, or names on a disk that ignores case."""
    deleted: list[str]
    """Paths that do not exist or cannot be accessed."""
    changed: list[str]
    """Paths of files whose content has changed."""


FileKey = tuple[int, int | str]
"""Equal for all paths of one file: hard links, symbolic links, or names on a disk that ignores case."""


def file_key(path: str) -> FileKey:
    """Identify the file of a path.

    Args:
        path: Path of an existing file.

    Returns:
        Device and number of the file.

    Raises:
        OSError: If the file does not exist or cannot be accessed.
    """
    return _key_of_status(path, os.stat(path))  # noqa: PTH116  faster than Path


def _key_of_status(path: str, status: os.stat_result) -> FileKey:
    # Some network file systems do not number their files. Their hard links cannot be recognized.
    return status.st_dev, status.st_ino or os.path.realpath(path)


class FileChecker:
    """Compares files of an index with their records, each when it is needed first.

    Args:
        stored: The index.
    """

    def __init__(self, stored: StoredIndex) -> None:
        self._stored = stored
        self._keys: dict[int, FileKey | None] = {}
        self.deleted: list[str] = []
        """Paths found so far that do not exist or cannot be accessed."""
        self.changed: list[str] = []
        """Paths found so far of files whose content has changed."""

    def key(self, row: int) -> FileKey | None:
        """Identify the file of an image.

        Args:
            row: Row of the image.

        Returns:
            As from `file_key`; None if the file was deleted or changed after the index was built.
        """
        if row not in self._keys:
            self._keys[row] = self._check(row)
        return self._keys[row]

    def _check(self, row: int) -> FileKey | None:
        path, record = self._stored.paths[row], self._stored.records[row]
        try:
            status = os.stat(path)  # noqa: PTH116
        except OSError:
            self.deleted.append(path)
            return None
        if not FileRecord.of_status(record.name, status).has_content_of(record, self._stored.root):
            self.changed.append(path)
            return None
        return _key_of_status(path, status)


def check_files(stored: StoredIndex) -> FileStates:
    """Compare the files of an index with their records.

    Args:
        stored: The index.

    Returns:
        The states of the files.
    """
    paths, checker = stored.paths, FileChecker(stored)
    files: dict[FileKey, list[int]] = {}
    for row in range(len(paths)):
        if (key := checker.key(row)) is not None:
            files.setdefault(key, []).append(row)
    links: dict[int, list[str]] = {}
    rows = []
    for linked in files.values():
        first = linked[0] if len(linked) == 1 else min(linked, key=lambda row: (os.path.islink(paths[row]), row))  # noqa: PTH114
        rows.append(first)
        if len(linked) > 1:
            links[first] = [paths[row] for row in linked if row != first]
    return FileStates(np.array(sorted(rows), np.int64), links, checker.deleted, checker.changed)


@dataclasses.dataclass(frozen=True)
class FileDetails:
    """What helps to decide which copy of an image to keep."""

    width: int
    """Pixels."""
    height: int
    """Pixels."""
    size: int
    """Bytes."""
    modified: str
    """Time of the last modification, `YYYY-MM-DD HH:MM`, local time."""

    @classmethod
    def of(cls, path: str) -> FileDetails | None:
        """Read the details of an image file.

        Args:
            path: Path of the file.

        Returns:
            The details; None if the file is not a readable image.
        """
        try:
            status = os.stat(path)  # noqa: PTH116
            width, height = DEFAULT_RULE.size(read_file(path))
            modified = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.st_mtime))
        except (BadImage, DataError, OSError, ValueError, OverflowError):
            return None
        return cls(width, height, status.st_size, modified)

    def lines(self) -> list[str]:
        """Write the details as text.

        Returns:
            One text per line: pixels, bytes and date.

        Examples:
            >>> FileDetails(4000, 3000, 1234567, "2026-05-01 12:30").lines()
            ['4000 x 3000 pixels', '1,234,567 bytes', '2026-05-01 12:30']
        """
        return [f"{self.width} x {self.height} pixels", f"{self.size:,} bytes", self.modified]
