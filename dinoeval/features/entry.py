"""A complete entry of the feature cache: a folder with a FAISS flat index and a manifest that can vouch for it."""

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

from dinoeval.errors import CacheError
from dinoeval.maths.neighbors import load_faiss

INDEX, MANIFEST = "features.faiss", "manifest.json"
_PIECE = 4 << 20


class CorruptedEntry(Exception):  # noqa: N818
    """An entry whose bytes are not what they were; str() says which."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A complete entry on disk."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def key(self) -> str:
        return self.folder.name

    @property
    def num_rows(self) -> int:
        return self.manifest["rows"]

    @property
    def row_shape(self) -> tuple[int, ...]:
        return tuple(self.manifest["row_shape"])

    @property
    def bad(self) -> list[dict[str, Any]]:
        """The images that did not decode: `row`, `path`, `reason`. Their rows are zeros."""
        return self.manifest["bad"]

    @property
    def num_bytes(self) -> int:
        return (self.folder / INDEX).stat().st_size

    def open(self) -> BinaryIO:
        """The index file; what was opened stays readable when the entry is deleted or made anew."""
        try:
            return (self.folder / INDEX).open("rb")
        except OSError as error:
            raise CacheError(f"cache entry {self.key} went away while it was in use: run the command again") from error

    def matrix(self, file: BinaryIO) -> np.ndarray:
        """The rows, (N, D) float32, memory-mapped and read-only; `file` is what `open` gave."""
        shape = (self.num_rows, int(np.prod(self.row_shape)))
        return np.memmap(file, np.float32, "r", offset=self.manifest["header_bytes"], shape=shape)

    def index(self):
        """The same as a FAISS index, memory-mapped."""
        library = load_faiss()
        return library.read_index(str(self.folder / INDEX), library.IO_FLAG_MMAP_IFC)

    def fault(self) -> str | None:
        """Say what is wrong with the entry's bytes, or None where every checksum holds."""
        path = self.folder / INDEX
        chunk_bytes = 4 * int(np.prod(self.row_shape)) * self.manifest["chunk_rows"]
        header_bytes = self.manifest["header_bytes"]
        expected = self.manifest["crc32"]
        total = header_bytes + 4 * int(np.prod(self.row_shape)) * self.num_rows
        if not path.is_file() or path.stat().st_size != total:
            return f"{INDEX} is missing or not {total:,} bytes long"

        def check(number: int) -> bool:
            if number < 0:
                return crc32_of(path, 0, header_bytes) == self.manifest["header_crc32"]
            start = header_bytes + number * chunk_bytes
            return crc32_of(path, start, min(chunk_bytes, total - start)) == expected[number]

        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for number, good in zip(range(-1, len(expected)), pool.map(check, range(-1, len(expected))), strict=True):
                if not good:
                    return f"bytes of {INDEX} changed ({'its header' if number < 0 else f'chunk {number}'})"
        return None


def read_entry(folder: Path) -> Entry | None:
    """Open the entry in `folder`, or None where there is none. Raises Damaged where the manifest changed."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    body, _, seal = path.read_bytes().rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise CorruptedEntry(f"{MANIFEST} changed")
    return Entry(folder, json.loads(body))


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest of an entry with a hash of itself, and see that it is on the disk."""
    body = json.dumps(manifest, sort_keys=True).encode()
    (folder / MANIFEST).write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
    for name in (INDEX, MANIFEST):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def crc32_of(path: Path, start: int, length: int) -> int:
    """Checksum of `length` bytes from `start`, read in pieces."""
    value = 0
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (piece := file.read(min(length, _PIECE))):
            value = zlib.crc32(piece, value)
            length -= len(piece)
    return value
