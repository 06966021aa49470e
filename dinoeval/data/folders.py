"""Datasets in folders: images anywhere below a folder, and one subfolder per class as torchvision's ImageFolder reads it."""

from __future__ import annotations

import collections
import dataclasses
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinoeval.data.imagenet import describe_unpacking, find_labels, find_root, open_flat
from dinoeval.data.images import HELD_OUT, TRAIN, ImageSet, Splits, from_files
from dinoeval.data.loading import EXTENSIONS
from dinoeval.data.names import is_hidden, is_image_name
from dinoeval.data.tables import TABLE_EXTENSIONS, open_table_pair
from dinoeval.errors import DataError, join_names

HIDDEN = "hidden"
"""Under this name, hidden files and folders are counted among the files that were skipped."""
_SPLIT_FOLDERS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


@dataclasses.dataclass(frozen=True)
class Listing:
    """What a search of a folder found."""

    names: list[str] = dataclasses.field(default_factory=list)
    """Images, relative to the folder."""
    skipped: Counter[str] = dataclasses.field(default_factory=collections.Counter)
    """Numbers of files that are not images, by ending; and of hidden images and folders."""
    broken: list[str] = dataclasses.field(default_factory=list)
    """Links that lead nowhere and have not the name of an image, relative to the folder."""


def list_images(folder: Path) -> Listing:
    """List all images below a folder.

    Args:
        folder: An existing folder. It is searched recursively, and links are followed. Hidden files and folders are not
            searched, but the folder itself may be hidden.

    Returns:
        The images in the order of torchvision's ImageFolder: by subfolder, then by file name; and what was left out.

    Raises:
        DataError: If a folder cannot be read.
    """
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    listing = Listing()
    prefix = len(os.path.join(folder, ""))  # noqa: PTH118

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    for base, folders, files in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(base)
        if real in seen:  # A link to a folder that was already visited, perhaps to one of its parents.
            folders.clear()
            continue
        seen.add(real)
        visible = sorted(name for name in folders if not is_hidden(name))
        listing.skipped.update([HIDDEN] * (len(folders) - len(visible)))
        folders[:] = visible  # If two links lead to one folder, the first by name counts. The order of the disk has no effect.
        images = [file for file in files if is_image_name(file) and not is_hidden(file)]
        found.append((base, sorted(images)))
        if len(images) < len(files):
            for file in sorted(set(files).difference(images)):
                _count_skipped(listing, file, f"{base[prefix:]}/{file}".lstrip("/"), f"{base}/{file}")
    listing.names.extend(f"{base[prefix:]}/{file}".lstrip("/") for base, files in sorted(found) for file in files)
    return listing


