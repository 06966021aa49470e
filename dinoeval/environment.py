"""The environment variables that dinoeval obeys, and the facts about this machine that a Result records."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

import platformdirs

from dinoeval.files import expand


def _folder(variable: str, *default: str) -> Path:
    given = os.environ.get(variable)
    return expand(given) if given else Path(platformdirs.user_cache_dir("dinoeval"), *default)


def weights_folder() -> Path:
    """`$DINOEVAL_WEIGHTS`, else a folder of the user's cache: where downloaded weights lie."""
    return _folder("DINOEVAL_WEIGHTS", "weights")


def cache_folder() -> Path:
    """`$DINOEVAL_CACHE`, else a folder of the user's cache: where features lie."""
    return _folder("DINOEVAL_CACHE", "features")


def data_folder() -> Path | None:
    """`$DINOEVAL_DATA`, or None where it is unset: the folder of named data sets."""
    given = os.environ.get("DINOEVAL_DATA")
    return expand(given) if given else None


def offline() -> bool:
    """Whether `$DINOEVAL_OFFLINE` forbids downloads."""
    return os.environ.get("DINOEVAL_OFFLINE", "0") not in ("", "0")


def describe_machine() -> dict[str, str]:
    """Versions and hardware, for the record."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "faiss-cpu", "numpy", "pillow")}
    return {
        "python": platform.python_version(),
        **versions,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor()
