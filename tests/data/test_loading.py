"""Values that the rule for images must give, computed by hand, for files of every kind."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from factories import synthetic_images
from PIL import Image, ImageFile, ImageOps, features

from dinoeval.data.image_files import read_file
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.data.pillow import EXTENSIONS, MAX_PIXELS, MAX_SIDE
from dinoeval.errors import BadImage

TRANSPOSED = ImageRule(exif_transpose=True)
GRAY = np.array([[0, 1000, 30_000], [7 * 257, 65_535, 200 * 257]], np.uint16)
SCALED = [[0, 4, 117], [7, 255, 200]]  # rounded quotients by 257


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(content: bytes | Image.Image, rule: ImageRule = DEFAULT_RULE) -> np.ndarray:
    image = rule.decode(content)
    assert image.mode == "RGB"
    if isinstance(content, bytes):
        assert rule.size(content) == image.size
        assert rule.remarks(content) == set(image.info)
        assert rule.remarks(io.BytesIO(content)) == set(image.info)
    return np.asarray(image)


def png(size: tuple[int, int], depth: int, color: int, rows: list[bytes], transparency: bytes = b"") -> bytes:
    """Write a PNG by hand, in kinds that Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, color, 0, 0, 0))
    header += chunk(b"tRNS", transparency) if transparency else b""
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, changes: dict[int, int]) -> bytes:
    """Write a little-endian TIFF and change tags of it."""
    content = encode(Image.fromarray(values), "TIFF")
    for tag, value in changes.items():
        place = content.index(struct.pack("<HHI", tag, 3, 1))
        content = content[: place + 8] + struct.pack("<H", value) + content[place + 10 :]
    return content


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (encode(Image.fromarray(GRAY), "PNG"), SCALED),
        (encode(Image.fromarray(GRAY), "TIFF"), SCALED),
        (encode(Image.fromarray(GRAY), "TIFF", compression="tiff_lzw"), SCALED),
        (encode(Image.fromarray(GRAY.astype(">u2")), "TIFF"), SCALED),
        (tiff(GRAY, {262: 0}), [[255 - value for value in row] for row in SCALED]),  # white is zero
        (b"P5 3 2 65535\n" + GRAY.astype(">u2").tobytes(), SCALED),
        (b"P5 2 1 4095\n" + np.array([0, 4095], ">u2").tobytes(), [[0, 255]]),
        (Image.fromarray(GRAY), SCALED),
        (Image.fromarray(GRAY.astype(">u2")), SCALED),
        (png((2, 1), 16, 0, [struct.pack(">2H", 500, 600)], struct.pack(">H", 500)), [[255, 2]]),
    ],
)
def test_16_bit_gray_is_scaled_to_8_bits(content, expected):
    assert (pixels(content) == np.array(expected)[..., None]).all()


def test_12_bit_tiff_is_scaled_by_4095():
    values = [0, 4095, 2048, 16]
    packed = bytes(byte for one, other in (values[:2], values[2:]) for byte in (one >> 4, (one & 15) << 4 | other >> 8, other & 255))
    tags = [(256, 4), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, len(packed))]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in tags)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory + bytes(4)
    assert pixels(content)[0, :, 0].tolist() == [0, 255, 128, 1]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_types_without_a_defined_white_are_rejected(kind):
    image = Image.fromarray((GRAY / 65_535).astype(kind))
    for content in (image, encode(image, "TIFF")):
        with pytest.raises(BadImage, match=r"integer|floating-point"):
            pixels(content)
    with pytest.raises(BadImage, match="floating-point"):
        pixels(b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png((2, 1), 16, 2, [struct.pack(">6H", 65_535, 0x8000, 9 * 257, 0, 0, 0)]), [[255, 128, 9], [0, 0, 0]]),
        (png((1, 1), 16, 4, [struct.pack(">2H", 0x8000, 65_535)]), [[128, 128, 128]]),
        (png((2, 1), 16, 6, [struct.pack(">8H", 1, 2, 3, 0, 0x8000, 0, 0, 65_535)]), [[255, 255, 255], [128, 0, 0]]),
        (png((4, 1), 2, 0, [bytes([0b00011011])], b"\0\1"), [[0] * 3, [255] * 3, [170] * 3, [255] * 3]),
        (png((8, 1), 1, 0, [bytes([0b01111111])], b"\0\0"), [[255] * 3] * 8),
        (png((2, 1), 8, 0, [bytes([5, 9])], b"\0\5"), [[255] * 3, [9] * 3]),
        (png((2, 1), 8, 2, [bytes([1, 2, 3, 4, 5, 6])], b"\0\1\0\2\0\3"), [[255] * 3, [4, 5, 6]]),
    ],
)
def test_png_of_every_depth(content, expected):
    assert pixels(content)[0].tolist() == expected


