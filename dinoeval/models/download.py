"""Where files of weights lie on this machine, how they get there, and the lock file that remembers their hashes.

The shelf is `$DINOEVAL_WEIGHTS`, else a folder of the user's cache. A file whose hash nobody published is recorded in
`weights.lock` when it is first seen and checked ever after.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.resources
import json
import logging
import os
import re
import urllib.request
from pathlib import Path
from typing import Any

import filelock
from tqdm import tqdm

from dinoeval.environment import offline, weights_folder
from dinoeval.errors import CheckpointError
from dinoeval.files import write_whole
from dinoeval.models.checkpoints import check_zip
from dinoeval.models.zoo import Weights

LOCK_FILE = "weights.lock"
_log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(weights: Weights) -> Path:
    """Say where the file of `weights` lies or would lie. The bundled one: inside the package, or in a source checkout."""
    if weights.url is not None:
        return weights_folder() / weights.filename
    package = Path(str(importlib.resources.files("dinoeval")))
    inside = package / "bundled" / weights.filename
    return inside if inside.exists() else package.parent / "weights" / weights.filename


def ensure_weights(weights: Weights) -> Path:
    """Return the verified file of `weights`, downloading it first where it is not here.

    Raises CheckpointError where it cannot be had or its hash is not the known or recorded one.
    """
    path = local_path(weights)
    if not path.exists():
        if weights.url is None:
            raise CheckpointError(f"the bundled checkpoint is missing: {path}. Install dinoeval again.")
        _download(weights, path)
    try:
        _verify(weights, path, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return path


def _download(weights: Weights, path: Path) -> None:
    by_hand = f"Get {weights.url} where there is a network and put it at {path}"
    if offline():
        raise CheckpointError(f"weights '{weights.name}' are not on this machine and DINOEVAL_OFFLINE is set. {by_hand}.")
    assert weights.url is not None
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(weights.url, timeout=30) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            megabytes = f"{size / 1e6:.1f} MB" if size else "size unknown"
            _log.info("downloading %s (%s) from %s to %s", weights.name, megabytes, weights.url, path)
            with partial.open("wb") as file, tqdm(total=size or None, unit="B", unit_scale=True, disable=None) as bar:
                while block := answer.read(1 << 20):
                    file.write(block)
                    bar.update(len(block))
        if size and partial.stat().st_size != size:
            raise CheckpointError(f"the download of {weights.url} broke off at {partial.stat().st_size:,} of {size:,} bytes. Try again.")
        _verify(weights, partial, path)
        partial.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(f"weights '{weights.name}' could not be downloaded: {reason}. {by_hand}.") from error
    finally:
        partial.unlink(missing_ok=True)


def _known(path: Path) -> dict[str, dict[str, Any]]:
    try:
        entries = json.loads(path.read_text()) if path.exists() else {}
        return {name: entry for name, entry in entries.items() if re.fullmatch("[0-9a-f]{64}", entry["sha256"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}. Delete it: hashes are then recorded anew.") from error


def _verify(weights: Weights, path: Path, final: Path) -> None:
    """Check the hash of `path`, which is or will be `final`; record it where none is known yet."""
    found, lock = sha256_of(path), weights_folder() / LOCK_FILE
    expected, origin = weights.sha256, "the known"
    if expected is None:
        entry = _known(lock).get(weights.name)
        if entry is None:
            _check_container(path, final)
            _record(weights, path, found, lock)
            return
        expected, origin = entry["sha256"], "the one recorded when it was first seen"
    if found != expected:
        remedy = f" If the recorded file was the bad one, delete the entry '{weights.name}' from {lock}." if weights.sha256 is None else ""
        raise CheckpointError(
            f"{final} is not the file '{weights.name}' should be: its sha256 is {found}, {origin} is {expected}. "
            f"Delete it and fetch it again{f' from {weights.url}' if weights.url else ''}.{remedy}"
        )


def _check_container(path: Path, final: Path) -> None:
    """Refuse to trust what is plainly no checkpoint, such as the login page of a network, or a file that was cut."""
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        check_zip(path)
    elif head != b"\x80\x02":  # the older pickle, which has no checksum
        raise CheckpointError(f"what came for {final.name} is no checkpoint: it begins with {head!r}. A network's login page?")


def _record(weights: Weights, path: Path, found: str, lock: Path) -> None:
    try:
        with filelock.FileLock(f"{lock}.lock", timeout=60):
            entries = {**_known(lock), weights.name: {"url": weights.url, "sha256": found, "size": path.stat().st_size}}
            write_whole(lock, lambda target: target.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n"))
        _log.info("%s: no hash is published; recorded sha256 %s in %s", weights.name, found, lock)
    except (OSError, filelock.Timeout) as error:  # a shared shelf that only others may write
        _log.warning("%s: sha256 %s could not be recorded in %s: %s", weights.name, found, lock, error)
