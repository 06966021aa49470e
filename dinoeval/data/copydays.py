"""Copydays: JPEG files in original/, strong/, jpegqual/{3 ... 75}/ and crops/{10 ... 80}/.

Douze et al., Evaluation of GIST descriptors for web-scale image search, CIVR 2009. The first four characters of a file
name are the scene; copies belong to the original of the same scene. The released code instead pairs files by their position
in the sorted folders and slices them by the published counts.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np

from dinoeval.data.folders import list_entries
from dinoeval.data.images import ImageSet, from_files
from dinoeval.data.loading import EXTENSIONS
from dinoeval.data.names import is_hidden, is_image_name
from dinoeval.display import short_repr
from dinoeval.errors import DataError, join_names
from dinoeval.files import expand

ORIGINAL, STRONG = "original", "strong"
JPEG_QUALITIES = (3, 5, 8, 10, 15, 20, 30, 50, 75)
"""Qualities of the blocks jpegqual/."""
CROPS = (10, 15, 20, 30, 40, 50, 60, 70, 80)
"""Percentages of the area that the blocks crops/ cut off."""
PAIRED = (*(f"jpegqual/{quality}" for quality in JPEG_QUALITIES), *(f"crops/{percent}" for percent in CROPS))
"""Blocks with one image per original."""
BLOCKS = (ORIGINAL, STRONG, *PAIRED)
"""All 20 blocks."""
PUBLISHED_COUNTS = {block: 229 if block == STRONG else 157 for block in BLOCKS}
"""Number of images in each block of the published dataset."""


@dataclasses.dataclass(frozen=True)
class Copydays:
    """All N images as one set, block after block."""

    images: ImageSet
    """The images of all blocks."""
    blocks: dict[str, np.ndarray]
    """Rows of `images` by block, int64, without the blocks whose folder does not exist."""
    scenes: np.ndarray
    """Scene of each image, (N,) strings of four characters."""
    missing: tuple[str, ...]
    """Files that do not exist although their original does."""

    __repr__ = short_repr


def open_copydays(data: str | Path, allow_missing: bool = False) -> Copydays:
    """Open Copydays.

    Args:
        data: The folder that contains original/ and strong/.
        allow_missing: Whether an original may lack its copy in a block.

    Returns:
        The images that exist.

    Raises:
        DataError: If original/ or strong/ is missing, a block is empty, a copy has no original, or the scene of a file is
            ambiguous; or, unless `allow_missing`, if a copy is missing.
    """
    root = expand(data)
    absent = [block for block in (ORIGINAL, STRONG) if not (root / block).is_dir()]
    if absent:
        expected = "expected original/, strong/, jpegqual/ and crops/"
        raise DataError(f"{root} has no folder {' and no '.join(absent)}: {expected}, found {list_entries(root)}")
    listings = {block: _list_block(root / block) for block in BLOCKS if (root / block).is_dir()}
    found = {block: names for block, (names, _) in listings.items()}
    if empty := [block for block, names in found.items() if not names]:
        raise DataError(f"{root} has no image in {join_names(empty)}. Supported endings: {', '.join(EXTENSIONS)}")
    _check_scenes(root, found)
    missing = _find_missing(found)
    if missing and not allow_missing:
        raise DataError(
            f"{root} lacks {len(missing)} images whose original exists: {join_names(missing)}. "
            "Add them, or pass --bad-images skip to continue without them."
        )
    names = [f"{block}/{name}" for block, inside in found.items() for name in inside]
    ends = np.cumsum([0, *(len(inside) for inside in found.values())])
    skipped = sum((others for _, others in listings.values()), collections.Counter[str]())
    return Copydays(
        images=dataclasses.replace(from_files(str(root), "images", root, names), skipped=skipped),
        blocks={block: np.arange(ends[i], ends[i + 1]) for i, block in enumerate(found)},
        scenes=np.array([_scene(Path(name).name) for name in names]),
        missing=missing,
    )


def _scene(name: str) -> str:
    return name[:4]


def _list_block(folder: Path) -> tuple[list[str], collections.Counter[str]]:
    """List the images of a block, and count the other files by ending."""
    files = [entry for entry in folder.iterdir() if not is_hidden(entry.name) and not entry.is_dir()]
    names = sorted(entry.name for entry in files if is_image_name(entry.name))
    return names, collections.Counter(entry.suffix.lower() or "no ending" for entry in files if not is_image_name(entry.name))


def _find_missing(found: dict[str, list[str]]) -> tuple[str, ...]:
    """List the files that the paired blocks lack, by the names of their originals."""
    missing = []
    for block in found.keys() & set(PAIRED):
        present = {_scene(name) for name in found[block]}
        missing += [f"{block}/{name}" for name in found[ORIGINAL] if _scene(name) not in present]
    return tuple(sorted(missing))


def _check_scenes(root: Path, found: dict[str, list[str]]) -> None:
    """Raise an error if a scene has several originals or a copy has none."""
    originals = collections.Counter(_scene(name) for name in found[ORIGINAL])
    ambiguous = [name for name in found[ORIGINAL] if originals[_scene(name)] > 1]
    if ambiguous:
        raise DataError(
            f"originals in {root} must differ in their first four characters, which are the scene, but these do not: "
            f"{join_names(ambiguous)}"
        )
    orphans = [f"{block}/{name}" for block, names in found.items() for name in names if _scene(name) not in originals]
    if orphans:
        expected = ", ".join(sorted({f"original/{_scene(Path(name).name)}00.jpg" for name in orphans})[:5])
        raise DataError(f"{root} has no original of {len(orphans)} images: {join_names(orphans)}. Missing files: {expected}")
