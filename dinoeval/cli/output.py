"""Files that commands write for people."""

from __future__ import annotations

import os
from pathlib import Path

from dinoeval.errors import ConfigError


def check_writable(path: str) -> None:
    """Find out before the hours of work, not after."""
    target = Path(path).expanduser()
    probe = target.with_name(f".{target.name}.{os.getpid()}.probe")
    try:
        if target.is_dir():
            raise ConfigError(f"{target} is a folder; name a file in it")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}") from error
