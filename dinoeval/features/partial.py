"""An incomplete entry of the feature cache, with a journal of the finished chunks, so that an interrupted run resumes."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

import msgspec
import numpy as np

from dinoeval.decoding import decode_file, decode_sealed, encode, encode_sealed
from dinoeval.errors import CacheError, DinoevalError
from dinoeval.features.entry import INDEX, Entry, Manifest, Plan, UnreadableImage, crc32_of, write_manifest
from dinoeval.files import reason, report_disk_errors
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


def resume(folder: Path, plan: Plan) -> Partial | None:
    """Open an incomplete entry to resume it.

    Args:
        folder: Folder of the incomplete entry.
        plan: What the entry will contain. Its size of chunks is ignored: a resumed entry keeps its own.

    Returns:
        The incomplete entry, or None if there is none with this plan and with intact files.

    Raises:
        OSError: If a file cannot be read although it exists.
    """
    found = _read_plan(folder)
    if found is None or msgspec.structs.replace(found, chunk_rows=plan.chunk_rows) != plan or not _intact(folder, found):
        return None
    return Partial(folder)


def resumable(folder: Path) -> bool:
    """Return whether an incomplete entry has features that a run can resume from.

    Args:
        folder: Folder of the incomplete entry.
    """
    return (folder / ENTRY / INDEX).is_file()


def _read_plan(folder: Path) -> Plan | None:
    """Return the plan of an incomplete entry, or None if it is absent or was changed."""
    try:
        plan = folder / PLAN
        return decode_sealed(plan.read_bytes(), Plan, PLAN) if resumable(folder) and plan.is_file() else None
    except DinoevalError:
        return None


def _intact(folder: Path, plan: Plan) -> bool:
    """Return whether the files of an incomplete entry have the right lengths, and the index its header."""
    index, journal = folder / ENTRY / INDEX, folder / JOURNAL
    if not journal.is_file() or journal.stat().st_size != 8 * plan.chunks:
        return False
    header = index_header(plan.rows, plan.dim)
    return index.stat().st_size == len(header) + 4 * plan.rows * plan.dim and crc32_of(index, 0, len(header)) == zlib.crc32(header)


def create(folder: Path, plan: Plan) -> Partial:
    """Begin an entry.

    Its disk space is reserved, and the header of the index and an empty journal are written.

    Args:
        folder: Folder of the incomplete entry, which must not exist.
        plan: What the entry will contain.

    Returns:
        The incomplete entry.

    Raises:
        OSError: If the files cannot be written.
    """
    header = index_header(plan.rows, plan.dim)
    size = len(header) + 4 * plan.rows * plan.dim
    (folder / ENTRY).mkdir(parents=True)
    with (folder / ENTRY / INDEX).open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        file.write(header)
    (folder / JOURNAL).write_bytes(bytes(8 * plan.chunks))
    (folder / PLAN).write_bytes(encode_sealed(plan))  # last: a folder without it cannot be resumed
    return Partial(folder)


class Partial:
    """An incomplete entry.

    Several processes may write different chunks of it at the same time.

    Args:
        folder: Folder that `create` made.

    Raises:
        CacheError: If it does not exist, for example because the processes of a run do not share a disk, or cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, folder / ENTRY / INDEX
        with self._report_unreadable():
            plan = _read_plan(folder)
            if plan is None:
                raise CacheError(f"{folder} does not exist: all processes of a run must share one feature cache")
            self.plan = plan
            self.num_rows, self.dim, self.chunk_rows, self.num_chunks = plan.rows, plan.dim, plan.chunk_rows, plan.chunks
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
        with self._report_unreadable():
            words = self._journal()
            for chunk, _ in self._notes("bad"):  # unreadable images may be readable now
                words[chunk] = 0
            for chunk, note in self._notes("remarks"):
                if not self._is_intact(note, self.rows_of(chunk)):
                    words[chunk] = 0
            return [
                chunk
                for chunk in range(self.num_chunks)
                if words[chunk] < _DONE
                or words[chunk] != _DONE + crc32_of(self.index, self._start(chunk), 4 * self.dim * len(self.rows_of(chunk)))
            ]

    def write(
        self,
        chunk: int,
        features: np.ndarray,
        bad: Sequence[Mapping[str, Any]],
        remarks: Mapping[str, Sequence[int]] = MappingProxyType({}),
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
            for kind, content_of_note in (("bad", bad), ("remarks", dict(remarks))):
                note = self.folder / f"{kind}.{chunk}"
                if content_of_note:
                    note.write_bytes(encode(content_of_note))
                else:
                    note.unlink(missing_ok=True)
            _write_at(self.folder / JOURNAL, 8 * chunk, (_DONE + zlib.crc32(content)).to_bytes(8, "little"))
        except OSError as error:
            self._abandon(error)

    def bad(self) -> list[UnreadableImage]:
        """Read the notes about unreadable images of all chunks.

        Returns:
            `row`, `path` and `reason` of each, in order of rows.
        """
        images = [image for _, note in self._notes("bad") for image in decode_file(note, list[UnreadableImage])]
        return sorted(images, key=lambda image: image["row"])

    def remarks(self) -> dict[str, list[int]]:
        """Read the remarks about images of all chunks.

        Returns:
            Rows by remark, in order.
        """
        rows: dict[str, list[int]] = {}
        for _, note in self._notes("remarks"):
            for remark, of_chunk in decode_file(note, dict[str, list[int]]).items():
                rows[remark] = sorted([*rows.get(remark, []), *of_chunk])
        return rows

    def _notes(self, kind: str) -> list[tuple[int, Path]]:
        """List the notes of a kind, with their chunks."""
        notes = [(note.suffix[1:], note) for note in self.folder.glob(f"{kind}.*")]
        return [(int(number), note) for number, note in notes if number.isdecimal() and int(number) < self.num_chunks]

    def _is_intact(self, note: Path, rows: range) -> bool:
        """Return whether a note of remarks can be read and is about these rows."""
        try:
            return all(row in rows for of_remark in decode_file(note, dict[str, list[int]]).values() for row in of_remark)
        except DinoevalError:
            return False

    def finish(self, about: Mapping[str, Any]) -> Entry:
        """Complete the entry: write the manifest, then rename its folder.

        Args:
            about: Information for people. It is not part of the key.

        Returns:
            The complete entry.

        Raises:
            CacheError: If it cannot be written. The incomplete entry is then removed.
        """
        with self._report_unreadable():
            words = self._journal()
            assert all(words >= _DONE), "an entry was completed before all its chunks were done"
            manifest = Manifest(
                **msgspec.structs.asdict(self.plan),
                header_bytes=self._header_bytes,
                header_crc32=crc32_of(self.index, 0, self._header_bytes),
                crc32=[int(word - _DONE) for word in words],
                bad=self.bad(),
                remarks=self.remarks(),
                about=dict(about),
                created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            )
        final = self.folder.with_suffix("")
        try:
            write_manifest(self.folder / ENTRY, manifest)
            delete(final)
            (self.folder / ENTRY).replace(final)
            delete(self.folder)
        except OSError as error:
            self._abandon(error)
        return Entry(final, manifest)

    def _report_unreadable(self) -> contextlib.AbstractContextManager[None]:
        return report_disk_errors(f"the incomplete cache entry {self.folder} cannot be read", CacheError)

    def _abandon(self, error: OSError) -> NoReturn:
        """Remove the incomplete entry, which would keep a full disk full."""
        with contextlib.suppress(OSError):
            delete(self.folder)
        raise CacheError(
            f"features cannot be written to {self.folder.parent}: {reason(error)}. The incomplete entry was removed."
        ) from error

    def _start(self, chunk: int) -> int:
        return self._header_bytes + 4 * self.dim * self.chunk_rows * chunk

    def _journal(self) -> np.ndarray:
        return np.frombuffer((self.folder / JOURNAL).read_bytes(), "<u8").copy()


def _write_at(path: Path, start: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(content)


def delete(path: Path) -> None:
    """Delete a folder with its content, a file or a link, if it exists.

    Args:
        path: What to delete.

    Raises:
        OSError: If it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
