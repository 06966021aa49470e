"""Datasets listed in CSV or TSV tables: a column `path`, a column `label` or `labels`, and perhaps a column `split`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.images import HELD_OUT, TRAIN, ImageSet, Splits, from_files
from dinoeval.errors import DataError, join_names

TABLE_EXTENSIONS = (".csv", ".tsv")
"""Endings of tables; the columns of .tsv files are separated by tabs."""
Row = dict[str, str]


def read_table(path: Path) -> list[Row]:
    """Read a table of images.

    Args:
        path: A UTF-8 file. Its first line names the columns, one of which is `path`.

    Returns:
        One dict per row, column name to cell.

    Raises:
        DataError: If the file is not such a table, has no rows, or a row has no path.
        OSError: If the file cannot be read.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is not a CSV table: {error}") from error
    if "path" not in columns:
        raise DataError(f"{path} has no column 'path': its first line must name the columns, such as path,label,split")
    if not rows:
        raise DataError(f"{path} has column names but no rows")
    if empty := [number for number, row in enumerate(rows, 2) if not row["path"]]:
        raise DataError(f"{path} has no path in line {join_names(map(str, empty))}")
    return rows


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
    splits: dict[str, list[Row]] = {}
    for row in read_table(path):
        splits.setdefault(row.get("split") or "", []).append(row)
    held_out = next((name for name in HELD_OUT if name in splits), None)
    found = join_names(sorted(name or "(none)" for name in splits))
    if TRAIN not in splits or held_out is None:
        raise DataError(f"{path} needs a column 'split' with train and val (or test), found {found}")
    if len(splits) > 2:
        raise DataError(f"unexpected splits in {path}: keep only {TRAIN} and {held_out}, found {found}")
    name, root = str(path), path.parent
    return _labeled_set(name, TRAIN, root, splits[TRAIN]), _labeled_set(name, held_out, root, splits[held_out])


def open_table_pair(folder: Path, held_out: str) -> Splits:
    """Open a folder with one table per split.

    Args:
        folder: A folder with `train.csv` and `<held_out>.csv`. Image paths are relative to it.
        held_out: Name of the evaluation split.

    Returns:
        The training and the evaluation split.

    Raises:
        DataError: If a table cannot be used.
    """
    train, val = (_labeled_set(str(folder), split, folder, read_table(folder / f"{split}.csv")) for split in (TRAIN, held_out))
    return train, val


def _labeled_set(name: str, split: str, root: Path, rows: Sequence[Row]) -> ImageSet:
    """Make an image set of the rows of one split; classes are sorted by name."""
    multi_label = "labels" in rows[0]
    if multi_label and "label" in rows[0]:
        raise DataError(f"{name} has a column 'label' and a column 'labels': keep label for one class per image, or labels for any number")
    cells = _label_cells(name, split, rows) if multi_label else _single_labels(name, split, rows)
    classes = sorted({word for words in cells for word in words})
    index = {word: number for number, word in enumerate(classes)}
    if multi_label:
        labels = np.zeros((len(rows), len(classes)), np.int8)
        for number, words in enumerate(cells):
            labels[number, [index[word] for word in words]] = 1
    else:
        labels = np.array([index[word] for (word,) in cells], np.int64)
    return from_files(name, split, root, [row["path"] for row in rows], labels, classes)


def _single_labels(name: str, split: str, rows: Sequence[Row]) -> list[list[str]]:
    _check_complete(name, split, "label", [row["path"] for row in rows if not row.get("label")], len(rows))
    return [[row["label"]] for row in rows]


def _label_cells(name: str, split: str, rows: Sequence[Row]) -> list[list[str]]:
    """Split the cells of the column `labels` at semicolons."""
    # An empty cell means that no class is present. A row that ends before the cell is incomplete.
    _check_complete(name, split, "labels", [row["path"] for row in rows if row.get("labels") is None], len(rows))
    if longer := [row["path"] for row in rows if None in row]:
        raise DataError(f"{name}: rows of {split} have more cells than columns: {join_names(longer)}. Separate labels by ';'")
    return [[word.strip() for word in row["labels"].split(";") if word.strip()] for row in rows]


def _check_complete(name: str, split: str, column: str, missing: list[str], total: int) -> None:
    if missing:
        raise DataError(f"{name}: {len(missing)} of {total} rows of {split} have no {column}: {join_names(missing)}")
