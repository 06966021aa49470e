"""Stopping and resuming a training run: its folder, its checkpoint and its log.

Pretraining, fine-tuning and linear probes all use this module. A run may be killed at any moment. Files are written
completely or not at all, so the folder always contains the last saved state. Rerunning the command resumes from it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dinoeval import distributed
from dinoeval.errors import CheckpointError, ConfigError, DinoevalError
from dinoeval.files import describe_differences, expand, write_whole
from dinoeval.models.checkpoints import read_pickle

CHECKPOINT, LOG = "checkpoint.pth", "log.txt"
# Files that write_whole had not renamed when a process was killed: .PID.NAME
_TEMPORARY = re.compile(r"\.\d+\.(.+\.(pth|safetensors)|log\.txt)")
_log = logging.getLogger(__name__)


class RunFolder:
    """The folder of one training run, with the state that the run resumes from.

    Under torchrun every process makes the same calls; only the first process writes.

    Args:
        path: The folder; `resume` creates it.
        settings: What two runs must share for one to resume the other. JSON values.
        checkpoint: File name of the state.
        settings_key: Key of the settings inside the state.
        keep_every: Also keep the states whose number is a multiple of this; 0 keeps only the last state.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as path:
        ...     run = RunFolder(path, {"seed": 0})
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
    ) -> None:
        self.path = expand(path)
        self.settings, self.settings_key = dict(settings), settings_key
        self.checkpoint, self.keep_every = self.path / checkpoint, keep_every

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
            write_whole(path, lambda file: torch.save(content, file))

    def write_log(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write log.txt, one JSON line per epoch.

        Args:
            history: One row per finished epoch.

        Raises:
            DinoevalError: If the file cannot be written.
        """
        if distributed.rank() == 0:
            lines = "".join(json.dumps(row) + "\n" for row in history)
            write_whole(self.path / LOG, lambda file: file.write_text(lines))

    def read_log(self, epochs: int) -> list[dict[str, Any]]:
        """Read the rows of the finished epochs from log.txt.

        Args:
            epochs: Number of finished epochs; later rows are left out.

        Returns:
            The rows. The row of an epoch is missing if the run was killed before it wrote that row.
        """
        path = self.path / LOG
        rows = [_parse(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row for row in rows if row is not None and row["epoch"] < epochs]

    def _make(self) -> None:
        """Make the folder and remove what a killed process was writing."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if distributed.rank() == 0:
                for file in self.path.iterdir():
                    if _TEMPORARY.fullmatch(file.name):
                        file.unlink(missing_ok=True)
        except OSError as error:
            raise DinoevalError(f"{self.path} cannot be written: {error.strerror}") from error
        distributed.barrier()

    def _read(self) -> Any:
        try:
            return read_pickle(self.checkpoint) if self.checkpoint.exists() else None
        except CheckpointError as error:
            raise ConfigError(f"{error} Delete it to start over, or pass another --out.") from error

    def _check_same_run(self, state: Any) -> dict[str, Any]:
        saved = state.get(self.settings_key) if isinstance(state, dict) else None
        if not isinstance(saved, Mapping) or not saved.keys() >= self.settings.keys():
            raise ConfigError(f"{self.checkpoint} was not written by this command: pass another --out")
        if differences := describe_differences(saved, self.settings):
            raise ConfigError(
                f"{self.checkpoint} belongs to a different run ({'; '.join(differences)}): pass another --out, or delete it to start over"
            )
        return state


def _parse(line: str) -> dict[str, Any] | None:
    """Return a row of the log, or None for the last line of a process that was killed while it wrote."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "epoch" in row else None
