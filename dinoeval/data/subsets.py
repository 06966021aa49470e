"""Parts of a training set: a percentage of every class, the images in a list, and images held out to choose parameters.

All functions return rows in ascending order, for ImageSet.subset. Random choices depend on the labels and the seed only.
N images, n chosen images, C classes.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np

from dinoeval.data.images import ImageSet
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.files import expand


def parse_subset(text: str) -> float | Path:
    """Parse the value of --train-subset.

    Args:
        text: `<number>pct`, such as `1pct` or `0.5pct`, or the path of a list of image names.

    Returns:
        The percentage, or the path.

    Raises:
        ConfigError: If the percentage is not between 0 and 100, or the file does not exist.

    Examples:
        >>> parse_subset("10pct")
        10.0
    """
    if number := re.fullmatch(r"(\d+\.?\d*|\.\d+)pct", text):
        _check_percent(float(number[1]))
        return float(number[1])
    path = expand(text)
    if not path.is_file():
        expected = "<number>pct, such as 1pct, or an existing text file with one image name per line"
        raise ConfigError(f"invalid --train-subset '{text}': expected {expected}")
    return path


def subset_rows(images: ImageSet, text: str, seed: int) -> np.ndarray:
    """Find the images of a subset.

    Args:
        images: A labeled training set.
        text: A value as for parse_subset.
        seed: Random seed of percentages.

    Returns:
        Rows of the subset, (n,) int64, ascending.

    Raises:
        ConfigError: If the value is invalid.
        DataError: If the list does not fit the training set.
    """
    subset = parse_subset(text)
    if isinstance(subset, Path):
        return listed_rows(images, subset)
    assert images.labels is not None
    return sample_rows(images.labels, subset, seed)


def sample_rows(labels: np.ndarray, percent: float, seed: int) -> np.ndarray:
    """Sample a percentage of the images of every class.

    With one label per image, floor(N * percent / 100) images are allotted to the classes in proportion to their sizes by
    the largest-remainder method; ties go to the lower class. A class that would get no image gets one in addition. For the
    1,281,167 images of ImageNet this gives 12,811 images for 1% and 128,116 for 10%, as many as in the lists of SimCLR,
    which contain other images. Within a class, the images with the smallest random numbers are chosen.

    With multi-label sets, the same number of images, but at least one, is sampled regardless of the labels.

    Args:
        labels: Labels, (N,) int64, or (N, C) int8 of a multi-label set.
        percent: 0 < percent < 100.
        seed: Random seed.

    Returns:
        Rows, (n,) int64, ascending.

    Raises:
        ConfigError: If `percent` or `seed` is out of range.

    Examples:
        >>> rows = sample_rows(np.array([0, 0, 0, 0, 1, 1]), 50, seed=0)
        >>> np.array([0, 0, 0, 0, 1, 1])[rows].tolist()
        [0, 0, 1]
    """
    _check_percent(percent)
    count = _floor_fraction(len(labels), percent, 100)
    if labels.ndim == 2:
        return _sample_any(len(labels), max(1, count), seed)
    sizes = np.bincount(labels)
    return _sample_per_class(labels, np.maximum(_allot(sizes, count, limits=sizes), sizes > 0), seed)


def hold_out(labels: np.ndarray, count_or_fraction: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split off a part of a training set to choose parameters on.

    Held-out images are allotted to the classes as in sample_rows, but the last image of a class is always kept. If
    classes of one image leave too few, fewer images are held out.

    Args:
        labels: Labels, (N,) int64, or (N, C) int8 of a multi-label set.
        count_or_fraction: An int is the number of images to hold out, a float between 0 and 1 their fraction (rounded
            down, at least one image).
        seed: Random seed.

    Returns:
        Rows to keep and rows to hold out, both int64 and ascending.

    Raises:
        ConfigError: If nothing would be kept or held out.
        DataError: If every class has a single image.
    """
    total = len(labels)
    if isinstance(count_or_fraction, float):
        if not 0 < count_or_fraction < 1:
            raise ConfigError(f"the fraction to hold out must be between 0 and 1, got {count_or_fraction}")
        count = max(1, _floor_fraction(total, count_or_fraction, 1))
    else:
        count = count_or_fraction
    if not 0 < count < total:
        raise ConfigError(f"{count} of {total} images cannot be held out: at least one must be held out and one kept")
    if labels.ndim == 2:
        held = _sample_any(total, count, seed)
    else:
        sizes = np.bincount(labels)
        held = _sample_per_class(labels, _allot(sizes, count, limits=np.maximum(sizes - 1, 0)), seed)
        if not len(held):
            raise DataError("no image can be held out to choose parameters: every class has one image")
    return np.setdiff1d(np.arange(total), held, assume_unique=True), held


