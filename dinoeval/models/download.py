"""Files of released weights: their place on this machine, downloads, and checks of hashes.

The weights directory is `$DINOEVAL_WEIGHTS`, else a folder of the user cache directory. The hash of a file whose hash is
not published is recorded in `weights.lock` on its first use and checked on every load.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.resources
import logging
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import filelock
import msgspec

from dinoeval.decoding import Record, decode_file
from dinoeval.environment import offline, weights_folder
from dinoeval.errors import CheckpointError, DinoevalError
from dinoeval.files import temporary_path, write_whole
from dinoeval.models.checkpoints import check_zip
from dinoeval.models.zoo import Weights
from dinoeval.progress import Progress

LOCK_FILE = "weights.lock"
_BLOCK_BYTES = 1 << 20
_TIMEOUT = 30  # seconds without a response of the server
_log = logging.getLogger(__name__)


def sha256_of(path: Path) -> str:
    """Compute the SHA-256 hash of a file.

    Args:
        path: The file.

    Returns:
        64 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def local_path(weights: Weights) -> Path:
    """Return the path of released weights, whether or not they are downloaded.

    Args:
        weights: An entry of the zoo.

    Returns:
        A path in the weights directory; for the bundled weights, one inside the package or the source checkout.
    """
    if weights.url is not None:
        return weights_folder() / weights.filename
    package = Path(str(importlib.resources.files("dinoeval")))
    inside = package / "bundled" / weights.filename
    return inside if inside.exists() else package.parent / "weights" / weights.filename


def ensure_weights(weights: Weights) -> Path:
    """Return the verified file of released weights; download it if it is missing.

    Args:
        weights: An entry of the zoo.

    Returns:
        Path of the file.

    Raises:
        CheckpointError: If the file cannot be downloaded or read, or its hash differs from the known or recorded one.
    """
    path = local_path(weights)
    if not path.exists():
        if weights.url is None:
            raise CheckpointError(f"the bundled checkpoint {path} is missing: reinstall dinoeval")
        if variable := offline():
            raise CheckpointError(f"weights '{weights.name}' are not downloaded and {variable} is set. {_by_hand(weights, path)}.")
        with _alone(path):  # One of several processes downloads; the others wait for it.
            if not path.exists():
                _download(weights, path)
    try:
        _verify(weights, path, path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    return path


def _by_hand(weights: Weights, path: Path) -> str:
    return f"Save {weights.url} as {path}"


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, NotImplementedError):  # The download itself reports why nothing can be written.
        yield
        return
    try:
        yield
    finally:
        lock.release()
        Path(f"{path}.lock").unlink(missing_ok=True)


def _download(weights: Weights, path: Path) -> None:
    assert weights.url is not None
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = temporary_path(path)
        with urllib.request.urlopen(weights.url, timeout=_TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0)
            megabytes = f"{size / 1e6:.1f} MB" if size else "size unknown"
            _log.info("downloading %s (%s) from %s to %s", weights.name, megabytes, weights.url, path)
            with partial.open("wb") as file, Progress(f"download of {weights.name}", size or None, "B") as progress:
                while block := response.read(_BLOCK_BYTES):
                    file.write(block)
                    progress.update(len(block))
        received = partial.stat().st_size
        if size and received != size:
            raise CheckpointError(f"the download of {weights.url} stopped at {received:,} of {size:,} bytes: try again")
        _verify(weights, partial, path)
        partial.replace(path)
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise CheckpointError(f"weights '{weights.name}' could not be downloaded: {reason}. {_by_hand(weights, path)}.") from error
    finally:
        if partial:
            partial.unlink(missing_ok=True)


class _Recorded(Record, frozen=True, kw_only=True):
    """A file whose hash is not published, as it was on its first use."""

    url: str | None = None
    sha256: str
    size: int | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r:.80} is not a SHA-256")


def _read_lock(path: Path) -> dict[str, _Recorded]:
    """Read the recorded hashes, by model name."""
    try:
        return decode_file(path, dict[str, _Recorded]) if path.exists() else {}
    except DinoevalError as error:
        raise CheckpointError(f"{error}. Correct or delete it; hashes are then recorded again.") from error


def _recorded_hash(weights: Weights, lock: Path) -> str | None:
    """Return the recorded hash of weights, by their name or by their address, so that a changed name does not hide it."""
    recorded = _read_lock(lock)
    found = recorded.get(weights.name) or next((one for one in recorded.values() if one.url and one.url == weights.url), None)
    return found and found.sha256


def _verify(weights: Weights, path: Path, final: Path) -> None:
    """Check the hash of `path`, which is or becomes `final`; record the hash if it is not known yet."""
    found, lock = sha256_of(path), weights_folder() / LOCK_FILE
    expected, origin, remedy = weights.sha256, "known", ""
    if expected is None:
        expected = _recorded_hash(weights, lock)
        if expected is None:
            _check_container(path, final)
            _record(weights, path, found, lock)
            return
        origin = "recorded"
        remedy = f" If the recorded file was the wrong one, delete the entry '{weights.name}' from {lock}."
    if found != expected:
        source = f" from {weights.url}" if weights.url else ""
        raise CheckpointError(
            f"{final} is not the file of '{weights.name}': its sha256 is {found}, the {origin} one is {expected}. "
            f"Delete it and download it again{source}.{remedy}"
        )


def _check_container(path: Path, final: Path) -> None:
    """Reject what is not a complete checkpoint, such as the login page of a network or a truncated file."""
    with path.open("rb") as file:
        head = file.read(2)
    if head == b"PK":
        check_zip(path)
    elif head != b"\x80\x02":  # the older pickle, which has no checksum
        raise CheckpointError(f"the download of {final.name} is not a checkpoint: it begins with {head!r}. It may be a login page.")


def _record(weights: Weights, path: Path, found: str, lock: Path) -> None:
    try:
        with filelock.FileLock(f"{lock}.lock", timeout=60):
            entries = {**_read_lock(lock), weights.name: _Recorded(url=weights.url, sha256=found, size=path.stat().st_size)}
            content = msgspec.json.format(msgspec.json.encode(entries, order="sorted"), indent=1)
            write_whole(lock, lambda target: target.write_bytes(content + b"\n"))
        _log.info("%s: no hash is published; recorded sha256 %s in %s", weights.name, found, lock)
    except (OSError, DinoevalError, filelock.Timeout) as error:  # a shared weights directory may be read-only
        _log.warning("%s: sha256 %s could not be recorded in %s: %s", weights.name, found, lock, error)
