"""A complete entry of the feature cache: a folder with a FAISS flat index and a manifest with its checksums.

N images, D dims.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import msgspec
import numpy as np

from dinoeval.decoding import Record, decode_sealed, encode_sealed
from dinoeval.display import short_repr
from dinoeval.errors import CacheError, DinoevalError
from dinoeval.features.spec import key_of
from dinoeval.maths.neighbors import load_faiss

INDEX, MANIFEST = "features.faiss", "manifest.json"
_PIECE_BYTES = 4 << 20
_MAX_NUMBERS = 1 << 48  # in an index file, so that sizes in bytes stay below 64 bits


class CorruptedEntry(Exception):  # noqa: N818
    """An entry whose bytes were changed; str() is the reason."""


class UnreadableImage(TypedDict):
    """An image whose features are zeros."""

    row: int
    path: str
    reason: str


class Plan(Record, frozen=True, kw_only=True):
    """What an entry contains: N images in chunks."""

    recipe: dict[str, Any]
    """The spec whose hash is the key."""
    rows: int
    """N, with unreadable images."""
    row_shape: tuple[int, ...]
    """Shape of the feature of one image."""
    chunk_rows: int
    """Images per chunk; each chunk has a checksum."""

    def __post_init__(self) -> None:
        if min(self.rows, self.chunk_rows, *self.row_shape, len(self.row_shape)) < 1 or self.rows * self.dim > _MAX_NUMBERS:
            raise ValueError(f"{self.rows} rows of shape {self.row_shape} in chunks of {self.chunk_rows} are impossible")

    @property
    def dim(self) -> int:
        """D, the product of the shape."""
        return math.prod(self.row_shape)

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.rows // self.chunk_rows)


class Manifest(Plan, frozen=True, kw_only=True):
    """The manifest of a complete entry."""

    header_bytes: int
    """Size of the index file before the features."""
    header_crc32: int
    crc32: list[int]
    """CRC-32 of each chunk."""
    bad: list[UnreadableImage]
    remarks: dict[str, list[int]] = msgspec.field(default_factory=dict)
    """Rows of images by remark."""
    about: dict[str, Any]
    """Information for people."""
    created: str

    def __post_init__(self) -> None:
        Plan.__post_init__(self)
        if len(self.crc32) != self.chunks or self.header_bytes < 0:
            raise ValueError(f"{len(self.crc32)} checksums for {self.chunks} chunks, or a header of {self.header_bytes} bytes")
        named = [*(image["row"] for image in self.bad), *(row for rows in self.remarks.values() for row in rows)]
        if wrong := [row for row in named if not 0 <= row < self.rows]:
            raise ValueError(f"an image in row {wrong[0]} of {self.rows}")

    @property
    def index_bytes(self) -> int:
        """Size of the index file."""
        return self.header_bytes + 4 * self.dim * self.rows


@dataclasses.dataclass(frozen=True)
class Entry:
    """A complete entry on disk."""

    folder: Path
    manifest: Manifest

    __repr__ = short_repr

    @property
    def key(self) -> str:
        """Name of the entry, the hash of its spec."""
        return self.folder.name

    @property
    def num_rows(self) -> int:
        """N, with unreadable images."""
        return self.manifest.rows

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the feature of one image; D is its product."""
        return self.manifest.row_shape

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The unreadable images: `row`, `path`, `reason`. Their features are zeros."""
        return [{**image} for image in self.manifest.bad]

    @property
    def remarks(self) -> dict[str, list[int]]:
        """Rows of images by remark."""
        return self.manifest.remarks

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
        shape = (self.num_rows, self.manifest.dim)
        return np.memmap(file, np.float32, "r", offset=self.manifest.header_bytes, shape=shape)

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
        path, manifest = self.folder / INDEX, self.manifest
        if problem := _problem_of_size(path, manifest):
            return problem
        chunk_bytes = 4 * manifest.dim * manifest.chunk_rows

        def intact(chunk: int) -> bool:
            if chunk < 0:
                return crc32_of(path, 0, manifest.header_bytes) == manifest.header_crc32
            start = manifest.header_bytes + chunk * chunk_bytes
            return crc32_of(path, start, min(chunk_bytes, manifest.index_bytes - start)) == manifest.crc32[chunk]

        chunks = range(-1, manifest.chunks)  # -1 is the header
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for chunk, good in zip(chunks, pool.map(intact, chunks), strict=True):
                if not good:
                    return f"bytes of {INDEX} changed ({'header' if chunk < 0 else f'chunk {chunk}'})"
        return None


def _problem_of_size(path: Path, manifest: Manifest) -> str | None:
    if not path.is_file() or path.stat().st_size != manifest.index_bytes:
        return f"{INDEX} is missing or not {manifest.index_bytes:,} bytes long"
    return None


def read_entry(folder: Path) -> Entry | None:
    """Open the entry in a folder without verifying its features.

    Args:
        folder: The entry's folder.

    Returns:
        The entry, or None if the folder has no manifest.

    Raises:
        CorruptedEntry: If the manifest was changed or belongs to another entry, or if the index file does not have its size.
        OSError: If the files cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = decode_sealed(path.read_bytes(), Manifest, MANIFEST)
    except DinoevalError as error:
        raise CorruptedEntry(str(error)) from error
    if key_of(manifest.recipe) != folder.name:
        raise CorruptedEntry(f"{MANIFEST} belongs to the entry {key_of(manifest.recipe)}")
    if problem := _problem_of_size(folder / INDEX, manifest):
        raise CorruptedEntry(problem)
    return Entry(folder, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of an entry with its own hash, and flush the entry to disk.

    Args:
        folder: The entry's folder, with the index file.
        manifest: Content of the manifest.

    Raises:
        OSError: If the files cannot be written.
    """
    (folder / MANIFEST).write_bytes(encode_sealed(manifest))
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
