from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinoeval.data.masks import black_and_white, palette, read_mask, write_mask
from dinoeval.errors import DataError

MASK = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)


def test_colours_of_voc():
    """The first colours and the void's, as the development kit of VOC prints them."""
    colours = palette().tolist()
    assert colours[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colours[8] == [64, 0, 0]
    assert colours[255] == [224, 224, 192]
    assert len(np.unique(palette(), axis=0)) == 256


def test_a_mask_comes_back_from_its_file_indexed(tmp_path):
    write_mask(tmp_path / "mask.png", MASK)
    with Image.open(tmp_path / "mask.png") as picture:
        assert picture.mode == "P"
        assert picture.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert (read_mask(tmp_path / "mask.png") == MASK).all()


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(MASK, "L"), (MASK.astype(np.uint16), "I;16"), (palette()[MASK], "RGB"), (np.dstack((palette()[MASK], 255 + 0 * MASK)), "RGBA")],
)
def test_other_ways_to_keep_a_mask(tmp_path, pixels, mode):
    picture = Image.fromarray(pixels)
    assert picture.mode == mode
    picture.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == MASK).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "I;16"])
def test_white_is_object_1_where_there_is_only_black_and_white(tmp_path, mode):
    truth = np.array([[0, 1], [1, 1]], np.uint8)
    grey = Image.fromarray(truth * np.uint16(65535)) if mode == "I;16" else Image.fromarray(truth * np.uint8(255)).convert(mode)
    grey.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == truth).all()


def test_an_object_may_fill_the_mask(tmp_path):
    Image.new("L", (3, 2), 255).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == 1).all()


def test_255_in_an_indexed_mask_stays_void(tmp_path):
    write_mask(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 255]]


def test_what_is_no_mask_is_named(tmp_path):
    many, smooth, print_, absent, empty = (tmp_path / f"{name}.png" for name in ("many", "smooth", "print", "absent", "empty"))
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(10, 30)).save(many)
    Image.fromarray(np.array([[[1, 2, 3], [128, 0, 0]]], np.uint8)).save(smooth)
    Image.new("CMYK", (2, 2)).save(print_, "TIFF")
    empty.write_bytes(b"")
    for path, says in (
        (many, "labels from 0 to 299"),
        (smooth, r"palette.*\(1, 2, 3\)"),
        (print_, "CMYK"),
        (absent, "No such file"),
        (empty, "format"),
    ):
        with pytest.raises(DataError, match=f"{path.name}.*{says}"):
            read_mask(path)
    whole = tmp_path / "whole.png"
    write_mask(whole, np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8))
    whole.write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(DataError, match="decoded"):
        read_mask(whole)


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:60, :60]
    return (np.hypot(rows - 30, columns - 30) < 20).astype(np.uint8) * 255


def test_black_and_white_that_was_compressed_or_smoothed_is_no_mask(tmp_path):
    """Its shades would be read as dozens of objects."""
    Image.fromarray(disc()).save(tmp_path / "disc.jpg")
    with pytest.raises(DataError, match="is a JPEG file"):
        read_mask(tmp_path / "disc.jpg")
    Image.fromarray(disc()).resize((90, 90), Image.Resampling.BILINEAR).save(tmp_path / "disc.png")
    with pytest.raises(DataError, match="smoothed"):
        read_mask(tmp_path / "disc.png")


def test_many_objects_with_void_around_them_are_a_mask(tmp_path):
    mask = np.repeat(np.arange(1, 21, dtype=np.uint8), 30).reshape(20, 30)
    mask[:, ::6] = 255
    Image.fromarray(mask).save(tmp_path / "many.png")
    assert (read_mask(tmp_path / "many.png") == mask).all()


def test_a_mask_in_the_alpha_channel_is_refused(tmp_path):
    Image.merge("LA", (Image.new("L", (60, 60), 255), Image.fromarray(disc()))).save(tmp_path / "alpha.png")
    with pytest.raises(DataError, match="alpha channel"):
        read_mask(tmp_path / "alpha.png")


def test_what_is_black_and_white(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "grey.png")
    Image.fromarray(disc() // 255).save(tmp_path / "number.png")
    write_mask(tmp_path / "indexed.png", disc())
    assert [black_and_white(tmp_path / f"{name}.png") for name in ("grey", "number", "indexed")] == [True, False, False]