def listed_rows(images: ImageSet, path: str | Path) -> np.ndarray:
    """Find the images that a text file lists.

    Args:
        images: An image set.
        path: A UTF-8 file with one image per line, by file name or by path in the set.

    Returns:
        Rows, (n,) int64, ascending.

    Raises:
        DataError: If a name is not in the set, is ambiguous, or is listed twice.
    """
    path = expand(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"list {path} cannot be read: {error}") from error
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise DataError(f"list {path} has no image names")
    _raise_if_any(_repeated(names), f"names appear more than once in list {path}")
    rows_of: dict[str, list[int]] = {name: [] for name in names}
    for row, image in enumerate(images.paths):
        base = image.rpartition("/")[2]
        if base in rows_of:
            rows_of[base].append(row)
        if image != base and image in rows_of:
            rows_of[image].append(row)
    place = f"in {images.name} ({images.split}), whose images have names such as {images.paths[0]}"
    _raise_if_any([name for name in names if not rows_of[name]], f"names in list {path} match no image {place}")
    _raise_if_any([name for name in names if len(rows_of[name]) > 1], f"names in list {path} match several images {place}")
    rows = [row for (row,) in rows_of.values()]
    _raise_if_any([images.paths[row] for row in _repeated(rows)], f"images are in list {path} both by file name and by path")
    return np.sort(np.array(rows, np.int64))


def _raise_if_any(names: list[str], error: str) -> None:
    if names:
        raise DataError(f"{len(names):,} {error}: {join_names(names)}")


def _repeated(items: list) -> list:
    return [item for item, times in Counter(items).items() if times > 1]


def _check_percent(percent: float) -> None:
    if not 0 < percent < 100:
        raise ConfigError(f"--train-subset must be above 0pct and below 100pct, got {percent:g}pct")


def _floor_fraction(total: int, part: float, base: int) -> int:
    """Return floor(total * part / base) for the decimal number as it was written: 0.3% of 1,000 is 3."""
    return int(total * Fraction(str(part)) / base)


def _allot(sizes: np.ndarray, count: int, *, limits: np.ndarray) -> np.ndarray:
    """Allot `count` images to classes of given sizes (C,) by the largest-remainder method, at most `limits` (C,) each."""
    quotas, remainders = np.divmod(sizes * count, sizes.sum())
    quotas = np.minimum(quotas, limits)
    while (left := count - quotas.sum()) > 0 and len(room := np.flatnonzero(quotas < limits)):
        quotas[room[np.argsort(-remainders[room], kind="stable")][:left]] += 1
    return quotas


def _sample_per_class(labels: np.ndarray, quotas: np.ndarray, seed: int) -> np.ndarray:
    """Sample quotas[c] rows of every class c: those with the smallest of N random numbers."""
    sizes = np.bincount(labels)
    order = np.lexsort((_random(len(labels), seed), labels))  # class after class, each in random order
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # position within the class
    return np.sort(order[place < np.repeat(quotas, sizes)])


def _sample_any(total: int, count: int, seed: int) -> np.ndarray:
    return np.sort(np.argsort(_random(total, seed))[:count])


def _random(total: int, seed: int) -> np.ndarray:
    if seed < 0:
        raise ConfigError(f"--seed must be at least 0, got {seed}")
    return np.random.default_rng(seed).random(total)
