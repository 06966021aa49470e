"""Datasets in folders: images anywhere below a folder, and one subfolder per class as torchvision's ImageFolder reads it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from dinoeval.data.images import HELD_OUT, TRAIN, ImageSet, Splits, from_files
from dinoeval.data.loading import EXTENSIONS
from dinoeval.data.tables import open_table_pair
from dinoeval.errors import DataError, join_names


def list_images(folder: Path) -> list[str]:
    """List all images below a folder.

    Args:
        folder: An existing folder. It is searched recursively, and links are followed.

    Returns:
        Paths relative to `folder`, in the order of torchvision's ImageFolder: by subfolder, then by file name.

    Raises:
        DataError: If a folder cannot be read.
    """
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    for base, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(base)
        if real in seen:  # A link to a folder that was already visited, perhaps to one of its parents.
            folders.clear()
            continue
        seen.add(real)
        folders.sort()  # If two links lead to one folder, the first by name counts, whatever order the disk returns.
        found.append((base, sorted(file for file in files if file.lower().endswith(EXTENSIONS))))
    prefix = len(str(folder)) + 1
    return [f"{base[prefix:]}/{file}".lstrip("/") for base, files in sorted(found) for file in files]


def open_split_folder(path: Path) -> Splits:
    """Open a folder that holds a training and an evaluation split.

    Args:
        path: A folder with `train/` and `val/` (or `test/`) of class folders, or with `train.csv` and `val.csv`.

    Returns:
        The training and the evaluation split.

    Raises:
        DataError: If a split is missing, or a class has no image.
    """
    held_out = next((name for name in HELD_OUT if (path / name).is_dir()), None)
    if (path / TRAIN).is_dir() and held_out:
        return _open_class_folders(path, TRAIN), _open_class_folders(path, held_out)
    table = next((name for name in HELD_OUT if (path / f"{name}.csv").is_file()), None)
    if (path / f"{TRAIN}.csv").is_file() and table:
        return open_table_pair(path, table)
    raise DataError(f"{path} needs train/ and val/ (or test/), or train.csv and val.csv, but contains {list_entries(path)}")


def list_entries(folder: Path) -> str:
    """List what a folder contains, for error messages.

    Args:
        folder: A path that need not exist.

    Returns:
        The first names, or "nothing" if the folder is empty or does not exist.
    """
    return (join_names(sorted(entry.name for entry in folder.iterdir())) if folder.is_dir() else "") or "nothing"


def _open_class_folders(root: Path, split: str) -> ImageSet:
    folder = root / split
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        count = len(list_images(folder))
        found = f"contains {count:,} images but no class folders" if count else "is empty"
        raise DataError(f"{folder} {found}: use one subfolder per class, such as {folder}/cat/1.jpg")
    names: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        inside = list_images(folder / name)
        if not inside:
            empty.append(name)
        names += [f"{name}/{entry}" for entry in inside]
        labels += [label] * len(inside)
    if empty:
        raise DataError(f"{folder} has classes without images: {join_names(empty)}. Supported endings: {', '.join(EXTENSIONS)}")
    return from_files(str(root), split, folder, names, np.array(labels, np.int64), classes)
