"""The image files of an index as they are now: deleted, changed, linked, and what tells copies of an image apart."""

from __future__ import annotations

import dataclasses
import os
import time

import numpy as np

from dinoeval.data.loading import DEFAULT_RULE, read_file
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


def check_files(stored: StoredIndex) -> FileStates:
    """Compare the files of an index with their records.

    Args:
        stored: The index.

    Returns:
        The states of the files.
    """
    paths = stored.paths
    deleted, changed = [], []
    files: dict[object, list[int]] = {}
    for row, path in enumerate(paths):
        try:
            status = os.stat(path)  # noqa: PTH116  faster than Path
        except OSError:
            deleted.append(path)
            continue
        record = stored.records[row]
        if not FileRecord.of_status(record.name, status).has_content_of(record, stored.root):
            changed.append(path)
        else:
            # Some network file systems number no files. Their links cannot be recognized.
            files.setdefault((status.st_dev, status.st_ino) if status.st_ino else row, []).append(row)
    links: dict[int, list[str]] = {}
    rows = []
    for linked in files.values():
        first = linked[0] if len(linked) == 1 else min(linked, key=lambda row: (os.path.islink(paths[row]), row))  # noqa: PTH114
        rows.append(first)
        if len(linked) > 1:
            links[first] = [paths[row] for row in linked if row != first]
    return FileStates(np.array(sorted(rows), np.int64), links, deleted, changed)


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
