"""An index on disk: a folder with rows, the images they are of, perhaps an approximate index, and a manifest that vouches for them.

The manifest is replaced last, by one rename, and names the other files; so an index is the old one or the new one, whole.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.features.entry import crc32_of
from dinoeval.files import expand, write_whole
from dinoeval.search.vectors import VectorFile

FORMAT = 1
MANIFEST, ROWS, IMAGES, NEIGHBOURS, LOCK = "manifest.json", "rows.faiss", "images.json", "neighbours.faiss", ".lock"
_OURS = re.compile(r"[0-9a-f]{8}\.(rows\.faiss|images\.json|neighbours\.faiss)|\.\d+\.manifest\.json")
_PIECE = 64 << 20  # bytes a checksum


@dataclasses.dataclass(frozen=True, order=True)
class Record:
    """A file as it was when its row was made."""

    name: str
    size: int
    modified: int
    """Nanoseconds; as in the feature cache, the time of the last change of the file's record goes in besides."""
    changed: int

    @classmethod
    def of(cls, folder: Path, name: str) -> Record:
        facts = (folder / name).stat()
        return cls(name, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


@dataclasses.dataclass(frozen=True)
class Stored:
    """A whole index on disk: its manifest, and the images that its rows are of, in order."""

    folder: Path
    manifest: dict[str, Any]
    records: tuple[Record, ...]
    bad: tuple[Record, ...]
    """Files that were no images when they were looked at."""
    rows: VectorFile

    def file(self, part: str) -> Path:
        return self.folder / self.manifest["files"][part]["name"]


def check_place(folder: Path) -> None:
    """Raise ConfigError where `folder` is neither an index, nor empty, nor to be made."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file, and an index is a folder: name another place")
    strange = [entry.name for entry in folder.iterdir() if not _OURS.fullmatch(entry.name) and entry.name != LOCK]
    if strange and MANIFEST not in strange:
        raise ConfigError(f"{folder} is no index of `dinoeval search build`: it has no {MANIFEST}, but {join_names(sorted(strange))}")


def open_stored(folder: Path) -> Stored | None:
    """Open the index in `folder`, checking every byte; None where there is none. Raises DataError where it is damaged."""
    try:
        check_place(folder)
        while (folder / MANIFEST).exists():
            before = (folder / MANIFEST).read_bytes()
            try:
                return _read(folder)
            except (DataError, OSError):
                if (folder / MANIFEST).read_bytes() == before:  # else a build has replaced the index while it was read
                    raise
        return None
    except OSError as error:
        raise DataError(f"the index {folder} cannot be read: {error.strerror or error}") from error


def _read(folder: Path) -> Stored:
    def damaged(what: str) -> DataError:
        return DataError(
            f"the index {folder} is damaged: {what}. Delete the folder and build it again; the features are taken from the cache "
            "where they still are there."
        )

    body, _, seal = (folder / MANIFEST).read_bytes().rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != seal:
        raise damaged(f"{MANIFEST} changed, or was not made by `dinoeval search build`")
    manifest = json.loads(body)
    if manifest["format"] != FORMAT:
        raise DataError(f"the index {folder} is of format {manifest['format']}, and this version reads {FORMAT}: build it again")
    for part, facts in manifest["files"].items():
        path = folder / facts["name"]
        if not path.is_file() or path.stat().st_size != facts["bytes"]:
            raise damaged(f"{path.name} ({part}) is missing or not {facts['bytes']:,} bytes long")
        if _checksums(path) != facts["crc32"]:
            raise damaged(f"bytes of {path.name} changed")
    lists = json.loads((folder / manifest["files"][IMAGES]["name"]).read_text())
    records, bad = (tuple(Record(*line) for line in lists[part]) for part in ("images", "bad"))
    rows = VectorFile(folder / manifest["files"][ROWS]["name"], len(records), manifest["dim"])
    return Stored(folder, manifest, records, bad, rows)


def _checksums(path: Path) -> list[int]:
    """The crc32 of every 64 MiB of a file."""
    starts = range(0, path.stat().st_size, _PIECE)
    with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda start: crc32_of(path, start, _PIECE), starts))


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


class Draft:
    """The files of an index to come, beside those of the one that is there. Leaving it without `publish` removes them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stamp = secrets.token_hex(4)
        self._parts: list[str] = []
        self._published = False

    def path(self, part: str) -> Path:
        return self.folder / f"{self._stamp}.{part}"

    def write(self, part: str, write: Callable[[Path], object]) -> Path:
        """Let `write` make a file of the draft. Raises DataError where the disk does not take it."""
        self._parts.append(part)
        try:
            write(self.path(part))
        except OSError as error:
            raise DataError(f"the index {self.folder} cannot be written: {error.strerror or error}") from error
        return self.path(part)

    def publish(self, manifest: dict[str, Any], records: list[Record], bad: list[Record]) -> None:
        """Make the draft the index: manifest last. What the index was before is removed."""
        lists = {part: [dataclasses.astuple(one) for one in files] for part, files in (("images", records), ("bad", bad))}
        self.write(IMAGES, lambda path: path.write_text(json.dumps(lists)))
        files = {}
        try:
            for part in self._parts:
                path = self.path(part)
                _to_disk(path)
                files[part] = {"name": path.name, "bytes": path.stat().st_size, "crc32": _checksums(path)}
        except OSError as error:
            raise DataError(f"the index {self.folder} cannot be written: {error.strerror or error}") from error
        body = json.dumps({"format": FORMAT, **manifest, "files": files}, indent=1).encode()

        def write(path: Path) -> None:
            path.write_bytes(body + b"\n" + hashlib.sha256(body).hexdigest().encode())
            _to_disk(path)

        write_whole(self.folder / MANIFEST, write)
        self._published = True
        self._sweep(keep={self.path(part).name for part in self._parts})

    def _sweep(self, keep: set[str]) -> None:
        """Remove files of earlier indexes, and of builds that were killed."""
        for path in self.folder.iterdir():
            if _OURS.fullmatch(path.name) and path.name not in keep:
                with contextlib.suppress(OSError):  # on Windows what another process reads stays until the next build
                    path.unlink()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._published:
            for part in self._parts:
                with contextlib.suppress(OSError):
                    self.path(part).unlink(missing_ok=True)


def resolve(path: str | Path) -> Path:
    """The absolute path, with `~` and links followed."""
    return expand(path).resolve()
