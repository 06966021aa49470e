"""Names from the user in figures: any script, any length. Different names look different."""

from __future__ import annotations

import functools
import unicodedata
from typing import Any

from dinoeval.display import shorten
from dinoeval.figures.style import FONT, load_matplotlib

_MAX_NAME = 26  # Characters of a name in a figure.


def write_name(name: str) -> dict[str, Any]:
    """Return the text of a name that comes from the user, and the fonts that it needs.

    Characters that no installed font contains are written as `\\uXXXX`, so that different names stay different. A long name
    loses its middle.

    Args:
        name: Such as a class or a file name, in any script.

    Returns:
        Keyword arguments `text` and `family` of matplotlib's Text.

    Examples:
        >>> write_name("tench\\n")["text"], write_name("n02124075_Egyptian_cat_Felis_catus")["text"]
        ('tench\\\\n', 'n02124075_Egy…_Felis_catus')
    """
    families, characters = [FONT], []
    for character in shorten(unicodedata.normalize("NFC", name), _MAX_NAME):
        family = _family_with(character) if character.isprintable() else None
        characters.append(ascii(character)[1:-1] if family is None else character)
        if family is not None and family not in families:
            families.append(family)
    return {"text": "".join(characters), "family": families}


@functools.cache
def _family_with(character: str) -> str | None:
    """Return the first installed font that contains a character, or None."""
    if character in ("\\", "'"):
        return FONT
    load_matplotlib()
    from matplotlib import font_manager

    regular = [font for font in font_manager.fontManager.ttflist if font.style == "normal" and font.weight in (400, "normal", "regular")]
    regular.sort(key=lambda font: (font.name != FONT, font.name.startswith(("DejaVu", "STIX", "cm")), font.name))
    for font in regular:
        if ord(character) in _characters(font.fname) and not font.name.startswith("Last Resort"):  # Boxes for all characters.
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
