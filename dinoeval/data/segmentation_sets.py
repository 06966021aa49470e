"""Images with one mask each: PASCAL VOC 2012 segmentation, or a folder with images/ and masks/ of equal names.

Labels of masks: 0 is background, 255 is void (in VOC, borders and difficult regions), other values are objects. A mask
must have the size of its image as it is decoded; masks themselves cannot have an EXIF orientation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoeval.data.folders import list_entries
from dinoeval.data.images import MISSING, ImageSet, from_files
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.data.masks import VOID, Encoding, check_siblings, decode_mask
from dinoeval.data.opening import open_images
from dinoeval.data.remarks import ORIENTED, add_remarks, remarks_of
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, DataError, join_names
from dinoeval.files import expand

if TYPE_CHECKING:
    from PIL import Image

Objects = Literal["instance", "class"]
_VOC_LIST = "ImageSets/Segmentation/val.txt"
_VOC_FOLDERS = ("", "VOC2012", "VOCdevkit/VOC2012")
_VOC_MASKS: dict[Objects, str] = {"instance": "SegmentationObject", "class": "SegmentationClass"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedImages:
    """N images and their masks, in the same order.

    Each image can be read and has an object.
    """

    images: ImageSet
    """The images."""
    masks: ImageSet
    """The masks, as files."""
    mask_folder: Path
    """Folder that the paths of `masks` are relative to."""
    voc: bool
    """Whether this is the val list of VOC 2012."""
    empty: tuple[str, ...] = ()
    """Images that are left out because their mask has no object."""
    bad: tuple[dict[str, Any], ...] = ()
    """Images that are left out because they cannot be used: `path` and `reason` of each."""
    unmatched_masks: tuple[str, ...] = ()
    """Masks without an image."""
    remarks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of images by remark."""
    full: tuple[str, ...] = ()
    """Masks without background."""

    __repr__ = short_repr

    def read_mask(self, row: int) -> np.ndarray:
        """Read the mask of an image.

        Args:
            row: Number of the image, 0 <= row < N.

        Returns:
            Labels, (H, W) uint8.
        """
        return decode_mask(self.mask_folder / self.masks.paths[row])[0]


def open_segmentation(
    data: str | Path, objects: Objects = "instance", *, min_side: int = 1, skip_bad: bool = False, rule: ImageRule = DEFAULT_RULE
) -> MaskedImages:
    """Open a segmentation dataset and check all its images and masks.

    Args:
        data: The folder of VOC 2012 or one that contains it, or a folder with images/ and masks/.
        objects: Which masks of VOC to use; other folders have one kind.
        min_side: Smallest usable side of an image in pixels.
        skip_bad: Whether to leave out unusable images instead of raising an error.
        rule: The rule by which images are decoded.

    Returns:
        The images that can be used and have an object.

    Raises:
        DataError: If an image has no mask; if a mask differs in size from its image or is not a map of labels; if the masks do
            not store labels in the same way; if no image is left; or, unless `skip_bad`, if an image cannot be decoded or is
            too small.
    """
    root = expand(data)
    voc = next((root / folder for folder in _VOC_FOLDERS if (root / folder / _VOC_LIST).is_file()), None)
    opened = _open_voc(voc, objects) if voc else _open_folder(root)
    opened = dataclasses.replace(opened, images=opened.images.with_rule(rule))
    if missing := [path for path, size in zip(opened.masks.paths, opened.masks.sizes, strict=True) if size == MISSING]:
        raise DataError(f"{len(missing)} of {len(opened.masks)} masks of {root} do not exist: {join_names(missing)}")
    kept, empty, bad, full = [], [], [], []
    remarks: dict[str, list[str]] = {}
    encodings: list[Encoding] = []
    for row, path in enumerate(opened.images.paths):
        try:
            image = opened.images.open(row)
            size = image.size
            if min(size) < min_side:
                raise BadImage(f"{size[0]} x {size[1]} pixels, the smallest usable side is {min_side}")
        except BadImage as error:
            bad.append({"path": path, "reason": str(error)})
            continue
        mask, encoding = _decode_mask_of_size(opened, row, image)
        encodings.append(encoding)
        (kept if len(object_labels(mask)) else empty).append(row)
        if row in kept[-1:]:
            add_remarks(remarks, image, path)
        full += [opened.masks.paths[row]] if mask.all() else []
    check_siblings(encodings)
    if bad and not skip_bad:
        listed = join_names(f"{one['path']} ({one['reason']})" for one in bad)
        raise DataError(
            f"{len(bad)} of {len(opened.images)} images of {root} cannot be used: {listed}. Fix or remove them, or pass --bad-images skip."
        )
    if not kept:
        raise DataError(f"no usable image of {root} has an object in its mask: 0 is background, {VOID} is void, other values are objects")
    return dataclasses.replace(
        opened,
        images=opened.images.subset(kept),
        masks=opened.masks.subset(kept),
        empty=tuple(opened.images.paths[row] for row in empty),
        bad=tuple(bad),
        remarks=remarks,
        full=tuple(full),
    )


