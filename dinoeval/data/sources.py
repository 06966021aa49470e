"""Data sets known by name, looked for in $DINOEVAL_DATA/NAME: which files they are made of, and how their makers laid them out.

Class folders train/ and val/ (or test/) in that folder are taken before any other layout. torchvision reads the sets that
it has in the splits that are wanted; the others are read from the lists that were published with them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.data.images import TRAIN, ImageSet, from_files, from_pixels, split_folder
from dinoeval.environment import data_folder, offline
from dinoeval.errors import DataError

Halves = tuple[ImageSet, ImageSet]
_log = logging.getLogger(__name__)
# The order of VOCinit.m in the development kit of 2007.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike",
    "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def open_named(name: str) -> Halves:
    """Open the training and the evaluation half of one of NAMES. Raises DataError that says which files are wanted where."""
    if name == "digits":
        return _digits()
    root = data_folder()
    if root is None:
        raise DataError(f"data set '{name}' is looked for in $DINOEVAL_DATA/{name}: set DINOEVAL_DATA to the folder of your data sets")
    folder = root / name
    if (folder / TRAIN).is_dir():
        return split_folder(folder)
    return _SETS[name].read(name, folder)


def _digits() -> Halves:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fourth one is held out."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    held_out = np.arange(len(pixels)) % 4 == 3
    classes = [str(label) for label in digits.target_names]
    return (
        from_pixels("digits", TRAIN, pixels[~held_out], digits.target[~held_out], classes),
        from_pixels("digits", "val", pixels[held_out], digits.target[held_out], classes),
    )


def _imagenet(name: str, folder: Path) -> Halves:
    raise DataError(f"no {folder}/train: put ImageNet-1k there as train/<synset>/*.JPEG and val/<synset>/*.JPEG")


def _cifar(name: str, folder: Path) -> Halves:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    halves = {split: _torchvision(name, folder, kind.url, kind, train=split == "train") for split in ("train", "test")}
    train, test = (from_pixels(name, split, half.data, np.array(half.targets), half.classes) for split, half in halves.items())
    return train, test


def _flowers102(name: str, folder: Path) -> Halves:
    """The paper trains on train and val together: 2,040 images; its test set has 6,149."""
    from torchvision.datasets import Flowers102

    address = Flowers102._download_url_prefix
    parts = {split: _torchvision(name, folder, address, Flowers102, split=split) for split in ("train", "val", "test")}
    classes = [f"{number:03d}" for number in range(102)]

    def gather(split: str, *members: str) -> ImageSet:
        files = [str(file) for member in members for file in parts[member]._image_files]
        labels = np.array([label for member in members for label in parts[member]._labels], np.int64)
        images = from_files(name, split, Path(), files, labels, classes)
        return dataclasses.replace(images, paths=tuple(Path(file).name for file in files))

    return gather(TRAIN, "train", "val"), gather("test", "test")


def _voc07(name: str, folder: Path) -> Halves:
    """Several labels an image. The class lists say 1 present, -1 absent, 0 difficult (readme of the development kit)."""
    from torchvision.datasets.voc import DATASET_YEAR_DICT, VOCDetection

    base = folder / "VOCdevkit" / "VOC2007"
    halves = []
    for split, archive in (("trainval", "2007"), ("test", "2007-test")):
        lists = [base / "ImageSets" / "Main" / f"{kind}_{split}.txt" for kind in VOC_CLASSES]
        if not lists[0].is_file():
            _torchvision(name, folder, DATASET_YEAR_DICT[archive]["url"], VOCDetection, year="2007", image_set=split)
        columns = [_read_list(path) for path in lists]
        if strangers := [path.name for path, (names, _) in zip(lists, columns, strict=True) if names != columns[0][0]]:
            raise DataError(f"{strangers[0]} in {lists[0].parent} lists other images than {lists[0].name}: unpack the set anew")
        values = np.stack([marks for _, marks in columns], axis=1)
        if not np.isin(values, (-1, 0, 1)).all():
            raise DataError(f"the class lists in {lists[0].parent} hold other marks than 1, 0 and -1: unpack the set anew")
        labels = np.array([0, -1, 1], np.int8)[values + 1]  # theirs count -1, 0, 1
        halves.append(from_files(name, split, base / "JPEGImages", [f"{image}.jpg" for image in columns[0][0]], labels, VOC_CLASSES))
    return halves[0], halves[1]


def _cars(name: str, folder: Path) -> Halves:
    from torchvision.datasets import StanfordCars

    halves = []
    for split in ("train", "test"):
        try:
            half = StanfordCars(str(folder), split=split)
        except Exception as error:  # scipy raises what it likes about a damaged .mat file
            raise _absent(name, folder, f"its {split} half cannot be read ({error})") from error
        files = [_below(folder, path) for path, _ in half._samples]
        halves.append(from_files(name, split, folder, files, np.array([label for _, label in half._samples], np.int64), half.classes))
    return halves[0], halves[1]


def _places365(name: str, folder: Path) -> Halves:
    """The standard training set, in full size where that is there, else in 256 x 256."""
    from torchvision.datasets import Places365

    small = not (folder / "data_large_standard").is_dir()
    halves = []
    for split in ("train-standard", "val"):
        try:
            half = Places365(str(folder), split=split, small=small)
        except RuntimeError as error:
            raise _absent(name, folder, str(error).partition(" You can set")[0]) from error
        if not Path(half.images_dir).is_dir():
            raise _absent(name, folder, f"there is no {half.images_dir}")
        files, labels = [_below(folder, path) for path, _ in half.imgs], np.array(half.targets, np.int64)
        halves.append(from_files(name, split, folder, files, labels, sorted(half.classes, key=half.class_to_idx.__getitem__)))
    return halves[0], halves[1]


def _places205(name: str, folder: Path) -> Halves:
    """The lists and the pictures where their archives unpack to, or simply in the folder."""
    unpacked = folder / "trainvalsplit_places205"
    lists = unpacked if unpacked.is_dir() else folder
    archive = folder / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    pictures = archive if archive.is_dir() else folder
    classes = [f"{number:03d}" for number in range(205)]
    halves = []
    for split in ("train", "val"):
        table = lists / f"{split}_places205.csv"
        if not table.is_file():
            raise _absent(name, folder, f"there is no {table}")
        files, labels = _read_list(table)
        halves.append(from_files(name, split, pictures, files, labels, classes))
    return halves[0], halves[1]


def _inat(name: str, folder: Path) -> Halves:
    """iNaturalist as in the competitions of 2018 and 2019; torchvision has these years without their split."""
    halves = []
    for split in ("train", "val"):
        table = folder / f"{split}20{name[-2:]}.json"
        if not table.is_file():
            raise _absent(name, folder, f"there is no {table}")
        try:
            content = json.loads(table.read_bytes())
            kinds = {kind["id"]: str(kind["name"]) for kind in sorted(content["categories"], key=lambda kind: kind["id"])}
            number = {identity: position for position, identity in enumerate(kinds)}
            kind_of = {mark["image_id"]: mark["category_id"] for mark in content["annotations"]}
            files = [str(image["file_name"]) for image in content["images"]]
            labels = [number[kind_of[image["id"]]] for image in content["images"]]
        except (ValueError, KeyError, TypeError) as error:
            wanted = "images (id, file_name), annotations (image_id, category_id) and categories (id, name) that belong together"
            raise DataError(f"{table} does not hold {wanted}: {error!r}. Put the published file in its place.") from error
        halves.append(from_files(name, split, folder, files, np.array(labels, np.int64), list(kinds.values())))
    return halves[0], halves[1]


def _read_list(path: Path) -> tuple[list[str], np.ndarray]:
    """Lines of a name, blanks, and a whole number -> (names, (N,) int64)."""
    names: list[str] = []
    numbers: list[int] = []
    for row, line in enumerate(path.read_text(encoding="utf-8", errors="surrogateescape").splitlines(), 1):
        words = line.rsplit(maxsplit=1)
        if not words:
            continue
        try:
            names.append(words[0])
            numbers.append(int(words[1]))
        except (ValueError, IndexError) as error:
            raise DataError(f"{path}, line {row}: a name and a number are wanted, such as 'a/b.jpg 7', not {line!r}") from error
    return names, np.array(numbers, np.int64)


def _below(folder: Path, path: str) -> str:
    """The name of a file in a folder, relative to that; no Path, for there are millions."""
    return path[len(str(folder)) + 1 :]


def _torchvision(name: str, folder: Path, address: str, kind: Callable[..., Any], **which: object) -> Any:
    """One of torchvision's sets, which it downloads from `address` where it is not there."""
    try:
        return kind(str(folder), **which)
    except (RuntimeError, FileNotFoundError) as missing:
        by_hand = f"Put {_SETS[name].files} under {folder}, as torchvision lays them out, or class folders train/ and val/"
        if offline():
            raise DataError(f"data set '{name}' is not in {folder} and DINOEVAL_OFFLINE is set. {by_hand}.") from missing
        _log.info("data set '%s' is not in %s: downloading it from %s", name, folder, address)
        try:
            return kind(str(folder), download=True, **which)
        except (OSError, RuntimeError) as error:
            raise DataError(f"data set '{name}' could not be downloaded from {address}: {error}. {by_hand}.") from error