def test_transparent_pixels_are_laid_on_white():
    image = Image.new("RGBA", (3, 1))
    for place, color in enumerate([(90, 80, 70, 0), (100, 0, 200, 128), (1, 2, 3, 255)]):
        image.putpixel((place, 0), color)
    expected = [[255, 255, 255], [177, 127, 227], [1, 2, 3]]
    for content in (image, encode(image, "PNG"), encode(image, "TIFF"), encode(image, "WEBP", lossless=True, exact=True)):
        assert np.abs(pixels(content)[0].astype(int) - expected).max() <= 1
    gray = Image.fromarray(np.array([[[9, 0], [9, 255]]], np.uint8))
    for content in (gray, encode(gray, "PNG"), gray.convert("La")):
        assert pixels(content)[0].tolist() == [[255] * 3, [9] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for transparency in (bytes([0, 255]), 0):
        assert pixels(encode(palette, "PNG", transparency=transparency))[0].tolist() == [[255] * 3, [40, 50, 60]]
    assert pixels(encode(palette, "GIF", transparency=0))[0].tolist() == [[255] * 3, [40, 50, 60]]


def test_other_color_spaces_become_rgb():
    color = synthetic_images(1, (24, 16))[0]
    values = np.asarray(color).astype(int)
    for kind in ("CMYK", "YCbCr", "HSV", "RGBX", "RGBA"):
        assert np.abs(pixels(color.convert(kind)) - values).max() <= 4
    assert np.abs(pixels(encode(color.convert("CMYK"), "TIFF")) - values).max() == 0
    assert np.abs(pixels(encode(color.convert("CMYK"), "JPEG", quality=100)) - values).mean() < 3  # inverted, as Adobe writes it
    assert pixels(Image.new("LAB", (1, 1), (128, 128, 128)))[0, 0].tolist() == [119] * 3  # L* = 50.2
    assert pixels(Image.fromarray(np.array([[True, False]])))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_first_frame_counts_and_is_remarked(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    frames = [Image.new("RGB", (16, 16), color) for color in ((200, 0, 0), (0, 200, 0))]
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert np.abs(pixels(content).astype(int) - [200, 0, 0]).max() <= 3
    assert DEFAULT_RULE.remarks(content) == {"several_frames"}
    assert not DEFAULT_RULE.remarks(encode(frames[0], kind))
    assert not DEFAULT_RULE.remarks(encode(frames[0], "MPO", save_all=True, append_images=frames[1:]))


def test_orientation_after_the_pixels_of_a_png_is_found():
    image = Image.new("RGB", (4, 8))
    exif = image.getexif()
    exif[274] = 6
    content = encode(image, "PNG", exif=exif)
    start = content.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", content[start : start + 4])[0]
    late = content[:start] + content[end:-12] + content[start:end] + content[-12:]
    assert pixels(late, TRANSPOSED).shape == (4, 8, 3)
    assert DEFAULT_RULE.remarks(late) == {"oriented"}


@pytest.mark.parametrize(("kind", "limit"), [("JPEG", 9000), ("PNG", 9000), ("TIFF", 70_000)])
def test_remarks_do_not_require_the_whole_file(kind, limit):
    """Training asks for the remarks about all images before it starts."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))
    content, read = encode(noise, kind), 0

    class Counting(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            nonlocal read
            found = super().read(size)
            read += len(found)
            return found

    assert DEFAULT_RULE.remarks(Counting(content)) == set()
    assert read <= limit
    assert len(content) > 200_000


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {"quality": 95}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {})]
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_means_the_same_in_every_format(kind, options, orientation):
    stored = synthetic_images(1, (24, 16))[0]
    plain, exif = pixels(encode(stored, kind, **options)), Image.Exif()
    exif[0x0112] = orientation
    content = encode(stored, kind, exif=exif, **options)
    for source in (content, Image.open(io.BytesIO(content))):
        assert (pixels(source) == plain).all()
    assert ("oriented" in DEFAULT_RULE.decode(content).info) == (orientation > 1)
    tagged = Image.fromarray(plain)
    tagged.info["exif"] = exif.tobytes()
    for source in (content, tagged):
        assert (pixels(source, TRANSPOSED) == np.asarray(ImageOps.exif_transpose(tagged))).all()


KINDS = [
    ("JPEG", {}),
    ("JPEG", {"progressive": True}),
    ("PNG", {}),
    ("GIF", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("BMP", {}),
    ("PPM", {}),
]
KINDS += [(kind, {}) for kind, name in (("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(name)] + [
    ("ICO", {})
]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_truncated_files_are_rejected_whatever_pillow_is_set_to(kind, options, monkeypatch):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    content = encode(noise, kind, **options)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    pixels(content)
    for length in (len(content) // 3, len(content) - 40):
        with pytest.raises(BadImage):
            DEFAULT_RULE.decode(content[:length])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    if kind == "JPEG":
        with pytest.raises(BadImage, match="truncated"):
            DEFAULT_RULE.decode(Image.open(io.BytesIO(content[: len(content) // 2])))
    assert (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS) == (True, None)


def test_settings_of_pillow_do_not_change_for_other_threads():
    content, seen, stop = encode(synthetic_images(1, (600, 600))[0], "PNG"), set(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            seen.add((ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS))

    before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(20):
        pixels(content)
    stop.set()
    watcher.join()
    assert seen == {before}


def test_warnings_of_pillow_are_ignored_also_as_errors():
    palette = Image.new("P", (2, 2))
    content = encode(palette, "PNG", transparency=bytes([1, 2]))
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20)  # a directory that is cut
    corrupted = encode(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        for each in (content, corrupted, palette):
            pixels(each, TRANSPOSED)
        assert warnings.filters == before


def test_pixels_are_limited_before_memory_is_allocated():
    exceeding = [(1, 178_000_000), (MAX_SIDE + 1, 1), (20_000, MAX_PIXELS // 20_000 + 1)]
    for width, height in exceeding:
        for content in (png((width, height), 1, 0, [b""]), b"P4 %d %d\n" % (width, height), b"P6 %d %d 255\n" % (width, height)):
            with pytest.raises(BadImage, match=f"{width} x {height} pixels exceed"):
                DEFAULT_RULE.decode(content)


@pytest.mark.slow
def test_large_images_are_decoded_without_a_warning():
    content = encode(Image.new("1", (16_000, 12_000), 1), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DEFAULT_RULE.decode(content).size == (16_000, 12_000)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.jpg").touch()
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "zero", "folder"):
        with pytest.raises(BadImage, match="not a regular file"):
            read_file(tmp_path / f"{name}.jpg")
    (tmp_path / "short.jpg").write_bytes(b"(")
    for name, reason in (("empty", "empty"), ("short", "unsupported"), ("sparse", "1,099,511,627,776 bytes exceed")):
        with pytest.raises(BadImage, match=reason):
            read_file(tmp_path / f"{name}.jpg")


def test_no_program_is_started_for_postscript(tmp_path):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    Image.new("RGB", (20, 20)).save(tmp_path / "x.eps")
    (tmp_path / "x.eps").rename(tmp_path / "x.png")
    code = (
        "from PIL import Image; from dinoeval.data.image_files import read_file\n"
        "from dinoeval.data.loading import DEFAULT_RULE; from dinoeval.errors import BadImage\n"
        "for read in (read_file, lambda path: open(path, 'rb').read(), Image.open):\n"
        "    try:\n        DEFAULT_RULE.decode(read('x.png'))\n"
        "    except BadImage: pass\n    else: raise SystemExit('read')\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    assert not (tmp_path / "started").exists()


def test_extensions_follow_from_the_formats():
    assert {".jpg", ".jpe", ".jfif", ".png", ".gif", ".tif", ".bmp", ".ppm"} <= set(EXTENSIONS)
    for name, suffix in (("webp", ".webp"), ("avif", ".avif"), ("jpg_2000", ".jp2")):
        assert (suffix in EXTENSIONS) == bool(features.check(name))
    assert not {".eps", ".ps", ".wmf", ".pdf"} & set(EXTENSIONS)
