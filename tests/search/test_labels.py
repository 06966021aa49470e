"""Names on contact sheets: two different names never look the same."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dinoeval.display import find_ambiguous, split_codes
from dinoeval.search import labels
from dinoeval.search.labels import Lettering
from dinoeval.search.sheet import Section, Tile, write_sheet

NAMES = [
    "\u732b\u306e\u5199\u771f",  # Japanese
    "\u72ac\u306e\u7d75\u753b",
    "\uace0\uc591\uc774",  # Korean
    "\uac15\uc544\uc9c0",
    "\U0001f408\U0001f33b",  # emoji
    "\U0001f415\U0001f3d6",
    "\u043a\u043e\u0448\u043a\u0430",  # Cyrillic
    "\u0642\u0637\u0629",  # Arabic
    "\u0e41\u0e21\u0e27",  # Thai
    "\u0939\u093f\u0928\u094d\u0926\u0940",  # Devanagari
    "\\u732b",
    "caf\u00e9",
    "cafe\u0301",
    "a b",
    "a\u00a0b",
    "a  b",
    "a\u200bb",
    "ab",
    "tab\t",
    "line\nbreak",
    "bytes\udcff",
    "bytes\udcfe",
    "\u202egnp.a",
    f"{'long/' * 60}1/same end of the name",
    f"{'long/' * 60}2/same end of the name",
]


def drawn(name: str, lettering: Lettering) -> bytes:
    image = Image.new("RGB", (170, 260), "white")
    for number, line in enumerate(lettering.wrap(name, 160)):
        lettering.draw(ImageDraw.Draw(image), (0, 18 * number), line, (0, 0, 0))
    return image.tobytes()


@pytest.mark.parametrize("with_system_fonts", [True, False])
def test_different_names_are_drawn_differently(monkeypatch, with_system_fonts):
    if not with_system_fonts:
        monkeypatch.setattr(labels, "_system_fonts", lambda: ())
    lettering = Lettering(NAMES, 11, find_ambiguous(NAMES))
    images = {name: drawn(name, lettering) for name in NAMES}
    equal = [pair for pair in itertools.combinations(NAMES, 2) if images[pair[0]] == images[pair[1]]]
    assert not equal, [tuple(map(ascii, pair)) for pair in equal]


def test_common_scripts_are_drawn_in_letters(monkeypatch):
    """The font that matplotlib brings has Cyrillic, Greek, Arabic and Hebrew. Others become codes if the machine has no font."""
    monkeypatch.setattr(labels, "_system_fonts", lambda: ())
    names = ["\u043a\u043e\u0448", "\u03b5\u03bb", "\u0642\u0637", "\u05e2\u05d1", "\u732b"]
    lettering = Lettering(names, 11)
    texts = ["".join(atom.text for line in lettering.wrap(name, 500) for atom in line) for name in names]
    assert texts == [*names[:4], "\\u732b"]


def test_invisible_characters_are_codes_and_joiners_are_not():
    codes = [piece.text for piece in split_codes("a\u202eb\u200bc\udcff\x07\u0645\u200c\u06cc") if piece.is_code]
    assert codes == ["\\u202e", "\\u200b", "\\xff", "\\u0007"]


def test_names_that_look_alike_are_found():
    alike = {"caf\u00e9", "cafe\u0301", "a b", "a\u00a0b", "\uff21", "A"}
    assert find_ambiguous([*alike, "tea", "\u732b"]) == alike


def test_long_names_keep_their_end_and_a_checksum():
    name = f"{'folder/' * 100}picture.png"
    lettering = Lettering([name], 11)
    lines = ["".join(atom.text for atom in line) for line in lettering.wrap(name, 160)]
    assert len(lines) == 12
    assert "\u2026" in lines[0]
    assert "".join(lines).endswith("folder/picture.png")
    assert all(sum(atom.width for atom in line) <= 160 for line in lettering.wrap(name, 160))


def test_html_sheet_contains_names_as_text(tmp_path):
    names = [name for name in NAMES if name.isprintable()]
    write_sheet(tmp_path / "s.html", "t", [Section("s", [Tile("none.png", name, "0.9") for name in names])])
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    unambiguous = set(names) - find_ambiguous(names)
    assert all(f">{name}<" in page for name in unambiguous)
    assert "cafe<code>\\u0301</code>" in page


def test_png_sheet_shows_every_detail_of_a_tile(tmp_path):
    """A tile with three more lines makes the sheet three lines, of 18 pixels, higher; other details give other pixels."""

    def draw(*details: str) -> np.ndarray:
        write_sheet(tmp_path / "s.png", "t", [Section("s", [Tile("none.png", "name", "0.9", details)])])
        return np.asarray(Image.open(tmp_path / "s.png"))

    plain, one, other = draw(), draw("30 x 20", "1 bytes", "2026"), draw("30 x 20", "2 bytes", "2026")
    assert len(one) == len(plain) + 3 * 18
    assert (one != other).any()
