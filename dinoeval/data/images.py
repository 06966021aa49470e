"""Sets of images with or without labels: class folders, flat folders, CSV tables; sets known by name are in named.py.

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

import numpy as np
from PIL import Image

from dinoeval.errors import BadImage, DataError, join_names, unknown
from dinoeval.files import expand

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's list
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
    """(N,) int64 indices into `classes`; or (N, C) int8 where an image may be of several: 1 present, 0 absent, -1 difficult, which
    is left out of the scores of that class; or None where the set has no labels."""
    classes: tuple[str, ...] = ()
    stamp: str
    """A digest that changes when a file is replaced by another of the same size: of place and times of change, or of pixels."""
    reader: Callable[[int], bytes | Image.Image]

    def __post_init__(self) -> None:
        assert self.labels is None or self.labels.shape in ((len(self.paths),), (len(self.paths), len(self.classes)))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def multi_label(self) -> bool:
        """Whether an image may be of several classes, or of none."""
        return self.labels is not None and self.labels.ndim == 2

    @property
    def small(self) -> bool:
        """Whether decoding all of it takes less than starting processes for it."""
        return len(self) < 2000 and int(self.sizes.sum()) < 50_000_000

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
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise BadImage(str(error).strip() or type(error).__name__) from error

    def fingerprint(self) -> str:
        """Hash the ordered names, sizes and labels (16 hex digits): equal for copies of a set on other machines."""
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes.tolist(), strict=True):
            digest.update(f"{path}\0{size}\n".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(b"multi-label\0" if self.multi_label else b"")
            digest.update(self.labels.astype("<i8").tobytes())
            digest.update("\0".join(self.classes).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def subset(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """Keep the given rows, in the given order."""
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[row] for row in rows.tolist()),
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
    one CSV table with a column `split`. A table's column `label` holds one class; a column `labels` instead holds any
    number, separated by `;`. Raises DataError where classes differ between the halves, or are empty.
    """
    from dinoeval.data.sources import NAMES, open_named  # which is made of this module's parts

    path = expand(data)
    try:
        if data in NAMES and not path.exists():
            train, val = open_named(data)
        elif path.is_dir():
            train, val = split_folder(path)
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
            return from_files(str(path), "all", path, names)
        if path.suffix.lower() in (".csv", ".tsv") and path.is_file():
            rows = _read_table(path)
            return from_files(str(path), "all", path.parent, [row["path"] for row in rows])
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
    return from_files("images", "all", Path(), names)


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
        folders.sort()  # of two links to one folder the first by name counts, on every disk
        found.append((base, sorted(file for file in files if file.lower().endswith(EXTENSIONS))))
    prefix = len(str(folder)) + 1
    return [f"{base[prefix:]}/{file}".lstrip("/") for base, files in sorted(found) for file in files]


def from_files(
    name: str, split: str, root: Path, names: Sequence[str], labels: np.ndarray | None = None, classes: Sequence[str] = ()
) -> ImageSet:
    """Make a set of files below `root`, in the order given. Raises DataError where one is not there."""
    full = tuple(os.path.join(root, entry) for entry in names)  # noqa: PTH118  a million Path objects take long
    try:
        facts = [os.stat(path) for path in full]  # noqa: PTH116
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


