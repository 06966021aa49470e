"""The feature cache: one FAISS flat index on disk for each (weights, readout, transform, precision, images).

An entry is a folder named by the hash of its whole recipe. It holds `features.faiss` (raw rows, inner product) and
`manifest.json`, which is written last and carries a checksum of every piece; the folder appears by one rename, so an
entry is complete or absent. While rows are being made the entry lies inside `<key>.partial`, beside a journal that says
which chunks are done, with their checksums: a run that was killed goes on there. Every use of an entry verifies it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import filelock
import numpy as np

from dinoeval.environment import cache_folder
from dinoeval.errors import CacheError
from dinoeval.files import expand
from dinoeval.maths.neighbors import faiss

INDEX, MANIFEST = "features.faiss", "manifest.json"
ENTRY, JOURNAL, PLAN = "entry", "journal", "plan.json"  # inside an unfinished one
_DONE = 1 << 32  # a journal word is 0, or this plus the crc32 of the chunk's bytes
_PIECE = 4 << 20
_NAME = re.compile(r"[0-9a-f]{32}(\.partial)?")  # nothing else in the folder is ours
_log = logging.getLogger(__name__)


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of the entry that a recipe makes, 32 hex digits."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


def index_header(rows: int, dim: int) -> bytes:
    """The bytes that stand before the floats in FAISS's file of a flat inner-product index of `rows` x `dim`.

    Taken from what FAISS itself writes for one row; the two counts in it are then set. `Entry.index` reads it back.
    """
    library = faiss()
    one = library.IndexFlatIP(dim)
    one.add(np.zeros((1, dim), np.float32))
    header = bytearray(library.serialize_index(one).tobytes()[: -4 * dim])
    header[8:16] = rows.to_bytes(8, "little")  # after the four letters and the 32-bit dimension
    header[-8:] = (rows * dim).to_bytes(8, "little")
    return bytes(header)


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
        library = faiss()
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
        extra = {entry.name for entry in self.folder.iterdir()} - {INDEX, MANIFEST}
        if extra:
            return f"unknown files: {', '.join(sorted(extra))}"

        def check(number: int) -> bool:
            if number < 0:
                return _crc(path, 0, header_bytes) == self.manifest["header_crc32"]
            start = header_bytes + number * chunk_bytes
            return _crc(path, start, min(chunk_bytes, total - start)) == expected[number]

        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for number, good in zip(range(-1, len(expected)), pool.map(check, range(-1, len(expected))), strict=True):
                if not good:
                    return f"bytes of {INDEX} changed ({'its header' if number < 0 else f'chunk {number}'})"
        return None


def _crc(path: Path, start: int, length: int) -> int:
    value = 0
    with path.open("rb") as file:
        file.seek(start)
        while length > 0 and (piece := file.read(min(length, _PIECE))):
            value = zlib.crc32(piece, value)
            length -= len(piece)
    return value


class FeatureCache:
    """A folder of entries."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = expand(root) if root else cache_folder()

    def find(self, key: str, report: bool = True) -> Entry | None:
        """Return the entry if it is there and whole. For a damaged one return None, and report it: it will be redone."""
        try:
            entry = self._read(self.root / key)
            if entry is None:
                return None
            fault = entry.fault()
        except FileNotFoundError:
            return None  # another process is making it anew
        except OSError as error:
            raise CacheError(f"the feature cache {self.root} cannot be read: {error}") from error
        except _Damaged as damage:
            fault = str(damage)
        if fault:
            if report:
                _log.warning("cache entry %s is damaged (%s): its features are computed again", key, fault)
            return None
        return entry

    def entries(self) -> Iterator[tuple[str, Entry | str]]:
        """Yield every entry by its key; one that cannot be read comes as the reason."""
        for folder in self._folders():
            if folder.suffix != ".partial":
                try:
                    yield folder.name, self._read(folder) or f"{MANIFEST} is missing"
                except (_Damaged, OSError) as error:
                    yield folder.name, str(error)

    def partials(self) -> list[Path]:
        """The folders of unfinished entries."""
        return [folder for folder in self._folders() if folder.suffix == ".partial"]

    def _folders(self) -> list[Path]:
        inside = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [folder for folder in inside if _NAME.fullmatch(folder.name) and folder.is_dir()]

    def remove(self, folder: Path, only_if_damaged: bool = False) -> str | None:
        """Delete an entry or an unfinished one and say so; leave it where another process is at work on it."""
        try:
            with self.locked(folder.name.removesuffix(".partial"), wait=False):
                if only_if_damaged and self.find(folder.name, report=False):
                    return None
                _delete(folder)
                return f"deleted {folder.name}"
        except CacheError as error:
            return f"kept {folder.name}: {error}"

    @staticmethod
    def _read(folder: Path) -> Entry | None:
        path = folder / MANIFEST
        if not path.exists():
            return None
        body, _, seal = path.read_bytes().rpartition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != seal:
            raise _Damaged(f"{MANIFEST} changed")
        return Entry(folder, json.loads(body))

    @contextlib.contextmanager
    def locked(self, key: str, wait: bool = True) -> Iterator[None]:
        """Hold the entry's lock; whoever comes second waits, then finds the entry complete."""
        lock = filelock.FileLock(self.root / f"{key}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0.5)
            except filelock.Timeout:
                if not wait:
                    raise CacheError(f"entry {key} is in use by another process") from None
                _log.info("another process makes the same features; waiting for it")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise CacheError(
                f"the feature cache {self.root} cannot be written: {_reason(error)}. Set DINOEVAL_CACHE, or --cache, to a folder that can."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, key: str, *, recipe: Mapping[str, Any], num_rows: int, row_shape: tuple[int, ...], chunk_rows: int) -> Partial:
        """Start, or go on with, the making of an entry; hold its lock. Reserves the disk space first."""
        folder = self.root / f"{key}.partial"
        plan = {"recipe": dict(recipe), "rows": num_rows, "row_shape": list(row_shape), "chunk_rows": chunk_rows}
        size = 4 * num_rows * int(np.prod(row_shape))
        found = _read_plan(folder)
        if found is not None and {**found, "chunk_rows": chunk_rows} == plan and _sound(folder, found):
            return Partial(folder)
        try:
            _delete(folder)
            _create(folder, plan)
            return Partial(folder)
        except OSError as error:
            _delete(folder)
            free = shutil.disk_usage(self.root).free
            raise CacheError(
                f"{size / 1e6:,.1f} MB of features cannot be written to {self.root}: {_reason(error)} ({free / 1e6:,.1f} MB are free). "
                "Make room (see `dinoeval cache prune`) or set DINOEVAL_CACHE to another disk."
            ) from error


class _Damaged(Exception):  # noqa: N818
    pass


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


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
    return index.stat().st_size == len(header) + 4 * rows * dim and _crc(index, 0, len(header)) == zlib.crc32(header)


def _create(folder: Path, plan: dict[str, Any]) -> None:
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
            if words[chunk] != _DONE + _crc(self.index, self._start(chunk), 4 * self.dim * len(self.rows_of(chunk)))
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
            _delete(self.folder)
            raise CacheError(
                f"features cannot be written to {self.folder.parent}: {_reason(error)}. What was written is removed."
            ) from error

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
            "header_crc32": _crc(self.index, 0, self._header_bytes),
            "crc32": [int(word - _DONE) for word in words],
            "bad": self.bad(),
            "about": dict(about),
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        body = json.dumps(manifest, sort_keys=True).encode()
        final = self.folder.with_suffix("")
        try:
            _sync(self.index)
            sealed = self.folder / ENTRY / MANIFEST
            sealed.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
            _sync(sealed)
            _delete(final)
            (self.folder / ENTRY).replace(final)
            _delete(self.folder)
        except OSError as error:
            _delete(self.folder)
            raise CacheError(
                f"features cannot be written to {self.folder.parent}: {_reason(error)}. What was written is removed."
            ) from error
        return Entry(final, manifest)

    def _give_up(self, error: OSError) -> NoReturn:
        _delete(self.folder)
        place = self.folder.parent
        raise CacheError(f"features cannot be written to {place}: {_reason(error)}. What was half written is removed.") from error

    def _start(self, chunk: int) -> int:
        return self._header_bytes + 4 * self.dim * self.chunk_rows * chunk

    def _journal(self) -> np.ndarray:
        return np.fromfile(self.folder / JOURNAL, "<u8")


def _write_at(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
