"""Open what a user passes as --data: a dataset name, a folder, a table, an image, or a list of images and folders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from dinoeval.data.folders import list_images, open_split_folder
from dinoeval.data.images import ImageSet, Splits, from_files, in_memory, join_images
from dinoeval.data.loading import EXTENSIONS
from dinoeval.data.sources import NAMES, open_named
from dinoeval.data.tables import TABLE_EXTENSIONS, open_split_table, read_table
from dinoeval.errors import DataError, join_names, unknown
from dinoeval.files import expand


def open_splits(data: str) -> Splits:
    """Open the training and the evaluation split of a labeled dataset.

    Args:
        data: A dataset name (see sources.NAMES); a folder with `train/` and `val/` (or `test/`) of class folders, or with
            `train.csv` and `val.csv`; or a CSV table with a column `split`. In tables, a column `label` holds one class,
            a column `labels` any number of classes, separated by `;`.

    Returns:
        The training and the evaluation split. Both have the same classes, and images.

    Raises:
        DataError: If the data cannot be read, or the classes of the splits differ.

    Examples:
        >>> train, val = open_splits("digits")
        >>> len(train), len(val), train.classes[:3], train.open(0).size
        (1348, 449, ('0', '1', '2'), (8, 8))
    """
    path = expand(data)
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
    return train, val


def open_images(where: str | Path | Iterable[str | Path]) -> ImageSet:
    """Open images without labels.

    Args:
        where: A folder, which is searched recursively; a CSV table with a column `path`; an image file; or several files
            and folders.

    Returns:
        The image set. Images of a folder or table are named relative to it.

    Raises:
        DataError: If nothing is found, or a path does not exist.
    """
    if isinstance(where, (str, Path)):
        path = expand(where)
        if path.is_dir() and str(where):
            names = list_images(path)
            if not names:
                raise DataError(f"{path} contains no image. Supported endings: {', '.join(EXTENSIONS)}")
            return from_files(str(path), "all", path, names)
        if path.suffix.lower() in TABLE_EXTENSIONS and path.is_file():
            return from_files(str(path), "all", path.parent, [row["path"] for row in read_table(path)])
        where = [where]
    names = []
    for item in where:
        path = expand(item)
        if path.is_dir() and str(item):
            names += [str(path / name) for name in list_images(path)]
        elif path.is_file():
            names.append(str(path))
        else:
            raise DataError(f"image or folder {str(item)!r} does not exist")
    if not names:
        raise DataError("no images found: pass a folder, a CSV table or image files")
    return from_files("images", "all", Path(), names)


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
    """Check that two splits have images, valid labels and the same classes."""
    if train.multi_label != val.multi_label:
        raise DataError(f"{train.name}: one split has one label per image, the other is multi-label")
    only = [
        f"only in {one.split}: {join_names(sorted(missing))}"
        for one, other in ((train, val), (val, train))
        if (missing := set(one.classes) - set(other.classes))
    ]
    if only:
        raise DataError(f"the splits of {train.name} must have the same classes; {'; '.join(only)}")
    if train.classes != val.classes:
        raise DataError(f"the classes of {train.name} are numbered differently in {train.split} and {val.split}")
    for images in (train, val):
        place = f"{images.name} ({images.split})"
        if not images.classes or not len(images):
            raise DataError(f"{place} has no {'classes' if len(images) else 'images'}")
        assert images.labels is not None
        if not images.multi_label and not 0 <= images.labels.min() <= images.labels.max() < len(images.classes):
            found = f"{images.labels.min()} to {images.labels.max()}"
            raise DataError(f"{place} has class numbers {found}, but they must be 0 to {len(images.classes) - 1}")
