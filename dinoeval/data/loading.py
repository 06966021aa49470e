"""How an image file becomes RGB pixels: the one rule that every protocol, search and training run uses.

The EXIF orientation is ignored, as in the released code.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL import Image

from dinoeval.errors import BadImage, DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Endings of image files, the list of torchvision's ImageFolder."""

ImageReader = Callable[[int], bytes | Image.Image]
"""Returns the file content of an image, or the opened image, by its row."""


def load_image(reader: ImageReader, row: int, name: str) -> Image.Image:
    """Read an image and decode it to RGB.

    Args:
        reader: Returns the content of the image.
        row: Number of the image, passed to `reader`.
        name: Name of the image for error messages.

    Returns:
        The RGB image, not rotated by its EXIF orientation.

    Raises:
        BadImage: If the file does not exist, is not readable or cannot be decoded.
        DataError: If the disk fails.
    """
    try:
        content = reader(row)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        raise BadImage(error.strerror) from error
    except OSError as error:  # An I/O error does not mean that the image is corrupted.
        raise DataError(f"{name} cannot be read: {error.strerror}. Rerun the command to resume.") from error
    return decode_image(content)


def decode_image(content: bytes | Image.Image) -> Image.Image:
    """Decode an image to RGB.

    Args:
        content: The content of an image file, or an image opened by PIL.

    Returns:
        The RGB image, not rotated by its EXIF orientation.

    Raises:
        BadImage: If the content cannot be decoded.

    Examples:
        >>> decode_image(Image.new("L", (4, 2), 7)).getpixel((0, 0))
        (7, 7, 7)
    """
    try:
        image = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))
        return image.convert("RGB")
    except Image.UnidentifiedImageError as error:
        raise BadImage("unsupported or corrupted image file") from error
    except MemoryError:
        raise
    except Exception as error:  # A corrupted file can make Pillow raise any exception.
        raise BadImage(str(error).strip() or type(error).__name__) from error
