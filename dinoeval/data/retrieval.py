"""The revisited Oxford and Paris datasets: ROOT/roxford5k/gnd_roxford5k.pkl and ROOT/roxford5k/jpg/*.jpg, or rparis6k.

Radenovic et al., Revisiting Oxford and Paris, CVPR 2018. The ground-truth file lists the database images (`imlist`) and the
queries (`qimlist`). For each query, `gnd` lists the easy, hard and junk database images and the box of the building (`bbx`).
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
from dinoeval.data.transforms import MAX_PIXELS, crop_box
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, DataError, join_names
from dinoeval.files import expand

DatasetName = Literal["roxford5k", "rparis6k"]
Level = Literal["easy", "medium", "hard"]
Box = tuple[float, float, float, float]
PUBLISHED_COUNTS = {"roxford5k": (4_993, 70), "rparis6k": (6_322, 70)}
"""Numbers of database images and queries in the published datasets."""
LEVELS: dict[Level, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
"""For each level, the lists of correct images and the lists that are removed from the ranking (example_evaluate.py of
revisitop)."""
_MAX_NAME_BYTES = 250  # of a file, without .jpg
_LISTS = ("easy", "hard", "junk")
_ORIGINAL = (
    "The revisited dataset has other labels and queries than the original one, so scores cannot be compared: download "
    "gnd_{name}.pkl from the page of the revisitop project. The images are the same."
)


@dataclasses.dataclass(frozen=True)
class Query:
    """The ground truth of a query."""

    lists: Mapping[str, np.ndarray]
    """Database rows, int64, by list: easy, hard, junk."""
    box: Box | None
    """Left, top, right and bottom in pixels."""

    def ground_truth(self, level: Level) -> tuple[np.ndarray, np.ndarray]:
        """Return the correct and the junk images at a level.

        Args:
            level: A key of LEVELS.

        Returns:
            Database rows of the correct images, and of the images that are removed from the ranking, both int64.

        Examples:
            >>> query = Query({"easy": np.array([3]), "hard": np.array([5, 6]), "junk": np.array([8])}, box=None)
            >>> [rows.tolist() for rows in query.ground_truth("hard")]
            [[5, 6], [8, 3]]
        """
        correct, junk = ([self.lists[name] for name in names] for names in LEVELS[level])
        return np.concatenate(correct), np.concatenate(junk)


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """A database of N images and Q queries with their ground truth."""

    database: ImageSet
    """N images."""
    queries: ImageSet
    """Q images, not cropped to their boxes."""
    ground_truth: tuple[Query, ...]
    """One entry per query."""

    __repr__ = short_repr

    def cropped(self) -> ImageSet:
        """Return the queries cropped to their boxes.

        Returns:
            An image set of Q images with a different stamp.

        Raises:
            DataError: If a box is missing or has no area.
        """
        boxes = []
        for name, query in zip(self.queries.paths, self.ground_truth, strict=True):
            if query.box is None:
                raise DataError(f"{self.queries.name}: query {name} has no box (bbx): leave out --query-crop")
            if query.box[2] <= query.box[0] or query.box[3] <= query.box[1]:
                raise DataError(f"{self.queries.name}: the box of query {name} has no area: {_format_box(query.box)}")
            boxes.append(query.box)
        stamp = f"{self.queries.stamp} {'; '.join(map(_format_box, boxes))}"
        return dataclasses.replace(self.queries, split="cropped queries", stamp=stamp, reader=_CroppedReader(self.queries, tuple(boxes)))


def open_retrieval(data: str | Path, name: DatasetName) -> RetrievalSet:
    """Open a revisited dataset.

    Args:
        data: The folder that contains the folder `name`, or that folder itself.
        name: The dataset.

    Returns:
        The database, the queries and the ground truth.

    Raises:
        DataError: If a file is missing or invalid.
    """
    root = expand(data)
    folder = root if (root / f"gnd_{name}.pkl").is_file() and not (root / name).is_dir() else root / name
    path = folder / f"gnd_{name}.pkl"
    if not path.is_file():
        raise DataError(_describe_missing(root, folder, name))
    content = open_pickle(path)
    names = {key: _parse_names(path, content, key) for key in ("imlist", "qimlist")}
    ground_truth = _parse_ground_truth(path, content, len(names["imlist"]), len(names["qimlist"]))
    images = folder / "jpg"
    if not images.is_dir():
        raise DataError(f"folder {images} with the images listed in {path.name} does not exist")
    files = {key: [f"{entry}.jpg" for entry in entries] for key, entries in names.items()}
    present = {entry.name for entry in images.iterdir()}
    listed = dict.fromkeys([*files["imlist"], *files["qimlist"]])
    missing = [file for file in listed if file not in present and not (images / file).is_file()]
    if missing:
        raise DataError(f"{path} lists {len(missing):,} of {len(listed):,} images that are not in {images}: {join_names(missing)}")
    database = from_files(str(folder), "database", images, files["imlist"])
    return RetrievalSet(database, from_files(str(folder), "queries", images, files["qimlist"]), ground_truth)


@dataclasses.dataclass(frozen=True)
class _CroppedReader:
    images: ImageSet
    boxes: tuple[Box, ...]

    def __call__(self, row: int) -> Image.Image:
        image, box = self.images.open(row), self.boxes[row]
        left, top, right, bottom = map(round, box)
        if min(right, image.width) <= max(left, 0) or min(bottom, image.height) <= max(top, 0):
            raise BadImage(f"the box {_format_box(box)} is outside the image of {image.width} x {image.height} pixels")
        if (right - left) * (bottom - top) > MAX_PIXELS:
            raise BadImage(f"the box {_format_box(box)} has more than {MAX_PIXELS:,} pixels")
        part = crop_box(image, (left, top, right, bottom))
        part.info = image.info
        return part


def _format_box(box: tuple[float, ...]) -> str:
    return " ".join(f"{side:g}" for side in box)


def _describe_missing(root: Path, folder: Path, name: str) -> str:
    """Write the message for a missing ground-truth file; it mentions a similar dataset if there is one."""
    if not root.is_dir():
        return f"folder {root} does not exist: pass --data the folder with {name}/gnd_{name}.pkl and {name}/jpg/"
    original = {"roxford5k": "oxford5k", "rparis6k": "paris6k"}[name]
    for place in (root, folder, root / original):
        inside = {entry.name for entry in place.iterdir()} if place.is_dir() else set()
        lists = "gt_files" in inside or any(entry.endswith(("_good.txt", "_ok.txt", "_junk.txt", "_query.txt")) for entry in inside)
        if lists or f"gnd_{original}.pkl" in inside:
            return f"{place} contains the ground truth of the original {original}. " + _ORIGINAL.format(name=name)
    others = [other for other in PUBLISHED_COUNTS if (root / other / f"gnd_{other}.pkl").is_file() or (root / f"gnd_{other}.pkl").is_file()]
    hint = f" {root} contains {others[0]}: pass --dataset {others[0]}." if others else ""
    return f"{folder / f'gnd_{name}.pkl'} does not exist: download it from the page of the revisitop project.{hint}"


def _parse_names(path: Path, content: Any, key: str) -> list[str]:
    if not isinstance(content, dict) or not {"imlist", "qimlist", "gnd"} <= content.keys():
        found = f"a dict with {join_names(map(str, content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"invalid ground-truth file {path}: expected a dict with imlist, qimlist and gnd, got {found}")
    names = content[key]
    names = list(names) if isinstance(names, np.ndarray) and names.ndim else names
    if not isinstance(names, (list, tuple)) or not len(names):
        raise DataError(f"{path}: {key} must be a list of at least one name")
    invalid = [entry for entry in names if not isinstance(entry, str) or not _can_be_path(entry)]
    if invalid or any(Path(entry).is_absolute() for entry in names):
        raise DataError(f"{path}: {key} has names that cannot be images in jpg/: {join_names(map(repr, invalid or names))}")
    return [str(entry) for entry in names]


def _can_be_path(name: str) -> bool:
    parts = Path(name).parts
    too_long = any(len(part.encode(errors="surrogatepass")) > _MAX_NAME_BYTES for part in parts)
    return bool(parts) and "\0" not in name and ".." not in parts and not too_long


def _parse_ground_truth(path: Path, content: dict, database: int, queries: int) -> tuple[Query, ...]:
    entries = content["gnd"]
    if not isinstance(entries, (list, tuple)) or len(entries) != queries:
        found = f"{len(entries)} entries" if isinstance(entries, (list, tuple)) else f"a {type(entries).__name__}"
        raise DataError(f"{path}: gnd must be a list with one entry for each of the {queries} queries, got {found}")
    return tuple(_parse_query(path, number, entry, database) for number, entry in enumerate(entries))


def _parse_query(path: Path, number: int, entry: Any, database: int) -> Query:
    place = f"{path}: gnd entry {number}"
    if isinstance(entry, dict) and "ok" in entry and not {"easy", "hard"} & entry.keys():
        name = path.stem.removeprefix("gnd_")
        raise DataError(f"{path} has the labels of an original dataset (ok and junk, not easy and hard). " + _ORIGINAL.format(name=name))
    if not isinstance(entry, dict) or not entry.keys() >= set(_LISTS):
        raise DataError(f"{place} must be a dict with easy, hard and junk")
    lists = {}
    for name in _LISTS:
        try:
            values = np.asarray(entry[name])
            values = values.reshape(-1) if values.size else np.zeros(0, np.int64)
            rows = values.astype(np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{place}: {name} must be a list of integers") from error
        if values.dtype.kind not in "iuf" or (rows != values).any() or (rows < 0).any() or (rows >= database).any():
            raise DataError(f"{place}: {name} must be numbers of database images, from 0 to {database - 1}")
        lists[name] = rows
    return Query(lists, _parse_box(place, entry.get("bbx")))


def _parse_box(place: str, box: Any) -> Box | None:
    if box is None or not np.size(box):
        return None
    try:
        left, top, right, bottom = np.asarray(box, np.float64).reshape(-1).tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place}: bbx must be four numbers") from error
    if not np.isfinite([left, top, right, bottom]).all():
        raise DataError(f"{place}: bbx must be finite, got {_format_box((left, top, right, bottom))}")
    return left, top, right, bottom
