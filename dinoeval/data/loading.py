"""How an image file becomes RGB pixels: the one rule of every command, for files and for images that a program passes.

Formats are those of `dinoeval.data.pillow`, and a file must be a regular one. The first image of a file counts, in full: a
truncated file is rejected. The EXIF orientation is ignored, as in the released code, unless `exif_transpose` is set. 16-bit
values are scaled to 8 bits. Types without a defined white (32-bit integers, floats, signed integers) are rejected. Transparent
pixels are blended with white. Color profiles are ignored, as in torchvision.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms

from dinoeval.data.image_files import ImageReader, report_read_errors
from dinoeval.data.pillow import EXTENSIONS, check_size, load_pixels, open_image, without_warnings
from dinoeval.data.remarks import ORIENTED, SEVERAL_FRAMES, remarks_of
from dinoeval.errors import BadImage

__all__ = ["DEFAULT_RULE", "EXTENSIONS", "ImageRule", "load_image"]

VERSION = 1
"""Version of the rule in its id. It is raised when the same file would give other pixels."""
_ORIENTATION = 0x0112  # tag of EXIF
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270}
_SIDEWAYS = (5, 6, 7, 8)  # orientations that exchange width and height
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # tags of TIFF
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF", "HEIF", "TIFF")  # An MPO holds one photograph; its other images are previews.
_LOW_DEPTH = {"1": 255, "L;2": 85, "L;4": 17}  # factor from the gray values of a PNG to 8 bits
_PNG_SIGNATURE_BYTES = 8
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")  # chunks that can contain EXIF or XMP data
_WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class ImageRule:
    """The rule by which images are read; its id is part of cache keys and Results."""

    exif_transpose: bool = False
    """Rotate images by their EXIF orientation. The released code does not."""

    @property
    def id(self) -> str:
        """Name of the rule, such as `image@1` or `image@1+exif`."""
        return f"image@{VERSION}{'+exif' * self.exif_transpose}"

    def decode(self, content: bytes | Image.Image, draft: int | None = None) -> Image.Image:
        """Decode an image to RGB.

        Args:
            content: The content of an image file, or an image opened by PIL. Of an image that shows a later frame, that frame.
            draft: A JPEG may be decoded at a fraction of its size, with sides of at least so many pixels, which is faster.

        Returns:
            The RGB image. `info` holds its remarks: the keys ORIENTED and SEVERAL_FRAMES if they apply.

        Raises:
            BadImage: If the content cannot be decoded, is larger than the limits, or its pixels have no defined white.

        Examples:
            >>> ImageRule().decode(Image.new("LA", (4, 2), (7, 255))).getpixel((0, 0))
            (7, 7, 7)
        """
        with _pillow_errors():
            image = _open(content)
            if draft:
                image.draft(None, (draft, draft))  # type: ignore[arg-type]
            rgb = self.render(image)
            if isinstance(content, bytes) and _has_several_frames(image):
                rgb.info[SEVERAL_FRAMES] = True
            return rgb

    def render(self, image: Image.Image, frame: int | None = None) -> Image.Image:
        """Decode a frame of an opened image to RGB.

        Args:
            image: An image opened by PIL.
            frame: Number of the frame (default: the current one).

        Returns:
            The RGB image, with the remark ORIENTED in `info` if it applies.

        Raises:
            BadImage: As for `decode`.
        """
        with _pillow_errors():
            if frame is not None:
                image.seek(frame)
            check_size(image.size)
            # Pillow rotates TIFF files while it decodes them, and drops the tag.
            rotated = _orientation(image) if image.format == "TIFF" and getattr(image, "tile", None) else 1
            rawmode = _rawmode(image)
            load_pixels(image)
            orientation = rotated if image.format == "TIFF" else _orientation(image)
            remarks: dict[Any, Any] = dict.fromkeys(remarks_of(image), True) | ({ORIENTED: True} if orientation > 1 else {})
            rgb = _to_rgb(image, rawmode)
            if rotated > 1 and not self.exif_transpose:
                turn = _TRANSPOSE[rotated]
                rgb = rgb.transpose(_INVERSE.get(turn, turn))
            elif orientation > 1 and rotated == 1 and self.exif_transpose:
                rgb = rgb.transpose(_TRANSPOSE[orientation])
            rgb.info = remarks
            return rgb

    def size(self, content: bytes) -> tuple[int, int]:
        """Read the size of an image, without decoding its pixels if the format allows it.

        Args:
            content: The content of an image file.

        Returns:
            Width and height of the decoded image, in pixels.

        Raises:
            BadImage: If the content is not an image, or is larger than the limits.
        """
        with _pillow_errors():
            image = _open(content)
            stored_sideways = image.format == "TIFF" and image.size != image._tile_size  # type: ignore[attr-defined]
            exchanged = (self.exif_transpose and _orientation(image) in _SIDEWAYS) != stored_sideways
            return (image.height, image.width) if exchanged else image.size

    def remarks(self, content: bytes | BinaryIO | Image.Image) -> set[str]:
        """Find the remarks about an image.

        Its pixels are decoded only if the format requires it.

        Args:
            content: The content of an image file, the open file, or an image opened by PIL. Only the beginning of a file is
                read if possible.

        Returns:
            Any of ORIENTED and SEVERAL_FRAMES; none for content that is not an image.

        Raises:
            OSError: If the open file cannot be read.
        """
        file: Any = None if isinstance(content, (bytes, Image.Image)) else _WatchedFile(content)
        found: set[str] = set()
        with contextlib.suppress(BadImage), _pillow_errors():
            image = _open(file or content)
            found |= {ORIENTED} if _orientation(image) > 1 else set()
            found |= {SEVERAL_FRAMES} if image is not content and _has_several_frames(image) else set()
        if file and file.error:
            raise file.error
        return found


DEFAULT_RULE = ImageRule()
"""The rule of the paper."""


def load_image(reader: ImageReader, row: int, name: str, rule: ImageRule) -> Image.Image:
    """Read an image and decode it to RGB.

    Args:
        reader: Returns the content of the image.
        row: Number of the image, passed to `reader`.
        name: Name of the image for error messages.
        rule: The rule by which it is decoded.

    Returns:
        The RGB image, with its remarks in `info`.

    Raises:
        BadImage: If the file does not exist, is not readable or cannot be decoded.
        DataError: If the disk fails, or the memory does not suffice.
    """
    with report_read_errors(name):
        return rule.decode(reader(row))


class _WatchedFile:
    """An open file that keeps the error of a failed read. Some readers of Pillow end the metadata there without an error."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            return self.file.read(size)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn what Pillow raises for a corrupted image, which can be any exception, into BadImage."""
    with without_warnings():
        try:
            yield
        except (BadImage, MemoryError):
            raise
        except Exception as error:
            raise BadImage(" ".join(str(error).split()) or type(error).__name__) from error


