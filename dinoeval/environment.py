"""Environment variables that dinoeval reads, and the description of the machine that a Result records."""

from __future__ import annotations

import functools
import getpass
import importlib.metadata
import logging
import os
import platform
import tempfile
from pathlib import Path

import platformdirs

from dinoeval.files import expand

_OFF = ("", "0", "false", "no", "off", "n", "f")
_log = logging.getLogger(__name__)


def weights_folder() -> Path:
    """Return the weights folder: $DINOEVAL_WEIGHTS, else in the user cache."""
    return _folder("DINOEVAL_WEIGHTS", "weights")


def cache_folder() -> Path:
    """Return the feature cache folder: $DINOEVAL_CACHE, else in the user cache."""
    return _folder("DINOEVAL_CACHE", "features")


def data_folder() -> Path | None:
    """Return $DINOEVAL_DATA, the folder of named datasets, or None if it is not set."""
    value = os.environ.get("DINOEVAL_DATA")
    return expand(value) if value else None


def offline() -> str | None:
    """Return the name of the variable that disables downloads, or None.

    Examples:
        >>> os.environ["DINOEVAL_OFFLINE"] = "True"
        >>> offline()
        'DINOEVAL_OFFLINE'
    """
    variables = ("DINOEVAL_OFFLINE", "HF_HUB_OFFLINE")
    return next((name for name in variables if os.environ.get(name, "").strip().lower() not in _OFF), None)


def describe_machine() -> dict[str, str]:
    """Return the versions of the libraries and the hardware, as stored in a Result."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "faiss-cpu", "numpy", "pillow")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }


def _folder(variable: str, name: str) -> Path:
    value = os.environ.get(variable)
    if value:
        return expand(value)
    try:
        folder = Path(platformdirs.user_cache_dir("dinoeval"))
        if not folder.is_absolute():  # A relative $XDG_CACHE_HOME must be ignored.
            folder = Path.home() / ".cache" / "dinoeval"
    except RuntimeError:  # There is neither $HOME nor a passwd entry.
        return _temporary_folder(variable, "there is no home directory") / name
    usable = (folder / name).is_dir() if name == "weights" else False  # Weights are read also if nothing can be written.
    return folder / name if usable or _is_writable(folder / name) else _temporary_folder(variable, f"{folder} is not writable") / name


def _is_writable(folder: Path) -> bool:
    """Return whether a folder, or the nearest folder above it that exists, can be written to."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return not existing.is_dir() or os.access(existing, os.W_OK)  # A file in its place is reported by who writes there.


@functools.cache
def _temporary_folder(variable: str, reason: str) -> Path:
    """Return a private folder of this user for what should be kept."""
    folder = Path(tempfile.gettempdir(), f"dinoeval-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        folder = Path(tempfile.mkdtemp(prefix="dinoeval-"))
    _log.warning("%s: using %s, which the system may delete. Set %s to a folder that stays", reason, folder, variable)
    return folder


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
