"""Areas of data: the inputs themselves, parts of training sets, transforms, labels of data sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from regression_areas.inputs import (
    cars,
    class_folders,
    drawn_state,
    image_modes,
    inat18,
    label_table,
    picture,
    pictures,
    places205,
    save,
    tinted,
    voc07,
)
from regression_areas.recording import Book
from regression_areas.scenes import boxes_mask, save_mask, video


def inputs(book: Book, folder: Path) -> None:
    """The pictures and weights that all other areas are given: if these differ, the cause is not dinoeval."""
    book.add("pictures", np.stack([np.asarray(image) for image in pictures(3)]))
    book.add("tinted_picture", np.asarray(tinted(0, 3, seed=1)))
    frames = video()
    book.add("frames", np.stack([np.asarray(image) for image, _ in frames]))
    book.add("masks", np.stack([mask for _, mask in frames]))
    book.add("boxes", boxes_mask((75, 50), (1, 2), 0))
    book.add("resized_picture", np.asarray(picture(0, (97, 61)).resize((40, 30))))
    book.state("weights", drawn_state("vit_xs4_16"))


def subsets(book: Book, folder: Path) -> None:
    """Rows of a percentage, rows of a list, rows held out."""
    from dinoeval.data.opening import open_splits
    from dinoeval.data.subsets import hold_out, sample_rows, subset_rows

    train, _ = open_splits(str(class_folders(folder / "classes", train=9)))
    for part in ("10pct", "50pct", "33.3pct"):
        for seed in (0, 1):
            book.add(f"percent/{part}/seed{seed}", subset_rows(train, part, seed))
    names = folder / "names.txt"
    names.write_text("class1/03.png\nclass0/00.png\nclass3/08.png\n")
    book.add("listed", subset_rows(train, str(names), 0))
    labels = np.random.default_rng(6).choice(5, 203, p=[0.5, 0.3, 0.15, 0.04, 0.01])
    marks = np.random.default_rng(7).integers(0, 2, (203, 4))
    for percent in (0.3, 1.0, 12.5):
        book.add(f"labels/{percent}", sample_rows(labels, percent, 3))
        book.add(f"marks/{percent}", sample_rows(marks, percent, 3))
    for held in (1, 20, 0.1, 0.333):
        kept, rest = hold_out(labels, held, 2)
        book.add_all(f"held_out/{held}", {"kept": kept, "held": rest})
    book.add("held_out/of_marks", hold_out(marks, 0.1, 0)[1])


def transforms(book: Book, folder: Path) -> None:
    """Pixels that come out of each transform."""
    from dinoeval.data.frame_transforms import FrameTransform, opencv_resize
    from dinoeval.data.transforms import MULTISCALE, CenterCrop, RandomResizedCrop, Thumbnail, normalize_images, parse_transform

    shapes = {"wide": (97, 61), "tall": (50, 83), "small": (13, 9), "large": (400, 300)}
    for name, size in shapes.items():
        image = picture(1, size, seed=3)
        for words in ("auto", "dino", "dino:40/32", "dino:16/16"):
            book.add(f"central/{name}/{words}", parse_transform(words, 32)(image))
        book.add(f"squashed/{name}", CenterCrop(48, 48, squash=True)(image))
        book.add(f"bilinear/{name}", CenterCrop(36, 30, "bilinear", (0.5,) * 3, (0.5,) * 3)(image))
        book.add(f"thumbnail/{name}", Thumbnail(64)(image))
        for seed in (0, 1, 2):
            book.add(f"random_crop/{name}/seed{seed}", RandomResizedCrop(32)(image, seed))
    for reading in ("opencv", "pil", "torchvision"):
        for side, patch in ((64, 16), (120, 8)):
            transform = FrameTransform(side=side, resize_backend=reading, patch=patch)
            for name in ("wide", "tall"):
                book.add(f"frame/{reading}/{side}/{patch}/{name}", transform(picture(2, shapes[name], seed=3)))
    book.add("opencv_resize", opencv_resize(np.asarray(picture(3, (60, 44))), 97, 31))
    whole = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    book.add_all("normalized", {"imagenet": normalize_images(whole), "half": normalize_images(whole, (0.5,) * 3, (0.5,) * 3)})
    book.add("scales", list(MULTISCALE))


def datasets(book: Book, folder: Path) -> None:
    """Order and labels of the images of each kind of data set, and their fingerprints."""
    from dinoeval.data.images import ImageSet
    from dinoeval.data.opening import open_images, open_splits

    def add(name: str, halves: tuple[ImageSet, ...]) -> None:
        for half in halves:
            place = f"{name}/{half.split}"
            book.add_all(place, {"paths": list(half.paths), "fingerprint": half.fingerprint()})
            if half.labels is not None:
                book.add_all(place, {"labels": half.labels, "classes": list(half.classes)})

    classes = class_folders(folder / "classes")
    add("classes", open_splits(str(classes)))
    add("table", open_splits(str(label_table(folder / "labels"))))
    for split in ("train", "val"):
        lines = [f"{split}/{path},{path.split('/')[0]}" for path in open_images(classes / split).paths[::2]]
        (folder / f"classes/{split}.csv").write_text("path,label\n" + "\n".join(lines) + "\n")
    lines = [f"{line},{split}" for split in ("train", "val") for line in (folder / f"classes/{split}.csv").read_text().splitlines()[1:]]
    (folder / "classes/all.csv").write_text("path,label,split\n" + "\n".join(lines) + "\n")
    add("one_table", open_splits(str(folder / "classes/all.csv")))
    add("digits", open_splits("digits"))
    add("folder", (open_images(classes),))
    for make in (voc07, inat18, cars, places205):
        os.environ["DINOEVAL_DATA"] = str(make(folder / "sets"))
        add(make.__name__, open_splits(make.__name__))
    train, _ = open_splits(str(classes))
    book.add("classes/pixels", np.stack([np.asarray(train.open(row)) for row in (0, 13, 47)]))
    book.add("digits/pixels", np.asarray(open_splits("digits")[1].open(5)))
    modes = open_images(image_modes(folder / "modes"))
    for row, name in enumerate(modes.paths):
        book.add(f"modes/{Path(name).stem}", np.asarray(modes.open(row)))
    _masks(book, folder)


def _masks(book: Book, folder: Path) -> None:
    """Numbers of masks in each kind of file."""
    from dinoeval.data.masks import is_binary_mask, palette, read_mask

    mask = boxes_mask((40, 30), (1, 2, 3), 4)
    numbers = np.where(mask == 255, 0, mask)
    save_mask(mask, folder / "indexed.png")
    images = {
        "gray": Image.fromarray(mask),
        "binary": Image.fromarray(np.where(numbers > 0, 255, 0).astype(np.uint8)),
        "bits16": Image.fromarray(numbers.astype(np.uint16)),
        "colors": Image.fromarray(palette()[mask]),
    }
    for name, image in images.items():
        save(image, folder / f"{name}.png")
    for name in ("indexed", *images):
        path = folder / f"{name}.png"
        book.add_all(f"masks/{name}", {"numbers": read_mask(path), "black_and_white": int(is_binary_mask(path))})
    book.add("masks/binary/void", read_mask(folder / "binary.png", white_is_object=False))
