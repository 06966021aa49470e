"""A complete entry of the feature cache: a folder with a FAISS flat index and a manifest with its checksums.

N images, D dims.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dinoeval.display import short_repr
from dinoeval.errors import CacheError
from dinoeval.maths.neighbors import load_faiss

INDEX, MANIFEST = "features.faiss", "manifest.json"
_PIECE_BYTES = 4 << 20


class CorruptedEntry(Exception):  # noqa: N818
    """An entry whose bytes were changed; str() is the reason."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A complete entry on disk."""

    folder: Path
    manifest: dict[str, Any]
    """Content of the manifest: `recipe` (the spec), `rows`, `row_shape`, checksums, `bad`, `remarks`, `about`,
    `created`."""

    __repr__ = short_repr

    @property
    def key(self) -> str:
        """Name of the entry, the hash of its spec."""
        return self.folder.name

    @property
    def num_rows(self) -> int:
        """N, with unreadable images."""
        return self.manifest["rows"]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the feature of one image; D is its product."""
        return tuple(self.manifest["row_shape"])

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The unreadable images: `row`, `path`, `reason`. Their features are zeros."""
        return self.manifest["bad"]

    @property
    def remarks(self) -> dict[str, list[int]]:
        """Rows of images by remark."""
        return self.manifest.get("remarks", {})

    @property
    def num_bytes(self) -> int:
        """Size of the index file."""
        return (self.folder / INDEX).stat().st_size

    def open(self) -> BinaryIO:
        """Open the index file.

        An open file stays readable if the entry is deleted or replaced.

        Returns:
            The file, in binary mode.

        Raises:
            CacheError: If the entry was deleted.
        """
        try:
            return (self.folder / INDEX).open("rb")
        except OSError as error:
            raise CacheError(f"cache entry {self.key} was deleted while in use: rerun the command") from error

    def matrix(self, file: BinaryIO) -> np.ndarray:
        """Map the features into memory.

        Args:
            file: The file that `open` returned.

        Returns:
            (N, D) float32, memory-mapped and read-only.
        """
        shape = (self.num_rows, int(np.prod(self.feature_shape)))
        return np.memmap(file, np.float32, "r", offset=self.manifest["header_bytes"], shape=shape)

    def index(self) -> Any:
        """Open the features as a FAISS index.

        Returns:
            A memory-mapped flat inner-product index of N vectors.
        """
        library = load_faiss()
        return library.read_index(str(self.folder / INDEX), library.IO_FLAG_MMAP_IFC)

    def verify(self) -> str | None:
        """Compare all bytes of the index file with their checksums.

        Returns:
            A description of the error, or None if the entry is intact.
        """
        path = self.folder / INDEX
        dim = int(np.prod(self.feature_shape))
        chunk_bytes = 4 * dim * self.manifest["chunk_rows"]
        header_bytes = self.manifest["header_bytes"]
        checksums = self.manifest["crc32"]
        total = header_bytes + 4 * dim * self.num_rows
        if not path.is_file() or path.stat().st_size != total:
            return f"{INDEX} is missing or not {total:,} bytes long"

        def intact(chunk: int) -> bool:
            if chunk < 0:
                return crc32_of(path, 0, header_bytes) == self.manifest["header_crc32"]
            start = header_bytes + chunk * chunk_bytes
            return crc32_of(path, start, min(chunk_bytes, total - start)) == checksums[chunk]

        chunks = range(-1, len(checksums))  # -1 is the header
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for chunk, good in zip(chunks, pool.map(intact, chunks), strict=True):
                if not good:
                    return f"bytes of {INDEX} changed ({'header' if chunk < 0 else f'chunk {chunk}'})"
        return None


def read_entry(folder: Path) -> Entry | None:
    """Open the entry in a folder without verifying its features.

    Args:
        folder: The entry's folder.

    Returns:
        The entry, or None if the folder has no manifest.

    Raises:
        CorruptedEntry: If the manifest was changed.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    body, _, digest = path.read_bytes().rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise CorruptedEntry(f"{MANIFEST} changed")
    return Entry(folder, json.loads(body))


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of an entry with its own hash, and flush the entry to disk.

    Args:
        folder: The entry's folder, with the index file.
        manifest: Content of the manifest.

    Raises:
        OSError: If the files cannot be written.
    """
    body = json.dumps(manifest, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
    for name in (INDEX, MANIFEST):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def crc32_of(path: Path, start: int, length: int) -> int:
    """Compute the CRC-32 checksum of a part of a file, reading 4 MiB at a time.

    Args:
        path: The file.
        start: Offset of the part, in bytes.
        length: Length of the part, in bytes; it may exceed the file.

    Returns:
        The checksum.

    Raises:
        OSError: If the file cannot be read.
    """
    value = 0
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (piece := file.read(min(length, _PIECE_BYTES))):
            value = zlib.crc32(piece, value)
            length -= len(piece)
    return value
