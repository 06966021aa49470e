"""Open what a user passes as --data: a dataset name, a folder, a table, an image, or a list of images and folders."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.folders import describe_skipped, open_image_folder, open_split_folder
from dinoeval.data.images import ImageSet, Splits, classes_with_images, from_files, in_memory, join_images
from dinoeval.data.leaks import note_shared_images
from dinoeval.data.sources import NAMES, open_named
from dinoeval.data.tables import TABLE_EXTENSIONS, open_split_table, open_table
from dinoeval.errors import DataError, join_names, unknown
from dinoeval.files import expand

_log = logging.getLogger(__name__)


def open_splits(data: str | Path) -> Splits:
    """Open the training and the evaluation split of a labeled dataset.

    Args:
        data: A dataset name (see sources.NAMES); a folder with `train/` and `val/` (or `test/`) of class folders, or with
            `train.csv` and `val.csv`; or a CSV table with a column `split`. In tables, a column `label` holds one class,
            a column `labels` any number of classes, separated by `;`.

    Returns:
        The training and the evaluation split. Both have the same classes, and images. Their notes name what was left out and
        what is unusual: classes without evaluation images, tables that are not used, images that both splits contain.

    Raises:
        DataError: If the data cannot be read, or a class has no training image.

    Examples:
        >>> train, val = open_splits("digits")
        >>> len(train), len(val), train.classes[:3], train.open(0).size
        (1348, 449, ('0', '1', '2'), (8, 8))
    """
    path, data = expand(data), str(data)
    try:
        if data in NAMES and not path.exists():
            train, val = open_named(data)
        elif path.is_dir():
            train, val = open_split_folder(path)
        elif path.is_file():
            train, val = open_split_table(path)
        else:
            others = f"{path} is not a folder or a CSV table either."
            raise DataError(f"{unknown('dataset', data, NAMES)} {others}")
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    _check_splits(train, val)
    val = _match_classes(train, val)
    return train, dataclasses.replace(val, notes=(*val.notes, *note_shared_images(train, val)))


def open_images(where: str | Path | Iterable[str | Path]) -> ImageSet:
    """Open images without labels.

    Args:
        where: A folder, which is searched recursively; a CSV table with a column `path`; an image file; or several files
            and folders, in their order.

    Returns:
        The image set. Images of a folder or table are named relative to it. A folder is sorted by these names; the order of a table
        and of several files is kept. Files that are not images are left out, counted and logged.

    Raises:
        DataError: If nothing is found, or a path does not exist.
    """
    if isinstance(where, (str, Path)):
        path = expand(where)
        if path.is_dir() and str(where):
            return _report(open_image_folder(path))
        if path.suffix.lower() in TABLE_EXTENSIONS and path.is_file():
            return open_table(path)
        where = [where]
    names: list[str] = []
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    for item in where:
        path = expand(item)
        if path.is_dir() and str(item):
            inside = open_image_folder(path)
            names += [str(path / name) for name in inside.paths]
            skipped += Counter(inside.skipped)
            notes += inside.notes
        elif os.path.lexists(path) and not path.is_dir():
            names.append(str(path))
        else:
            raise DataError(f"image or folder {str(item)!r} does not exist")
    if not names:
        raise DataError("no images found: pass a folder, a CSV table or image files")
    return _report(dataclasses.replace(from_files("images", "all", Path(), names), skipped=skipped, notes=tuple(notes)))


def _report(images: ImageSet) -> ImageSet:
    """Log what was left out of images that no Result is about."""
    if images.skipped:
        _log.warning("%s: other files were left out: %s", images.name, describe_skipped(images.skipped))
    for note in images.notes:
        _log.warning("%s", note)
    return images


def _match_classes(train: ImageSet, val: ImageSet) -> ImageSet:
    """Number the classes of the evaluation split as the training split does, and note classes that lack images of one split.

    Raises:
        DataError: If the evaluation split has images of a class that the training split does not have.
    """
    if train.classes != val.classes:
        val = _renumber(train, val)
    trained, scored = classes_with_images(train), classes_with_images(val)
    notes = []
    for names, text in (
        (np.array(val.classes, object)[trained & ~scored], f"have no image in {val.split}"),
        (np.array(val.classes, object)[scored & ~trained], f"have images in {val.split} but none in {train.split}"),
    ):
        if len(names):
            notes.append(f"{len(names):,} of {len(val.classes):,} classes {text}: {join_names(names)}")
    return dataclasses.replace(val, notes=(*val.notes, *notes))


def _renumber(train: ImageSet, val: ImageSet) -> ImageSet:
    labels = val.labels
    assert labels is not None
    missing = sorted(set(train.classes) - set(val.classes))
    used = {name for name, any_image in zip(val.classes, classes_with_images(val), strict=True) if any_image}
    if more := sorted(used - set(train.classes)):
        only = (f"only in {train.split}: {join_names(missing)}; " if missing else "") + f"only in {val.split}: {join_names(more)}"
        raise DataError(
            f"{train.name} has classes {only}. Images of a class without training images cannot be classified: "
            "add training images, or remove the class"
        )
    if empty := sorted(set(val.classes) - used - set(train.classes)):
        note = f"classes only in {val.split}, which have no image: {join_names(empty)}"
        val = dataclasses.replace(val, notes=(*val.notes, note))
    place = {name: number for number, name in enumerate(train.classes)}
    numbers = np.array([place.get(name, -1) for name in val.classes], np.int64)  # -1 for a class that no image has
    if not val.multi_label:
        return dataclasses.replace(val, labels=numbers[labels], classes=train.classes)
    renumbered = np.zeros((len(val), len(train.classes)), np.int8)
    renumbered[:, numbers[numbers >= 0]] = labels[:, numbers >= 0]
    return dataclasses.replace(val, labels=renumbered, classes=train.classes)


def open_mixed(items: Sequence[str | Path | Image.Image]) -> ImageSet:
    """Open a list of files, folders and open images, without labels.

    Args:
        items: Paths as for `open_images`, and PIL images.

    Returns:
        The image set, in the order of `items`.

    Raises:
        DataError: If an item is neither, nothing is found, or a path does not exist.
    """
    if others := [type(item).__name__ for item in items if not isinstance(item, (str, Path, Image.Image))]:
        raise DataError(f"images must be paths or PIL images, got {others[0]}: convert arrays with PIL.Image.fromarray")
    if not any(isinstance(item, Image.Image) for item in items):
        return open_images(items)  # type: ignore[arg-type]
    return join_images(
        [in_memory([item], number) if isinstance(item, Image.Image) else open_images(item) for number, item in enumerate(items)]
    )


def _check_splits(train: ImageSet, val: ImageSet) -> None:
    """Check that two splits have images, classes and valid labels."""
    if train.multi_label != val.multi_label:
        raise DataError(f"{train.name}: one split has one label per image, the other is multi-label")
    for images in (train, val):
        place = f"{images.name} ({images.split})"
        if not images.classes or not len(images):
            raise DataError(f"{place} has no {'classes' if len(images) else 'images'}")
        assert images.labels is not None
        if not images.multi_label and not 0 <= images.labels.min() <= images.labels.max() < len(images.classes):
            found = f"{images.labels.min()} to {images.labels.max()}"
            raise DataError(f"{place} has class numbers {found}, but they must be 0 to {len(images.classes) - 1}")
