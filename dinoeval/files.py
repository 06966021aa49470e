"""Paths that users pass, files that are written completely or not at all, and settings stored in files."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dinoeval.errors import DinoevalError

MAX_READ_BYTES = 4 << 30
"""Largest file that `read_bytes` reads."""


def expand(path: str | Path) -> Path:
    """Expand `~` in a path.

    Args:
        path: A path as the user typed it.

    Returns:
        The path with `~` or `~user` replaced by the home directory.

    Raises:
        DinoevalError: If the user does not exist or the path contains a null byte.
    """
    try:
        expanded = Path(path).expanduser()
    except RuntimeError as error:
        raise DinoevalError(f"{path}: {error}") from error
    if "\0" in str(path):
        raise DinoevalError(f"invalid path {str(path)!r}: contains a null byte")
    return expanded


def reason(error: BaseException) -> str:
    """Return the system's message of an error, without its number.

    Args:
        error: Usually an OSError.

    Returns:
        A short text.
    """
    return getattr(error, "strerror", None) or str(error)


@contextlib.contextmanager
def report_disk_errors(failure: str, error_type: type[DinoevalError] = DinoevalError) -> Iterator[None]:
    """Turn an error of the disk or the file system into a DinoevalError.

    Args:
        failure: What failed, such as "the index photos cannot be written"; the message adds the system's reason.
        error_type: The error to raise.

    Yields:
        None.

    Raises:
        DinoevalError: If the block raises an OSError.

    Examples:
        >>> with report_disk_errors("the notes cannot be read"):
        ...     Path("/absent/notes").read_text()
        Traceback (most recent call last):
        dinoeval.errors.DinoevalError: the notes cannot be read: No such file or directory
    """
    try:
        yield
    except OSError as error:
        raise error_type(f"{failure}: {reason(error)}") from error


def read_bytes(path: Path, limit: int = MAX_READ_BYTES) -> bytes:
    """Read a regular file.

    Args:
        path: The file. A pipe or a device, which might never end, is an error.
        limit: Largest size, in bytes.

    Returns:
        Its content.

    Raises:
        DinoevalError: If the file cannot be read, is not a regular file or is too large.
    """
    with report_disk_errors(f"{path} cannot be read"):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DinoevalError(f"{path} cannot be read: it is {'a folder' if stat.S_ISDIR(status.st_mode) else 'not a regular file'}")
        if status.st_size > limit:
            raise DinoevalError(f"{path} cannot be read: it has {status.st_size:,} bytes, at most {limit:,} are expected")
        return path.read_bytes()


def write_whole(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file completely or not at all.

    The content goes to a temporary file in the same folder, which is then renamed. A link is followed to the file it
    names. A target that exists but is not a regular file, such as /dev/stdout, is written to directly.

    Args:
        path: The file to create or replace.
        write: Called with the path to write to.

    Raises:
        DinoevalError: If the file cannot be written.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_whole(f"{folder}/notes.txt", lambda file: file.write_text("done"))
        ...     [file.name for file in Path(folder).iterdir()]
        ['notes.txt']
    """
    target = expand(path)
    try:
        target = target.resolve()
        if target.exists() and not target.is_file() and not target.is_dir():
            write(target)
            return
        temporary = target.with_name(f".{os.getpid()}.{target.name}")
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DinoevalError(f"{target} cannot be written: {reason(error)}") from error


def check_writable(path: str | Path) -> None:
    """Check that an output file can be written, before hours of work.

    Args:
        path: The file that will be written.

    Raises:
        DinoevalError: If the path is a folder or its folder is not writable.
    """
    target = expand(path)
    if target.is_dir():
        raise DinoevalError(f"{target} is a folder: pass the path of a file")
    if not target.exists() or target.is_file():
        try:
            probe = target.resolve().with_name(f".{os.getpid()}.probe")
            probe.touch()
            probe.unlink()
        except (OSError, ValueError) as error:
            raise DinoevalError(f"{target} cannot be written: {reason(error)}") from error


def describe_differences(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Describe the settings whose saved values differ from the current ones.

    Args:
        saved: Settings of an earlier run, as read from a file.
        current: Settings of this run. Names that only `saved` has are ignored. Nested settings are compared one by one.

    Returns:
        One text per difference. A setting that `saved` lacks counts as None.

    Examples:
        >>> describe_differences({"seed": 0, "recipe": {"lr": 0.1}}, {"seed": 0, "recipe": {"lr": 0.5}})
        ['lr was 0.1 and is 0.5']
    """
    differences = []
    for name, value in current.items():
        old = saved.get(name)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            differences += describe_differences(old, value)
        elif old != value:
            differences.append(f"{name} was {old} and is {value}")
    return differences