def _open(content: bytes | BinaryIO | Image.Image) -> Image.Image:
    """Open the content of an image file or an open file without decoding it; return an image as it is."""
    if isinstance(content, Image.Image):
        return content
    return open_image(io.BytesIO(content) if isinstance(content, bytes) else content)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 if there is none or the EXIF data are corrupted.

    The image is not decoded, unless it is a PNG whose metadata follow the pixels.
    """
    try:
        if image.format == "PNG" and getattr(image, "tile", None) and _has_late_metadata(image.fp):  # type: ignore[attr-defined]
            load_pixels(image)
        value = Image.Image.getexif(image).get(_ORIENTATION)
        return value if value in _TRANSPOSE else 1
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  Pillow raises many types of exceptions for corrupted EXIF data.
        return 1


def _has_late_metadata(file: BinaryIO) -> bool:
    """Return whether a PNG file has chunks of metadata after those of its pixels."""
    position = file.tell()
    try:
        file.seek(_PNG_SIGNATURE_BYTES)
        after = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if after and kind in _PNG_METADATA:
                return True
            after = after or kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)  # the data and their checksum
        return False
    finally:
        file.seek(position)


def _has_several_frames(image: Image.Image) -> bool:
    try:
        return image.format in _ANIMATED and bool(getattr(image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001  The next frame of a GIF is corrupted.
        return True


def _rawmode(image: Image.Image) -> str:
    """Return how the pixels of an opened PNG are stored, such as `RGB;16B`; empty after decoding."""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if image.format == "PNG" and tile else ""


def _to_rgb(image: Image.Image, rawmode: str) -> Image.Image:
    """Convert decoded pixels of any mode to RGB."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # Pillow opens some 16-bit files as mode I.
        return _from_16_bits(image)
    if mode in ("I", "F"):
        kind = "floating-point" if mode == "F" else "signed or 32-bit integer"
        raise BadImage(f"{kind} pixels, which have no defined white: save the image with 8 or 16 bits per channel")
    if mode == "LAB":
        return _from_lab(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if mode == "RGB" and ";16" in rawmode:
        raise BadImage("a transparent color of 16 bits per channel: save the image with 8 bits, or with an alpha channel")
    if rawmode in _LOW_DEPTH and isinstance(image.info.get("transparency"), int):
        image.info["transparency"] *= _LOW_DEPTH[rawmode]  # Pillow scales the pixels to 8 bits, but not this value.
    if mode == "La":
        image = image.convert("LA")
    transparent = image.convert("RGBA")
    opaque = Image.new("RGB", image.size, _WHITE)
    opaque.paste(transparent, mask=transparent)
    return opaque


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Scale unsigned gray values of up to 16 bits to 8 bits, rounded: 65535 becomes 255."""
    values = np.asarray(image)
    tags: Any = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, 16)
    largest = (1 << (bits[0] if isinstance(bits, tuple) else bits)) - 1
    scaled = ((np.arange(65536) * 255 + largest // 2) // largest).clip(max=255).astype(np.uint8)[values.astype(np.uint16)]
    if tags.get(_PHOTOMETRIC) == 0:  # 0 is white. Pillow inverts such values of 8 bits only.
        scaled = 255 - scaled
    if isinstance(transparent := image.info.get("transparency"), int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert converted is not None
    return converted
