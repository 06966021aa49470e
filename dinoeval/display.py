"""Short texts of objects that hold arrays or long lists, for notebooks, debuggers and tracebacks."""

from __future__ import annotations

import dataclasses
from typing import Any

_MAX_ITEMS = 3
"""Items of a container that are written; a longer one is counted."""
_MAX_CHARACTERS = 80
"""Characters of a value."""


def short_repr(self: Any) -> str:
    """Write a dataclass with the sizes of its arrays and long containers.

    Assign it in the body of a dataclass: `__repr__ = short_repr`.

    Args:
        self: An instance of a dataclass.

    Returns:
        The name of the class and its fields, in one line.

    Examples:
        >>> @dataclasses.dataclass
        ... class Points:
        ...     names: tuple[str, ...]
        ...     scale: float
        ...     __repr__ = short_repr
        >>> Points(("cat", "dog"), 0.5), Points(("cat",) * 449, 2.0)
        (Points(names=('cat', 'dog'), scale=0.5), Points(names=<449 items>, scale=2))
    """
    values = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self) if field.repr]
    return f"{type(self).__name__}({', '.join(f'{name}={_describe(value)}' for name, value in values)})"


def _describe(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (tuple, list, dict, set, frozenset)):
        if len(value) > _MAX_ITEMS:
            return f"<{len(value):,} items>"
        items = value.items() if isinstance(value, dict) else value
        texts = [f"{item[0]!r}: {_describe(item[1])}" if isinstance(value, dict) else _describe(item) for item in items]
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")") if isinstance(value, tuple) else ("{", "}")
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return shorten(f"{left}{', '.join(texts)}{comma}{right}")
    if callable(value) and not isinstance(value, type):
        return f"<{type(value).__name__}>"
    return shorten(repr(value))


def shorten(text: str, limit: int = _MAX_CHARACTERS) -> str:
    """Cut the middle of a long text.

    Args:
        text: One line.
        limit: Characters to keep.

    Returns:
        The text, or its beginning and its end.

    Examples:
        >>> shorten("n01440764_tench_Tinca_tinca", 12)
        'n01440…tinca'
    """
    if len(text) <= limit:
        return text
    end = (limit - 1) // 2
    return f"{text[: limit - 1 - end]}…{text[len(text) - end :]}"
