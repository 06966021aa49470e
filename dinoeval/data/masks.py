"""Read and write masks of objects: indexed PNG files with the palette of VOC and DAVIS, and other common formats.

A mask is (H, W) uint8: 0 is background, 1 to 254 are objects, 255 is void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.errors import DataError, join_names

VOID = 255
"""Label of pixels that are not evaluated."""
MAX_OBJECTS = VOID - 1
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP")
# A mask with at least this many values between 0 and 255, together rarer than 255, looks like an antialiased binary mask.
_MIN_SMOOTHED_LABELS = 8


def palette() -> np.ndarray:
    """Return the colors of VOC and DAVIS.

    Bits 0, 3 and 6 of a label are the highest bits of red, bits 1, 4 and 7 of green, bits 2 and 5 of blue.

    Returns:
        The color of each label, (256, 3) uint8.

    Examples:
        >>> palette()[:4].tolist()
        [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    """
    labels = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(3):
            colors[:, channel] |= ((labels >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colors


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as an indexed PNG.

    Args:
        path: The file to write.
        mask: Labels, (H, W) uint8.
    """
    assert mask.dtype == np.uint8
    image = Image.fromarray(mask)
    image.putpalette(palette().tobytes())
    image.save(path, "PNG")


def read_mask(path: Path, *, white_is_object: bool = True) -> np.ndarray:
    """Read a mask from an indexed, gray, binary or RGB image.

    RGB images must use the colors of `palette`. A file without a palette whose values are all black or white is a binary
    mask.

    Args:
        path: An image file in a lossless format.
        white_is_object: Whether white in a binary mask is object 1, as in DAVIS 2016. Otherwise it is void.

    Returns:
        Labels, (H, W) uint8.

    Raises:
        DataError: If the file cannot be read, a label is above 255, a color has no label, or the image was compressed or
            smoothed, so that its values are not labels.
    """
    with _open(path) as image:
        if image.format in _LOSSY_FORMATS:
            raise DataError(f"mask {path} is a {image.format} file, which does not preserve labels: save masks as PNG")
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"mask {path} cannot be decoded: {error}") from error
        if image.mode == "P":
            return np.array(image)
        if image.mode in ("1", "L") or image.mode.startswith("I"):
            return _from_gray(path, np.array(image), white_is_object)
        if image.mode in ("RGB", "RGBA", "LA"):
            if "A" in image.mode and np.ptp(np.asarray(image.getchannel("A"))):
                raise DataError(f"mask {path} has an alpha channel that is not constant: save it as an indexed or gray PNG without alpha")
            return _from_colors(path, np.array(image.convert("RGB")), white_is_object)
        raise DataError(f"mask {path} has mode {image.mode}: save it as an indexed or gray PNG")


def is_binary_mask(path: Path) -> bool:
    """Check whether a mask is binary, so that its white is an object and not void.

    Args:
        path: A mask.

    Returns:
        True if the file has no palette, contains white, and all its values are black or white.

    Raises:
        DataError: If the file is not a mask.
    """
    return read_mask(path).max() == 1 and read_mask(path, white_is_object=False).max() == VOID


def _open(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"mask {path} is an unsupported or corrupted image file") from error
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error.strerror or error}") from error


def _from_gray(path: Path, values: np.ndarray, white_is_object: bool) -> np.ndarray:
    labels, counts = np.unique(values, return_counts=True)
    if set(labels.tolist()) in ({0, 255}, {255}, {0, 65535}, {65535}):
        return np.where(values > 0, 1 if white_is_object else VOID, 0).astype(np.uint8)
    if labels[0] < 0 or labels[-1] > VOID:
        expected = f"0 for background, 1 to {MAX_OBJECTS} for objects and {VOID} for void"
        raise DataError(f"mask {path} has labels from {labels[0]} to {labels[-1]}: use {expected}")
    between = counts[(labels > 0) & (labels < VOID)]
    if labels[-1] == VOID and len(between) >= _MIN_SMOOTHED_LABELS and between.sum() < counts[-1]:
        raise DataError(
            f"mask {path} looks like an antialiased binary mask: it has {len(between)} gray values between black and white. "
            "Save it as an indexed or gray PNG whose values are the labels, without smoothing."
        )
    return values.astype(np.uint8)


def _from_colors(path: Path, pixels: np.ndarray, white_is_object: bool) -> np.ndarray:
    colors, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    known = {tuple(color): label for label, color in enumerate(palette().tolist())}
    # The palette contains four grays, so a gray image is read by its values only if one of them is not in the palette.
    if (colors == colors[:, :1]).all() and any(tuple(color) not in known for color in colors.tolist()):
        return _from_gray(path, pixels[..., 0], white_is_object)
    if others := [str(color) for color in map(tuple, colors.tolist()) if color not in known]:
        raise DataError(
            f"mask {path} has {len(others)} colors that are not in the palette of VOC and DAVIS: {join_names(others, 3)}. "
            "Save it as an indexed PNG whose values are the labels, without smoothing."
        )
    labels = np.array([known[tuple(color)] for color in colors.tolist()], np.uint8)
    return labels[places].reshape(pixels.shape[:2])
