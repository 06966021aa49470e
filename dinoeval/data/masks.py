"""Read and write masks of objects: one rule for annotations and predictions, in every protocol and command.

A mask is (H, W) uint8: 0 is background, 1 to 254 are objects, 255 is void if the dataset defines void. A file stores labels
as palette indices, as gray values, as black and white, or as the colors of VOC and DAVIS. Files whose values are not
certainly labels are rejected by name, and so are files that store their labels in another way than the files next to them.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dinoeval.data.image_files import read_file
from dinoeval.data.pillow import load_pixels, open_image, without_warnings
from dinoeval.errors import BadImage, DataError, join_names

VOID = 255
"""Label of pixels that are not evaluated, if the dataset defines void."""
MAX_GRAY_LABEL = 200
"""Largest label in a gray file. Larger values are shades of white, or the gray of void in VOC (220)."""
MIN_GRAY_LEVEL = 10
"""Gray files whose values are all at least this are not labels, but levels that people can see."""
_LOSSLESS_FORMATS = ("PNG", "GIF", "BMP", "DIB", "TIFF", "PPM")
_LOSSY_COMPRESSIONS = ("jpeg", "tiff_jpeg", "webp")
_EXIF_ORIENTATION = 0x0112
_MIN_SMOOTHED_LABELS = 8  # A mask with at least this many rare values of thin lines looks antialiased,
_MIN_NOISE_LABELS = 24  # and so does one with this many, rare or not.
_MIN_SMOOTHNESS, _MIN_NOISY_PIXELS = 0.8, 64  # A mask of at least so many object pixels is noisy if fewer equal a neighbor; usual is 0.99.
_ADVICE = "Save it as an indexed PNG whose palette indices are the labels"

Kind = Literal["blank", "indices", "gray", "white", "colors"]
"""How a file stores its labels. `blank` files fit to all others: they have no object, or 1 bit per pixel."""
_DESCRIPTIONS: dict[Kind, str] = {
    "indices": "has palette indices as labels",
    "gray": "has gray values as labels",
    "white": "is black and white",
    "colors": "has an RGB color per object",
}


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a file stores its mask."""

    path: Path
    kind: Kind
    labels: frozenset[int]
    """Labels above 0, with void."""
    colors: Mapping[int, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    """RGB by label, of indexed and RGB files."""


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


def read_mask(path: Path) -> np.ndarray:
    """Read a mask that has no siblings.

    Args:
        path: An image file in a lossless format.

    Returns:
        Labels, (H, W) uint8. White in a black and white file is object 1.

    Raises:
        DataError: If the file cannot be read, or its values are not certainly labels.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_mask(Path(folder, "mask.png"), np.array([[0, 3], [3, 75]], np.uint8))
        ...     read_mask(Path(folder, "mask.png")).tolist()
        [[0, 3], [3, 75]]
    """
    mask, encoding = decode_mask(path)
    check_siblings([encoding])
    return mask


def decode_mask(path: Path) -> tuple[np.ndarray, Encoding]:
    """Read one of several masks of a sequence or folder.

    The caller must pass all of them to `check_siblings`.

    Args:
        path: An image file in a lossless format.

    Returns:
        Labels, (H, W) uint8, and how the file stores them.

    Raises:
        DataError: If the file cannot be read, a label is too large, a color has no label, or the image was compressed,
            smoothed, or rotated by its EXIF orientation.
    """
    image = _load(path)
    if "A" in image.mode and np.ptp(np.asarray(image.getchannel("A"))):
        raise DataError(f"mask {path} has an alpha channel that is not constant. {_ADVICE}, without alpha")
    if image.mode == "P":
        mask, encoding = _from_indices(path, image)
    elif image.mode == "1":
        mask = np.array(image).astype(np.uint8)
        encoding = Encoding(path, "blank", _labels(mask))
    elif image.mode == "L" or image.mode.startswith("I"):
        mask, encoding = _from_gray(path, np.array(image))
    elif image.mode in ("RGB", "RGBA", "LA"):
        mask, encoding = _from_colors(path, np.array(image.convert("RGB")))
    else:
        raise DataError(f"mask {path} has mode {image.mode}. {_ADVICE}")
    return mask, encoding if encoding.labels else dataclasses.replace(encoding, kind="blank")


def check_siblings(encodings: Iterable[Encoding]) -> None:
    """Check that the masks of a sequence or folder store labels in the same way.

    Indices and gray values are the same labels and may be mixed. Palettes may differ as long as no color has two indices.

    Args:
        encodings: From `decode_mask`, of all masks of the sequence or folder.

    Raises:
        DataError: If a file has gray levels instead of labels, or stores labels in another way than the others.
    """
    files = [encoding for encoding in encodings if encoding.kind != "blank"]
    _reject_gray_levels(files)
    ways = {kind: [one for one in files if one.kind in kinds] for kind, kinds in _COMPATIBLE.items()}
    ways = {kind: found for kind, found in ways.items() if found}
    if len(ways) > 1:
        fewer, more = sorted(ways.values(), key=len)[0][0], sorted(ways.values(), key=len)[-1][0]
        raise DataError(
            f"mask {fewer.path} {_DESCRIPTIONS[fewer.kind]}, but {more.path} {_DESCRIPTIONS[more.kind]}: save all masks of a "
            "sequence or folder in the same way, as indexed PNG files whose palette indices are the labels"
        )
    if found := find_exchanged_color(files):
        raise DataError(f"{found}. The index is the label: save all masks of a sequence or folder with the same palette")


def find_exchanged_color(encodings: Iterable[Encoding]) -> str | None:
    """Find a color that has two palette indices.

    Then an editor has sorted a palette.

    Args:
        encodings: From `decode_mask`.

    Returns:
        Which mask has which color at which index, or None.
    """
    seen: dict[tuple[int, ...], tuple[int, Encoding]] = {}
    for one in encodings:
        own = list(one.colors.values()) if one.kind == "indices" else []
        for label, color in one.colors.items():
            if own.count(color) != 1:  # The rest of a short palette is black.
                continue
            index, other = seen.setdefault(color, (label, one))
            if index != label:
                return f"mask {one.path} has color {color} at palette index {label}, but {other.path} has it at index {index}"
    return None


_COMPATIBLE: dict[Kind, tuple[Kind, ...]] = {"indices": ("indices", "gray"), "white": ("white",), "colors": ("colors",)}


def _reject_gray_levels(files: list[Encoding]) -> None:
    """Reject gray files whose values are all large, unless files with small values have the same labels."""
    certain: set[int] = {VOID}
    for one in files:
        if one.kind == "gray" and min(one.labels) < MIN_GRAY_LEVEL:
            certain |= one.labels
    colored = any(one.kind == "colors" and not _is_gray(one.colors.values()) for one in files)
    for one in files:
        levels = one.labels if one.kind == "gray" else {color[0] for color in one.colors.values() if any(color)}
        if (one.kind == "gray" and not one.labels <= certain) or (one.kind == "colors" and not colored):
            listed = join_names(map(str, sorted(levels)), 8)
            expected = "1 for the first object, 2 for the second, and so on"
            raise DataError(f"mask {one.path} has gray levels ({listed}) instead of labels, which are {expected}. {_ADVICE}")


def _load(path: Path) -> Image.Image:
    """Open a mask and decode its pixels."""
    try:
        content = read_file(path)
    except OSError as error:
        raise DataError(f"mask {path} cannot be read: {error.strerror or error}") from error
    except BadImage as error:
        raise DataError(f"mask {path} cannot be used: {error}") from error
    with without_warnings():
        try:
            image = open_image(io.BytesIO(content))
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)  # before loading, which rotates TIFF files
            frames = getattr(image, "n_frames", 1)
            compression = image.info.get("compression")
            load_pixels(image)
        except MemoryError as error:
            raise DataError(f"not enough memory to decode mask {path}") from error
        except Exception as error:  # A corrupted file can make Pillow raise any exception.
            raise DataError(f"mask {path} cannot be decoded: {str(error).strip() or type(error).__name__}") from error
    if image.format not in _LOSSLESS_FORMATS or compression in _LOSSY_COMPRESSIONS:
        kind = f"{image.format} file" + (f" with {compression} compression" if image.format == "TIFF" else "")
        raise DataError(f"mask {path} is a {kind}, which does not preserve labels. {_ADVICE}")
    if orientation not in (0, 1):
        raise DataError(f"mask {path} has an EXIF orientation ({orientation}), which masks cannot have: rotate its pixels and remove it")
    if frames > 1:
        raise DataError(f"mask {path} contains {frames} images: save each mask as a file of its own")
    return image


