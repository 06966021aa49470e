"""Folders of masks that a run made: complete or absent, with the recipe beside them.

A run writes aside and renames at the end; a folder with its record is finished, and one of another recipe is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from dinoeval.data.masks import write_mask
from dinoeval.errors import ConfigError, DinoevalError

RECORD = "dinoeval.json"
_PARTIAL = ".partial"


def read_record(folder: Path, recipe: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the record in `folder` tells; None where there are no masks yet.

    Raises ConfigError where the files are of another recipe, of another program, or were changed since.
    """
    try:
        if not folder.is_dir() or not any(folder.iterdir()):
            if folder.exists() and not folder.is_dir():
                raise ConfigError(f"{folder} is a file: choose another --out")
            return None
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        saved, digests, *_ = dict(record["recipe"]), record["masks"], record["lost"], record["constant"]
        changed = [name for name, digest in digests.items() if _digest(folder / name) != digest]
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds files, but no {Path(str(error.filename)).name}: it is no finished folder of masks of this program. "
            "Choose another --out, or delete it"
        ) from error
    except OSError as error:
        raise DinoevalError(f"{error.filename or folder} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{folder / RECORD} was not written by this program: choose another --out, or delete the folder") from error
    recipe = json.loads(json.dumps(recipe))
    if differences := [f"{name} was {saved.get(name)} and is {value}" for name, value in recipe.items() if saved.get(name) != value]:
        raise ConfigError(
            f"the masks in {folder} are of another run ({'; '.join(differences)}): choose another --out, or delete the folder"
        )
    if changed:
        raise ConfigError(
            f"{folder / changed[0]} is not as it was written: delete the folder to make its masks anew, or choose another --out"
        )
    return record


def write_masks(
    folder: Path, recipe: Mapping[str, Any], masks: Iterable[tuple[str, np.ndarray]], about: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Write masks by name, and a record with what `about` then says; the folder appears when all is there. Returns the record.

    Raises ConfigError where another process is at it.
    """
    folder = folder.resolve()  # a link to an empty folder stays one
    lock = filelock.FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock.acquire(timeout=0):
            try:
                return read_record(folder, recipe) or _write(folder, recipe, masks, about)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except filelock.Timeout as error:
        raise ConfigError(f"another process is making the masks in {folder}: wait for it, or choose another --out") from error
    except OSError as error:
        raise DinoevalError(f"{error.filename or folder} cannot be written: {error.strerror}") from error


def _write(
    folder: Path, recipe: Mapping[str, Any], masks: Iterable[tuple[str, np.ndarray]], about: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    name = re.compile(re.escape(f".{folder.name}.") + rf"\d+{re.escape(_PARTIAL)}")
    for left in [path for path in folder.parent.iterdir() if name.fullmatch(path.name)]:  # by processes that were killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    if folder.is_dir():
        try:
            folder.rmdir()  # empty, as `finished` found it
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be replaced ({error.strerror}), as where a disk is mounted: name a folder inside it"
            ) from error
    aside = folder.with_name(f".{folder.name}.{os.getpid()}{_PARTIAL}")
    aside.mkdir()
    try:
        digests = {}
        for name, mask in masks:
            write_mask(aside / name, mask)
            digests[name] = _digest(aside / name)
        record = {**about(), "recipe": recipe, "masks": digests}
        (aside / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return json.loads(json.dumps(record))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
