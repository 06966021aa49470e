"""The revisited Oxford and Paris sets: ROOT/roxford5k/gnd_roxford5k.pkl and ROOT/roxford5k/jpg/*.jpg, or rparis6k.

Radenovic et al., Revisiting Oxford and Paris, CVPR 2018. The ground truth names the database images (`imlist`) and the
queries (`qimlist`), and for each query which database images are easy, hard and junk, and where the building is (`bbx`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from dinoeval.data.images import ImageSet, from_files
from dinoeval.data.pickles import open_pickle
from dinoeval.data.transforms import MOST_PIXELS
from dinoeval.errors import BadImage, DataError, join_names
from dinoeval.files import expand

Name = Literal["roxford5k", "rparis6k"]
Difficulty = Literal["easy", "medium", "hard"]
PUBLISHED = {"roxford5k": (4_993, 70), "rparis6k": (6_322, 70)}
"""Database images and queries."""
LEVELS: dict[Difficulty, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""Which lists are right and which are taken out of the ranking (example_evaluate.py of revisitop)."""
_LISTS = ("easy", "hard", "junk")


@dataclasses.dataclass(frozen=True)
class Query:
    """What the ground truth says of one query."""

    lists: Mapping[str, np.ndarray]
    """easy, hard, junk: database rows, int64."""
    box: tuple[float, float, float, float] | None
    """Left, top, right, bottom in pixels."""

    def truth(self, difficulty: Difficulty) -> tuple[np.ndarray, np.ndarray]:
        """Database rows that are right, and those that are junk."""
        right, junk = ([self.lists[name] for name in names] for names in LEVELS[difficulty])
        return np.concatenate(right), np.concatenate(junk)


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """A database, queries and their ground truth."""

    database: ImageSet
    queries: ImageSet
    truth: tuple[Query, ...]

    def cropped(self) -> ImageSet:
        """The queries cut to their boxes. Raises DataError where a box is missing or empty."""
        for name, query in zip(self.queries.paths, self.truth, strict=True):
            if query.box is None:
                raise DataError(f"{self.queries.name}: query {name} has no box (bbx) to be cropped to")
            if query.box[2] <= query.box[0] or query.box[3] <= query.box[1]:
                raise DataError(f"{self.queries.name}: the box of query {name} has no area: {_told(query.box)}")
        boxes = tuple(query.box for query in self.truth if query.box is not None)
        stamp = f"{self.queries.stamp} {'; '.join(map(_told, boxes))}"
        return dataclasses.replace(self.queries, split="cropped queries", stamp=stamp, reader=_Cropped(self.queries, boxes))


@dataclasses.dataclass(frozen=True)
class _Cropped:
    images: ImageSet
    boxes: tuple[tuple[float, float, float, float], ...]

    def __call__(self, row: int) -> Image.Image:
        picture, box = self.images.open(row), self.boxes[row]
        left, top, right, bottom = map(round, box)
        if min(right, picture.width) <= max(left, 0) or min(bottom, picture.height) <= max(top, 0):
            raise BadImage(f"the box {_told(box)} holds no pixel of its {picture.width} x {picture.height}")
        if (right - left) * (bottom - top) > MOST_PIXELS:
            raise BadImage(f"the box {_told(box)} is of more than {MOST_PIXELS:,} pixels")
        return picture.crop((left, top, right, bottom))


def _told(box: tuple[float, ...]) -> str:
    return " ".join(f"{side:g}" for side in box)


def open_retrieval(data: str | Path, name: Name) -> RetrievalSet:
    """Open ROOT/<name>, or that folder itself. Raises DataError where a file is missing or is not what it should be."""
    root = expand(data)
    folder = root if (root / f"gnd_{name}.pkl").is_file() and not (root / name).is_dir() else root / name
    path = folder / f"gnd_{name}.pkl"
    if not path.is_file():
        raise DataError(_absent(root, folder, name))
    content = open_pickle(path)
    names = {key: _names(path, content, key) for key in ("imlist", "qimlist")}
    truth = _truth(path, content, len(names["imlist"]), len(names["qimlist"]))
    pictures = folder / "jpg"
    if not pictures.is_dir():
        raise DataError(f"there is no folder {pictures}, which holds the images that {path.name} names")
    files = {key: [f"{entry}.jpg" for entry in entries] for key, entries in names.items()}
    there = {entry.name for entry in pictures.iterdir()}
    asked = dict.fromkeys([*files["imlist"], *files["qimlist"]])
    missing = [file for file in asked if file not in there and not (pictures / file).is_file()]
    if missing:
        raise DataError(f"{path} names {len(missing):,} of {len(asked):,} images that are not in {pictures}: {join_names(missing)}")
    database = from_files(str(folder), "database", pictures, files["imlist"])
    return RetrievalSet(database, from_files(str(folder), "queries", pictures, files["qimlist"]), truth)


