"""Images of every mode, depth, orientation and format that Pillow writes here, cut off, with changed bytes, or hostile."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.frames import read_frame
from dinoeval.data.images import ImageSet, from_files
from dinoeval.data.opening import open_images
from dinoeval.errors import BadImage, DataError
from dinoeval.figures.preprocessing import open_figure_images
from hostile import CANARY
from hostile.changes import changed, choose

SIZE = (17, 12)
MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "F", "La", "RGBa", "RGBX")
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF", "TGA", "ICO", "PCX", "SGI", "EPS", "MPO")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".jp2", ".avif", ".jfif", ".pgm")
ORIENTATION = 0x0112


def pixels(generator: np.random.Generator, mode: str) -> Image.Image:
    """Draw a random image of a mode."""
    height, width = SIZE[1], SIZE[0]
    if mode in ("I;16", "I;16B"):
        return Image.fromarray(generator.integers(0, 65536, (height, width)).astype(np.uint16))
    if mode == "I":
        low, high = choose(generator, ((0, 256), (0, 65536), (-(2**31), 2**31)))
        return Image.fromarray(generator.integers(low, high, (height, width)).astype(np.int32))
    if mode == "F":
        values = generator.normal(0.5, 1, (height, width)).astype(np.float32)
        values *= choose(generator, (1, 255, 1e30))
        if generator.random() < 0.3:
            values[0, 0] = choose(generator, (np.nan, np.inf, -np.inf))
        return Image.fromarray(values)
    bands = len(Image.new(mode, (1, 1)).getbands())
    shape = (height, width, bands) if bands > 1 else (height, width)
    data = generator.integers(0, 256, shape).astype(np.uint8)
    if mode == "1":
        return Image.fromarray(data).convert("1")
    image = Image.frombytes(mode, SIZE, data.tobytes())
    if mode in ("P", "PA"):
        image.putpalette(generator.integers(0, 256, 768).astype(np.uint8).tobytes())
    return image


def encoded(generator: np.random.Generator) -> tuple[str, bytes]:
    """Encode a random image in a random format; another one if the format does not hold the mode."""
    while True:
        mode, name = choose(generator, MODES), choose(generator, FORMATS)
        orientation = int(generator.integers(0, 10)) if generator.random() < 0.5 else 1
        image, target = pixels(generator, mode), io.BytesIO()
        options: dict[str, object] = {}
        if orientation != 1:
            exif = Image.Exif()
            exif[ORIENTATION] = orientation
            options["exif"] = exif.tobytes()
        if generator.random() < 0.2 and mode in ("L", "P", "RGB", "1"):
            options["transparency"] = (1, 2, 3) if mode == "RGB" else int(generator.integers(256))
        if name in ("GIF", "WEBP", "TIFF", "PNG", "MPO") and generator.random() < 0.3:
            options |= {"save_all": True, "append_images": [pixels(generator, mode) for _ in range(2)]}
        try:
            image.save(target, name, **options)
        except Exception:  # noqa: BLE001  not every format holds every mode
            continue
        return f"{mode} {name} {orientation}", target.getvalue()


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _huge_png(generator: np.random.Generator) -> bytes:
    width, height = choose(generator, ((1, 178_000_000), (178_000_000, 1), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (20_000, 20_000)))
    header = struct.pack(">IIBBBBB", width, height, 8, choose(generator, (0, 2, 6)), 0, 0, 0)
    return _png([(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")])


def _text_bomb(generator: np.random.Generator) -> bytes:
    text = b"a\0\0" + zlib.compress(b"\0" * 60_000_000)
    header = struct.pack(">IIBBBBB", 2, 2, 8, 0, 0, 0, 0)
    return _png([(b"IHDR", header), (b"zTXt", text), (b"IDAT", zlib.compress(b"\0" * 6)), (b"IEND", b"")])


def _postscript(generator: np.random.Generator) -> bytes:
    return f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n({CANARY}) (w) file closefile showpage\n%%EOF\n".encode()


def _not_an_image(generator: np.random.Generator) -> bytes:
    others = (b"", b"\0" * 4096, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.4\n", b"GIF89a", b"BM" + b"\xff" * 60)
    return choose(generator, (*others, generator.bytes(500)))


HOSTILE: dict[str, Callable[[np.random.Generator], bytes]] = {
    "huge PNG": _huge_png,
    "text bomb": _text_bomb,
    "PostScript": _postscript,
    "no image": _not_an_image,
}


def _special(generator: np.random.Generator, path: Path) -> str:
    """Make something that is not a regular file."""
    kind = choose(generator, ("FIFO", "device", "kernel log", "dangling link", "link to itself", "folder", "sparse file"))
    match kind:
        case "FIFO":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "kernel log":
            path.symlink_to("/proc/kmsg")
        case "dangling link":
            path.symlink_to("absent.png")
        case "link to itself":
            path.symlink_to(path.name)
        case "folder":
            path.mkdir()
        case _:
            with path.open("wb") as file:
                file.truncate(1 << 42)
    return kind


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write one image as the only file of a folder."""
    path = folder / f"x{choose(generator, SUFFIXES)}"
    dice = generator.random()
    if dice < 0.05:
        return _special(generator, path), path
    if dice < 0.15:
        kind = choose(generator, list(HOSTILE))
        path.write_bytes(HOSTILE[kind](generator))
        return kind, path
    kind, content = encoded(generator)
    if dice < 0.5:
        kind, content = f"changed {kind.split()[1]}", changed(generator, content)
    path.write_bytes(content)
    return kind, path


def readers(home: Path) -> dict[str, Callable[[Path], np.ndarray]]:
    """Return the functions that read images: RGB pixels (H, W, 3) uint8 of each."""

    def in_process(path: Path) -> np.ndarray:
        return _pixels(open_images([path]))

    def in_folder(path: Path) -> np.ndarray:
        return _pixels(open_images(path.parent))

    def in_training(path: Path) -> np.ndarray:
        images = from_files("set", "train", path.parent, [path.name])
        item = ImageDataset(images, lambda image, row: np.asarray(image))[0]
        if not isinstance(item, np.ndarray):
            raise DataError(str(item))
        return item

    def in_figures(path: Path) -> np.ndarray:
        return _pixels(open_figure_images(path))

    def as_frame(path: Path) -> np.ndarray:
        return np.asarray(read_frame(path))

    return {"embed": in_process, "search build": in_folder, "train": in_training, "attention": in_figures, "propagate": as_frame}


def _pixels(images: ImageSet) -> np.ndarray:
    try:
        return np.asarray(images.open(0))
    except BadImage as error:
        raise DataError(str(error)) from error
