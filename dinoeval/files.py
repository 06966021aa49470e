"""Paths that users pass, files that are written completely or not at all, and settings stored in files."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from dinoeval.errors import DinoevalError

MAX_READ_BYTES = 4 << 30
"""Largest file that `read_bytes` reads."""
TEMPORARY = re.compile(r"\.(?P<process>\d{1,10})-(?P<machine>[0-9a-f]{6})\.")
"""Beginning of the names of temporary files; the name of the target follows."""
_SWEPT: set[Path] = set()  # folders in which this process has looked for temporary files


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
        temporary = temporary_path(target)
        try:
            write(temporary)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise DinoevalError(f"{target} cannot be written: {reason(error)}") from error


def streamed(write: Callable[[Any], object]) -> Callable[[Path], None]:
    """Make a function for `write_whole` of one that writes to an open file.

    Libraries that write to an open file, such as `torch.save`, replace the error of a full disk by one of their own; here the
    original is raised.

    Args:
        write: Called with an object that has `write`.

    Returns:
        A function that is called with a path.
    """

    def write_to(path: Path) -> None:
        with path.open("wb") as file:
            stream = _Stream(file)
            try:
                write(stream)
            finally:
                if stream.failure:
                    raise stream.failure

    return write_to


class _Stream:
    """An open file that remembers the first error of the system."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()


def temporary_path(target: Path) -> Path:
    """Choose a temporary file next to a target.

    On its first use of a folder, a process removes the temporary files that killed processes left there.

    Args:
        target: The file that the temporary one will be renamed to.

    Returns:
        A hidden file whose name has the id of this process and of this machine.

    Raises:
        OSError: If the folder cannot be read.
    """
    if target.parent not in _SWEPT:
        remove_leftovers(target.parent)
        _SWEPT.add(target.parent)
    return target.with_name(f".{os.getpid()}-{_machine()}.{target.name}")


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in a folder whose processes do not run any more.

    Args:
        folder: The folder. Files of other machines that share it are kept.

    Raises:
        OSError: If the folder cannot be read.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            found = TEMPORARY.match(entry.name)
            if found and found["machine"] == _machine() and not is_alive(int(found["process"])):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)  # noqa: PTH108


def is_alive(process: int) -> bool:
    """Return whether a process of this machine runs; on Windows always True.

    Args:
        process: Its id.
    """
    if os.name == "nt":  # where os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@functools.cache
def _machine() -> str:
    """Identify the machine, or the container: process ids of others that share a disk say nothing."""
    namespace = os.stat("/proc/self/ns/pid").st_ino if os.path.exists("/proc/self/ns/pid") else 0  # noqa: PTH110, PTH116
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:6]


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
    try:
        if not target.exists() or target.is_file():
            with tempfile.TemporaryFile(dir=target.resolve().parent):  # without a name on Linux, so that a kill leaves nothing
                pass
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
