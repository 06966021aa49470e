"""Names from the user in figures: any script, any length. Different names look different."""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dinoeval.display import checksum, find_ambiguous, shorten, split_codes
from dinoeval.figures.style import FONT, load_matplotlib

_MAX_NAME = 22  # Characters of a name in a figure.


def write_names(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the texts of names that come from the user, and the fonts that they need.

    Characters that no installed font contains are written as their codes. A long name loses its middle. If another name of
    the figure would then look the same, a checksum of the name replaces the middle.

    Args:
        names: All names of a figure, such as classes or files, in any script.

    Returns:
        Keyword arguments `text` and `family` of matplotlib's Text, for each name.

    Examples:
        >>> [written["text"] for written in write_names(["tench\\x00", "n02124075_Egyptian_cat_Felis_catus"])]
        ['tench\\\\u0000', 'n02124075_E…elis_catus']
    """
    ambiguous = find_ambiguous(names)
    whole = {name: name if name in ambiguous else unicodedata.normalize("NFC", name) for name in names}
    written = {name: _write(shorten(text, _MAX_NAME), name in ambiguous) for name, text in whole.items()}
    counts = Counter(one["text"] for one in written.values())
    for name, text in whole.items():
        if counts[written[name]["text"]] > 1:
            middle = f"…{checksum(name)}…"
            written[name] = _write(shorten(text.ljust(_MAX_NAME + 1), _MAX_NAME, middle), name in ambiguous)
    return [written[name] for name in names]


def _write(text: str, in_ascii: bool) -> dict[str, Any]:
    pieces = split_codes(text, frozenset([text] if in_ascii else []), lambda character: _family_with(character) is not None)
    used = [_family_with(character) for piece in pieces if not piece.is_code for character in piece.text]
    return {"text": "".join(piece.text for piece in pieces), "family": list(dict.fromkeys([FONT, *used]))}


@functools.cache
def _family_with(character: str) -> str | None:
    """Return the first installed font that contains a character, or None."""
    load_matplotlib()
    from matplotlib import font_manager

    regular = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal", "regular")]
    regular.sort(key=lambda font: (font.name != FONT, font.name.startswith(("DejaVu", "STIX", "cm")), font.name))
    for font in regular:
        if ord(character) in _characters(font.fname) and "lastresort" not in font.name.replace(" ", "").lower():  # Boxes.
            return font.name
    return None


@functools.cache
def _characters(path: str) -> frozenset[int]:
    """Return the characters of a font that matplotlib can draw. It cannot draw bitmaps, which emoji often are."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()
    except (OSError, RuntimeError):
        return frozenset()
