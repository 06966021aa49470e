"""Datasets whose images and labels are listed in files that their authors published: VOC 2007, Places205, iNaturalist."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from dinoeval.data.images import ImageSet, from_files
from dinoeval.errors import DataError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 20 classes, in the order of VOCinit.m in the development kit of 2007."""


def voc07_class_lists(folder: Path, split: str) -> list[Path]:
    """List the files that hold the labels of VOC 2007.

    Args:
        folder: The folder `VOCdevkit/VOC2007`.
        split: `trainval` or `test`.

    Returns:
        One file per class, in the order of VOC_CLASSES. The files need not exist.
    """
    return [folder / "ImageSets" / "Main" / f"{name}_{split}.txt" for name in VOC_CLASSES]


def open_voc07(name: str, folder: Path, split: str) -> ImageSet:
    """Open a split of VOC 2007, which is multi-label.

    The class lists mark images with 1 if the class is present, -1 if it is absent and 0 if it is difficult (readme of
    the development kit).

    Args:
        name: Name of the image set.
        folder: The folder `VOCdevkit/VOC2007`.
        split: `trainval` or `test`.

    Returns:
        The split, labels (N, 20) int8.

    Raises:
        DataError: If the lists do not fit together.
        FileNotFoundError: If a list does not exist.
    """
    lists = voc07_class_lists(folder, split)
    columns = [read_labeled_names(path) for path in lists]
    images = columns[0][0]
    if different := [path.name for path, (names, _) in zip(lists, columns, strict=True) if names != images]:
        raise DataError(f"{different[0]} in {lists[0].parent} lists different images from {lists[0].name}: unpack the dataset again")
    marks = np.stack([marks for _, marks in columns], axis=1)
    if not np.isin(marks, (-1, 0, 1)).all():
        raise DataError(f"the class lists in {lists[0].parent} have marks other than 1, 0 and -1: unpack the dataset again")
    labels = np.array([0, -1, 1], np.int8)[marks + 1]  # from absent -1, difficult 0, present 1
    return from_files(name, split, folder / "JPEGImages", [f"{image}.jpg" for image in images], labels, VOC_CLASSES)


def open_places205(name: str, folder: Path, split: str) -> ImageSet:
    """Open a split of Places205.

    Args:
        name: Name of the image set.
        folder: The folder of the lists and images, or the folder in which their archives were unpacked.
        split: `train` or `val`.

    Returns:
        The split. Its 205 classes are named by their number.

    Raises:
        DataError: If the list or an image cannot be used.
        FileNotFoundError: If the list does not exist.
    """
    unpacked = folder / "trainvalsplit_places205"
    archive = folder / "data" / "vision" / "torralba" / "deeplearning" / "images256"
    files, labels = read_labeled_names((unpacked if unpacked.is_dir() else folder) / f"{split}_places205.csv")
    classes = [f"{number:03d}" for number in range(205)]
    return from_files(name, split, archive if archive.is_dir() else folder, files, labels, classes)


def open_inat(name: str, folder: Path, split: str) -> ImageSet:
    """Open a split of iNaturalist 2018 or 2019, the datasets of the competitions.

    torchvision reads these years without their split. For 2019 the published lists have 265,213 training and 3,030
    validation images. The paper and DeiT report 265,240 and 3,003 images for the same year.

    Args:
        name: `inat18` or `inat19`.
        folder: The folder with `<split>20YY.json` and the images.
        split: `train` or `val`.

    Returns:
        The split. Its classes are the species, in the order of their ids.

    Raises:
        DataError: If the list or an image cannot be used.
        FileNotFoundError: If the list does not exist.
    """
    table = folder / f"{split}20{name[-2:]}.json"
    try:
        content = json.loads(table.read_bytes())
        species = {category["id"]: str(category["name"]) for category in sorted(content["categories"], key=lambda one: one["id"])}
        class_of = {category: number for number, category in enumerate(species)}
        category_of = {annotation["image_id"]: annotation["category_id"] for annotation in content["annotations"]}
        files = [str(image["file_name"]) for image in content["images"]]
        labels = [class_of[category_of[image["id"]]] for image in content["images"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        expected = "images (id, file_name), annotations (image_id, category_id) and categories (id, name) that fit together"
        raise DataError(f"invalid list {table}: expected {expected}, got {error!r}. Replace it with the published file.") from error
    return from_files(name, split, folder, files, np.array(labels, np.int64), list(species.values()))


def read_labeled_names(path: Path) -> tuple[list[str], np.ndarray]:
    """Read a list with a name and an integer per line.

    Args:
        path: A text file. Names may contain spaces; empty lines are ignored.

    Returns:
        N names, and their integers, (N,) int64.

    Raises:
        DataError: If a line has another form.
        OSError: If the file cannot be read.
    """
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
            raise DataError(f"{path}, line {row}: expected a name and an integer, such as 'a/b.jpg 7', got {line!r}") from error
    return names, np.array(numbers, np.int64)
