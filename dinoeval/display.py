"""Texts for people: short descriptions of objects that hold arrays or long lists, and names that may hide something."""

from __future__ import annotations

import dataclasses
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

_MAX_ITEMS = 3
"""Items of a container that are written; a longer one is counted."""
_MAX_CHARACTERS = 80
"""Characters of a value."""
_INVISIBLE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
"""Categories of Unicode without a visible or agreed form."""
_JOINERS = "\u200c\u200d"
"""Part of the spelling of Persian, of Indic scripts and of emoji."""


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


def shorten(text: str, limit: int = _MAX_CHARACTERS, middle: str = "…") -> str:
    """Replace the middle of a long text.

    Args:
        text: One line.
        limit: Characters to keep.
        middle: What replaces the middle.

    Returns:
        The text, or its beginning and its end.

    Examples:
        >>> shorten("n01440764_tench_Tinca_tinca", 12)
        'n01440…tinca'
    """
    if len(text) <= limit:
        return text
    end = (limit - len(middle)) // 2
    return f"{text[: limit - len(middle) - end]}{middle}{text[len(text) - end :]}"


def checksum(text: str) -> str:
    """Return eight characters that differ between texts, except by chance.

    Args:
        text: A name.

    Examples:
        >>> checksum("tench")
        '89788107'
    """
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


class Piece(NamedTuple):
    """A part of a text that is drawn in one way."""

    text: str
    """The characters, or the code of one."""
    is_code: bool
    """Whether `text` is the code of a character."""


def split_codes(
    text: str, ambiguous: frozenset[str] = frozenset(), has_font: Callable[[str], bool] = lambda character: True
) -> list[Piece]:
    """Split a text into visible characters and codes of invisible ones.

    Args:
        text: A name, or a text with names.
        ambiguous: Names whose characters beyond ASCII are written as codes, also within a longer text.
        has_font: Whether a character can be drawn. Others are written as codes.

    Returns:
        The pieces, in order.

    Examples:
        >>> split_codes("a\\u202eb")
        [Piece(text='a', is_code=False), Piece(text='\\\\u202e', is_code=True), Piece(text='b', is_code=False)]
    """
    pieces: list[Piece] = []
    in_ascii = any(name in text for name in ambiguous)
    for character in text:
        is_code = is_invisible(character) or (in_ascii and not " " <= character <= "~") or not has_font(character)
        if not is_code and pieces and not pieces[-1].is_code:
            pieces[-1] = Piece(pieces[-1].text + character, False)
        else:
            pieces.append(Piece(_code(character) if is_code else character, is_code))
    return pieces


def is_invisible(character: str) -> bool:
    """Return whether a character has no visible or agreed form.

    Args:
        character: One character.
    """
    return unicodedata.category(character) in _INVISIBLE and character not in _JOINERS


def _code(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"  # A byte of a name that is not valid UTF-8.
    return f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def find_ambiguous(names: Iterable[str]) -> frozenset[str]:
    """Find names that look like another one.

    Names look alike if they differ only in the form of characters (composed or decomposed accents, full width), in spaces
    or in joiners.

    Args:
        names: All names that are shown together.

    Returns:
        The names of which another one looks alike.

    Examples:
        >>> sorted(find_ambiguous(["caf\\u00e9", "cafe\\u0301", "tea"])) == ["cafe\\u0301", "caf\\u00e9"]
        True
    """
    looks = {name: "".join(c for c in unicodedata.normalize("NFKC", name) if c not in _JOINERS) for name in names}
    counts = Counter(" ".join(look.split()) for look in looks.values())
    return frozenset(name for name, look in looks.items() if counts[" ".join(look.split())] > 1)
