"""An incomplete entry of the feature cache, with a journal of the finished chunks, so that an interrupted run resumes."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import numpy as np

from dinoeval.errors import CacheError
from dinoeval.features.entry import INDEX, Entry, crc32_of, seal
from dinoeval.maths.neighbors import load_faiss

ENTRY, JOURNAL, PLAN = "entry", "journal", "plan.json"
_DONE = 1 << 32  # A journal word is 0, or this plus the CRC-32 of the chunk's bytes.


def index_header(rows: int, dim: int) -> bytes:
    """Return the header of a FAISS file with a flat inner-product index.

    It precedes the floats. FAISS itself writes it, for one vector; then the two counts in it are replaced.

    Args:
        rows: Number of vectors.
        dim: Length of a vector.

    Returns:
        The header.
    """
    library = load_faiss()
    one = library.IndexFlatIP(dim)
    one.add(np.zeros((1, dim), np.float32))
    header = bytearray(library.serialize_index(one).tobytes()[: -4 * dim])
    header[8:16] = rows.to_bytes(8, "little")  # after four letters and the 32-bit dimension
    header[-8:] = (rows * dim).to_bytes(8, "little")
    return bytes(header)


def resume(folder: Path, plan: dict[str, Any]) -> Partial | None:
    """Open an incomplete entry to resume it.

    Args:
        folder: Folder of the incomplete entry.
        plan: What the entry will contain. Its size of chunks is ignored: a resumed entry keeps its own.

    Returns:
        The incomplete entry, or None if there is none with this plan and with intact files.
    """
    found = _read_plan(folder)
    if found is None or {**found, "chunk_rows": plan["chunk_rows"]} != plan or not _intact(folder, found):
        return None
    return Partial(folder)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """Return the plan of an incomplete entry, or None if it cannot be resumed."""
    try:
        return json.loads((folder / PLAN).read_text()) if (folder / ENTRY / INDEX).exists() else None
    except (OSError, ValueError):
        return None


def _intact(folder: Path, plan: dict[str, Any]) -> bool:
    """Return whether the files of an incomplete entry have the right lengths, and the index its header."""
    rows, dim = plan["rows"], int(np.prod(plan["row_shape"]))
    header, index, journal = index_header(rows, dim), folder / ENTRY / INDEX, folder / JOURNAL
    if not journal.exists() or journal.stat().st_size != 8 * -(-rows // plan["chunk_rows"]):
        return False
    return index.stat().st_size == len(header) + 4 * rows * dim and crc32_of(index, 0, len(header)) == zlib.crc32(header)


def create(folder: Path, plan: dict[str, Any]) -> Partial:
    """Begin an entry.

    Its disk space is reserved, and the header of the index and an empty journal are written.

    Args:
        folder: Folder of the incomplete entry, which must not exist.
        plan: `recipe` (the spec), `rows`, `row_shape` and `chunk_rows`.

    Returns:
        The incomplete entry.

    Raises:
        OSError: If the files cannot be written.
    """
    rows, dim = plan["rows"], int(np.prod(plan["row_shape"]))
    chunks = -(-rows // plan["chunk_rows"])
    header = index_header(rows, dim)
    (folder / ENTRY).mkdir(parents=True)
    with (folder / ENTRY / INDEX).open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, len(header) + 4 * rows * dim)
        else:
            file.truncate(len(header) + 4 * rows * dim)
        file.write(header)
    (folder / JOURNAL).write_bytes(bytes(8 * chunks))
    (folder / PLAN).write_text(json.dumps(plan))  # last: a folder without it cannot be resumed
    return Partial(folder)


class Partial:
    """An incomplete entry.

    Several processes may write different chunks of it at the same time.

    Args:
        folder: Folder that `create` made.

    Raises:
        CacheError: If it does not exist, for example because the processes of a run do not share a disk.
    """

    def __init__(self, folder: Path) -> None:
        plan = _read_plan(folder)
        if plan is None:
            raise CacheError(f"{folder} does not exist: all processes of a run must share one feature cache")
        self.folder = folder
        self.index = folder / ENTRY / INDEX
        self.plan = plan
        self.num_rows: int = plan["rows"]
        self.dim = int(np.prod(plan["row_shape"]))
        self.chunk_rows: int = plan["chunk_rows"]
        self.num_chunks = -(-self.num_rows // self.chunk_rows)
        self._header_bytes = self.index.stat().st_size - 4 * self.num_rows * self.dim

    def rows_of(self, chunk: int) -> range:
        """Return the rows of a chunk.

        Args:
            chunk: Number of the chunk, from 0.

        Returns:
            Consecutive rows.
        """
        return range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.num_rows))

    def todo(self) -> list[int]:
        """Find the chunks that must be computed.

        Returns:
            Numbers of the chunks that are unfinished, were changed on disk, or have unreadable images.
        """
        words = self._journal()
        words[[int(note.suffix[1:]) for note in self.folder.glob("bad.*")]] = 0  # unreadable images may be readable now
        return [
            chunk
            for chunk in range(self.num_chunks)
            if words[chunk] < _DONE
            or words[chunk] != _DONE + crc32_of(self.index, self._start(chunk), 4 * self.dim * len(self.rows_of(chunk)))
        ]

    def write(
        self, chunk: int, features: np.ndarray, bad: list[dict[str, Any]], remarks: Mapping[str, list[int]] = MappingProxyType({})
    ) -> None:
        """Write the features of a chunk, then note in the journal that it is done.

        Args:
            chunk: Number of the chunk.
            features: (n, D) float32.
            bad: Its unreadable images: `row`, `path`, `reason`.
            remarks: Rows of its images by remark.

        Raises:
            CacheError: If they cannot be written. The incomplete entry is then removed.
        """
        assert (features.dtype, features.shape) == (np.float32, (len(self.rows_of(chunk)), self.dim))
        content = features.tobytes()
        try:
            _write_at(self.index, self._start(chunk), content)
            for kind, content_of_note in (("bad", bad), ("remarks", remarks)):
                note = self.folder / f"{kind}.{chunk}"
                if content_of_note:
                    note.write_text(json.dumps(content_of_note))
                else:
                    note.unlink(missing_ok=True)
            _write_at(self.folder / JOURNAL, 8 * chunk, (_DONE + zlib.crc32(content)).to_bytes(8, "little"))
        except OSError as error:
            self._abandon(error)

    def bad(self) -> list[dict[str, Any]]:
        """Read the notes about unreadable images of all chunks.

        Returns:
            `row`, `path` and `reason` of each, in order of rows.
        """
        images = [image for note in self.folder.glob("bad.*") for image in json.loads(note.read_text())]
        return sorted(images, key=lambda image: image["row"])

    def remarks(self) -> dict[str, list[int]]:
        """Read the remarks about images of all chunks.

        Returns:
            Rows by remark, in order.
        """
        rows: dict[str, list[int]] = {}
        for note in self.folder.glob("remarks.*"):
            for remark, of_chunk in json.loads(note.read_text()).items():
                rows[remark] = sorted([*rows.get(remark, []), *of_chunk])
        return rows

    def finish(self, about: Mapping[str, Any]) -> Entry:
        """Complete the entry: write the manifest, then rename its folder.

        Args:
            about: Information for people. It is not part of the key.

        Returns:
            The complete entry.

        Raises:
            CacheError: If it cannot be written. The incomplete entry is then removed.
        """
        words = self._journal()
        assert all(words >= _DONE), "an entry was completed before all its chunks were done"
        manifest = {
            **self.plan,
            "header_bytes": self._header_bytes,
            "header_crc32": crc32_of(self.index, 0, self._header_bytes),
            "crc32": [int(word - _DONE) for word in words],
            "bad": self.bad(),
            "remarks": self.remarks(),
            "about": dict(about),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        final = self.folder.with_suffix("")
        try:
            seal(self.folder / ENTRY, manifest)
            delete(final)
            (self.folder / ENTRY).replace(final)
            delete(self.folder)
        except OSError as error:
            self._abandon(error)
        return Entry(final, manifest)

    def _abandon(self, error: OSError) -> NoReturn:
        """Remove the incomplete entry, which would keep a full disk full."""
        delete(self.folder)
        raise CacheError(
            f"features cannot be written to {self.folder.parent}: {reason(error)}. The incomplete entry was removed."
        ) from error

    def _start(self, chunk: int) -> int:
        return self._header_bytes + 4 * self.dim * self.chunk_rows * chunk

    def _journal(self) -> np.ndarray:
        return np.fromfile(self.folder / JOURNAL, "<u8")


def _write_at(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def delete(folder: Path) -> None:
    """Delete a folder with its content, if it exists.

    Args:
        folder: The folder.

    Raises:
        OSError: If it cannot be deleted.
    """
    if folder.exists():
        shutil.rmtree(folder)


def reason(error: BaseException) -> str:
    """Return the system's message of an error, without its number.

    Args:
        error: Usually an OSError.

    Returns:
        A short text.
    """
    return getattr(error, "strerror", None) or str(error)
