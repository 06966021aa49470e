"""An index on disk: a folder with vectors, a list of images, possibly an approximate index, and a manifest.

The manifest names the other files and their checksums. It is replaced last, by one rename, so that a folder always holds
the complete old or the complete new index.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dinoeval.display import short_repr
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.features.entry import crc32_of
from dinoeval.files import expand, write_whole
from dinoeval.search.vectors import VectorFile

FORMAT = 1
MANIFEST, VECTORS, IMAGES, NEIGHBORS, LOCK = "manifest.json", "rows.faiss", "images.json", "neighbours.faiss", ".lock"
_INDEX_FILE = re.compile(r"[0-9a-f]{8}\.(rows\.faiss|images\.json|neighbours\.faiss)|\.\d+\.manifest\.json")
_CHUNK_BYTES = 64 << 20  # bytes per checksum


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

    @classmethod
    def of(cls, folder: Path, name: str) -> FileRecord:
        """Read the state of a file.

        Args:
            folder: Folder of images.
            name: Path relative to it.

        Returns:
            The current state.

        Raises:
            OSError: If the file cannot be accessed.
        """
        status = (folder / name).stat()
        return cls(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclasses.dataclass(frozen=True)
class StoredIndex:
    """An intact index on disk."""

    folder: Path
    """Folder of the index."""
    manifest: dict[str, Any]
    """Metadata: backbone, readout, transform, counts, kind, parameters, recall, files."""
    records: tuple[FileRecord, ...]
    """Image files, in the order of the vectors."""
    bad: tuple[FileRecord, ...]
    """Files that were not readable images."""
    vectors: VectorFile
    """Normalized features of the images."""

    __repr__ = short_repr

    @functools.cached_property
    def paths(self) -> list[str]:
        """Paths of the N images, in the order of the vectors."""
        return [os.path.join(self.manifest["folder"], record.name) for record in self.records]  # noqa: PTH118  faster than Path

    def is_changed(self, row: int) -> bool:
        """Check whether an image has changed since its features were extracted.

        Args:
            row: Row of the image.

        Returns:
            Whether the file differs from its record or cannot be accessed.
        """
        record = self.records[row]
        try:
            return FileRecord.of(Path(self.manifest["folder"]), record.name) != record
        except OSError:
            return True

    def file(self, part: str) -> Path:
        """Return the path of a file of the index.

        Args:
            part: VECTORS, IMAGES or NEIGHBORS.

        Returns:
            The path.
        """
        return self.folder / self.manifest["files"][part]["name"]


def check_index_folder(folder: Path) -> None:
    """Check that a folder is an index, empty or does not exist yet.

    Args:
        folder: Path to check.

    Raises:
        ConfigError: If it is a file, or a folder with other content.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected the folder of an index: pass another path")
    unknown = [entry.name for entry in folder.iterdir() if not _INDEX_FILE.fullmatch(entry.name) and entry.name != LOCK]
    if unknown and MANIFEST not in unknown:
        raise ConfigError(f"{folder} is not an index: expected {MANIFEST}, found {join_names(sorted(unknown))}. Pass another path")


def open_stored(folder: Path) -> StoredIndex | None:
    """Open an index and verify the checksums of all files.

    Args:
        folder: Folder of the index.

    Returns:
        The index; None if there is none.

    Raises:
        DataError: If the index is corrupted or cannot be read.
        ConfigError: If the folder has other content.
    """
    try:
        check_index_folder(folder)
        while (folder / MANIFEST).exists():
            before = (folder / MANIFEST).read_bytes()
            try:
                return _read_index(folder)
            except (DataError, OSError):
                if (folder / MANIFEST).read_bytes() == before:  # otherwise a build replaced the index meanwhile
                    raise
        return None
    except OSError as error:
        raise DataError(f"cannot read the index {folder}: {error.strerror or error}") from error


