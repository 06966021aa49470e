"""Readers that commit every fault on purpose, to check that each is noticed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dinoeval.errors import DinoevalError
from hostile import CANARY
from hostile.changes import choose

KINDS = ("traceback", "different", "one rejects", "hang", "crash", "memory", "executed", "reached", "accepted", "rejected")


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write a file that names a fault."""
    kind = choose(generator, KINDS)
    (folder / "fault").write_text(kind)
    return kind, folder / "fault"


def _commit(path: Path) -> int:
    match path.read_text():
        case "traceback":
            raise KeyError("a fault")
        case "hang":
            time.sleep(3600)
        case "crash":
            os._exit(3)
        case "memory":
            np.ones(1 << 33)  # 64 GiB
        case "executed":
            Path(CANARY).touch()
        case "reached":
            subprocess.run([sys.executable, "--version"], check=True)
        case "rejected":
            raise DinoevalError("rejected")
    return 0


def readers(home: Path) -> dict[str, Callable[[Path], int]]:
    """Return a reader that commits the fault, and one that reads another value or rejects the file if that is the fault."""

    def other(path: Path) -> int:
        kind = path.read_text()
        if kind in ("one rejects", "rejected"):
            raise DinoevalError("rejected")
        return int(kind == "different")

    return {"one": _commit, "other": other}
