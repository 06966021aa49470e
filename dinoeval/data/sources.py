"""Datasets known by name, in $DINOEVAL_DATA/NAME: which files they consist of and how they are read.

If that folder has train/, it is read as class folders. Otherwise torchvision reads the datasets that it supports, and
the others are read from the lists that were published with them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.data.folders import open_split_folder
from dinoeval.data.imagenet import describe_unpacking, find_root
from dinoeval.data.images import TRAIN, ImageSet, Splits, from_files, from_pixels
from dinoeval.data.published_lists import open_inat, open_places205, open_voc07, voc07_class_lists
from dinoeval.environment import data_folder, offline
from dinoeval.errors import DataError

_log = logging.getLogger(__name__)


def open_named(name: str) -> Splits:
    """Open a dataset by its name.

    Args:
        name: One of NAMES.

    Returns:
        The training and the evaluation split.

    Raises:
        DataError: If the files are not in $DINOEVAL_DATA/NAME; the message lists them.
    """
    if name == "digits":
        return _open_digits()
    root = data_folder()
    if root is None:
        raise DataError(f"dataset '{name}' is read from $DINOEVAL_DATA/{name}: set DINOEVAL_DATA to the folder of your datasets")
    folder = root / name
    if (folder / TRAIN).is_dir():
        return open_split_folder(folder)
    return _SOURCES[name].read(name, folder)


def _open_digits() -> Splits:
    """Open scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fourth image is held out."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(gray[..., None], 3, axis=3)
    held_out = np.arange(len(pixels)) % 4 == 3
    classes = [str(label) for label in digits.target_names]
    return (
        from_pixels("digits", TRAIN, pixels[~held_out], digits.target[~held_out], classes),
        from_pixels("digits", "val", pixels[held_out], digits.target[held_out], classes),
    )


def _open_imagenet(name: str, folder: Path) -> Splits:
    if (root := find_root(folder)) != folder:
        return open_split_folder(root)
    expected = f"{folder}/train does not exist: put ImageNet-1k there as train/<synset>/*.JPEG and val/<synset>/*.JPEG."
    raise DataError(expected + describe_unpacking(folder))


def _open_cifar(name: str, folder: Path) -> Splits:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    opened = {split: _open_torchvision(name, folder, kind.url, kind, train=split == "train") for split in ("train", "test")}
    train, test = (from_pixels(name, split, one.data, np.array(one.targets), one.classes) for split, one in opened.items())
    return train, test


def _open_flowers102(name: str, folder: Path) -> Splits:
    """Open Flowers102. As in the paper, training uses train and val together (2,040 images); test has 6,149."""
    from torchvision.datasets import Flowers102

    address = Flowers102._download_url_prefix
    parts = {split: _open_torchvision(name, folder, address, Flowers102, split=split) for split in ("train", "val", "test")}
    classes = [f"{number:03d}" for number in range(102)]

    def join(split: str, *members: str) -> ImageSet:
        files = [str(file) for member in members for file in parts[member]._image_files]
        labels = np.array([label for member in members for label in parts[member]._labels], np.int64)
        images = from_files(name, split, Path(), files, labels, classes)
        return dataclasses.replace(images, paths=tuple(Path(file).name for file in files))

    return join(TRAIN, "train", "val"), join("test", "test")


def _open_voc07(name: str, folder: Path) -> Splits:
    from torchvision.datasets.voc import DATASET_YEAR_DICT, VOCDetection

    base = folder / "VOCdevkit" / "VOC2007"
    splits = []
    for split, archive in (("trainval", "2007"), ("test", "2007-test")):
        if not voc07_class_lists(base, split)[0].is_file():
            _open_torchvision(name, folder, DATASET_YEAR_DICT[archive]["url"], VOCDetection, year="2007", image_set=split)
        splits.append(open_voc07(name, base, split))
    return splits[0], splits[1]


def _open_cars(name: str, folder: Path) -> Splits:
    from torchvision.datasets import StanfordCars

    splits = []
    for split in ("train", "test"):
        try:
            opened = StanfordCars(str(folder), split=split)
        except Exception as error:  # SciPy raises various exceptions for a corrupted .mat file.
            raise _missing(name, folder, f"its {split} split cannot be read ({error})") from error
        files = [_relative(folder, path) for path, _ in opened._samples]
        labels = np.array([label for _, label in opened._samples], np.int64)
        splits.append(from_files(name, split, folder, files, labels, opened.classes))
    return splits[0], splits[1]


