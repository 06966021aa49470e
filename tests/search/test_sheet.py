from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image

from dinoeval.errors import DinoevalError
from dinoeval.search.sheet import Section, Tile, write_sheet


@pytest.fixture
def sections(tmp_path) -> list[Section]:
    paths = [tmp_path / name for name in ("a.png", "<b>.png", "größe.png")]
    for path, image in zip(paths, synthetic_images(3, (400, 300)), strict=True):
        image.save(path)
    Image.new("RGB", (10, 5), "red").save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_text("text")
    names = [path.name for path in paths]
    return [
        Section("first & best", [Tile(str(tmp_path / name), name, "0.99") for name in names]),
        Section("second", [Tile(str(tmp_path / name), name, "0.5") for name in ("small.png", "broken.png", "gone.png")]),
    ]


def test_html_sheet_embeds_thumbnails_and_escapes_names(tmp_path, sections):
    write_sheet(tmp_path / "sheet.html", "A <title>", sections)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("unreadable") == 2
    assert "first &amp; best" in page
    assert "&lt;b&gt;.png" in page
    assert "<b>.png" not in page
    assert not re.search(r'src="(?!data:)', page)
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)]
    assert [thumbnail.size for thumbnail in thumbnails] == [(160, 120)] * 3 + [(160, 80)]


def test_png_sheet_draws_each_thumbnail(tmp_path, sections):
    write_sheet(tmp_path / "sheet.png", "title", sections)
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert (np.asarray(sheet) == (255, 0, 0)).all(-1).sum() == 160 * 80
    assert sheet.width == 8 * 172 + 12


def test_sheet_states_that_images_are_left_out(tmp_path, sections):
    many = [sections[1]] * 2000
    write_sheet(tmp_path / "sheet.html", "many", many)
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<li>") == 5000
    assert "first 5,000 images" in page


def test_sheet_without_sections_is_written(tmp_path):
    write_sheet(tmp_path / "sheet.png", "nothing", [])
    write_sheet(tmp_path / "sheet.html", "nothing", [])
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_sheet_with_other_ending_is_refused(tmp_path):
    with pytest.raises(DinoevalError, match=r"\.html or \.png.*sheet\.pdf"):
        write_sheet(tmp_path / "sheet.pdf", "title", [])
