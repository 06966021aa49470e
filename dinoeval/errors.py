"""Errors that users can cause. A message states what happened, what was expected, and what to do next."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MAX_NAME = 200  # characters
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\ud800-\udfff]")


class DinoevalError(Exception):
    """A user error, printed as one paragraph without traceback; exit code 2."""


class CheckpointError(DinoevalError):
    """A weights file that cannot be used."""


class DataError(DinoevalError):
    """A dataset or an image that cannot be used."""


class BadImage(Exception):  # noqa: N818  The image is bad, not the program.
    """A file that does not decode to a usable image; str() is the reason.

    Callers turn it into a DataError or skip the image.
    """


class CacheError(DinoevalError):
    """A feature cache that cannot be read or written."""


class ConfigError(DinoevalError):
    """An option with an invalid value."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Write the message for a name that does not exist.

    Args:
        kind: What the name stands for, such as "readout".
        name: The name that was passed.
        known: The names that exist.

    Returns:
        One or two sentences that list the existing names and suggest the nearest.

    Examples:
        >>> unknown("readout", "clss", ["cls", "gem"])
        "unknown readout 'clss'. Available: cls, gem. Did you mean cls?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"unknown {kind} '{name}'. Available: {', '.join(known)}.{hint}"


def join_names(names: Iterable[str], limit: int = 5) -> str:
    """Join the first names and count the others.

    Names may come from other people's files: long ones are cut, and what a terminal would not print is escaped.

    Args:
        names: Names of files, classes or the like.
        limit: How many names to list.

    Returns:
        The names, separated by commas.

    Examples:
        >>> join_names(["a", "b", "c", "d"], limit=2)
        'a, b and 2 more'
    """
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(_printable(name[:_MAX_NAME]) for name in names[:limit]) + more


def _printable(name: str) -> str:
    """Escape control characters and lone surrogates."""
    return name if name.isprintable() else _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), name)
