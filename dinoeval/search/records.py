"""The record of an image file in an index, by which a later run decides whether the file is still the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True, order=True)
class FileRecord:
    """The state of an image file when its features were extracted."""

    name: str
    """Path relative to the folder of images."""
    size: int
    """Bytes."""
    modified: int
    """Time of the last modification, in nanoseconds."""
    changed: int
    """Time of the last change of the inode, in nanoseconds; archives restore the modification time but not this one."""
    digest: str = dataclasses.field(default="", compare=False)
    """Digest of the content; empty if it was not read."""

    @classmethod
    def of(cls, folder: Path, name: str) -> FileRecord:
        """Read the state of a file, without its digest.

        Args:
            folder: Folder of images.
            name: Path relative to it.

        Returns:
            The current state.

        Raises:
            OSError: If the file cannot be accessed.
        """
        return cls.of_status(name, (folder / name).stat())

    @classmethod
    def of_status(cls, name: str, status: os.stat_result) -> FileRecord:
        """Make a record without digest from the status of a file.

        Args:
            name: Path relative to the folder of images.
            status: Status of the file.

        Returns:
            The record.
        """
        return cls(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def with_digest(self, folder: Path) -> FileRecord:
        """Read the digest of the file.

        Args:
            folder: Folder of images.

        Returns:
            The record with the digest, which is empty if the file cannot be read or is not regular.
        """
        path = folder / self.name
        try:
            if not path.is_file():
                return self
            with path.open("rb") as file:
                return dataclasses.replace(self, digest=hashlib.file_digest(file, "sha256").hexdigest()[:32])
        except OSError:
            return self

    def has_content_of(self, earlier: FileRecord, folder: Path) -> bool:
        """Check whether a file still has the content that an earlier record describes.

        Moving a folder, linking to a file or changing its permissions also changes times. So if times differ, the content
        decides.

        Args:
            earlier: Record with a digest.
            folder: Folder of images.

        Returns:
            Whether the times, or the size and the digest are equal.
        """
        if self.size != earlier.size:
            return False
        same_times = (self.modified, self.changed) == (earlier.modified, earlier.changed)
        return same_times or self.with_digest(folder).digest == earlier.digest != ""
