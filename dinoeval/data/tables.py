"""Datasets listed in tables: a column of paths, a column `label` or `labels`, and perhaps a column `split`."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import posixpath
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.images import HELD_OUT, TRAIN, ImageSet, Splits, from_files
from dinoeval.data.text_tables import TABLE_EXTENSIONS, Table, read_table
from dinoeval.errors import DataError, join_names

__all__ = ["MAX_LABELS", "MAX_LABEL_CELLS", "TABLE_EXTENSIONS", "open_split_table", "open_table", "open_table_pair"]

MAX_LABELS = 10_000
"""Largest number of distinct labels in a column `labels`."""
MAX_LABEL_CELLS = 1 << 30
"""Largest number of images times labels of a multi-label dataset; its label matrix takes as many bytes."""
_SPLITS = {
    "train": TRAIN,
    "training": TRAIN,
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def open_table(path: Path) -> ImageSet:
    """Open the images of a table without their labels.

    Args:
        path: A table with a column of paths, which are relative to its folder.

    Returns:
        The images in the order of the rows.

    Raises:
        DataError: If the file is not such a table, or no image exists.
        OSError: If the table cannot be read.
    """
    return from_files(str(path), "all", path.parent, _locate(path.parent, read_table(path)))


def open_split_table(path: Path) -> Splits:
    """Open a table that holds a training and an evaluation split.

    Args:
        path: A table with a column `split` whose cells are `train` and `val` (or `test`). Image paths are relative to the
            folder of the table.

    Returns:
        The training and the evaluation split.

    Raises:
        DataError: If the table has other splits, or rows without labels.
    """
    if path.suffix.lower() not in TABLE_EXTENSIONS:
        raise DataError(f"{path} is neither a folder nor a .csv or .tsv table: pass --data a folder with train/ and val/, or a table")
    table = read_table(path)
    rows: dict[str, list[int]] = {}
    for number, cell in enumerate(table.column("split") if table.has("split") else [None] * len(table)):
        rows.setdefault(cell or "", []).append(number)
    found = join_names(sorted(name or "(none)" for name in rows))
    splits = {_SPLITS.get(name.casefold(), name): numbers for name, numbers in rows.items()}
    held_out = next((name for name in HELD_OUT if name in splits), None)
    if TRAIN not in splits or held_out is None:
        raise DataError(
            f"{path} needs a column 'split' with train and val (or test), found {found}; its columns are {join_names(table.heading, 12)}"
        )
    if len(rows) > 2:
        raise DataError(f"unexpected splits in {path}: keep only {TRAIN} and {held_out}, found {found}")
    return _open_splits(str(path), path.parent, {split: table.select(splits[split]) for split in (TRAIN, held_out)})


def open_table_pair(folder: Path, paths: Mapping[str, Path]) -> Splits:
    """Open a folder with one table per split.

    Args:
        folder: A folder. Image paths are relative to it.
        paths: The tables of the training split and of the evaluation split, by their names.

    Returns:
        The training and the evaluation split.

    Raises:
        DataError: If a table cannot be used.
    """
    return _open_splits(str(folder), folder, {split: read_table(path) for split, path in paths.items()})


def _open_splits(name: str, root: Path, tables: Mapping[str, Table]) -> Splits:
    train, val = (_labeled_set(name, split, root, table) for split, table in tables.items())
    return train, val


def _labeled_set(name: str, split: str, root: Path, table: Table) -> ImageSet:
    """Make an image set of the rows of one split; classes are sorted by name."""
    multi_label = table.has("labels")
    if multi_label and table.has("label"):
        columns = join_names(table.heading, 12)
        raise DataError(
            f"{table.path} has a column 'labels' and one for a single label (columns: {columns}): keep label for one class per image, or "
            "labels for any number"
        )
    cells = _split_labels(split, table) if multi_label else _single_labels(split, table)
    classes = sorted({word for words in cells for word in words})
    index = {word: number for number, word in enumerate(classes)}
    if multi_label:
        if len(classes) > MAX_LABELS or len(classes) * len(table) > MAX_LABEL_CELLS:
            raise DataError(
                f"{table.path} has {len(classes):,} distinct labels in the column 'labels' for {len(table):,} images of {split}. At most "
                f"{MAX_LABELS:,} labels and {MAX_LABEL_CELLS:,} images times labels are supported. For one class per image, name the "
                "column 'label'"
            )
        labels = np.zeros((len(table), len(classes)), np.int8)
        for number, words in enumerate(cells):
            labels[number, [index[word] for word in words]] = 1
    else:
        labels = np.array([index[word] for (word,) in cells], np.int64)
    paths = _locate(root, table)
    notes = _note_repeated(split, table, paths, cells)
    return dataclasses.replace(from_files(name, split, root, paths, labels, classes), notes=notes)


def _single_labels(split: str, table: Table) -> list[list[str]]:
    cells = table.column("label")
    _check_complete(split, "label", table, [number for number, cell in enumerate(cells) if not cell])
    return [[_composed(cell)] for cell in cells if cell]


def _split_labels(split: str, table: Table) -> list[list[str]]:
    """Split the cells of the column `labels` at semicolons."""
    cells = table.column("labels")
    # An empty cell means that no class is present. A row that ends before the cell is incomplete.
    _check_complete(split, "labels", table, [number for number, cell in enumerate(cells) if cell is None])
    return [[_composed(word.strip()) for word in cell.split(";") if word.strip()] for cell in cells if cell is not None]


def _check_complete(split: str, column: str, table: Table, missing: list[int]) -> None:
    if missing:
        paths = table.column("path")
        raise DataError(
            f"{table.path}: {len(missing):,} of {len(table):,} rows of {split} have no {column}: {table.name_lines(missing)} "
            f"({join_names(str(paths[number]) for number in missing)}). Label or remove them"
        )


def _note_repeated(split: str, table: Table, paths: Sequence[str], cells: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Note images that have several rows; it is an error if their labels differ."""
    normal = [os.path.normpath(path) for path in paths]
    counts = collections.Counter(normal)
    if len(counts) == len(normal):
        return ()
    rows: dict[str, list[int]] = {}
    for number, path in enumerate(normal):
        if counts[path] > 1:
            rows.setdefault(path, []).append(number)
    if conflicts := [path for path, numbers in rows.items() if len({frozenset(cells[number]) for number in numbers}) > 1]:
        lines = table.name_lines([number for path in conflicts[:2] for number in rows[path]])
        raise DataError(
            f"{table.path} lists {len(conflicts):,} images of {split} several times with different labels: {join_names(conflicts)} "
            f"({lines}). Keep one row per image. Several classes of an image go into one cell of a column 'labels', separated by ';'"
        )
    return (f"{len(rows):,} images of {split} are listed more than once in {table.path} and count each time: {join_names(rows)}",)