def _count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the values that occur, in ascending order, and how often."""
    if values.dtype != np.uint8:
        return np.unique(values, return_counts=True)
    counts = np.bincount(values.ravel(), minlength=256)  # faster than np.unique
    return np.flatnonzero(counts), counts[counts > 0]


def _labels(mask: np.ndarray) -> frozenset[int]:
    return frozenset(_count(mask)[0].tolist()) - {0}


def _is_gray(colors: Iterable[tuple[int, ...]]) -> bool:
    return all(len(set(color)) == 1 for color in colors)


def _from_indices(path: Path, image: Image.Image) -> tuple[np.ndarray, Encoding]:
    mask, table = np.array(image), np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    table = np.vstack((table, np.zeros((256 - len(table), 3), np.uint8)))
    used, _ = _count(mask)
    if (table[used] == used[:, None]).all():  # A palette of grays: a gray file in disguise.
        return _from_gray(path, mask)
    black = [index for index in used.tolist() if index and not table[index].any()]
    if table[0].any() and black:
        raise DataError(
            f"mask {path} has black at palette index {black[0]} and another color at index 0. Index 0 is the background: save it with a "
            "palette that begins with black"
        )
    _reject_smoothed(path, mask)
    return mask, Encoding(path, "indices", frozenset(used.tolist()) - {0}, {index: tuple(table[index].tolist()) for index in used.tolist()})


def _from_gray(path: Path, values: np.ndarray) -> tuple[np.ndarray, Encoding]:
    labels = _labels(values)
    if labels in ({255}, {65535}):
        mask = (values > 0).astype(np.uint8)
        return mask, Encoding(path, "white", frozenset({1}))
    others = sorted(label for label in labels if not 0 < label <= MAX_GRAY_LABEL and label != VOID)
    if not others or (others[0] >= 0 and others[-1] <= VOID):
        _reject_smoothed(path, values)
    if others:
        found = f"labels from {values.min()} to {values.max()}, such as {others[0]}"
        expected = f"0 for background, 1 to {MAX_GRAY_LABEL} for objects and {VOID} for void"
        raise DataError(f"mask {path} has {found}, but a gray file must have {expected}. {_ADVICE}")
    return values.astype(np.uint8), Encoding(path, "gray", labels)


def _from_colors(path: Path, pixels: np.ndarray) -> tuple[np.ndarray, Encoding]:
    codes, places = np.unique(pixels.astype(np.int32) @ (65536, 256, 1), return_inverse=True)
    colors = [(code >> 16, code >> 8 & 255, code & 255) for code in codes.tolist()]
    known = {tuple(color): label for label, color in enumerate(palette().tolist())}
    others = [str(color) for color in colors if color not in known]
    # The palette contains four grays, so a gray image is read by its values only if one of them is not in the palette.
    if _is_gray(colors) and others:
        return _from_gray(path, pixels[..., 0])
    if others:
        raise DataError(
            f"mask {path} has {len(others)} colors that are not in the palette of VOC and DAVIS: {join_names(others, 3)}. {_ADVICE}, "
            "without smoothing"
        )
    labels = np.array([known[color] for color in colors], np.uint8)
    mask = labels[places].reshape(pixels.shape[:2])
    return mask, Encoding(path, "colors", _labels(mask), {known[color]: color for color in colors})


def _reject_smoothed(path: Path, values: np.ndarray) -> None:
    """Reject antialiased, compressed and dithered masks, and photographs: their values do not fill areas."""
    labels, counts = _count(values)
    if len(labels) <= 2:
        return
    inside = (values > 0) & (values != VOID)
    looks = "noisy or dithered" if inside.sum() >= _MIN_NOISY_PIXELS and _smoothness(values, inside) < _MIN_SMOOTHNESS else ""
    if len(labels) > _MIN_SMOOTHED_LABELS and not looks:
        corner = values[:-1, :-1]
        solid = corner[(corner == values[1:, :-1]) & (corner == values[:-1, 1:]) & (corner == values[1:, 1:])]
        thin = ~np.isin(labels, solid)  # no 2 x 2 pixels have this value
        rare = counts[thin].sum() < counts[~thin & (labels > 0)].sum()
        looks = "antialiased or compressed" if thin.sum() >= (_MIN_SMOOTHED_LABELS if rare else _MIN_NOISE_LABELS) else ""
    if looks:
        listed = join_names(map(str, labels.tolist()))
        raise DataError(f"mask {path} looks {looks}, because its values fill no areas: {listed}. {_ADVICE}, without smoothing")


def _smoothness(values: np.ndarray, inside: np.ndarray) -> float:
    """Return the share of pixels that equal a neighbor in their row, or in their column if that is more."""
    shares = []
    for rows, which in ((values, inside), (values.T, inside.T)):
        same = rows[:, :-1] == rows[:, 1:]
        equal = np.zeros(rows.shape, bool)
        equal[:, :-1] |= same
        equal[:, 1:] |= same
        shares.append(float(equal[which].mean()))
    return max(shares)
