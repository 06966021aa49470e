"""The feature cache: one FAISS flat index on disk for each (weights, readout, transform, precision, images).

An entry is a folder named by the hash of its whole recipe. It holds `features.faiss` (raw rows, inner product) and
`manifest.json`, which is written last and carries a checksum of every piece; the folder appears by one rename, so an
entry is complete or absent. While rows are being made the entry lies inside `<key>.partial`, beside a journal that says
which chunks are done, with their checksums: a run that was killed goes on there. Every use of an entry verifies it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from dinoeval.environment import cache_folder
from dinoeval.errors import CacheError
from dinoeval.features.entry import MANIFEST, CorruptedEntry, Entry, read_entry
from dinoeval.features.partial import Partial, create, delete, reason, resume
from dinoeval.files import expand

RUNS = "runs"
FINISHED = "finished"
"""A file by this name in a run's folder says that the run came to its end; of a linear probe its heads do."""
_NAME = re.compile(r"[0-9a-f]{32}(\.partial)?")  # nothing else in the folder is ours
_RUN = re.compile(r"[a-z]+-[0-9a-f]{32}")
_log = logging.getLogger(__name__)


def key_of(recipe: Mapping[str, Any]) -> str:
    """The name of the entry that a recipe makes, 32 hex digits."""
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:32]


class FeatureCache:
    """A folder of entries."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = expand(root) if root else cache_folder()

    def find(self, key: str, report: bool = True) -> Entry | None:
        """Return the entry if it is there and whole. For a damaged one return None, and report it: it will be redone."""
        try:
            entry = read_entry(self.root / key)
            if entry is None:
                return None
            fault = entry.fault()
        except FileNotFoundError:
            return None  # another process is making it anew
        except OSError as error:
            raise CacheError(f"the feature cache {self.root} cannot be read: {error}") from error
        except CorruptedEntry as damage:
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
                    yield folder.name, read_entry(folder) or f"{MANIFEST} is missing"
                except (CorruptedEntry, OSError) as error:
                    yield folder.name, str(error)

    def partials(self) -> list[Path]:
        """The folders of unfinished entries."""
        return [folder for folder in self._folders() if folder.suffix == ".partial"]

    def runs(self) -> list[tuple[Path, bool]]:
        """The folders of runs that were given no other place, each with whether its run came to its end."""
        inside = sorted((self.root / RUNS).iterdir()) if (self.root / RUNS).is_dir() else []
        folders = [folder for folder in inside if _RUN.fullmatch(folder.name) and folder.is_dir()]
        return [(folder, (folder / FINISHED).exists() or any(folder.glob("head_*.pth"))) for folder in folders]

    def _folders(self) -> list[Path]:
        inside = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [folder for folder in inside if _NAME.fullmatch(folder.name) and folder.is_dir()]

    def remove(self, folder: Path, only_if_damaged: bool = False) -> str | None:
        """Delete an entry or an unfinished one and say so; leave it where another process is at work on it."""
        try:
            with self.locked(folder.name.removesuffix(".partial"), wait=False):
                if only_if_damaged and self.find(folder.name, report=False):
                    return None
                delete(folder)
                return f"deleted {folder.name}"
        except CacheError as error:
            return f"kept {folder.name}: {error}"

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
                f"the feature cache {self.root} cannot be written: {reason(error)}. Set DINOEVAL_CACHE, or --cache, to a folder that can."
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
        if unfinished := resume(folder, plan):
            return unfinished
        try:
            delete(folder)
            return create(folder, plan)
        except OSError as error:
            delete(folder)
            free = shutil.disk_usage(self.root).free
            raise CacheError(
                f"{size / 1e6:,.1f} MB of features cannot be written to {self.root}: {reason(error)} ({free / 1e6:,.1f} MB are free). "
                "Make room (see `dinoeval cache prune`) or set DINOEVAL_CACHE to another disk."
            ) from error
