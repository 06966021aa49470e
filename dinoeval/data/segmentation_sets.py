"""Images with a mask each: the segmentation part of PASCAL VOC 2012, or any folder of images/ and masks/ of equal names.

Masks are read by masks.py: 0 is background, 255 void (VOC's borders, and what is hard to tell), other ids are objects. EXIF
orientation is not applied, neither to images nor to masks (but Pillow turns TIFF files by itself).
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from dinoeval.data.images import ImageSet, from_files
from dinoeval.data.masks import VOID, black_and_white, read_mask
from dinoeval.data.opening import open_images
from dinoeval.errors import BadImage, DataError, join_names
from dinoeval.files import expand

Objects = Literal["instance", "class"]
VOC_IMAGES = 1449  # of the list of VOC 2012's segmentation val
_VOC_LIST = "ImageSets/Segmentation/val.txt"
_VOC_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")
_VOC_MASKS: dict[Objects, str] = {"instance": "SegmentationObject", "class": "SegmentationClass"}
_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)  # EXIF: values that swap height and width


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """N images and their masks, in the same order; each image can be read and has an object."""

    images: ImageSet
    masks: ImageSet
    mask_folder: Path
    voc: bool
    """Whether they are of VOC's list."""
    empty: tuple[str, ...] = ()
    """Images without an object, which are left out."""
    bad: tuple[dict[str, Any], ...] = ()
    """Images that cannot be used, which are left out too: `path`, `reason`."""
    alone: tuple[str, ...] = ()
    """Masks without an image."""

    def ids(self, row: int) -> np.ndarray:
        """The mask of image `row`, (H, W) uint8."""
        return read_mask(self.mask_folder / self.masks.paths[row])


def open_segmentation(data: str | Path, objects: Objects = "instance", *, least_side: int = 1, skip_bad: bool = False) -> MaskedImages:
    """Open a set and look at every image and mask of it, so that what is wrong is said before the work.

    `objects` chooses between VOC's masks of instances and of classes; a folder has one kind. Raises DataError where an
    image has no mask, or its mask is no map of ids or of another size; and, unless `skip_bad`, where an image cannot be
    decoded or is smaller than `least_side`.
    """
    root = expand(data)
    voc = next((root / place for place in _VOC_PLACES if (root / place / _VOC_LIST).is_file()), None)
    whole = _of_voc(voc, objects) if voc else _of_folder(root)
    kept, empty, bad = [], [], []
    white, numbered = [], []
    for row, path in enumerate(whole.images.paths):
        try:
            size = whole.images.open(row).size
            if min(size) < least_side:
                raise BadImage(f"{_told(size)} pixels; a side of {least_side} is the least that can be used")
        except BadImage as error:
            bad.append({"path": path, "reason": str(error)})
        else:
            mask = _mask_of_size(whole, row, size)
            (kept if len(ids_of(mask)) else empty).append(row)
            if mask.max() > 1 or (mask.any() and black_and_white(whole.mask_folder / whole.masks.paths[row])):
                (numbered if mask.max() > 1 else white).append(whole.masks.paths[row])
    if white and numbered:
        raise DataError(
            f"some masks of {root} hold black and white alone ({join_names(white, 3)}), where white is an object, and others hold numbers "
            f"({join_names(numbered, 3)}), where {VOID} is void: which of the two {VOID} means is unknown. Save the former with 0 and 1."
        )
    if bad and not skip_bad:
        named = join_names(f"{one['path']} ({one['reason']})" for one in bad)
        raise DataError(
            f"{len(bad)} of {len(whole.images)} images of {root} cannot be used: {named}. Mend or remove them, or say --bad-images skip."
        )
    if not kept:
        raise DataError(f"no image of {root} that can be read has an object in its mask: 0 is background, {VOID} void, others are objects")
    without = tuple(whole.images.paths[row] for row in empty)
    return dataclasses.replace(whole, images=whole.images.subset(kept), masks=whole.masks.subset(kept), empty=without, bad=tuple(bad))


def ids_of(mask: np.ndarray) -> np.ndarray:
    """The ids of the objects in a mask (H, W), in ascending order."""
    return 1 + np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:VOID])


def _of_voc(root: Path, objects: Objects) -> MaskedImages:
    names = (root / _VOC_LIST).read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise DataError(f"{root / _VOC_LIST} names no image")
    folder = _VOC_MASKS[objects]
    if not (root / folder).is_dir():
        raise DataError(f"{root} has no folder {folder}/, which holds VOC's {objects} masks")
    images = from_files(str(root), "images", root, [f"JPEGImages/{name}.jpg" for name in names])
    masks = from_files(str(root), "masks", root, [f"{folder}/{name}.png" for name in names])
    return MaskedImages(images=images, masks=masks, mask_folder=root, voc=True)


def _of_folder(root: Path) -> MaskedImages:
    if not ((root / "images").is_dir() and (root / "masks").is_dir()):
        held = join_names(sorted(entry.name for entry in root.iterdir())) if root.is_dir() else ""
        raise DataError(f"{root} holds neither VOC's {_VOC_LIST} nor images/ and masks/ of equal names; it holds {held or 'nothing'}")
    names, masks = (_by_stem(root / kind) for kind in ("images", "masks"))
    if lacking := [name for stem, name in names.items() if stem not in masks]:
        raise DataError(f"{len(lacking)} of {len(names)} images of {root} have no mask of the same name in masks/: {join_names(lacking)}")
    return MaskedImages(
        images=from_files(str(root), "images", root / "images", list(names.values())),
        masks=from_files(str(root), "masks", root / "masks", [masks[stem] for stem in names]),
        mask_folder=root / "masks",
        voc=False,
        alone=tuple(name for stem, name in masks.items() if stem not in names),
    )


def _by_stem(folder: Path) -> dict[str, str]:
    """The pictures below a folder, by their names without the ending."""
    found: dict[str, str] = {}
    for name in open_images(folder).paths:
        stem = str(Path(name).with_suffix(""))
        if stem in found:
            raise DataError(f"{folder} holds {found[stem]} and {name}: which of the two counts cannot be told")
        found[stem] = name
    return found


def _mask_of_size(whole: MaskedImages, row: int, size: tuple[int, int]) -> np.ndarray:
    """The mask of image `row`, whose width and height are `size`. Raises DataError where it has others."""
    ids = whole.ids(row)
    if ids.shape[::-1] != size:
        told = f"mask {whole.masks.paths[row]} has {_told(ids.shape[::-1])} pixels, its image {whole.images.paths[row]} {_told(size)}"
        if ids.shape == size and _turned(whole.images, row):
            told += " before it is turned by its EXIF tag, which is not applied: turn the pixels of the image itself"
        raise DataError(told)
    return ids


def _turned(images: ImageSet, row: int) -> bool:
    content = images.reader(row)
    assert isinstance(content, bytes)
    return Image.open(io.BytesIO(content)).getexif().get(_ORIENTATION) in _LYING


def _told(size: tuple[int, ...]) -> str:
    return f"{size[0]} x {size[1]}"
