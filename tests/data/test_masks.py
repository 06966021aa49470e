"""The rule for reading masks: what counts as labels, and which files are rejected by name."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from dinoeval.data.masks import check_siblings, decode_mask, palette, read_mask, write_mask
from dinoeval.errors import DataError

MASK = np.array([[0, 1, 2], [3, 0, 255]], np.uint8)


def disc(side: int = 60) -> np.ndarray:
    """A white disc on black, (side, side) uint8."""
    rows, columns = np.mgrid[:side, :side]
    return (np.hypot(rows - side / 2, columns - side / 2) < side / 3).astype(np.uint8) * 255


def two_objects(first: int = 1, second: int = 2, side: int = 40) -> np.ndarray:
    """Two boxes on background 0, (side, side) uint8."""
    mask = np.zeros((side, side), np.uint8)
    mask[4:18, 4:20], mask[22:36, 10:34] = first, second
    return mask


def indexed(labels: np.ndarray, colors: list[list[int]]) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([value for color in colors for value in color])
    return image


def save(image: Image.Image | np.ndarray, path):
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path)
    return path


def check(*paths):
    check_siblings(decode_mask(path)[1] for path in paths)


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
    assert (read_mask(save(image, tmp_path / "mask.png")) == MASK).all()


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_palette_index_is_the_label_in_every_format(tmp_path, suffix):
    mask = two_objects(1, 75)
    path = save(indexed(mask, (255 - palette()).tolist()), tmp_path / f"mask.{suffix}")
    assert (read_mask(path) == mask).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "LA", "I;16"])
def test_white_is_object_1_in_binary_masks(tmp_path, mode):
    labels = np.array([[0, 1], [1, 1]], np.uint8)
    gray = Image.fromarray(labels * np.uint16(65535)) if mode == "I;16" else Image.fromarray(labels * np.uint8(255)).convert(mode)
    assert (read_mask(save(gray, tmp_path / "mask.png")) == labels).all()


def test_white_mask_is_one_object(tmp_path):
    assert (read_mask(save(Image.new("L", (3, 2), 255), tmp_path / "mask.png")) == 1).all()


def test_palette_of_grays_is_read_like_a_gray_file(tmp_path):
    ramp = [[value] * 3 for value in range(256)]
    assert (read_mask(save(indexed(disc(), ramp), tmp_path / "white.png")) == (disc() > 0)).all()
    assert (read_mask(save(indexed(two_objects(), ramp), tmp_path / "labels.png")) == two_objects()).all()
    with pytest.raises(DataError, match=r"levels\.png .*100, 200"):
        read_mask(save(indexed(two_objects(100, 200), ramp), tmp_path / "levels.png"))


def test_255_in_an_indexed_mask_is_void(tmp_path):
    write_mask(tmp_path / "mask.png", np.array([[0, 255]], np.uint8))
    assert read_mask(tmp_path / "mask.png").tolist() == [[0, 255]]


VOC_GRAY = np.array([0, 38, 75, 113, 14], np.uint8)  # luma of the first colors of the palette


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        (two_objects(100, 200), "100, 200"),
        (two_objects(128, 255), "128, 255"),
        (two_objects(85, 170), "85, 170"),
        (two_objects(100, 100), "100"),
        (VOC_GRAY[two_objects(1, 4)], "14, 38"),
        (np.asarray(Image.fromarray(palette()[two_objects(1, 2)]).convert("L")), "38, 75"),
        (two_objects(38, 220), "220"),
        (two_objects(255, 220), "220"),
        (two_objects(253, 254), "253"),
        (np.where(two_objects(), np.random.default_rng(0).integers(253, 256, (40, 40)), 0).astype(np.uint8), "253"),
        (np.dstack([two_objects(128, 192)] * 3), "128, 192"),
        (two_objects(1, 2).astype(np.uint16) * 257, "257"),
    ],
)
def test_gray_levels_are_not_labels(tmp_path, values, listed):
    with pytest.raises(DataError, match=rf"mask \S*levels\.png .*\b{listed}\b"):
        read_mask(save(values, tmp_path / "levels.png"))


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
        (empty, "is empty"),
    ):
        with pytest.raises(DataError, match=f"{path.name}.*{mentioned}"):
            read_mask(path)


def test_read_mask_raises_when_truncated(tmp_path):
    path = tmp_path / "cut.png"
    write_mask(path, np.random.default_rng(0).integers(0, 200, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cut\.png cannot be decoded"):
        read_mask(path)


@pytest.mark.parametrize(("suffix", "options"), [("jpg", {}), ("webp", {"lossless": True}), ("tif", {"compression": "jpeg"})])
def test_lossy_formats_are_rejected(tmp_path, suffix, options):
    Image.fromarray(two_objects()).save(tmp_path / f"mask.{suffix}", **options)
    with pytest.raises(DataError, match=rf"mask\.{suffix}.*(JPEG|WEBP|TIFF file with jpeg)"):
        read_mask(tmp_path / f"mask.{suffix}")


def smoothed(kind: str) -> Image.Image:
    match kind:
        case "bilinear":
            return Image.fromarray(disc()).resize((90, 90), Image.Resampling.BILINEAR)
        case "reduced":
            return Image.fromarray(disc(240)).resize((60, 60), Image.Resampling.LANCZOS)
        case "one gray level":
            return Image.fromarray(disc() // 255 * 100).resize((150, 150), Image.Resampling.BICUBIC)
        case "dithered":
            return Image.fromarray(palette()[two_objects()]).convert("P")
        case "noisy background":
            return Image.fromarray(np.where(disc(), 255, np.random.default_rng(0).integers(0, 3, (60, 60))).astype(np.uint8))
        case "quantized":
            return Image.fromarray(disc(240)).resize((60, 60), Image.Resampling.BICUBIC).convert("RGB").quantize(64)
        case _:
            return Image.fromarray(np.random.default_rng(0).integers(0, 180, (60, 60)).astype(np.uint8))


@pytest.mark.parametrize("kind", ["bilinear", "reduced", "one gray level", "dithered", "noisy background", "quantized", "photograph"])
def test_smoothed_masks_are_rejected(tmp_path, kind):
    """Their values would be read as dozens of objects."""
    with pytest.raises(DataError, match=r"smooth\.png.*(antialiased|dithered|black at palette index)"):
        read_mask(save(smoothed(kind), tmp_path / "smooth.png"))


def test_compression_noise_is_not_read_as_objects(tmp_path):
    """A binary mask that was a JPEG file once, saved as PNG."""
    Image.fromarray(disc()).save(tmp_path / "disc.jpg", quality=95)
    with pytest.raises(DataError, match=r"disc\.png"):
        read_mask(save(Image.open(tmp_path / "disc.jpg"), tmp_path / "disc.png"))


def test_many_objects_with_void_borders_are_a_mask(tmp_path):
    mask = np.repeat(np.arange(1, 21, dtype=np.uint8), 30).reshape(20, 30)
    mask[:, ::6] = 255
    assert (read_mask(save(mask, tmp_path / "many.png")) == mask).all()


def test_masks_in_the_alpha_channel_are_rejected(tmp_path):
    alpha = Image.merge("LA", (Image.new("L", (60, 60), 255), Image.fromarray(disc())))
    with pytest.raises(DataError, match=r"alpha\.png.*alpha channel"):
        read_mask(save(alpha, tmp_path / "alpha.png"))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_with_exif_orientation_are_rejected(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(two_objects()).save(tmp_path / f"mask.{suffix}", exif=exif)
    with pytest.raises(DataError, match=rf"mask\.{suffix} .*EXIF orientation"):
        read_mask(tmp_path / f"mask.{suffix}")


def test_animations_are_rejected(tmp_path):
    frames = [indexed(two_objects(1, number), palette().tolist()) for number in (2, 3)]
    frames[0].save(tmp_path / "mask.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match=r"mask\.gif contains 2 images"):
        read_mask(tmp_path / "mask.gif")


def test_palette_that_exchanges_background_is_rejected(tmp_path):
    image = indexed(1 - disc() // 255, [[255, 255, 255], [0, 0, 0]])
    with pytest.raises(DataError, match=r"mask\.png has black at palette index 1"):
        read_mask(save(image, tmp_path / "mask.png"))


def test_siblings_may_differ_in_container_but_not_in_labels(tmp_path):
    """Indices and gray values are the same numbers; blank masks fit to all; palettes may differ in color."""
    write_mask(tmp_path / "indexed.png", two_objects())
    others = indexed(two_objects(), [[0, 0, 0], [9, 8, 7], [200, 0, 0]])
    blank = np.zeros((40, 40), np.uint8)
    check(
        tmp_path / "indexed.png",
        save(two_objects(1, 3), tmp_path / "gray.png"),
        save(others, tmp_path / "other palette.png"),
        save(blank, tmp_path / "blank.png"),
        save(Image.fromarray(blank).convert("1"), tmp_path / "blank bits.png"),
    )
    white = [Image.fromarray(disc()).convert(mode) for mode in ("1", "L", "RGB")]
    check(*(save(image, tmp_path / f"{image.mode}.png") for image in white))


def test_large_gray_labels_need_a_sibling_that_has_them(tmp_path):
    """A class map without class 1 to 9 is readable if another map shows that its values are labels."""
    large, small = save(two_objects(13, 27), tmp_path / "large.png"), save(two_objects(1, 2), tmp_path / "small.png")
    both = two_objects(13, 27)
    both[0] = 3
    check(large, save(both, tmp_path / "both.png"))
    for siblings in ((large,), (large, small)):
        with pytest.raises(DataError, match=r"large\.png has gray levels \(13, 27\)"):
            check(*siblings)


def white(path):
    return save(disc(), path)


def colors(path):
    return save(palette()[two_objects()], path)


def labels(path):
    return save(two_objects(), path)


@pytest.mark.parametrize(("one", "others"), [(white, labels), (colors, labels), (white, colors), (labels, colors), (labels, white)])
def test_siblings_of_another_convention_are_rejected(tmp_path, one, others):
    paths = [others(tmp_path / f"{number}.png") for number in range(2)]
    check(*paths)
    with pytest.raises(DataError, match=r"odd\.png .*[01]\.png"):
        check(*paths, one(tmp_path / "odd.png"))


def test_gray_copies_next_to_indexed_masks_are_rejected(tmp_path):
    """OpenCV and Pillow turn the colors of a palette into their luma."""
    write_mask(tmp_path / "0.png", two_objects())
    luma = save(Image.open(tmp_path / "0.png").convert("L"), tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png has gray levels \(38, 75\)"):
        check(tmp_path / "0.png", luma)


def test_palette_with_exchanged_indices_is_rejected(tmp_path):
    """The second file has the same colors, but an editor has sorted its palette."""
    write_mask(tmp_path / "0.png", two_objects(1, 2))
    colors = palette()
    colors[[1, 2]] = colors[[2, 1]]
    sorted_palette = save(indexed(two_objects(2, 1), colors.tolist()), tmp_path / "1.png")
    with pytest.raises(DataError, match=r"1\.png has color \(0, 128, 0\) at palette index 1, but \S*0\.png .* index 2"):
        check(tmp_path / "0.png", sorted_palette)