def _locate(root: Path, table: Table) -> list[str]:
    """Return the paths of a table as they are on disk, relative to a folder.

    Paths may be separated by backslashes, and their accents may be composed where those of the disk are not.
    """
    prefix = os.path.join(os.path.abspath(root), "")  # noqa: PTH100, PTH118
    entries = functools.cache(_entries)
    located = []
    for cell in table.column("path"):
        assert cell is not None
        path = cell.removeprefix(prefix) if cell.startswith(prefix) else cell
        if "\\" in path or not path.isascii():
            path = _find(root, path, entries)
        located.append(path.removeprefix("./"))
    return located


def _find(root: Path, path: str, entries: functools._lru_cache_wrapper[Mapping[str, str]]) -> str:
    """Return a path as it is on disk, or with slashes if there is no such file."""
    if os.path.lexists(os.path.join(root, path)):  # noqa: PTH118
        return path
    path = path.replace("\\", "/")
    found = "/" if path.startswith("/") else ""
    for part in path.strip("/").split("/"):
        place = os.path.join(root, found)  # noqa: PTH118
        exists = part in (".", "..") or os.path.lexists(os.path.join(place, part))  # noqa: PTH118
        name = part if exists else entries(place).get(_composed(part))
        if name is None:
            return path
        found = posixpath.join(found, name)
    return found


def _entries(folder: str) -> Mapping[str, str]:
    """Return the names in a folder by their composed form."""
    try:
        return {_composed(name): name for name in os.listdir(folder)}  # noqa: PTH208
    except OSError:
        return {}


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, in which é is one character."""
    return unicodedata.normalize("NFC", name)