def from_pixels(name: str, split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> ImageSet:
    """Make a set of pixels in memory, (N, H, W, 3) uint8."""
    names = tuple(f"{row:05d}.png" for row in range(len(pixels)))
    sizes = np.full(len(pixels), pixels[0].nbytes, np.int64)
    stamp = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
    labels = np.asarray(labels, np.int64)
    return ImageSet(
        name=name, split=split, paths=names, sizes=sizes, labels=labels, classes=tuple(classes), stamp=stamp, reader=_Pixels(pixels)
    )


def split_folder(path: Path) -> tuple[ImageSet, ImageSet]:
    """Open the halves of a folder that holds train/ and val/ (or test/), or train.csv and val.csv."""
    held_out = next((name for name in VAL if (path / name).is_dir()), None)
    if (path / TRAIN).is_dir() and held_out:
        return _class_folder(path, TRAIN), _class_folder(path, held_out)
    table = next((name for name in VAL if (path / f"{name}.csv").is_file()), None)
    if (path / f"{TRAIN}.csv").is_file() and table:
        halves = ((name, _read_table(path / f"{name}.csv")) for name in (TRAIN, table))
        return _labelled_tables(str(path), path, dict(halves))
    found = join_names(sorted(entry.name for entry in path.iterdir())) or "nothing"
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
        raise DataError(f"classes without an image in {folder}: {join_names(empty)}. Known endings: {', '.join(EXTENSIONS)}")
    return from_files(str(root), split, folder, names, np.array(labels, np.int64), classes)


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
        raise DataError(f"{path} names no file in line {join_names(map(str, empty))}")
    return rows


def _split_table(path: Path) -> tuple[ImageSet, ImageSet]:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(f"{path} is neither a folder nor a .csv or .tsv table")
    rows = _read_table(path)
    halves: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        halves.setdefault(row.get("split") or "", []).append(row)
    held_out = next((name for name in VAL if name in halves), None)
    found = join_names(sorted(name or "(none)" for name in halves))
    if TRAIN not in halves or held_out is None:
        raise DataError(f"{path} needs a column 'split' with train and val (or test); found: {found}")
    if len(halves) > 2:
        raise DataError(f"{path} has more splits than train and {held_out}: {found}. Nothing is left out unasked; take the others out")
    return _labelled_tables(str(path), path.parent, {TRAIN: halves[TRAIN], held_out: halves[held_out]})


def _labelled_tables(name: str, root: Path, halves: dict[str, list[dict[str, str]]]) -> tuple[ImageSet, ImageSet]:
    train, val = (_labelled_table(name, split, root, rows) for split, rows in halves.items())
    return train, val


def _labelled_table(name: str, split: str, root: Path, rows: list[dict[str, str]]) -> ImageSet:
    column, several = ("labels", True) if "labels" in rows[0] else ("label", False)
    if several and "label" in rows[0]:
        raise DataError(f"{name} has a column 'label' and a column 'labels': keep label for one class an image, or labels for any number")
    # An empty cell of `labels` says that no class is present; a row that ends before that cell says nothing.
    lacking = [row["path"] for row in rows if row.get(column) is None or not (row[column] or several)]
    if lacking:
        raise DataError(f"{name}: {len(lacking)} of {len(rows)} rows of {split} have no {column}: {join_names(lacking)}")
    if several and (longer := [row["path"] for row in rows if None in row]):
        raise DataError(f"{name}: rows of {split} are longer than the heading: {join_names(longer)}. Several labels are separated by ';'")
    cells = [[word.strip() for word in row["labels"].split(";") if word.strip()] if several else [row["label"]] for row in rows]
    classes = sorted({word for words in cells for word in words})
    index = {word: number for number, word in enumerate(classes)}
    if several:
        labels = np.zeros((len(rows), len(classes)), np.int8)
        for number, words in enumerate(cells):
            labels[number, [index[word] for word in words]] = 1
    else:
        labels = np.array([index[word] for (word,) in cells], np.int64)
    return from_files(name, split, root, [row["path"] for row in rows], labels, classes)


def _check_classes(train: ImageSet, val: ImageSet) -> None:
    if train.multi_label != val.multi_label:
        raise DataError(f"{train.name}: one half has one label an image, the other any number")
    only = [
        f"only in {one.split}: {join_names(sorted(missing))}"
        for one, other in ((train, val), (val, train))
        if (missing := set(one.classes) - set(other.classes))
    ]
    if only:
        raise DataError(f"the classes of {train.name} differ between its halves; {'; '.join(only)}")
    if train.classes != val.classes:
        raise DataError(f"the classes of {train.name} have other numbers in {train.split} than in {val.split}")
    for half in (train, val):
        if not half.classes or not len(half):
            raise DataError(f"{half.name} ({half.split}) names no {'class' if len(half) else 'image'}")
        assert half.labels is not None
        if not half.multi_label and not 0 <= half.labels.min() <= half.labels.max() < len(half.classes):
            span = f"{half.labels.min()} to {half.labels.max()}"
            raise DataError(f"{half.name} ({half.split}) has class numbers from {span}; its {len(half.classes)} classes count from 0")


def require_classes(images: ImageSet, at_least: int = 2) -> None:
    """Raise DataError where the images are of fewer classes than a protocol can work with, or have no labels."""
    if images.labels is None:
        raise DataError(f"{images.name} ({images.split}) has no labels")
    present = (images.labels == 1).any(0) if images.multi_label else np.bincount(images.labels, minlength=len(images.classes)) > 0
    if present.sum() < at_least:
        found = join_names(np.array(images.classes, object)[present]) or "none"
        raise DataError(f"the images of {images.name} ({images.split}) are of too few classes: {found}; {at_least} are needed at least")
