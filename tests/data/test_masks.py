from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinoeval.data.masks import is_binary_mask, palette, read_mask, write_mask
from dinoeval.errors import DataError

MASK = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)


def disc() -> np.ndarray:
    """A white disc on black, (60, 60) uint8."""
    rows, columns = np.mgrid[:60, :60]
    return (np.hypot(rows - 30, columns - 30) < 20).astype(np.uint8) * 255


def test_palette_has_the_colors_of_voc():
    """The first colors and that of void, as in the development kit of VOC."""
    colors = palette().tolist()
    assert colors[:5] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]
    assert colors[8] == [64, 0, 0]
    assert colors[255] == [224, 224, 192]
    assert len(np.unique(palette(), axis=0)) == 256


def test_write_mask_writes_an_indexed_png(tmp_path):
    write_mask(tmp_path / "mask.png", MASK)
    with Image.open(tmp_path / "mask.png") as image:
        assert image.mode == "P"
        assert image.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    assert (read_mask(tmp_path / "mask.png") == MASK).all()


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [(MASK, "L"), (MASK.astype(np.uint16), "I;16"), (palette()[MASK], "RGB"), (np.dstack((palette()[MASK], 255 + 0 * MASK)), "RGBA")],
)
def test_read_mask_reads_gray_and_color_images(tmp_path, pixels, mode):
    image = Image.fromarray(pixels)
    assert image.mode == mode
    image.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == MASK).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "I;16"])
def test_white_is_object_1_in_binary_masks(tmp_path, mode):
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    gray = Image.fromarray(labels * np.uint16(65535)) if mode == "I;16" else Image.fromarray(labels * np.uint8(255)).convert(mode)
    gray.save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == labels).all()


def test_white_mask_is_one_object(tmp_path):
    Image.new("L", (3, 2), 255).save(tmp_path / "mask.png")
    assert (read_mask(tmp_path / "mask.png") == 1).all()


def test_255_in_an_indexed_mask_is_void(tmp_path):
    write_mask(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 255]]


def test_read_mask_names_files_that_are_not_masks(tmp_path):
    many, smooth, cmyk, absent, empty = (tmp_path / f"{name}.png" for name in ("many", "smooth", "cmyk", "absent", "empty"))
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(10, 30)).save(many)
    Image.fromarray(np.array([[[1, 2, 3], [128, 0, 0]]], np.uint8)).save(smooth)
    Image.new("CMYK", (2, 2)).save(cmyk, "TIFF")
    empty.write_bytes(b"")
    for path, mentioned in (
        (many, "0 to 299"),
        (smooth, r"palette.*\(1, 2, 3\)"),
        (cmyk, "CMYK"),
        (absent, "No such file"),
        (empty, "unsupported"),
    ):
        with pytest.raises(DataError, match=f"{path.name}.*{mentioned}"):
            read_mask(path)


def test_read_mask_raises_when_truncated(tmp_path):
    path = tmp_path / "cut.png"
    write_mask(path, np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        read_mask(path)


def test_compressed_or_smoothed_binary_masks_are_rejected(tmp_path):
    """Their gray values would be read as dozens of objects."""
    Image.fromarray(disc()).save(tmp_path / "disc.jpg")
    with pytest.raises(DataError, match=r"disc\.jpg.*JPEG"):
        read_mask(tmp_path / "disc.jpg")
    Image.fromarray(disc()).resize((90, 90), Image.Resampling.BILINEAR).save(tmp_path / "disc.png")
    with pytest.raises(DataError, match=r"disc\.png.*antialiased"):
        read_mask(tmp_path / "disc.png")


def test_many_objects_with_void_borders_are_a_mask(tmp_path):
    mask = np.repeat(np.arange(1, 21, dtype=np.uint8), 30).reshape(20, 30)
    mask[:, ::6] = 255
    Image.fromarray(mask).save(tmp_path / "many.png")
    assert (read_mask(tmp_path / "many.png") == mask).all()


def test_masks_in_the_alpha_channel_are_rejected(tmp_path):
    Image.merge("LA", (Image.new("L", (60, 60), 255), Image.fromarray(disc()))).save(tmp_path / "alpha.png")
    with pytest.raises(DataError, match=r"alpha\.png.*alpha channel"):
        read_mask(tmp_path / "alpha.png")


def test_is_binary_mask_needs_black_and_white_without_palette(tmp_path):
    Image.fromarray(disc()).save(tmp_path / "gray.png")
    Image.fromarray(disc() // 255).save(tmp_path / "labels.png")
    write_mask(tmp_path / "indexed.png", disc())
    assert [is_binary_mask(tmp_path / f"{name}.png") for name in ("gray", "labels", "indexed")] == [True, False, False]
