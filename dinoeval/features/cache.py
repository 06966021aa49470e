"""The feature cache: one FAISS flat index on disk per (weights, readout, transform, precision, images).

An entry is a folder named by the hash of its spec. It contains `features.faiss` (features that are not normalized, inner
product) and `manifest.json`, which is written last and has a checksum of every part. The folder appears by one rename, so
that an entry is complete or absent. While features are extracted, the entry is inside `<key>.partial`, with a journal of
the finished chunks and their checksums: an interrupted extraction resumes. An entry is verified on every use.
"""

from __future__ import annotations

import contextlib
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
        return entry

    def entries(self) -> Iterator[tuple[str, Entry | str]]:
        """Yield all entries, without verifying their features.

        Yields:
            The key, and the entry or the reason why it cannot be read.
        """
        for folder in self._folders():
            if folder.suffix != _PARTIAL:
                try:
                    yield folder.name, read_entry(folder) or f"{MANIFEST} is missing"
                except (CorruptedEntry, OSError) as error:
                    yield folder.name, str(error)

    def partials(self) -> list[Path]:
        """Find incomplete entries.

        Returns:
            Their folders.
        """
        return [folder for folder in self._folders() if folder.suffix == _PARTIAL]

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
        """
        inside = sorted((self.root / RUNS).iterdir()) if (self.root / RUNS).is_dir() else []
        folders = [folder for folder in inside if _RUN_NAME.fullmatch(folder.name) and folder.is_dir()]
        return [(folder, (folder / FINISHED).exists() or any(folder.glob("head_*.pth"))) for folder in folders]

    def _folders(self) -> list[Path]:
        inside = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [folder for folder in inside if _ENTRY_NAME.fullmatch(folder.name) and folder.is_dir()]

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
        except CacheError as error:
            return f"kept {folder.name}: {error}"

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
        plan = {"recipe": dict(spec), "rows": num_rows, "row_shape": list(feature_shape), "chunk_rows": chunk_rows}
        if incomplete := resume(folder, plan):
            return incomplete
        try:
            delete(folder)
            return create(folder, plan)
        except OSError as error:
            delete(folder)
            size = 4 * num_rows * int(np.prod(feature_shape))
            free = shutil.disk_usage(self.root).free
            raise CacheError(
                f"{size / 1e6:,.1f} MB of features cannot be written to {self.root}: {reason(error)} ({free / 1e6:,.1f} MB are free). "
                "Free some space, for example with `dinoeval cache prune`, or set DINOEVAL_CACHE to a folder on another disk."
            ) from error
