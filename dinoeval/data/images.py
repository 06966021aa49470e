"""Sets of images with or without labels: class folders, flat folders, CSV tables, torchvision's sets, scikit-learn's digits.

An ImageSet is a list of pictures in a fixed order. It opens any of them by its number, so that workers, shards and
resumed runs all mean the same picture by the same row.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoeval.environment import data_folder, offline
from dinoeval.errors import BadImage, DataError, some, unknown
from dinoeval.files import expand

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
NAMES = ("digits", "cifar10", "cifar100", "flowers102", "imagenet")
TRAIN, VAL = "train", ("val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N pictures in a fixed order."""

    name: str
    """What the user called it: a folder, a table or a name."""
    split: str
    paths: tuple[str, ...]
    """N names, relative to the set's folder; `0000.png` and so on for pictures that are no files."""
    sizes: np.ndarray
    """(N,) int64, bytes."""
    labels: np.ndarray | None = None
    """(N,) int64 indices into `classes`, or None where the set has no labels."""
    classes: tuple[str, ...] = ()
    stamp: str
    """A digest that changes when a file is replaced by another of the same size: of place and times of change, or of pixels."""
    reader: Callable[[int], bytes | Image.Image]

    def __len__(self) -> int:
        return len(self.paths)

    def open(self, row: int) -> Image.Image:
        """Decode picture number `row` to RGB, without turning it by its EXIF tag (as released). Raises BadImage."""
        try:
            content = self.reader(row)
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BadImage(error.strerror) from error
        except OSError as error:  # a disk or a system in trouble says nothing about the image
            raise DataError(f"{self.paths[row]} could not be read: {error.strerror}. The same command goes on from there.") from error
        try:
            picture = content if isinstance(content, Image.Image) else Image.open(io.BytesIO(content))
            return picture.convert("RGB")
        except Image.UnidentifiedImageError as error:
            raise BadImage("no image in a format that is known") from error
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise BadImage(str(error).strip() or type(error).__name__) from error

    def fingerprint(self) -> str:
        """Hash the ordered names, sizes and labels (16 hex digits): equal for copies of a set on other machines."""
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes.tolist(), strict=True):
            digest.update(f"{path}\0{size}\n".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(self.labels.astype("<i8").tobytes())
            digest.update("\0".join(self.classes).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def subset(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """Keep the given rows, in the given order."""
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            sizes=self.sizes[rows],
            labels=None if self.labels is None else self.labels[rows],
            reader=_Rows(self.reader, rows),
        )


# Readers are small classes, not closures, so that worker processes can be sent them.
@dataclasses.dataclass(frozen=True)
class _Files:
    paths: tuple[str, ...]

    def __call__(self, row: int) -> bytes:
        return Path(self.paths[row]).read_bytes()


@dataclasses.dataclass(frozen=True)
class _Pixels:
    pixels: np.ndarray  # (N, H, W, 3) uint8

    def __call__(self, row: int) -> Image.Image:
        return Image.fromarray(self.pixels[row])


@dataclasses.dataclass(frozen=True)
class _Rows:
    reader: Callable[[int], bytes | Image.Image]
    rows: np.ndarray

    def __call__(self, row: int) -> bytes | Image.Image:
        return self.reader(int(self.rows[row]))


def open_splits(data: str) -> tuple[ImageSet, ImageSet]:
    """Open the training and the evaluation half of a labelled set.

    `data` is a name; a folder with `train/` and `val/` (or `test/`) of class folders, or `train.csv` and `val.csv`; or
    one CSV table with a column `split`. Raises DataError where classes differ between the halves, or are empty.
    """
    path = expand(data)
    try:
        if data in NAMES and not path.exists():
            train, val = _named(data)
        elif path.is_dir():
            train, val = _split_folder(path)
        elif path.is_file():
            train, val = _split_table(path)
        else:
            folders = "a folder with train/ and val/, a CSV table"
            raise DataError(f"no folder or file {path}; --data takes {folders}, or one of these: {unknown('data set', data, NAMES)}")
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    _check_classes(train, val)
    return train, val


def in_memory(pictures: Sequence[Image.Image]) -> ImageSet:
    """Pictures that are already open, as a set without labels; no two such sets share features."""
    names = tuple(f"{row:05d}" for row in range(len(pictures)))
    sizes, reader = np.zeros(len(names), np.int64), tuple(pictures).__getitem__
    return ImageSet(name="memory", split="all", paths=names, sizes=sizes, stamp=secrets.token_hex(), reader=reader)


def open_images(where: str | Path | Iterable[str | Path]) -> ImageSet:
    """Open pictures without asking for labels: a folder (searched deeply), a CSV table, one file, or a list of those."""
    if isinstance(where, (str, Path)):
        path = expand(where)
        if path.is_dir() and str(where):
            names = _walk(path)
            if not names:
                raise DataError(f"{path} holds no image; known endings: {', '.join(EXTENSIONS)}")
            return _files(str(path), "all", path, names)
        if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
            rows = _read_table(path)
            return _files(str(path), "all", path.parent, [row["path"] for row in rows])
        where = [where]
    names = []
    for item in where:
        path = expand(item)
        if path.is_dir() and str(item):
            names += [str(path / name) for name in _walk(path)]
        elif path.is_file():
            names.append(str(path))
        else:
            raise DataError(f"no image {str(item)!r}")
    if not names:
        raise DataError("no images were given")
    return _files("images", "all", Path(), names)


def _walk(folder: Path) -> list[str]:
    """All pictures below a folder, by name, in the order of torchvision's ImageFolder: by folder, then by file."""
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename} cannot be read: {error.strerror}")

    for base, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(base)
        if real in seen:  # a link to a folder that was seen: once is enough, and a circle has no end
            folders.clear()
            continue
        seen.add(real)
        found.append((base, sorted(file for file in files if file.lower().endswith(EXTENSIONS))))
    prefix = len(str(folder)) + 1
    return [f"{base[prefix:]}/{file}".lstrip("/") for base, files in sorted(found) for file in files]


def _files(
    name: str, split: str, root: Path, names: Sequence[str], labels: np.ndarray | None = None, classes: Sequence[str] = ()
) -> ImageSet:
    full = tuple(str(root / entry) for entry in names)
    try:
        facts = [os.stat(path) for path in full]  # noqa: PTH116  a million Path objects take long
    except OSError as error:
        raise DataError(f"no image {error.filename}, which {name} names: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{name} names a path that is none: {error}") from error
    # Place and time of the last change of the file's record go in, not its time stamp alone: archives restore that one.
    times = np.array([(fact.st_mtime_ns, fact.st_ctime_ns) for fact in facts], "<i8")
    stamp = hashlib.sha256(os.fsencode(root.resolve()) + times.tobytes()).hexdigest()[:16]
    sizes = np.array([fact.st_size for fact in facts], np.int64)
    return ImageSet(
        name=name, split=split, paths=tuple(names), sizes=sizes, labels=labels, classes=tuple(classes), stamp=stamp, reader=_Files(full)
    )


def _pixels(name: str, split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> ImageSet:
    names = tuple(f"{row:05d}.png" for row in range(len(pixels)))
    sizes = np.full(len(pixels), pixels[0].nbytes, np.int64)
    stamp = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    labels = np.asarray(labels, np.int64)
    return ImageSet(
        name=name, split=split, paths=names, sizes=sizes, labels=labels, classes=tuple(classes), stamp=stamp, reader=_Pixels(pixels)
    )


def _split_folder(path: Path) -> tuple[ImageSet, ImageSet]:
    held_out = next((name for name in VAL if (path / name).is_dir()), None)
    if (path / TRAIN).is_dir() and held_out:
        return _class_folder(path, TRAIN), _class_folder(path, held_out)
    table = next((name for name in VAL if (path / f"{name}.csv").is_file()), None)
    if (path / f"{TRAIN}.csv").is_file() and table:
        halves = ((name, _read_table(path / f"{name}.csv")) for name in (TRAIN, table))
        return _labelled_tables(str(path), path, dict(halves))
    found = some(sorted(entry.name for entry in path.iterdir())) or "nothing"
    raise DataError(f"{path} holds neither train/ and val/ (or test/) nor train.csv and val.csv; it holds {found}")


def _class_folder(root: Path, split: str) -> ImageSet:
    folder = root / split
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        held = len(_walk(folder))
        what = f"holds {held:,} images but no class folders" if held else "is empty"
        raise DataError(f"{folder} {what}; one folder a class is needed, such as {folder}/cat/1.jpg")
    names: list[str] = []
    labels: list[int] = []
    empty = []
    for label, name in enumerate(classes):
        inside = _walk(folder / name)
        if not inside:
            empty.append(name)
        names += [f"{name}/{entry}" for entry in inside]
        labels += [label] * len(inside)
    if empty:
        raise DataError(f"classes without an image in {folder}: {some(empty)}. Known endings: {', '.join(EXTENSIONS)}")
    return _files(str(root), split, folder, names, np.array(labels, np.int64), classes)


def _read_table(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            columns = reader.fieldnames or []
            rows = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV table: {error}") from error
    if "path" not in columns:
        raise DataError(f"{path} has no column 'path'; its first line must name the columns: path,label (and split)")
    if not rows:
        raise DataError(f"{path} has a heading but no rows")
    if empty := [number for number, row in enumerate(rows, 2) if not row["path"]]:
        raise DataError(f"{path} names no file in line {some(map(str, empty))}")
    return rows


def _split_table(path: Path) -> tuple[ImageSet, ImageSet]:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(f"{path} is neither a folder nor a .csv or .tsv table")
    rows = _read_table(path)
    halves: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        halves.setdefault(row.get("split") or "", []).append(row)
    held_out = next((name for name in VAL if name in halves), None)
    found = some(sorted(name or "(none)" for name in halves))
    if TRAIN not in halves or held_out is None:
        raise DataError(f"{path} needs a column 'split' with train and val (or test); found: {found}")
    if len(halves) > 2:
        raise DataError(f"{path} has more splits than train and {held_out}: {found}. Nothing is left out unasked; take the others out")
    return _labelled_tables(str(path), path.parent, {TRAIN: halves[TRAIN], held_out: halves[held_out]})


def _labelled_tables(name: str, root: Path, halves: dict[str, list[dict[str, str]]]) -> tuple[ImageSet, ImageSet]:
    sets = []
    for split, rows in halves.items():
        lacking = [row["path"] for row in rows if not row.get("label")]
        if lacking:
            raise DataError(f"{name}: {len(lacking)} of {len(rows)} rows of {split} have no label: {some(lacking)}")
        classes = sorted({row["label"] for row in rows})
        index = {label: number for number, label in enumerate(classes)}
        labels = np.array([index[row["label"]] for row in rows], np.int64)
        sets.append(_files(name, split, root, [row["path"] for row in rows], labels, classes))
    return sets[0], sets[1]


def _check_classes(train: ImageSet, val: ImageSet) -> None:
    only = [
        f"only in {one.split}: {some(sorted(missing))}"
        for one, other in ((train, val), (val, train))
        if (missing := set(one.classes) - set(other.classes))
    ]
    if only:
        raise DataError(f"the classes of {train.name} differ between its halves; {'; '.join(only)}")


def _named(name: str) -> tuple[ImageSet, ImageSet]:
    if name == "digits":
        return _digits()
    root = data_folder()
    if root is None:
        raise DataError(f"data set '{name}' is looked for in $DINOEVAL_DATA/{name}: set DINOEVAL_DATA to the folder of your data sets")
    folder = root / name
    if (folder / TRAIN).is_dir():
        return _split_folder(folder)
    if name == "imagenet":
        raise DataError(f"no {folder}/train: put ImageNet-1k there as train/<synset>/*.JPEG and val/<synset>/*.JPEG")
    return _torchvision(name, folder)


def _digits() -> tuple[ImageSet, ImageSet]:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fourth one is held out."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pixels = np.repeat(grey[..., None], 3, axis=3)
    held_out = np.arange(len(pixels)) % 4 == 3
    classes = [str(label) for label in digits.target_names]
    return (
        _pixels("digits", TRAIN, pixels[~held_out], digits.target[~held_out], classes),
        _pixels("digits", "val", pixels[held_out], digits.target[held_out], classes),
    )


def _torchvision(name: str, folder: Path) -> tuple[ImageSet, ImageSet]:
    from torchvision import datasets

    def build(kind: Callable, **which: object):
        try:
            return kind(str(folder), **which)
        except RuntimeError as missing:
            by_hand = f"Put its files under {folder}, as torchvision lays them out, or class folders train/ and val/"
            if offline():
                raise DataError(f"data set '{name}' is not in {folder} and DINOEVAL_OFFLINE is set. {by_hand}.") from missing
            try:
                return kind(str(folder), download=True, **which)
            except (OSError, RuntimeError) as error:
                address = getattr(kind, "url", None) or getattr(kind, "_download_url_prefix", "its home page")
                raise DataError(f"data set '{name}' could not be downloaded from {address}: {error}. {by_hand}.") from error

    if name == "flowers102":
        # The paper trains on train and val together: 2,040 images; its test set has 6,149.
        parts = {split: build(datasets.Flowers102, split=split) for split in ("train", "val", "test")}
        classes = [f"{number:03d}" for number in range(102)]

        def gather(split: str, *members: str) -> ImageSet:
            files = [str(file) for member in members for file in parts[member]._image_files]
            labels = np.array([label for member in members for label in parts[member]._labels], np.int64)
            return dataclasses.replace(_files(name, split, Path(), files, labels, classes), paths=tuple(Path(file).name for file in files))

        return gather(TRAIN, "train", "val"), gather("test", "test")
    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    halves = {"train": build(kind, train=True), "test": build(kind, train=False)}
    train, test = (_pixels(name, split, half.data, np.array(half.targets), half.classes) for split, half in halves.items())
    return train, test
