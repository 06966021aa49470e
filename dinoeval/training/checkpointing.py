"""Stopping and resuming a training run: its folder, its checkpoint and its log.

Pretraining, fine-tuning and linear probes all use this module. A run may be killed at any moment. Files are written
completely or not at all, so the folder always contains the last saved state. Rerunning the command resumes from it. The
log is written before the state, so that no epoch of the state lacks its line. One run uses a folder at a time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from dinoeval import distributed
from dinoeval.decoding import decode, encode
from dinoeval.errors import CheckpointError, ConfigError, DinoevalError, join_names
from dinoeval.files import (
    describe_differences,
    expand,
    is_alive,
    read_bytes,
    reason,
    remove_leftovers,
    report_disk_errors,
    streamed,
    write_whole,
)
from dinoeval.models.checkpoints import read_pickle

CHECKPOINT, LOG = "checkpoint.pth", "log.txt"
LOCK, OWNER = ".lock", ".process"
"""Files of a running run: its lock, and the id of its process for the message to others."""
_ORPHAN_SECONDS = 30  # Data-loading processes share the lock, and end a few seconds after a killed run.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
_log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one training run, with the state that the run resumes from.

    Under torchrun every process makes the same calls; only the first process writes. As a context manager, it keeps other
    runs out of the folder.

    Args:
        path: The folder; `resume` creates it.
        settings: What two runs must share for one to resume the other. JSON values.
        checkpoint: File name of the state.
        settings_key: Key of the settings inside the state.
        keep_every: Also keep the states whose number is a multiple of this; 0 keeps only the last state.
        wait: Whether to wait for another run in the folder instead of raising an error.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path, RunFolder(path, {"seed": 0}) as run:
        ...     run.resume(epochs=3) is None
        ...     run.save({"epoch": 1, "weight": torch.zeros(2)})
        ...     RunFolder(path, {"seed": 0}).resume(epochs=3)["epoch"]
        True
        1
    """

    def __init__(
        self,
        path: str | Path,
        settings: Mapping[str, Any],
        *,
        checkpoint: str = CHECKPOINT,
        settings_key: str = "args",
        keep_every: int = 0,
        wait: bool = False,
    ) -> None:
        self.path, self._wait = expand(path), wait
        self._lock = filelock.FileLock(self.path / LOCK)
        self.settings, self.settings_key = dict(settings), settings_key
        self.checkpoint, self.keep_every = self.path / checkpoint, keep_every

    def __enter__(self) -> RunFolder:
        failure = None
        if distributed.rank() == 0:
            try:
                self._acquire()
            except DinoevalError as error:
                failure = error
        if failure := distributed.broadcast(failure):
            raise failure
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                (self.path / OWNER).unlink(missing_ok=True)
            self._lock.release()

    def _acquire(self) -> None:
        """Lock the folder for this process.

        Raises:
            ConfigError: If another run uses it.
            DinoevalError: If the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._wait_for_lock()
            (self.path / OWNER).write_text(str(os.getpid()))
        except (OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise DinoevalError(f"{self.path} cannot be written: {reason(error)}") from error
            _log.warning("the disk of %s has no file locks: do not start two runs in this folder", self.path)

    def _wait_for_lock(self) -> None:
        with contextlib.suppress(filelock.Timeout):
            self._lock.acquire(timeout=0)
            return
        try:
            owner = int(read_bytes(self.path / OWNER, limit=20))
        except (DinoevalError, ValueError):
            owner = None
        name = "another process" if owner is None else f"process {owner}"
        seconds = _ORPHAN_SECONDS if owner is not None and not is_alive(owner) else 0
        if self._wait:
            _log.info("waiting for %s, which is running in %s", name, self.path)
        try:
            self._lock.acquire(timeout=-1 if self._wait else seconds)
        except filelock.Timeout:
            raise ConfigError(f"{name} is running in {self.path}: wait for it to end, or pass another --out") from None

    def resume(self, epochs: int) -> dict[str, Any] | None:
        """Return the saved state of this run, or None if nothing is saved.

        Args:
            epochs: Number of epochs of the run; only for the message.

        Returns:
            What `save` wrote last. Its `epoch` is the number of finished epochs.

        Raises:
            ConfigError: If the checkpoint is corrupted, was written by another command, or belongs to a different run; or
                if the processes do not see the same file.
            DinoevalError: If the folder cannot be made.
        """
        self._make()
        state = self._read()
        progress = distributed.all_gather((state.get("epoch"), state.get("step")) if isinstance(state, dict) else None)
        if any(other != progress[0] for other in progress[1:]):
            raise ConfigError(f"the processes do not see the same {self.checkpoint}: pass an --out on a disk that they share")
        if state is None:
            return None
        state = self._check_same_run(state)
        step = f" and {state['step']} steps" if state.get("step") else ""
        _log.info("resuming from %s (%d of %d epochs%s done)", self.checkpoint, state["epoch"], epochs, step)
        return state

    def save(self, state: Mapping[str, Any], number: int | None = None) -> None:
        """Write the state of the run, with its settings.

        Args:
            state: Tensors and plain values; `epoch` is the number of finished epochs.
            number: Number of the state. A multiple of `keep_every` is also written as, for example, checkpoint0020.pth.

        Raises:
            DinoevalError: If a file cannot be written.
        """
        if distributed.rank() != 0:
            return
        content = {self.settings_key: self.settings, **state}
        paths = [self.checkpoint]
        if number is not None and self.keep_every and number % self.keep_every == 0:
            paths.insert(0, self.checkpoint.with_stem(f"{self.checkpoint.stem}{number:04}"))
        for path in paths:
            write_whole(path, streamed(lambda file: torch.save(content, file)))

    def write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write log.txt, one JSON line per epoch.

        Args:
            history: One row per finished epoch.

        Raises:
            DinoevalError: If the file cannot be written.
        """
        if distributed.rank() == 0:
            lines = b"".join(encode(row) + b"\n" for row in history)
            write_whole(self.path / LOG, lambda file: file.write_bytes(lines))

    def read_log(self, epochs: int) -> list[dict[str, Any]]:
        """Read the rows of the finished epochs from log.txt.

        Args:
            epochs: Number of finished epochs; later rows are left out.

        Returns:
            The rows, without those that cannot be read.

        Raises:
            DinoevalError: If the file cannot be read.
        """
        path = self.path / LOG
        lines = read_bytes(path).splitlines() if path.exists() else []
        rows = [_parse(line) for line in lines]
        if broken := [str(number) for number, row in enumerate(rows, 1) if row is None]:
            _log.warning("%s: left out lines that are no row of a log: %s", path, join_names(broken))
        return [row for row in rows if row is not None and row["epoch"] < epochs]

    def _make(self) -> None:
        """Make the folder and remove what a killed process was writing."""
        with report_disk_errors(f"{self.path} cannot be written"):
            self.path.mkdir(parents=True, exist_ok=True)
            if distributed.rank() == 0:
                remove_leftovers(self.path)
        distributed.barrier()

    def _read(self) -> Any:
        try:
            return read_pickle(self.checkpoint) if self.checkpoint.exists() else None
        except CheckpointError as error:
            raise ConfigError(f"{error} Delete it to start over, or pass another --out.") from error

    def _check_same_run(self, state: Any) -> dict[str, Any]:
        saved = state.get(self.settings_key) if isinstance(state, dict) else None
        if not isinstance(saved, Mapping) or not saved.keys() >= self.settings.keys() or type(state.get("epoch")) is not int:
            raise ConfigError(f"{self.checkpoint} was not written by this command: pass another --out")
        if differences := describe_differences(saved, self.settings):
            raise ConfigError(
                f"{self.checkpoint} belongs to a different run ({'; '.join(differences)}): pass another --out, or delete it to start over"
            )
        return state


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a row of the log, or None for other lines."""
    try:
        row = decode(line, dict[str, Any], LOG)
    except DinoevalError:
        return None
    return row if isinstance(row.get("epoch"), int) else None