def _absent(name: str, folder: Path, why: str) -> DataError:
    known = _SETS[name]
    return DataError(
        f"data set '{name}' cannot be opened in {folder}: {why.rstrip('.')}. It is not downloaded by itself; wanted there: "
        f"{known.files}; or class folders train/ and val/. Home page: {known.home}"
    )


@dataclasses.dataclass(frozen=True)
class _Set:
    read: Callable[[str, Path], Halves]
    files: str = "its files"
    """What must be in the folder."""
    home: str = ""
    """Where those come from, of a set that is not downloaded."""


_INAT = "https://github.com/visipedia/inat_comp/tree/master"
_SETS = {
    "cifar10": _Set(_cifar),
    "cifar100": _Set(_cifar),
    "flowers102": _Set(_flowers102),
    "imagenet": _Set(_imagenet),
    "places365": _Set(
        _places365,
        "categories_places365.txt, places365_train_standard.txt, places365_val.txt, and the pictures as data_large_standard/ and "
        "val_large/, or as data_256_standard/ and val_256/ (the archives unpack to data_large/ or data_256/: rename that)",
        "http://places2.csail.mit.edu/download.html",
    ),
    "places205": _Set(
        _places205,
        "train_places205.csv and val_places205.csv, with the pictures where these say or where their archive unpacks to (data/vision/...)",
        "http://places.csail.mit.edu",
    ),
    "voc07": _Set(_voc07, "VOCdevkit/VOC2007/ of trainval and of test (http://host.robots.ox.ac.uk/pascal/VOC/voc2007/)"),
    "cars": _Set(
        _cars,
        "stanford_cars/ with cars_train/*.jpg, cars_test/*.jpg, devkit/cars_train_annos.mat, devkit/cars_meta.mat and "
        "cars_test_annos_withlabels.mat",
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, which has no files any more; others keep copies",
    ),
    "inat18": _Set(_inat, "train2018.json, val2018.json and the pictures as train_val2018/", f"{_INAT}/2018"),
    "inat19": _Set(_inat, "train2019.json, val2019.json and the pictures as train_val2019/", f"{_INAT}/2019"),
}  # fmt: skip
NAMES = ("digits", *_SETS)