def object_labels(mask: np.ndarray) -> np.ndarray:
    """Find the objects in a mask.

    Args:
        mask: Labels, (H, W) uint8.

    Returns:
        The labels of the objects in ascending order, (O,) int64.

    Examples:
        >>> object_labels(np.array([[0, 7], [255, 2]], np.uint8)).tolist()
        [2, 7]
    """
    return 1 + np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:VOID])


def _open_voc(root: Path, objects: Objects) -> MaskedImages:
    names = (root / _VOC_LIST).read_text(encoding="utf-8", errors="replace").split()
    if not names:
        raise DataError(f"{root / _VOC_LIST} lists no image")
    folder = _VOC_MASKS[objects]
    if not (root / folder).is_dir():
        raise DataError(f"{root} has no folder {folder}/ with the {objects} masks of VOC")
    images = from_files(str(root), "images", root, [f"JPEGImages/{name}.jpg" for name in names])
    masks = from_files(str(root), "masks", root, [f"{folder}/{name}.png" for name in names])
    return MaskedImages(images=images, masks=masks, mask_folder=root, voc=True)


def _open_folder(root: Path) -> MaskedImages:
    if not ((root / "images").is_dir() and (root / "masks").is_dir()):
        raise DataError(f"{root} needs {_VOC_LIST} of VOC, or images/ and masks/ with equal names, but contains {list_entries(root)}")
    listed = open_images(root / "images")
    names = _names_by_stem(root / "images", listed.paths)
    masks = _names_by_stem(root / "masks", open_images(root / "masks").paths)
    if missing := [name for stem, name in names.items() if stem not in masks]:
        raise DataError(f"{len(missing)} of {len(names)} images of {root} have no mask of the same name in masks/: {join_names(missing)}")
    return MaskedImages(
        images=dataclasses.replace(
            from_files(str(root), "images", root / "images", list(names.values())), skipped=listed.skipped, notes=listed.notes
        ),
        masks=from_files(str(root), "masks", root / "masks", [masks[stem] for stem in names]),
        mask_folder=root / "masks",
        voc=False,
        unmatched_masks=tuple(name for stem, name in masks.items() if stem not in names),
    )


def _names_by_stem(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """Return the images below a folder by their path without the ending."""
    found: dict[str, str] = {}
    for name in names:
        stem = str(Path(name).with_suffix(""))
        if stem in found:
            raise DataError(f"{folder} contains {found[stem]} and {name}, which have the same name: remove one of them")
        found[stem] = name
    return found


def _decode_mask_of_size(opened: MaskedImages, row: int, image: Image.Image) -> tuple[np.ndarray, Encoding]:
    """Read the mask of an image and check its size."""
    mask, encoding = decode_mask(opened.mask_folder / opened.masks.paths[row])
    size = image.size
    height, width = mask.shape
    if (width, height) != size:
        message = (
            f"mask {opened.masks.paths[row]} has {width} x {height} pixels, its image {opened.images.paths[row]} {size[0]} x {size[1]}"
        )
        if (height, width) == size and ORIENTED in remarks_of(image):
            applied = opened.images.rule.exif_transpose
            message += " after applying" if applied else " without applying"
            message += f" its EXIF orientation: pass --{'no-' * applied}exif-transpose"
        raise DataError(message)
    return mask, encoding
