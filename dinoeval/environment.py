"""Environment variables that dinoeval reads, and the description of the machine that a Result records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import platformdirs

from dinoeval.files import expand


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


def offline() -> bool:
    """Return whether $DINOEVAL_OFFLINE disables downloads."""
    return os.environ.get("DINOEVAL_OFFLINE", "0") not in ("", "0")


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


def _folder(variable: str, *default: str) -> Path:
    value = os.environ.get(variable)
    return expand(value) if value else Path(platformdirs.user_cache_dir("dinoeval"), *default)


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