def _read_index(folder: Path) -> StoredIndex:
    def corrupted(reason: str) -> DataError:
        return DataError(f"the index {folder} is corrupted: {reason}. Delete the folder and rebuild it; features in the cache are reused")

    body, _, checksum = (folder / MANIFEST).read_bytes().rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise corrupted(f"the checksum of {MANIFEST} does not match")
    manifest = json.loads(body)
    if manifest["format"] != FORMAT:
        raise DataError(f"the index {folder} has format {manifest['format']}, expected {FORMAT}: rebuild it with this version")
    for part, entry in manifest["files"].items():
        path = folder / entry["name"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise corrupted(f"{path.name} ({part}) is missing or does not have {entry['bytes']:,} bytes")
        if checksums(path) != entry["crc32"]:
            raise corrupted(f"the checksum of {path.name} does not match")
    lists = json.loads((folder / manifest["files"][IMAGES]["name"]).read_text())
    records, bad = (tuple(FileRecord(*line) for line in lists[part]) for part in ("images", "bad"))
    vectors = VectorFile(folder / manifest["files"][VECTORS]["name"], len(records), manifest["dim"])
    return StoredIndex(folder, manifest, records, bad, vectors)


def checksums(path: Path) -> list[int]:
    """Compute the CRC-32 of every 64 MiB of a file.

    Args:
        path: File to read.

    Returns:
        Checksums, in order.
    """
    starts = range(0, path.stat().st_size, _CHUNK_BYTES)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda start: crc32_of(path, start, _CHUNK_BYTES), starts))


def _flush(path: Path) -> None:
    """Force a written file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


class IndexDraft:
    """The files of a new index, next to those of the current one.

    Leaving the context without `publish` removes them.

    Args:
        folder: Folder of the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp = secrets.token_hex(4)
        self._parts: list[str] = []
        self._published = False

    def _path(self, part: str) -> Path:
        return self.folder / f"{self._stamp}.{part}"

    def write(self, part: str, write: Callable[[Path], object]) -> Path:
        """Add a file to the draft.

        Args:
            part: VECTORS, IMAGES or NEIGHBORS.
            write: Called with the path; writes the file.

        Returns:
            The path.

        Raises:
            DataError: If the file cannot be written.
        """
        self._parts.append(part)
        with self._report_disk_errors():
            write(self._path(part))
        return self._path(part)

    def publish(self, manifest: dict[str, Any], records: list[FileRecord], bad: list[FileRecord]) -> None:
        """Replace the current index with the draft.

        Args:
            manifest: Metadata of the new index, without `format` and `files`.
            records: Image files, in the order of the vectors.
            bad: Files that were not readable images.

        Raises:
            DinoevalError: If a file cannot be written.
        """
        lists = {part: [dataclasses.astuple(one) for one in files] for part, files in (("images", records), ("bad", bad))}
        self.write(IMAGES, lambda path: path.write_text(json.dumps(lists)))
        files = {}
        with self._report_disk_errors():
            for part in self._parts:
                path = self._path(part)
                _flush(path)
                files[part] = {"name": path.name, "bytes": path.stat().st_size, "crc32": checksums(path)}
        body = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1).encode()

        def write_manifest(path: Path) -> None:
            path.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
            _flush(path)

        write_whole(self.folder / MANIFEST, write_manifest)
        self._published = True
        self._remove_others(keep={self._path(part).name for part in self._parts})

    @contextlib.contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write the index {self.folder}: {error.strerror or error}") from error

    def _remove_others(self, keep: set[str]) -> None:
        """Remove files of earlier indexes, and of builds that were killed."""
        for path in self.folder.iterdir():
            if _INDEX_FILE.fullmatch(path.name) and path.name not in keep:
                with contextlib.suppress(OSError):  # on Windows, files that another process reads stay until the next build
                    path.unlink()

    def __enter__(self) -> IndexDraft:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._published:
            for part in self._parts:
                with contextlib.suppress(OSError):
                    self._path(part).unlink(missing_ok=True)


def resolve(path: str | Path) -> Path:
    """Return the absolute path, with `~` and links resolved.

    Args:
        path: Path as typed.

    Returns:
        The resolved path.
    """
    return expand(path).resolve()