def _absent(root: Path, folder: Path, name: str) -> str:
    """Say what is there instead of a ground truth."""
    if not root.is_dir():
        return f"there is no folder {root}; --data takes the one that holds {name}/gnd_{name}.pkl and {name}/jpg/"
    first = {"roxford5k": "oxford5k", "rparis6k": "paris6k"}[name]
    for place in (root, folder, root / first):
        inside = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
        lists = "gt_files" in inside or any(entry.endswith(("_good.txt", "_ok.txt", "_junk.txt", "_query.txt")) for entry in inside)
        if lists or f"gnd_{first}.pkl" in inside:
            return f"{place} holds the ground truth of the original {first}. " + _ORIGINAL.format(name=name)
    others = [other for other in PUBLISHED if (root / other / f"gnd_{other}.pkl").is_file() or (root / f"gnd_{other}.pkl").is_file()]
    hint = f"; there is {others[0]}: say --dataset {others[0]}" if others else ""
    return f"there is no {folder / f'gnd_{name}.pkl'}, the ground truth of {name} (from the revisitop project's page){hint}"


_ORIGINAL = (
    "This protocol is that of the revisited set, whose labels and queries are others and whose scores cannot be compared: "
    "get gnd_{name}.pkl from the revisitop project's page. The images are the same."
)


def _names(path: Path, content: Any, key: str) -> list[str]:
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        held = f"it holds {join_names(map(str, content))}" if isinstance(content, dict) else f"it is a {type(content).__name__}"
        raise DataError(f"{path} is no ground truth: a dict of imlist, qimlist and gnd is wanted, {held}")
    names = content[key]
    if not isinstance(names, (list, tuple, np.ndarray)) or not len(names):
        raise DataError(f"{path}: {key} is no list of names, or an empty one")
    strange = [entry for entry in names if not isinstance(entry, str) or not entry or "\0" in entry or ".." in Path(entry).parts]
    if strange or any(Path(entry).is_absolute() for entry in names):
        raise DataError(f"{path}: {key} holds what is no name of an image in jpg/: {join_names(map(repr, strange or names))}")
    return [str(entry) for entry in names]


def _truth(path: Path, content: dict, database: int, queries: int) -> tuple[Query, ...]:
    entries = content["gnd"]
    if not isinstance(entries, (list, tuple)) or len(entries) != queries:
        held = len(entries) if isinstance(entries, (list, tuple)) else "none"
        raise DataError(f"{path}: gnd must be a list of one entry a query, {queries}; it has {held}")
    return tuple(_query(path, number, entry, database) for number, entry in enumerate(entries))


def _query(path: Path, number: int, entry: Any, database: int) -> Query:
    where = f"{path}: gnd entry {number}"
    if isinstance(entry, dict) and "ok" in entry and not {"easy", "hard"} & entry.keys():
        name = path.stem.removeprefix("gnd_")
        raise DataError(f"{path} has the labels of an original set (ok and junk, no easy and hard). " + _ORIGINAL.format(name=name))
    if not isinstance(entry, dict) or not entry.keys() >= set(_LISTS):
        raise DataError(f"{where} must be a dict with easy, hard and junk")
    lists = {}
    for name in _LISTS:
        try:
            rows = np.asarray(entry[name])
            rows = rows.reshape(-1) if rows.size else np.zeros(0, np.int64)
            whole = rows.astype(np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{where}: {name} is no list of numbers") from error
        if rows.dtype.kind not in "iuf" or (whole != rows).any() or (whole < 0).any() or (whole >= database).any():
            raise DataError(f"{where}: {name} must be numbers of database images, from 0 to {database - 1}")
        lists[name] = whole
    return Query(lists, _box(where, entry.get("bbx")))


def _box(where: str, box: Any) -> tuple[float, float, float, float] | None:
    if box is None or not np.size(box):
        return None
    try:
        left, top, right, bottom = np.asarray(box, np.float64).reshape(-1).tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{where}: bbx must be four numbers") from error
    if not np.isfinite([left, top, right, bottom]).all():
        raise DataError(f"{where}: bbx holds {_told((left, top, right, bottom))}")
    return left, top, right, bottom