def _open_places365(name: str, folder: Path) -> Splits:
    """Open the standard training set, at full size if it is there, else at 256 x 256."""
    from torchvision.datasets import Places365

    small = not (folder / "data_large_standard").is_dir()
    splits = []
    for split in ("train-standard", "val"):
        try:
            opened = Places365(str(folder), split=split, small=small)
        except RuntimeError as error:
            raise _missing(name, folder, str(error).partition(" You can set")[0]) from error
        if not Path(opened.images_dir).is_dir():
            raise _missing(name, folder, f"{opened.images_dir} does not exist")
        files, labels = [_relative(folder, path) for path, _ in opened.imgs], np.array(opened.targets, np.int64)
        splits.append(from_files(name, split, folder, files, labels, sorted(opened.classes, key=opened.class_to_idx.__getitem__)))
    return splits[0], splits[1]


def _open_lists(name: str, folder: Path) -> Splits:
    open_split = open_places205 if name == "places205" else open_inat
    try:
        return open_split(name, folder, "train"), open_split(name, folder, "val")
    except FileNotFoundError as error:
        raise _missing(name, folder, f"{error.filename} does not exist") from error


def _relative(folder: Path, path: str) -> str:
    """Return a path relative to its folder. Path objects would be too slow for millions of files."""
    return path[len(str(folder)) + 1 :]


def _open_torchvision(name: str, folder: Path, address: str, kind: Callable[..., Any], **options: object) -> Any:
    """Open a torchvision dataset; download it from `address` if it is missing."""
    try:
        return kind(str(folder), **options)
    except (RuntimeError, FileNotFoundError) as missing:
        advice = f"Put {_SOURCES[name].files} in {folder}, in the layout of torchvision, or use class folders train/ and val/"
        if offline():
            raise DataError(f"dataset '{name}' is not in {folder} and DINOEVAL_OFFLINE is set. {advice}.") from missing
        _log.info("dataset '%s' is not in %s: downloading it from %s", name, folder, address)
        try:
            return kind(str(folder), download=True, **options)
        except (OSError, RuntimeError) as error:
            raise DataError(f"dataset '{name}' could not be downloaded from {address}: {error}. {advice}.") from error


def _missing(name: str, folder: Path, reason: str) -> DataError:
    source = _SOURCES[name]
    return DataError(
        f"dataset '{name}' cannot be opened in {folder}: {reason.rstrip('.')}. It is not downloaded automatically. Required files: "
        f"{source.files}; or class folders train/ and val/. Home page: {source.home}"
    )


@dataclasses.dataclass(frozen=True)
class _Source:
    read: Callable[[str, Path], Splits]
    files: str = "its files"
    """What the folder must contain."""
    home: str = ""
    """Home page of a dataset that is not downloaded automatically."""


_INAT_HOME = "https://github.com/visipedia/inat_comp/tree/master"
_SOURCES = {
    "cifar10": _Source(_open_cifar),
    "cifar100": _Source(_open_cifar),
    "flowers102": _Source(_open_flowers102),
    "imagenet": _Source(_open_imagenet),
    "places365": _Source(
        _open_places365,
        "categories_places365.txt, places365_train_standard.txt, places365_val.txt, and the images as data_large_standard/ and "
        "val_large/, or as data_256_standard/ and val_256/ (the archives unpack to data_large/ or data_256/: rename that folder)",
        "http://places2.csail.mit.edu/download.html",
    ),
    "places205": _Source(
        _open_lists,
        "train_places205.csv and val_places205.csv, and the images in the same folder or in the folder to which their archive unpacks "
        "(data/vision/...)",
        "http://places.csail.mit.edu",
    ),
    "voc07": _Source(_open_voc07, "VOCdevkit/VOC2007/ of trainval and of test (http://host.robots.ox.ac.uk/pascal/VOC/voc2007/)"),
    "cars": _Source(
        _open_cars,
        "stanford_cars/ with cars_train/*.jpg, cars_test/*.jpg, devkit/cars_train_annos.mat, devkit/cars_meta.mat and "
        "cars_test_annos_withlabels.mat",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html (the files were removed; copies exist on other sites)",
    ),
    "inat18": _Source(_open_lists, "train2018.json, val2018.json and the images as train_val2018/", f"{_INAT_HOME}/2018"),
    "inat19": _Source(_open_lists, "train2019.json, val2019.json and the images as train_val2019/", f"{_INAT_HOME}/2019"),
}
NAMES = ("digits", *_SOURCES)
"""Names that --data accepts."""
