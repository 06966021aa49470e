"""Where files of weights lie on this machine, how they get there, and the lock file that remembers their hashes.

The shelf is `$DINOEVAL_WEIGHTS`, else a folder of the user's cache. A file whose hash nobody published is recorded in
`weights.lock` when it is first seen and checked ever after.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import filelock
from tqdm import tqdm

from dinoeval.environment import offline, weights_folder
from dinoeval.errors import CheckpointError
from dinoeval.models.zoo import Weights

LOCK_FILE = "weights.lock"
_log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def location(weights: Weights) -> Path:
    """Say where the file of `weights` lies or would lie. The bundled one: inside the package, or in a source checkout."""
    if weights.url is not None:
        return weights_folder() / weights.filename
    package = Path(str(importlib.resources.files("dinoeval")))
    inside = package / "bundled" / weights.filename
    return inside if inside.exists() else package.parent / "weights" / weights.filename


def obtain(weights: Weights) -> Path:
    """Return the verified file of `weights`, downloading it first where it is not here.

    Raises CheckpointError where it cannot be had or its hash is not the known or recorded one.
    """
    path = location(weights)
    if not path.exists():
        if weights.url is None:
            raise CheckpointError(f"the bundled checkpoint is missing: {path}. Install dinoeval again.")
        _download(weights, path)
    _verify(weights, path)
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
        _verify(weights, partial, record=False)
        partial.replace(path)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(f"weights '{weights.name}' could not be downloaded: {reason}. {by_hand}.") from error
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock_file() -> Iterator[dict[str, dict[str, object]]]:
    """Read the lock file, hand it out to be changed, and write it back whole."""
    path = weights_folder() / LOCK_FILE
    with filelock.FileLock(f"{path}.lock"):
        entries = json.loads(path.read_text()) if path.exists() else {}
        before = json.dumps(entries)
        yield entries
        if json.dumps(entries) != before:
            aside = path.with_name(f"{path.name}.{os.getpid()}")
            aside.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
            aside.replace(path)


def _verify(weights: Weights, path: Path, record: bool = True) -> None:
    found = sha256_of(path)
    expected, origin = weights.sha256, "the known"
    if expected is None:
        with _lock_file() as entries:
            entry = entries.get(weights.name)
            if entry is None:
                if record:
                    entries[weights.name] = {"url": weights.url, "sha256": found, "size": path.stat().st_size}
                    _log.info("%s: no hash is published; recorded sha256 %s of %s in %s", weights.name, found, path, LOCK_FILE)
                return
            expected, origin = str(entry["sha256"]), f"the first recorded (in {weights_folder() / LOCK_FILE})"
    if found != expected:
        raise CheckpointError(
            f"{path} is not the file '{weights.name}' should be: its sha256 is {found}, {origin} is {expected}. "
            f"Delete it and fetch it again{f' from {weights.url}' if weights.url else ''}."
        )
