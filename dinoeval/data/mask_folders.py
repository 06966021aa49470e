"""Folders of masks that a run has written, complete or absent, with a record of the settings.

A run writes to a temporary folder and renames it at the end, so a folder with a record is complete. A folder whose
settings differ from those of the run is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

import filelock
import numpy as np

from dinoeval.data.masks import write_mask
from dinoeval.decoding import convert, decode_file
from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.files import describe_differences, read_bytes, report_disk_errors

RECORD = "dinoeval.json"
"""Name of the record."""
_TEMPORARY = ".partial"


def read_record(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the record of a folder of masks.

    Args:
        folder: A folder that need not exist.
        settings: What the masks depend on, as JSON values.

    Returns:
        The record, or None if the folder does not exist or is empty.

    Raises:
        ConfigError: If the folder has other settings or other files, or if a mask was changed.
        DinoevalError: If the folder cannot be read.
    """
    with report_disk_errors(f"the masks in {folder} cannot be read"):
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"{folder} is a file: pass another --out")
        if not folder.is_dir() or not any(folder.iterdir()):
            return None
        record = _decode_record(folder / RECORD) if (folder / RECORD).exists() else None
        if absent := [RECORD] if record is None else [name for name in record["masks"] if not (folder / name).is_file()]:
            raise ConfigError(
                f"{folder} has files but no {absent[0]}, so it is not a complete folder of masks: pass another --out, or delete it"
            )
        assert record is not None
        changed = [name for name, digest in record["masks"].items() if _digest(folder / name) != digest]
    if differences := describe_differences(record["recipe"], json.loads(json.dumps(settings))):
        raise ConfigError(
            f"the masks in {folder} belong to a different run ({'; '.join(differences)}): pass another --out, or delete the folder"
        )
    if changed:
        raise ConfigError(f"mask {folder / changed[0]} was changed after it was written: pass another --out, or delete the folder")
    return record


class _Record(TypedDict):
    recipe: dict[str, Any]
    masks: dict[str, str]
    lost: list[int]
    constant: dict[str, list[int]]


def _decode_record(path: Path) -> dict[str, Any]:
    try:
        record = decode_file(path, dict[str, Any], RECORD)
        convert(record, _Record, RECORD)
        if outside := [name for name in record["masks"] if Path(name).name != name]:
            raise DinoevalError(f"{outside[0]!r:.100} is not a file of the folder")
    except DinoevalError as error:
        raise ConfigError(f"{path} is not the record of a folder of masks ({error}): pass another --out, or delete the folder") from error
    return record


def write_masks(
    folder: Path, settings: Mapping[str, Any], masks: Iterable[tuple[str, np.ndarray]], describe: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Write masks and their record; the folder appears when it is complete.

    Args:
        folder: The folder to create. If it is complete already, nothing is written.
        settings: What the masks depend on, as JSON values.
        masks: File names and masks, (H, W) uint8.
        describe: Called after the last mask; returns the rest of the record.

    Returns:
        The record.

    Raises:
        ConfigError: If the folder belongs to a different run, or another process is writing it.
        DinoevalError: If the folder cannot be written.
    """
    folder = folder.resolve()  # so that a link to an empty folder stays a link
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                return read_record(folder, settings) or _write(folder, settings, masks, describe)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise ConfigError(f"another process is writing the masks in {folder}: wait for it, or pass another --out") from error
    except OSError as error:
        raise DinoevalError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def _write(
    folder: Path, settings: Mapping[str, Any], masks: Iterable[tuple[str, np.ndarray]], describe: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    _remove_leftovers(folder)
    if folder.is_dir():
        try:
            folder.rmdir()  # It is empty, as read_record has found.
        except OSError as error:
            advice = "it may be the mount point of a disk: pass a folder inside it"
            raise ConfigError(f"{folder} cannot be replaced ({error.strerror}): {advice}") from error
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}{_TEMPORARY}")
    temporary.mkdir()
    try:
        digests = {}
        for name, mask in masks:
            write_mask(temporary / name, mask)
            digests[name] = _digest(temporary / name)
        record = {**describe(), "recipe": settings, "masks": digests}
        (temporary / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return json.loads(json.dumps(record))


def _remove_leftovers(folder: Path) -> None:
    """Remove temporary folders of killed processes; the lock ensures that no other process uses them."""
    pattern = re.compile(re.escape(f".{folder.name}.") + rf"\d+{re.escape(_TEMPORARY)}")
    for path in [path for path in folder.parent.iterdir() if pattern.fullmatch(path.name)]:
        shutil.rmtree(path, ignore_errors=True)


def _digest(path: Path) -> str:
    return hashlib.sha256(read_bytes(path)).hexdigest()[:16]
