"""Small datasets in their published layouts. Images of a class share a tint, as in factories.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from factories import synthetic_images
from PIL import Image
from scipy.io import savemat

from dinoeval.data.published_lists import VOC_CLASSES


def tinted_image(path: Path, label: int, seed: int) -> None:
    """Save an image whose tint is given by three bits of its label.

    Args:
        path: The file to write.
        label: Class number.
        seed: Random seed of the image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tint = np.array([label >> bit & 1 for bit in range(3)]) * 90.0
    pixels = np.asarray(synthetic_images(1, seed=seed)[0], np.float32) * 0.4 + tint
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


def inat_tree(root: Path, year: int, *, train: int = 6, val: int = 2) -> Path:
    """Write iNaturalist with three species, whose ids are not 0, 1, 2.

    The lists have images, annotations and categories in different orders.

    Args:
        root: Folder to create.
        year: 2018 or 2019.
        train: Training images per species.
        val: Validation images per species.

    Returns:
        `root`.
    """
    species = {7: "Parus major", 3: "Quercus robur", 5: "Amanita muscaria"}
    folders = {7: "Aves/7", 3: "Plantae/3", 5: "Fungi/5"}
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        for number in range(count * len(species)):
            category = list(species)[number % 3]
            name = f"train_val{year}/{folders[category]}/{split}{number:04}.jpg"
            tinted_image(root / name, category, seed=number + 100 * (split == "val"))
            images.append({"id": 1000 + number, "file_name": name, "width": 20, "height": 24, "license": 3, "rights_holder": "Nobody"})
            annotations.insert(0, {"id": number, "image_id": 1000 + number, "category_id": category})
        categories = [{"id": identity, "name": name, "supercategory": folders[identity][:-2]} for identity, name in species.items()]
        content = {"info": {"year": year}, "images": images, "licenses": [], "annotations": annotations, "categories": categories}
        (root / f"{split}{year}.json").write_text(json.dumps(content))
    return root


def voc07_tree(root: Path, *, trainval: int = 5, test: int = 4) -> dict[str, np.ndarray]:
    """Write VOC 2007 with random labels.

    Args:
        root: Folder to create.
        trainval: Number of training images.
        test: Number of test images.

    Returns:
        The published marks of both splits: (N, 20) of 1, -1 and 0, with at least one 1 per class.
    """
    base = root / "VOCdevkit" / "VOC2007"
    (base / "ImageSets/Main").mkdir(parents=True)
    marks, first = {}, 1
    for split, count in (("trainval", trainval), ("test", test)):
        names = [f"{number:06}" for number in range(first, first + count)]
        first += count
        marks[split] = np.random.default_rng(count).choice([-1, -1, -1, 0, 1], (count, 20))
        marks[split][np.arange(20) % count, np.arange(20)] = 1
        for number, name in enumerate(names):
            tinted_image(base / f"JPEGImages/{name}.jpg", number, seed=first + number)
        (base / f"ImageSets/Main/{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for column, class_name in enumerate(VOC_CLASSES):
            lines = [f"{name} {mark:2d}\n" for name, mark in zip(names, marks[split][:, column], strict=True)]
            (base / f"ImageSets/Main/{class_name}_{split}.txt").write_text("".join(lines))
    return marks


def cars_tree(root: Path, *, train: int = 4, test: int = 2) -> Path:
    """Write Stanford Cars with three classes; class numbers start from 1, as in MATLAB.

    Args:
        root: Folder to create.
        train: Training images per class.
        test: Test images per class.

    Returns:
        `root`.
    """
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], object)
    savemat(base / "devkit/cars_meta.mat", {"class_names": names})
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    for split, count, table in (("train", train, "devkit/cars_train_annos.mat"), ("test", test, "cars_test_annos_withlabels.mat")):
        rows = np.zeros(count * 3, [(field, object) for field in fields])
        for number in range(count * 3):
            label = number * 2 % 3
            tinted_image(base / f"cars_{split}/{number + 1:05}.jpg", label + 1, seed=number + 100 * (split == "test"))
            rows[number] = (*(np.uint16(corner) for corner in (1, 1, 19, 23)), np.uint8(label + 1), f"{number + 1:05}.jpg")
        savemat(base / table, {"annotations": rows})
    return root


def flowers_tree(root: Path) -> Path:
    """Write Flowers102 with six images; labels and image numbers start from 1.

    The hashes of the lists differ from those that torchvision checks.

    Args:
        root: Folder to create.

    Returns:
        `root`.
    """
    base = root / "flowers-102"
    for number in range(1, 7):
        tinted_image(base / f"jpg/image_{number:05}.jpg", number, seed=number)
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 1, 77, 102]], np.uint8)})
    savemat(base / "setid.mat", {"trnid": np.array([[4, 6]]), "valid": np.array([[1, 3]]), "tstid": np.array([[5, 2]])})
    return root


def places365_tree(root: Path, *, small: bool = False, train: int = 3, val: int = 2) -> Path:
    """Write Places365 with three scenes.

    The hashes of the lists differ from those that torchvision checks.

    Args:
        root: Folder to create.
        small: Whether images are in the folders of 256 x 256 pixels.
        train: Training images per scene.
        val: Validation images per scene.

    Returns:
        `root`.
    """
    scenes = ["/a/airfield", "/c/church/outdoor", "/z/zen_garden"]
    size = "256" if small else "large"
    root.mkdir(parents=True)
    (root / "categories_places365.txt").write_text("".join(f"{scene} {number}\n" for number, scene in enumerate(scenes)))
    lines = []
    for label, scene in enumerate(scenes):
        for number in range(train):
            tinted_image(root / f"data_{size}_standard{scene}/{number + 1:08}.jpg", label + 1, seed=number)
            lines.append(f"{scene}/{number + 1:08}.jpg {label}\n")
    (root / "places365_train_standard.txt").write_text("".join(lines))
    for number in range(val * 3):
        tinted_image(root / f"val_{size}/Places365_val_{number + 1:08}.jpg", number % 3 + 1, seed=50 + number)
    (root / "places365_val.txt").write_text("".join(f"Places365_val_{number + 1:08}.jpg {number % 3}\n" for number in range(val * 3)))
    return root


def places205_tree(root: Path, *, unpacked: bool = True, train: int = 3, val: int = 2) -> Path:
    """Write Places205 with three scenes.

    Args:
        root: Folder to create.
        unpacked: Whether files are in the folders to which the published archives unpack.
        train: Training images per scene.
        val: Validation images per scene.

    Returns:
        `root`.
    """
    lists = root / "trainvalsplit_places205" if unpacked else root
    images = root / "data/vision/torralba/deeplearning/images256" if unpacked else root
    lists.mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        lines = []
        for label, scene in ((0, "a/abbey"), (1, "a/airport_terminal"), (204, "y/yard")):
            for number in range(count):
                name = f"{scene}/gsun_{split}{number}.jpg"
                tinted_image(images / name, label % 7 + 1, seed=number + 100 * (split == "val"))
                lines.append(f"{name} {label}\n")
        (lists / f"{split}_places205.csv").write_text("".join(lines))
    return root
