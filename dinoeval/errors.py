"""The errors a user can meet. Each message says what is wrong, what exists, and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DinoevalError(Exception):
    """A mistake in what was asked for or in the files it was asked of: one paragraph, exit code 2, no traceback."""


class CheckpointError(DinoevalError):
    """A file of weights that cannot be used as asked."""


class DataError(DinoevalError):
    """A data set or an image that cannot be used as asked."""


class BadImage(Exception):  # noqa: N818  it is the image that is bad
    """A file that does not decode to a usable picture; str() is the reason. Callers turn it into a DataError or skip it."""


class CacheError(DinoevalError):
    """The feature cache cannot be read or written."""


class ConfigError(DinoevalError):
    """An option whose value makes no sense."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is no known `kind`, list those that are, and suggest the nearest."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]}?" if close else ""
    return f"no {kind} '{name}'. Known: {', '.join(known)}.{hint}"


def join_names(names: Iterable[str], limit: int = 5) -> str:
    """Join the first `limit` names and say how many more there are."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
