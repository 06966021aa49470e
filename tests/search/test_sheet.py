from __future__ import annotations

import base64
import io
import re

import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.errors import DinoevalError
from dinoeval.search.sheet import Section, Tile, write_sheet


@pytest.fixture
def strips(tmp_path) -> list[Section]:
    paths = [tmp_path / name for name in ("a.png", "<b>.png", "größe.png")]
    for path, picture in zip(paths, synthetic_images(3, (400, 300)), strict=True):
        picture.save(path)
    Image.new("RGB", (10, 5), "red").save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_text("text")
    names = [path.name for path in paths]
    return [
        Section("first & best", [Tile(str(tmp_path / name), name, "0.99") for name in names]),
        Section("second", [Tile(str(tmp_path / name), name, "0.5") for name in ("small.png", "broken.png", "gone.png")]),
    ]


def test_a_page_holds_all_it_shows(tmp_path, strips):
    write_sheet(tmp_path / "sheet.html", "A <title>", strips)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("cannot be read") == 2
    assert "first &amp; best" in page
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert not re.search(r'src="(?!data:)', page)
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert [one.size for one in thumbnails] == [(160, 120)] * 3 + [(160, 80)]


def test_a_picture_has_a_place_for_each(tmp_path, strips):
    write_sheet(tmp_path / "sheet.png", "title", strips)
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    red = [place for place, pixel in enumerate(sheet.get_flattened_data() if hasattr(sheet, "get_flattened_data") else sheet.getdata())
           if pixel == (255, 0, 0)]  # fmt: skip
    assert len(red) == 160 * 80
    assert sheet.width == 8 * 172 + 12


def test_very_many_are_cut_with_a_word(tmp_path, strips):
    many = [strips[1]] * 2000
    write_sheet(tmp_path / "sheet.html", "many", many)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<li>") == 5000
    assert "Only the first 5,000 images are shown" in page


def test_no_group_is_a_sheet_too(tmp_path):
    write_sheet(tmp_path / "sheet.png", "nothing", [])
    write_sheet(tmp_path / "sheet.html", "nothing", [])
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_other_endings_are_refused(tmp_path):
    with pytest.raises(DinoevalError, match=r"\.html or \.png"):
        write_sheet(tmp_path / "sheet.pdf", "title", [])
