"""Copydays: original/, strong/, jpegqual/{3 ... 75}/ and crops/{10 ... 80}/ of JPEG files. A name's first four characters are its scene.

Douze et al., Evaluation of GIST descriptors for web-scale image search, CIVR 2009. The released code pairs files by their
place in the sorted folders and slices by the published counts; here names decide, and counts are what is there.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np

from dinoeval.data.images import ImageSet, from_files
from dinoeval.errors import DataError, join_names
from dinoeval.files import expand

ORIGINAL, STRONG = "original", "strong"
JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)
PAIRED = (*(f"jpegqual/{quality}" for quality in JPEG_QUALITIES), *(f"crops/{percent}" for percent in CROPS))
"""Blocks with one picture for each original."""
BLOCKS = (ORIGINAL, STRONG, *PAIRED)
PUBLISHED = {block: 229 if block == STRONG else 157 for block in BLOCKS}


@dataclasses.dataclass(frozen=True)
class Copydays:
    """All pictures as one set, block by block."""

    images: ImageSet
    blocks: dict[str, np.ndarray]
    """Rows of `images` by block; blocks whose folder is absent are not here."""
    scenes: np.ndarray
    """(N,) four characters."""
    missing: tuple[str, ...]
    """Files that an original says should be there."""


def open_copydays(data: str | Path, allow_missing: bool = False) -> Copydays:
    """Open what is in a folder. Raises DataError, before any work, where a file's counterpart is missing."""
    root = expand(data)
    absent = [block for block in (ORIGINAL, STRONG) if not (root / block).is_dir()]
    if absent:
        held = join_names(sorted(entry.name for entry in root.iterdir())) if root.is_dir() else "nothing"
        raise DataError(
            f"{root} has no folder {' and no '.join(absent)}; Copydays has original/, strong/, jpegqual/, crops/. It holds {held}"
        )
    found = {block: _pictures(root / block) for block in BLOCKS if (root / block).is_dir()}
    if empty := [block for block, names in found.items() if not names]:
        raise DataError(f"{root} has no .jpg file in {join_names(empty)}")
    _check_scenes(root, found)
    scenes = {name[:4] for name in found[ORIGINAL]}
    names_of = {name[:4]: name for name in found[ORIGINAL]}
    missing = []
    for block in found.keys() & set(PAIRED):
        lacking = scenes - {name[:4] for name in found[block]}
        missing += [f"{block}/{names_of[scene]}" for scene in lacking]
    missing = tuple(sorted(missing))
    if missing and not allow_missing:
        raise DataError(
            f"{root} lacks {len(missing)} images that have an original: {join_names(missing)}. "
            "Get them, or say --bad-images skip to go on without them."
        )
    names = [f"{block}/{name}" for block, inside in found.items() for name in inside]
    ends = np.cumsum([0, *(len(inside) for inside in found.values())])
    blocks = {block: np.arange(ends[i], ends[i + 1]) for i, block in enumerate(found)}
    images = from_files(str(root), "images", root, names)
    return Copydays(images, blocks, np.array([Path(name).name[:4] for name in names]), missing)


def _pictures(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in (".jpg", ".jpeg") and entry.is_file())


def _check_scenes(root: Path, found: dict[str, list[str]]) -> None:
    """Refuse names that do not tell which picture is a copy of which."""
    originals = collections.Counter(name[:4] for name in found[ORIGINAL])
    shared = [name for name in found[ORIGINAL] if originals[name[:4]] > 1]
    if shared:
        raise DataError(
            f"originals of {root} begin with the same four characters, which name the scene, so that it cannot be told which "
            f"one a copy is of: {join_names(shared)}"
        )
    strangers = [f"{block}/{name}" for block, names in found.items() for name in names if name[:4] not in originals]
    if strangers:
        wanted = ", ".join(sorted({f"original/{Path(name).name[:4]}00.jpg" for name in strangers})[:5])
        raise DataError(f"{root} has no original of {len(strangers)} images: {join_names(strangers)}. Missing: {wanted}")
