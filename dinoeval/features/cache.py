"""The feature cache: one FAISS flat index on disk per (weights, readout, transform, precision, images).

An entry is a folder named by the hash of its spec. It contains `features.faiss` (features that are not normalized, inner
product) and `manifest.json`, which is written last and has a checksum of every part. The folder appears by one rename, so
that an entry is complete or absent. While features are extracted, the entry is inside `<key>.partial`, with a journal of
the finished chunks and their checksums: an interrupted extraction resumes. An entry is verified on every use.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from dinoeval.environment import cache_folder
from dinoeval.errors import CacheError
from dinoeval.features.entry import MANIFEST, CorruptedEntry, Entry, Plan, read_entry
from dinoeval.features.partial import Partial, create, delete, resumable, resume
from dinoeval.files import expand, reason, report_disk_errors

RUNS = "runs"
"""Folder inside the cache for linear-probe and DAVIS runs without --out."""
FINISHED = "finished"
"""Name of a file that marks a run as finished. A linear-probe run is marked by its heads instead."""
_PARTIAL = ".partial"
# Files that do not match belong to the user.
_ENTRY_NAME = re.compile(r"[0-9a-f]{32}(\.partial)?")
_RUN_NAME = re.compile(r"[a-z]+-[0-9a-f]{32}")
_log = logging.getLogger(__name__)


class FeatureCache:
    """A folder of cached features.

    Args:
        root: The folder; by default $DINOEVAL_CACHE, else one in the user cache directory. It is created on first use.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = expand(root) if root else cache_folder()

    def find(self, key: str, report: bool = True) -> Entry | None:
        """Return an entry if it is complete and intact.

        Args:
            key: Key of the entry.
            report: Whether to log a corrupted entry.

        Returns:
            The entry, or None if it is absent or corrupted.

        Raises:
            CacheError: If the cache cannot be read.
        """
        try:
            entry = read_entry(self.root / key)
            if entry is None:
                return None
            problem = entry.verify()
        except FileNotFoundError:
            return None  # Another process is replacing it.
        except OSError as error:
            raise CacheError(f"the feature cache {self.root} cannot be read: {error}") from error
        except CorruptedEntry as error:
            problem = str(error)
        if problem:
            if report:
                _log.warning("cache entry %s is corrupted (%s); recomputing it", key, problem)
            return None
        self._remove_leftover(key)
        return entry

    def _remove_leftover(self, key: str) -> None:
        """Remove what a run left behind that was killed after its entry was complete."""
        folder = self.partial_folder(key)
        if folder.exists() and not resumable(folder):
            with contextlib.suppress(CacheError, OSError), self.locked(key, wait=False):
                if not resumable(folder):
                    delete(folder)

    def entries(self) -> Iterator[tuple[str, Entry | str]]:
        """Yield all entries, without verifying their features.

        Yields:
            The key, and the entry or the reason why it cannot be read.

        Raises:
            CacheError: If the cache cannot be read.
        """
        for folder in self._folders():
            if folder.suffix != _PARTIAL:
                try:
                    yield folder.name, read_entry(folder) or f"{MANIFEST} is missing"
                except (CorruptedEntry, OSError) as error:
                    yield folder.name, reason(error)

    def partials(self) -> list[tuple[Path, bool]]:
        """Find incomplete entries.

        Returns:
            The folder of each, and whether a run can resume from it; others were left behind by a killed run.

        Raises:
            CacheError: If the cache cannot be read.
        """
        return [(folder, resumable(folder)) for folder in self._folders() if folder.suffix == _PARTIAL]

    def partial_folder(self, key: str) -> Path:
        """Return the folder of an entry while it is incomplete.

        Args:
            key: Key of the entry.

        Returns:
            A path, whether or not it exists.
        """
        return self.root / f"{key}{_PARTIAL}"

    def runs(self) -> list[tuple[Path, bool]]:
        """Find the linear-probe and DAVIS runs without --out.

        Returns:
            The folder of each run, and whether the run is finished.

        Raises:
            CacheError: If the cache cannot be read.
        """
        inside = self._inside(self.root / RUNS) if self._inside(self.root) else []
        with self.report_unreadable():
            folders = [folder for folder in inside if _RUN_NAME.fullmatch(folder.name) and folder.is_dir()]
            return [(folder, (folder / FINISHED).exists() or any(folder.glob("head_*.pth"))) for folder in folders]

    def _folders(self) -> list[Path]:
        return [path for path in self._inside(self.root) if _ENTRY_NAME.fullmatch(path.name)]

    def _inside(self, folder: Path) -> list[Path]:
        """List a folder of the cache, which need not exist; a file or a dangling link in its place is an error."""
        with self.report_unreadable():
            return sorted(folder.iterdir()) if os.path.lexists(folder) else []

    def report_unreadable(self) -> contextlib.AbstractContextManager[None]:
        """Return a context that turns an OSError into a CacheError."""
        return report_disk_errors(f"the feature cache {self.root} cannot be read", CacheError)

    def remove(self, folder: Path, only_if_corrupted: bool = False) -> str | None:
        """Delete an entry, complete or not, unless another process uses it.

        Args:
            folder: The entry's folder.
            only_if_corrupted: Whether to keep a complete and intact entry.

        Returns:
            One line to print, or None if an intact entry was kept.
        """
        try:
            with self.locked(folder.name.removesuffix(_PARTIAL), wait=False):
                if only_if_corrupted and self.find(folder.name, report=False):
                    return None
                delete(folder)
                return f"deleted {folder.name}"
        except (CacheError, OSError) as error:
            return f"kept {folder.name}: {reason(error)}"

    @contextlib.contextmanager
    def locked(self, key: str, wait: bool = True) -> Iterator[None]:
        """Hold the lock of an entry.

        Args:
            key: Key of the entry.
            wait: Whether to wait if another process holds the lock.

        Yields:
            None, while the lock is held.

        Raises:
            CacheError: If another process holds the lock and `wait` is false, or the cache cannot be written.
        """
        lock = filelock.FileLock(self.root / f"{key}.lock")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0.5)
            except filelock.Timeout:
                if not wait:
                    raise CacheError(f"entry {key} is in use by another process") from None
                _log.info("waiting for another process that is extracting the same features")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            raise CacheError(
                f"the feature cache {self.root} cannot be written: {reason(error)}. Pass a writable folder with --cache or DINOEVAL_CACHE."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def begin(self, key: str, *, spec: Mapping[str, Any], num_rows: int, feature_shape: tuple[int, ...], chunk_rows: int) -> Partial:
        """Start an entry, or resume an incomplete one. The caller holds its lock.

        Args:
            key: Key of the entry.
            spec: The spec that the key is the hash of.
            num_rows: Number of images. Disk space for their features is reserved.
            feature_shape: Shape of the feature of one image.
            chunk_rows: Number of images per chunk; a resumed entry keeps its own.

        Returns:
            The incomplete entry.

        Raises:
            CacheError: If the features cannot be written, for example because the disk is full.
        """
        folder = self.partial_folder(key)
        plan = Plan(recipe=dict(spec), rows=num_rows, row_shape=tuple(feature_shape), chunk_rows=chunk_rows)
        with report_disk_errors(f"the incomplete cache entry {folder} cannot be read", CacheError):
            if incomplete := resume(folder, plan):
                return incomplete
        try:
            delete(folder)
            return create(folder, plan)
        except OSError as error:
            with contextlib.suppress(OSError):
                delete(folder)
            size = 4 * plan.rows * plan.dim
            free = shutil.disk_usage(self.root).free
            raise CacheError(
                f"{size / 1e6:,.1f} MB of features cannot be written to {self.root}: {reason(error)} ({free / 1e6:,.1f} MB are free). "
                "Free some space, for example with `dinoeval cache prune`, or set DINOEVAL_CACHE to a folder on another disk."
            ) from error
