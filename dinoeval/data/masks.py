"""Masks of objects: indexed PNG files with the palette of VOC and DAVIS, and whatever else people keep masks in.

A mask is (H, W) uint8: 0 background, 1 to 254 objects, 255 void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.errors import DataError, join_names

VOID = 255
MOST_OBJECTS = VOID - 1
_LOSSY = ("JPEG", "MPO", "WEBP")
_SMOOTHED = 8  # labels between 0 and 255, so many of them and all together less than the white, are the edges of a smoothed picture


def palette() -> np.ndarray:
    """The colours of VOC, (256, 3) uint8: bits 0, 3, 6 of a label are the upper bits of red, 1, 4, 7 of green, 2, 5 of blue."""
    labels = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for place in range(3):
            colours[:, channel] |= ((labels >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as an indexed PNG."""
    assert mask.dtype == np.uint8
    picture = Image.fromarray(mask)
    picture.putpalette(palette().tobytes())
    picture.save(path, "PNG")


def open_mask(path: Path) -> Image.Image:
    """Open a mask without decoding it. Raises DataError."""
    try:
        return Image.open(path)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{path} is no image in a format that is known") from error
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error.strerror or error}") from error


def read_mask(path: Path, *, white_is_object: bool = True) -> np.ndarray:
    """Read a mask (H, W): indexed, grey, black and white, or in the colours of VOC.

    Where the file has no palette and holds black and white alone, white is object 1, as in DAVIS-2016, or else void. Raises DataError
    where a label is above 255, a colour stands for none, or the numbers cannot be labels: those of compressed or smoothed
    pictures.
    """
    with open_mask(path) as picture:
        if picture.format in _LOSSY:
            raise DataError(f"mask {path} is a {picture.format} file, which does not keep numbers as they are: masks are PNG files")
        try:
            picture.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"mask {path} cannot be decoded: {error}") from error
        if picture.mode == "P":
            return np.array(picture)
        if picture.mode in ("1", "L") or picture.mode.startswith("I"):
            return _of_numbers(path, np.array(picture), white_is_object)
        if picture.mode in ("RGB", "RGBA", "LA"):
            if "A" in picture.mode and np.ptp(np.asarray(picture.getchannel("A"))):
                raise DataError(
                    f"mask {path} has an alpha channel that varies, which says nothing of labels: save it as an indexed or grey PNG"
                )
            return _of_colours(path, np.array(picture.convert("RGB")), white_is_object)
        raise DataError(f"mask {path} has the mode {picture.mode}: masks are indexed or grey PNG files")


def black_and_white(path: Path) -> bool:
    """Whether a mask has no palette and holds black and white alone, so that white is read as an object and not as void."""
    return read_mask(path).max() == 1 and read_mask(path, white_is_object=False).max() == VOID


def _of_numbers(path: Path, numbers: np.ndarray, white_is_object: bool) -> np.ndarray:
    labels, counts = np.unique(numbers, return_counts=True)
    if set(labels.tolist()) in ({0, 255}, {255}, {0, 65535}, {65535}):
        return np.where(numbers > 0, 1 if white_is_object else VOID, 0).astype(np.uint8)
    if labels[0] < 0 or labels[-1] > VOID:
        raise DataError(
            f"mask {path} holds labels from {labels[0]} to {labels[-1]}: 0 is background, objects are 1 to {MOST_OBJECTS}, {VOID} is void"
        )
    between = counts[(labels > 0) & (labels < VOID)]
    if labels[-1] == VOID and len(between) >= _SMOOTHED and between.sum() < counts[-1]:
        raise DataError(
            f"mask {path} looks like a black and white one that was smoothed: {len(between)} shades of grey lie between its black and "
            "white. Save it as an indexed or grey PNG whose numbers are the objects, without smoothing."
        )
    return numbers.astype(np.uint8)


def _of_colours(path: Path, pixels: np.ndarray, white_is_object: bool) -> np.ndarray:
    colours, places = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    known = {tuple(colour): label for label, colour in enumerate(palette().tolist())}
    if (colours == colours[:, :1]).all() and any(tuple(colour) not in known for colour in colours.tolist()):
        return _of_numbers(path, pixels[..., 0], white_is_object)  # the palette has four greys of its own
    if strangers := [str(colour) for colour in map(tuple, colours.tolist()) if colour not in known]:
        raise DataError(
            f"mask {path} has {len(strangers)} colours that are not in the palette of VOC and DAVIS: {join_names(strangers, 3)}. "
            "Save it as an indexed PNG whose numbers are the objects, without smoothing."
        )
    labels = np.array([known[tuple(colour)] for colour in colours.tolist()], np.uint8)
    return labels[places].reshape(pixels.shape[:2])
