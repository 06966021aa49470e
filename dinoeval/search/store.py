"""An index on disk: a folder with vectors, a list of images, possibly an approximate index, and a manifest.

The manifest names the other files and their checksums. It is replaced last, by one rename, so that a folder always holds
the complete old or the complete new index.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from dinoeval.decoding import encode, encode_sealed
from dinoeval.display import short_repr
from dinoeval.errors import ConfigError, DataError, DinoevalError, join_names
from dinoeval.features.entry import crc32_of
from dinoeval.files import TEMPORARY, expand, read_bytes, write_whole
from dinoeval.search.manifest import INDEX_FILE, decode_images, decode_manifest
from dinoeval.search.records import FileRecord
from dinoeval.search.vectors import VectorFile, is_vector_file

FORMAT = 2  # 2: digests of the images, and their folder relative to the index
MANIFEST, VECTORS, IMAGES, NEIGHBORS, LOCK = "manifest.json", "rows.faiss", "images.json", "neighbours.faiss", ".lock"
_INDEX_FILE = re.compile(rf"{INDEX_FILE.pattern}|{TEMPORARY.pattern}manifest\.json")
_CHUNK_BYTES = 64 << 20  # bytes per checksum


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
    def root(self) -> Path:
        """Folder of the images, also if the index was moved together with them."""
        recorded, relative = Path(self.manifest["folder"]), self.manifest.get("relative_folder")
        if relative is not None and not self.has_images_in(recorded):
            moved = resolve(self.folder / relative)
            if self.has_images_in(moved):
                return moved
        return recorded

    @functools.cached_property
    def paths(self) -> list[str]:
        """Paths of the N images, in the order of the vectors."""
        return [os.path.join(self.root, record.name) for record in self.records]  # noqa: PTH118  faster than Path

    def has_images_in(self, root: Path) -> bool:
        """Check whether a folder contains the first images of the index, by name and size.

        Args:
            root: Folder of images.

        Returns:
            Whether one of ten images is there.
        """
        for record in self.records[:10]:
            with contextlib.suppress(OSError):
                if (root / record.name).stat().st_size == record.size:
                    return True
        return False

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

    try:
        manifest = decode_manifest(read_bytes(folder / MANIFEST), MANIFEST, FORMAT)
        for part, entry in manifest["files"].items():
            path = folder / entry["name"]
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                raise corrupted(f"{path.name} ({part}) is missing or does not have {entry['bytes']:,} bytes")
            if checksums(path) != entry["crc32"]:
                raise corrupted(f"the checksum of {path.name} does not match")
        names = {part: folder / entry["name"] for part, entry in manifest["files"].items()}
        lists = decode_images(read_bytes(names[IMAGES]), IMAGES, manifest["images"], FileRecord)
    except DataError:
        raise
    except DinoevalError as error:
        raise corrupted(str(error)) from error
    records, bad = (tuple(FileRecord(*line) for line in lists[part]) for part in ("images", "bad"))
    if not is_vector_file(names[VECTORS], len(records), manifest["dim"]):
        raise corrupted(f"{VECTORS} does not hold {len(records):,} vectors of {manifest['dim']} dimensions")
    return StoredIndex(folder, manifest, records, bad, VectorFile(names[VECTORS], len(records), manifest["dim"]))


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
        self.write(IMAGES, lambda path: path.write_bytes(encode(lists)))
        files = {}
        with self._report_disk_errors():
            for part in self._parts:
                path = self._path(part)
                _flush(path)
                files[part] = {"name": path.name, "bytes": path.stat().st_size, "crc32": checksums(path)}
        content = encode_sealed({"format": FORMAT, **manifest, "files": files})

        def write_manifest(path: Path) -> None:
            path.write_bytes(content)
            _flush(path)

        write_whole(self.folder / MANIFEST, write_manifest)
        remove_leftovers(self.folder, keep={self._path(part).name for part in self._parts})

    @contextlib.contextmanager
    def _report_disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"cannot write the index {self.folder}: {error.strerror or error}") from error

    def __enter__(self) -> IndexDraft:
        return self

    def __exit__(self, *_: object) -> None:
        # The file on disk decides, because an interrupt may come right after it was replaced.
        try:
            published = self._stamp.encode() in (self.folder / MANIFEST).read_bytes()
        except FileNotFoundError:
            published = False
        except OSError:
            published = True  # unknown; what is left over is removed by the next build
        if not published:
            for part in self._parts:
                with contextlib.suppress(OSError):
                    self._path(part).unlink(missing_ok=True)


def remove_leftovers(folder: Path, keep: Collection[str]) -> None:
    """Remove files of earlier indexes, and of builds that were killed.

    Args:
        folder: Folder of the index.
        keep: Names of the files of the current index.
    """
    for path in folder.iterdir():
        if _INDEX_FILE.fullmatch(path.name) and path.name not in keep:
            with contextlib.suppress(OSError):  # on Windows, files that another process reads stay until the next build
                path.unlink()


def relative_folder(root: Path, folder: Path) -> str | None:
    """Return the path from an index to its images.

    Args:
        root: Folder of images.
        folder: Folder of the index.

    Returns:
        The relative path; None if there is none, as between two drives of Windows.
    """
    try:
        return Path(os.path.relpath(root, folder)).as_posix()
    except ValueError:
        return None


def resolve(path: str | Path) -> Path:
    """Return the absolute path, with `~` and links resolved.

    Args:
        path: Path as typed.

    Returns:
        The resolved path.
    """
    return expand(path).resolve()
