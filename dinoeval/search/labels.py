"""Names of images on contact sheets: two different names never look the same, in any script and with any font.

Pillow draws one box for every character that a font lacks, and one font covers few scripts. So each character is drawn with
the first font of this machine that has it. A character that no font has, or that is invisible, is written as its code in
another color.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import string
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from dinoeval.display import checksum, is_invisible, split_codes

_FONT_FOLDERS = {
    "win32": ("%WINDIR%/Fonts", "%LOCALAPPDATA%/Microsoft/Windows/Fonts"),
    "darwin": ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts"),
}
_OTHER_FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
_STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "condensed", "mono", "serif", "medium")
_MAX_LINES = 12  # of one name
_CODE_COLOR = (170, 60, 20)


class _Atom(NamedTuple):
    """A character, or the code of one, with the font that draws it."""

    text: str
    is_code: bool
    font: ImageFont.FreeTypeFont
    width: float


Line = list[_Atom]


class Lettering:
    """Draws texts with fonts of this machine.

    Args:
        texts: All texts that will be drawn.
        size: Height of the letters in pixels.
        ambiguous: Names whose characters beyond ASCII are written as codes.
    """

    def __init__(self, texts: Iterable[str], size: int, ambiguous: frozenset[str] = frozenset()) -> None:
        self._ambiguous = ambiguous
        self._fonts = _choose_fonts(frozenset(f"{string.printable}…").union(*texts), size)
        self._base = _load_base_font(size)

    def wrap(self, text: str, width: int, *, max_lines: int = _MAX_LINES) -> list[Line]:
        """Break a text into lines.

        Args:
            text: Text to draw.
            width: Width of a line in pixels.
            max_lines: The beginning of a longer text is left out and replaced by a checksum, because paths differ at their ends.

        Returns:
            The lines; none for an empty text.
        """
        lines = self._break(self._atoms(text), width)
        if len(lines) <= max_lines:
            return lines
        start = self._atoms(f"{checksum(text)}…" if max_lines > 1 else "…")
        room = width - sum(atom.width for atom in start) if max_lines == 1 else width
        rest = self._atoms(text)
        kept: Line = []
        while rest and len(self._break([*kept, rest[-1]], room)) <= max(1, max_lines - 1):
            kept.insert(0, rest.pop())
        return self._break(start + kept, width)[:max_lines]

    def _atoms(self, text: str) -> Line:
        atoms: Line = []
        for piece in split_codes(text, self._ambiguous, self._fonts.__contains__):
            for part in [piece.text] if piece.is_code else piece.text:
                font = self._base if piece.is_code else self._fonts[part]
                atoms.append(_Atom(part, piece.is_code, font, font.getlength(part)))
        return atoms

    @staticmethod
    def _break(atoms: Line, width: float) -> list[Line]:
        lines: list[Line] = []
        used = 0.0
        for atom in atoms:
            if not lines or used + atom.width > width:
                lines.append([])
                used = 0.0
            lines[-1].append(atom)
            used += atom.width
        return lines

    @staticmethod
    def draw(draw: ImageDraw.ImageDraw, corner: tuple[float, float], line: Line, color: tuple[int, int, int]) -> None:
        """Draw one line.

        Characters of one font are drawn together, so that they are joined and ordered as their script demands.

        Args:
            draw: Drawing context.
            corner: Left end of the line and top of its letters.
            line: A line of `wrap`.
            color: Color of the text; codes have their own.
        """
        left, top = corner
        start = 0
        while start < len(line):
            end = start + 1
            while end < len(line) and line[end][1:3] == line[start][1:3]:
                end += 1
            text = "".join(atom.text for atom in line[start:end])
            font, is_code = line[start].font, line[start].is_code
            # Baselines differ between fonts; all are drawn on the same one.
            # The extension of a name stays at the right, whatever the direction of its script.
            direction = "ltr" if features.check("raqm") else None
            draw.text((left, top + font.size), text, _CODE_COLOR if is_code else color, font, anchor="ls", direction=direction)
            left += font.getlength(text)
            start = end


@functools.cache
def _load_base_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, or the font of Pillow. The former has Latin, Greek, Cyrillic, Arabic and more."""
    found = importlib.util.find_spec("matplotlib")  # not imported, which would read the user's settings
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf"
        if path.is_file():
            return ImageFont.truetype(path, size)
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _choose_fonts(characters: frozenset[str], size: int) -> dict[str, ImageFont.FreeTypeFont]:
    """Choose a font for each character; characters that no font has are left out."""
    base = _load_base_font(size)
    fonts = dict.fromkeys(_covered(base, characters), base)
    missing = {character for character in characters - fonts.keys() if not is_invisible(character)}
    coverage: list[tuple[set[str], ImageFont.FreeTypeFont]] = []
    for path in _system_fonts() if missing else ():
        try:
            font = ImageFont.truetype(path, size)
            covered = _covered(font, missing)
        except (OSError, ValueError):
            continue  # a corrupted file, or a font of bitmaps in another size
        if covered:
            coverage.append((covered, font))
        if covered == missing:
            break
    while missing and coverage:
        covered, font = max(coverage, key=lambda entry: len(entry[0] & missing))
        if not covered & missing:
            break
        fonts |= dict.fromkeys(covered & missing, font)
        missing -= covered
    return fonts


def _covered(font: ImageFont.FreeTypeFont, characters: Iterable[str]) -> set[str]:
    """Return the characters that a font has: those that it does not draw like a character that no font has."""
    plain = font.font_variant(layout_engine=ImageFont.Layout.BASIC)  # the other one adds a circle to a lone accent

    def draw(character: str) -> tuple[bytes, tuple[int, int], float]:
        left, top, right, bottom = (round(side) for side in plain.getbbox(character))
        image = Image.new("L", (max(1, right - left), max(1, bottom - top)))
        ImageDraw.Draw(image).text((-left, -top), character, 255, plain)
        return image.tobytes(), image.size, plain.getlength(character)

    lacking = draw("\U0010ffff")
    return {character for character in characters if character == " " or (character > " " and draw(character) != lacking)}


@functools.cache
def _system_fonts() -> Sequence[str]:
    """Paths of the fonts of this machine, regular ones first."""
    folders = (Path(os.path.expandvars(folder)) for folder in _FONT_FOLDERS.get(sys.platform, _OTHER_FONT_FOLDERS))
    found = []
    for folder in folders:
        if str(folder).startswith("~"):
            folder = Path(os.path.expanduser(folder))  # noqa: PTH111  without a home directory it stays as it is
        for parent, _, names in os.walk(folder):
            found += [os.path.join(parent, name) for name in names if _is_font(name)]  # noqa: PTH118
    return sorted(found, key=lambda path: (any(style in Path(path).name.lower() for style in _STYLES), path))


def _is_font(name: str) -> bool:
    # LastResort of macOS draws one box for all characters of a script.
    return name.lower().endswith((".ttf", ".ttc", ".otf")) and not name.lower().startswith("lastresort")