def _count_skipped(listing: Listing, file: str, name: str, path: str) -> None:
    """Count a file that is not taken as an image, or note that it is a broken link."""
    if is_hidden(file):
        listing.skipped.update([HIDDEN] * is_image_name(file))
    elif os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114
        listing.broken.append(name)
    else:
        listing.skipped[os.path.splitext(file)[1].lower() or "no ending"] += 1  # noqa: PTH122


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Describe files that were left out.

    Args:
        skipped: Numbers of files by ending, as in `ImageSet.skipped`.

    Returns:
        One phrase, or an empty string if nothing was left out.

    Examples:
        >>> describe_skipped({".txt": 3, "hidden": 1})
        '3 .txt, 1 hidden'
    """
    return ", ".join(f"{count:,} {ending}" for ending, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])))


def open_image_folder(path: Path) -> ImageSet:
    """Open all images below a folder.

    Args:
        path: An existing folder.

    Returns:
        The images, sorted by their paths relative to the folder.

    Raises:
        DataError: If the folder cannot be read or contains no image.
    """
    listing = list_images(path)
    if not listing.names:
        found = describe_skipped(listing.skipped)
        raise DataError(
            f"{path} contains no image{f', but these files: {found}' * bool(found)}. Supported endings: {', '.join(EXTENSIONS)}"
        )
    images = from_files(str(path), "all", path, sorted(listing.names))
    return dataclasses.replace(images, skipped=listing.skipped, notes=_note_broken(path, listing.broken))


def is_split_folder(path: Path) -> bool:
    """Return whether a folder is meant to hold a training or an evaluation split.

    Args:
        path: An existing folder.

    Returns:
        True if it contains a folder with the name of a split, or a table of training images.
    """
    names = {TRAIN, *HELD_OUT, *(f"{TRAIN}{ending}" for ending in TABLE_EXTENSIONS)}
    return any(entry.name.lower() in names for entry in find_root(path).iterdir())


def open_split_folder(path: Path) -> Splits:
    """Open a folder that holds a training and an evaluation split.

    Args:
        path: A folder with `train/` and `val/` (or `test/`) of class folders, or with `train.csv` and `val.csv`.

    Returns:
        The training and the evaluation split. Their notes name the tables and folders that were not used.

    Raises:
        DataError: If a split is missing, or a class has no training image.
    """
    path = find_root(path)
    held_out = next((name for name in HELD_OUT if (path / name).is_dir()), None)
    if (path / TRAIN).is_dir() and held_out:
        train = _open_class_folders(path, TRAIN)
        labels = find_labels(path, held_out)  # of a flat folder, as ImageNet has
        val = open_flat(path, held_out, labels, train.classes) if labels else _open_class_folders(path, held_out)
        return _note_unused(path, {TRAIN, held_out, labels.name if labels else ""}, train), val
    tables = {entry.stem.lower(): entry for entry in sorted(path.iterdir(), reverse=True) if entry.suffix.lower() in TABLE_EXTENSIONS}
    held_out = next((name for name in HELD_OUT if name in tables), None)
    if TRAIN in tables and held_out:
        train, val = open_table_pair(path, {TRAIN: tables[TRAIN], held_out: tables[held_out]})
        return _note_unused(path, {tables[TRAIN].name, tables[held_out].name}, train), val
    expected = f"{path} needs train/ and val/ (or test/), or train.csv and val.csv, but contains {list_entries(path)}."
    raise DataError(expected + describe_unpacking(path))


def list_entries(folder: Path) -> str:
    """List what a folder contains, for error messages.

    Args:
        folder: A path that need not exist.

    Returns:
        The first names, or "nothing" if the folder is empty or does not exist.
    """
    visible = sorted(entry.name for entry in folder.iterdir() if not is_hidden(entry.name)) if folder.is_dir() else []
    return join_names(visible) or "nothing"


def _note_unused(path: Path, used: set[str], train: ImageSet) -> ImageSet:
    """Note the tables, and the folders of other splits, that lie beside those in use."""
    entries = [entry for entry in path.iterdir() if entry.name not in used and not is_hidden(entry.name)]
    others = [f"{entry.name}/" for entry in entries if entry.name.lower() in _SPLIT_FOLDERS and entry.is_dir()]
    others += [entry.name for entry in entries if entry.suffix.lower() in TABLE_EXTENSIONS]
    if not others:
        return train
    origin = " and ".join(sorted(used - {""}))
    note = f"{path} also contains {join_names(sorted(others))}, not used: images and labels are those of {origin}"
    return dataclasses.replace(train, notes=(note, *train.notes))


def _note_broken(folder: Path, broken: list[str]) -> tuple[str, ...]:
    return (f"broken links in {folder}, left out: {join_names(broken)}",) if broken else ()


def _open_class_folders(root: Path, split: str) -> ImageSet:
    folder = root / split
    entries = sorted((entry for entry in folder.iterdir() if not is_hidden(entry.name)), key=lambda entry: entry.name)
    beside = [entry.name for entry in entries if is_image_name(entry.name) and not entry.is_dir()]
    classes = [entry.name for entry in entries if entry.is_dir()]
    broken = [entry.name for entry in entries if entry.is_symlink() and not entry.exists() and entry.name not in beside]
    if broken:
        raise DataError(f"{folder} has broken links, which may be classes: {join_names(broken)}. Repair or remove them")
    if not classes:
        found = f"contains {len(beside):,} images but no class folders" if beside else f"contains {list_entries(folder)}"
        raise DataError(f"{folder} {found}: use one subfolder per class, such as {folder}/cat/1.jpg.{describe_unpacking(root)}")
    if repeated := [name for name, count in Counter(map(_composed, classes)).items() if count > 1]:
        raise DataError(f"{folder} has several classes whose names differ only in how accents are encoded: {join_names(repeated)}")
    names: list[str] = []
    labels: list[int] = []
    notes: list[str] = []
    skipped: Counter[str] = collections.Counter()
    empty = []
    for label, name in enumerate(classes):
        inside = list_images(folder / name)
        if not inside.names:
            empty.append(f"{name} ({describe_skipped(inside.skipped)})" if inside.skipped else name)
        names += [f"{name}/{entry}" for entry in inside.names]
        labels += [label] * len(inside.names)
        skipped += inside.skipped
        notes += _note_broken(folder / name, inside.broken)
    if empty and (split == TRAIN or not names):
        raise DataError(f"{folder} has classes without images: {join_names(empty)}. Supported endings: {', '.join(EXTENSIONS)}")
    if beside:
        notes.append(f"{len(beside):,} images in {folder} are in no class folder and are left out: {join_names(beside)}")
    skipped += Counter(entry.suffix.lower() or "no ending" for entry in entries if not entry.is_dir() and entry.name not in beside)
    skipped += Counter({HIDDEN: sum(entry.is_dir() for entry in folder.iterdir() if is_hidden(entry.name))})
    images = from_files(str(root), split, folder, names, np.array(labels, np.int64), [_composed(name) for name in classes])
    return dataclasses.replace(images, skipped=skipped, notes=tuple(notes))


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form: some disks store é as two characters, and the splits may lie on different ones."""
    return unicodedata.normalize("NFC", name)
