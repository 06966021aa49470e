"""An entry of the feature cache in the making: a journal says which chunks are done, so that a killed run is gone on with."""

from __future__ import annotations

import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dinoeval.errors import CacheError
from dinoeval.features.entry import INDEX, Entry, crc32_of, seal
from dinoeval.maths.neighbors import load_faiss

ENTRY, JOURNAL, PLAN = "entry", "journal", "plan.json"
_DONE = 1 << 32  # a journal word is 0, or this plus the crc32 of the chunk's bytes


def index_header(rows: int, dim: int) -> bytes:
    """The bytes that stand before the floats in FAISS's file of a flat inner-product index of `rows` x `dim`.

    Taken from what FAISS itself writes for one row; the two counts in it are then set. `Entry.index` reads it back.
    """
    library = load_faiss()
    one = library.IndexFlatIP(dim)
    one.add(np.zeros((1, dim), np.float32))
    header = bytearray(library.serialize_index(one).tobytes()[: -4 * dim])
    header[8:16] = rows.to_bytes(8, "little")  # after the four letters and the 32-bit dimension
    header[-8:] = (rows * dim).to_bytes(8, "little")
    return bytes(header)


def resume(folder: Path, plan: dict[str, Any]) -> Partial | None:
    """The unfinished entry in `folder`, if it is of this plan (but for the size of chunks, which it keeps) and sound."""
    found = _read_plan(folder)
    if found is None or {**found, "chunk_rows": plan["chunk_rows"]} != plan or not _sound(folder, found):
        return None
    return Partial(folder)


def _read_plan(folder: Path) -> dict[str, Any] | None:
    """The plan of an unfinished entry, or None where it cannot be gone on with."""
    try:
        return json.loads((folder / PLAN).read_text()) if (folder / ENTRY / INDEX).exists() else None
    except (OSError, ValueError):
        return None


def _sound(folder: Path, plan: dict[str, Any]) -> bool:
    """Whether the files of an unfinished entry have the right lengths, and the index its header."""
    rows, dim = plan["rows"], int(np.prod(plan["row_shape"]))
    header, index, journal = index_header(rows, dim), folder / ENTRY / INDEX, folder / JOURNAL
    if not journal.exists() or journal.stat().st_size != 8 * -(-rows // plan["chunk_rows"]):
        return False
    return index.stat().st_size == len(header) + 4 * rows * dim and crc32_of(index, 0, len(header)) == zlib.crc32(header)


def create(folder: Path, plan: dict[str, Any]) -> Partial:
    """Begin an entry: reserve its disk space, write the index's header and an empty journal."""
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
    (folder / PLAN).write_text(json.dumps(plan))  # last: without it the folder is made anew
    return Partial(folder)


class Partial:
    """An entry in the making. Several processes may write different chunks of it at once."""

    def __init__(self, folder: Path) -> None:
        plan = _read_plan(folder)
        if plan is None:
            raise CacheError(f"{folder} is not there: all processes of one run must share the feature cache, on one disk")
        self.folder = folder
        self.index = folder / ENTRY / INDEX
        self.plan = plan
        self.num_rows: int = plan["rows"]
        self.dim = int(np.prod(plan["row_shape"]))
        self.chunk_rows: int = plan["chunk_rows"]
        self.num_chunks = -(-self.num_rows // self.chunk_rows)
        self._header_bytes = self.index.stat().st_size - 4 * self.num_rows * self.dim

    def rows_of(self, chunk: int) -> range:
        return range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, self.num_rows))

    def todo(self) -> list[int]:
        """The chunks not yet done, whose bytes do not match what the journal says of them, or that lack an image."""
        words = self._journal()
        words[[int(note.suffix[1:]) for note in self.folder.glob("bad.*")]] = 0  # what could not be read may be readable now
        return [
            chunk
            for chunk in range(self.num_chunks)
            if words[chunk] < _DONE
            or words[chunk] != _DONE + crc32_of(self.index, self._start(chunk), 4 * self.dim * len(self.rows_of(chunk)))
        ]

    def write(self, chunk: int, rows: np.ndarray, bad: list[dict[str, Any]]) -> None:
        """Write the rows of a chunk, (n, D) float32, and then that it is done."""
        assert (rows.dtype, rows.shape) == (np.float32, (len(self.rows_of(chunk)), self.dim))
        content = rows.tobytes()
        try:
            _write_at(self.index, self._start(chunk), content)
            note = self.folder / f"bad.{chunk}"
            if bad:
                note.write_text(json.dumps(bad))
            else:
                note.unlink(missing_ok=True)
            _write_at(self.folder / JOURNAL, 8 * chunk, (_DONE + zlib.crc32(content)).to_bytes(8, "little"))
        except OSError as error:
            self._give_up(error)

    def bad(self) -> list[dict[str, Any]]:
        """What was passed to `write`, of all chunks, in order of row."""
        return sorted((one for note in self.folder.glob("bad.*") for one in json.loads(note.read_text())), key=lambda one: one["row"])

    def finish(self, about: Mapping[str, Any]) -> Entry:
        """Seal the entry: manifest last, then one rename. `about` is for people to read; it is no part of the key."""
        words = self._journal()
        assert all(words >= _DONE), "an entry was sealed before all chunks were done"
        manifest = {
            **self.plan,
            "header_bytes": self._header_bytes,
            "header_crc32": crc32_of(self.index, 0, self._header_bytes),
            "crc32": [int(word - _DONE) for word in words],
            "bad": self.bad(),
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
            self._give_up(error)
        return Entry(final, manifest)

    def _give_up(self, error: OSError) -> NoReturn:
        delete(self.folder)
        place = self.folder.parent
        raise CacheError(f"features cannot be written to {place}: {reason(error)}. What was half written is removed.") from error

    def _start(self, chunk: int) -> int:
        return self._header_bytes + 4 * self.dim * self.chunk_rows * chunk

    def _journal(self) -> np.ndarray:
        return np.fromfile(self.folder / JOURNAL, "<u8")


def _write_at(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def delete(folder: Path) -> None:
    """Remove a folder where it is there."""
    if folder.exists():
        shutil.rmtree(folder)


def reason(error: BaseException) -> str:
    """What the system says of a failure, without its number."""
    return getattr(error, "strerror", None) or str(error)
