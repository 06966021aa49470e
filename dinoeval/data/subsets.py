"""Parts of a training set: a share of every class, the images that a list names, and images held out to choose parameters by.

All return row numbers, ascending, for ImageSet.subset. What is drawn depends on the labels and the seed alone.
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

# N rows of the set, n rows drawn, C classes


def parse_subset(text: str) -> float | Path:
    """Read `1pct`, `10pct` or any `<number>pct` as a percentage, and anything else as the path of a list of image names.

    Raises ConfigError for a percentage that is not between 0 and 100, and for a file that does not exist.
    """
    if number := re.fullmatch(r"(\d+\.?\d*|\.\d+)pct", text):
        _check_percent(float(number[1]))
        return float(number[1])
    path = expand(text)
    if not path.is_file():
        raise ConfigError(f"no subset '{text}': a subset is <number>pct, such as 1pct, or a text file with one image name a line")
    return path


def subset_rows(images: ImageSet, text: str, seed: int) -> np.ndarray:
    """Find the rows (n,) of a labelled set that a text as for parse_subset stands for; `seed` is for percentages."""
    part = parse_subset(text)
    if isinstance(part, Path):
        return listed(images, part)
    assert images.labels is not None
    return fraction(images.labels, part, seed)


def fraction(labels: np.ndarray, percent: float, seed: int) -> np.ndarray:
    """Draw `percent` of the rows, of every class in proportion to its size; returns rows (n,), ascending.

    With one label an image, labels (N,), floor(N * percent / 100) rows are shared out in proportion to the sizes of the
    classes by largest remainder: every class gets its share rounded down, and the rows left over go one each to the
    classes that lost most by that, of equal losses to the earlier class. A class that would go without an image gets one
    on top. Of ImageNet's 1,281,167 images that makes 12,811 for 1 % and 128,116 for 10 %, as many as SimCLR's lists name
    (those hold other images). In a class, the rows with the smallest random numbers are drawn.

    With several labels an image, labels (N, C), the same number of rows is drawn from all alike, one at least.
    """
    _check_percent(percent)
    count = _share(len(labels), percent, 100)
    if labels.ndim == 2:
        return _draw_any(len(labels), max(1, count), seed)
    sizes = np.bincount(labels)
    return _draw(labels, np.maximum(_seats(sizes, count, most=sizes), sizes > 0), seed)


def hold_out(labels: np.ndarray, count_or_fraction: int | float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a training set in two, to fit on one part and to choose parameters by the other; returns (kept, held) rows.

    An int is the number of rows to hold out, a float between 0 and 1 their share (rounded down, one row at least). They
    are shared out over the classes as by `fraction`, but the last image of a class is always kept: where classes of one
    image leave no more, fewer rows are held out. With several labels an image, labels (N, C), rows are drawn from all
    alike. Raises ConfigError for a number that leaves nothing to keep or to hold, DataError where every class has one image.
    """
    total = len(labels)
    if isinstance(count_or_fraction, float):
        if not 0 < count_or_fraction < 1:
            raise ConfigError(f"the share to hold out must be between 0 and 1: {count_or_fraction}")
        count = max(1, _share(total, count_or_fraction, 1))
    else:
        count = count_or_fraction
    if not 0 < count < total:
        raise ConfigError(f"{count} of {total} images cannot be held out: one at least must be held, and one kept")
    if labels.ndim == 2:
        held = _draw_any(total, count, seed)
    else:
        sizes = np.bincount(labels)
        held = _draw(labels, _seats(sizes, count, most=np.maximum(sizes - 1, 0)), seed)
        if not len(held):
            raise DataError("nothing can be held out to choose parameters by: every class has one image")
    return np.setdiff1d(np.arange(total), held, assume_unique=True), held


def listed(images: ImageSet, path: str | Path) -> np.ndarray:
    """Find the rows (n,), ascending, of the images that a text file names, one a line, by base name or by path in the set.

    Raises DataError where a name is not in the set, is there more than once, or is listed twice.
    """
    path = expand(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"the list {path} cannot be read: {error}") from error
    names = [name for line in lines if (name := line.strip())]
    if not names:
        raise DataError(f"the list {path} names no image")
    _refuse(_repeated(names), f"names are more than once in the list {path}")
    rows_of: dict[str, list[int]] = {name: [] for name in names}
    for row, image in enumerate(images.paths):
        base = image.rpartition("/")[2]
        if base in rows_of:
            rows_of[base].append(row)
        if image != base and image in rows_of:
            rows_of[image].append(row)
    of_set = f"in {images.name} ({images.split}), whose images are named like {images.paths[0]}"
    _refuse([name for name in names if not rows_of[name]], f"names in the list {path} are of no image {of_set}")
    _refuse([name for name in names if len(rows_of[name]) > 1], f"names in the list {path} are of several images {of_set}")
    rows = [row for (row,) in rows_of.values()]
    _refuse([images.paths[row] for row in _repeated(rows)], f"images are in the list {path} both by base name and by path")
    return np.sort(np.array(rows, np.int64))


def _refuse(names: list[str], why: str) -> None:
    if names:
        raise DataError(f"{len(names):,} {why}: {join_names(names)}")


def _repeated(items: list) -> list:
    return [item for item, times in Counter(items).items() if times > 1]


def _check_percent(percent: float) -> None:
    if not 0 < percent < 100:
        raise ConfigError(f"a subset must be more than 0 and less than 100 percent: {percent:g}pct")


def _share(total: int, part: float, whole: int) -> int:
    """floor(total * part / whole), of the decimal number as it was written: 0.3 % of 1,000 is 3."""
    return int(total * Fraction(str(part)) / whole)


def _seats(sizes: np.ndarray, count: int, *, most: np.ndarray) -> np.ndarray:
    """Share `count` rows out over classes in proportion to their sizes (C,), by largest remainder; no class gets above `most`."""
    seats, remainders = np.divmod(sizes * count, sizes.sum())
    seats = np.minimum(seats, most)
    while (left := count - seats.sum()) > 0 and len(room := np.flatnonzero(seats < most)):
        seats[room[np.argsort(-remainders[room], kind="stable")][:left]] += 1
    return seats


def _draw(labels: np.ndarray, seats: np.ndarray, seed: int) -> np.ndarray:
    """Draw seats[c] rows of every class c: those with the smallest of N random numbers."""
    sizes = np.bincount(labels)
    order = np.lexsort((_random(len(labels), seed), labels))  # class after class, each in random order
    place = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # of each in its class
    return np.sort(order[place < np.repeat(seats, sizes)])


def _draw_any(total: int, count: int, seed: int) -> np.ndarray:
    return np.sort(np.argsort(_random(total, seed))[:count])


def _random(total: int, seed: int) -> np.ndarray:
    if seed < 0:
        raise ConfigError(f"seed must be 0 or more: {seed}")
    return np.random.default_rng(seed).random(total)
