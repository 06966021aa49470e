"""Paths that users give, and files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dinoeval.errors import DinoevalError


def expand(path: str | Path) -> Path:
    """Resolve `~`; raises DinoevalError where it names nobody, or where the path can be no path."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise DinoevalError(f"{path}: {error}") from error
    if "\0" in str(path):
        raise DinoevalError(f"{str(path)!r} is no path: it holds a zero byte")
    return expanded


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it into place; raises DinoevalError where that fails.

    A link is followed to the file it names. What is no regular file, such as /dev/stdout, is written to directly.
    """
    target = expand(path)
    try:
        target = target.resolve()
        if target.exists() and not target.is_file() and not target.is_dir():
            write(target)
            return
        aside = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            write(aside)
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DinoevalError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error


def check_writable(path: str | Path) -> None:
    """Find out before the hours of work, not after; raises DinoevalError."""
    target = expand(path)
    if target.is_dir():
        raise DinoevalError(f"{target} is a folder; name a file in it")
    if not target.exists() or target.is_file():
        try:
            probe = target.resolve().with_name(f".{os.getpid()}.probe")
            probe.touch()
            probe.unlink()
        except (OSError, ValueError) as error:
            raise DinoevalError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from error
