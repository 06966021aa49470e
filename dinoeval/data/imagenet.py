"""ImageNet-1k as it is downloaded: archives that must be unpacked, and validation images in one folder with a list of labels."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.images import ImageSet, from_files
from dinoeval.data.names import is_hidden, is_image_name
from dinoeval.errors import DataError, join_names

_KAGGLE_ROOT = Path("ILSVRC", "Data", "CLS-LOC")
_KAGGLE_LIST = "LOC_val_solution.csv"
_GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SYNSET_LISTS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_DEVKIT = "ILSVRC2012_devkit_t12"
_LISTS = (_KAGGLE_LIST, _GROUND_TRUTH, *_SYNSET_LISTS)
_SYNSET = re.compile(r"n\d{8}")


def find_root(path: Path) -> Path:
    """Return the folder with train/ and val/, which may be inside.

    Args:
        path: A folder.

    Returns:
        The folder, or the one inside to which the archive of Kaggle unpacks.
    """
    return path / _KAGGLE_ROOT if not (path / "train").exists() and (path / _KAGGLE_ROOT).is_dir() else path


def find_labels(root: Path, split: str) -> Path | None:
    """Find the published list of labels of a flat folder of validation images.

    Args:
        root: The folder that contains the split.
        split: Name of the folder of validation images.

    Returns:
        A list that is in the folder, above it or in the development kit; None if there is none, or if the split has subfolders.
    """
    with os.scandir(root / split) as entries:
        if any(entry.is_dir() for entry in entries if not is_hidden(entry.name)):
            return None
    full = root.resolve()
    places = [full, full / split, full / "data", *(place / _DEVKIT / "data" for place in (full, full.parent)), *full.parents[:3]]
    return next((place / name for place in places for name in _LISTS if (place / name).is_file()), None)


def open_flat(root: Path, split: str, labels: Path, classes: Sequence[str]) -> ImageSet:
    """Open validation images that are in one folder.

    Args:
        root: The folder that contains the split.
        split: Name of the folder of images.
        labels: One of the lists that `find_labels` finds.
        classes: The synsets, which are the class folders of the training split.

    Returns:
        The images, sorted by name.

    Raises:
        DataError: If list, images and classes do not fit together.
    """
    names = sorted(name for name in os.listdir(root / split) if is_image_name(name) and not is_hidden(name))  # noqa: PTH208
    try:
        synsets = _read_kaggle_list(labels, names) if labels.name == _KAGGLE_LIST else _read_ordered_list(labels, names)
    except (UnicodeDecodeError, KeyError, IndexError, ValueError, csv.Error) as error:
        raise DataError(f"{labels} is not the published list of labels: {error!r}. Download it again") from error
    number_of = {name: number for number, name in enumerate(classes)}
    if unknown := sorted(set(synsets) - number_of.keys()):
        raise DataError(f"{labels} names {len(unknown):,} classes that have no folder in {root / 'train'}: {join_names(unknown)}")
    images = from_files(str(root), split, root / split, names, np.array([number_of[synset] for synset in synsets], np.int64), classes)
    return dataclasses.replace(images, notes=(f"the labels of {root / split} are those of {labels.name}",))


def describe_unpacking(root: Path) -> str:
    """Return the commands that make class folders of ImageNet as it is downloaded.

    Args:
        root: The folder of the archives.

    Returns:
        A sentence for an error message; empty if there is no archive and no flat folder of ImageNet.
    """
    commands, train, val = [], root / "train", root / "val"
    members = "for f in train/*.tar; do mkdir -p ${f%.tar} && tar -xf $f -C ${f%.tar} && rm $f; done"
    if (root / "ILSVRC2012_img_train.tar").is_file() and not train.is_dir():
        commands += ["mkdir train", "tar -xf ILSVRC2012_img_train.tar -C train", members]
    elif train.is_dir() and any(_SYNSET.fullmatch(entry.stem) and entry.suffix == ".tar" for entry in train.iterdir()):
        commands += [members]
    flat = val.is_dir() and find_labels(root, "val") is None and any(val.glob("ILSVRC2012_val_*"))
    if (root / "ILSVRC2012_img_val.tar").is_file() and not val.is_dir():
        commands += ["mkdir val", "tar -xf ILSVRC2012_img_val.tar -C val"]
        flat = True
    if flat and (root / f"{_DEVKIT}.tar.gz").is_file() and not (root / _DEVKIT).is_dir():
        commands += [f"tar -xzf {_DEVKIT}.tar.gz"]
    unpack = f" To unpack ImageNet, run: cd {shlex.quote(str(root))} && {' && '.join(commands)}." if commands else ""
    needed = f"{_DEVKIT}/ (from {_DEVKIT}.tar.gz), {_KAGGLE_LIST} of Kaggle, or {_SYNSET_LISTS[0]}"
    return unpack + (f" The labels of val/ are read from {needed}; put one of them into {root}." if flat else "")


def _read_kaggle_list(path: Path, names: Sequence[str]) -> list[str]:
    """Read `ImageId,PredictionString`, where a prediction begins with the synset, and return the synset of each image."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        synset_of = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    if missing := [name for name in names if Path(name).stem not in synset_of]:
        raise DataError(f"{path} has no label of {len(missing):,} images: {join_names(missing)}")
    return [synset_of[Path(name).stem] for name in names]


def _read_ordered_list(path: Path, names: Sequence[str]) -> list[str]:
    """Read one label per line, in the order of the image names: a synset, or its number in the development kit."""
    lines = path.read_text(encoding="utf-8").split()
    if len(lines) != len(names):
        raise DataError(f"{path} has {len(lines):,} labels for {len(names):,} images: all validation images are needed, in one folder")
    if path.name != _GROUND_TRUTH:
        return lines
    synset_of = _read_meta(path.with_name("meta.mat"))
    return [synset_of[int(line)] for line in lines]


def _read_meta(path: Path) -> dict[int, str]:
    """Read the synset of each number, which is not the place of its name in sorted order."""
    from scipy.io import loadmat

    if not path.is_file():
        raise DataError(f"{path} does not exist: it numbers the classes of {_GROUND_TRUTH}. Unpack {_DEVKIT}.tar.gz again")
    try:
        synsets = loadmat(str(path), squeeze_me=True)["synsets"]
        return {int(number): str(synset) for number, synset in zip(synsets["ILSVRC2012_ID"], synsets["WNID"], strict=True)}
    except Exception as error:  # SciPy raises various exceptions for a corrupted .mat file.
        raise DataError(f"{path} cannot be read ({error}): unpack {_DEVKIT}.tar.gz again") from error
