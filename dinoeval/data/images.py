"""Image sets: images in a fixed order, with or without labels, made from files, from arrays or from open images.

Workers, shards and resumed runs refer to an image by its row, so the order of an image set never changes.
N images, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.image_files import ImageReader, report_read_errors
from dinoeval.data.loading import DEFAULT_RULE, ImageRule, load_image
from dinoeval.data.readers import MISSING, FileReader, JoinedReader, PixelReader, SubsetReader, open_source, stat_file
from dinoeval.data.remarks import REMARKS
from dinoeval.data.survey import survey
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, DataError, join_names

TRAIN = "train"
"""Name of the training split."""
HELD_OUT = ("val", "test")
"""Names of the evaluation split, in order of preference."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """N images in a fixed order."""

    name: str
    """The folder, table or dataset name that the user passed."""
    split: str
    """`train`, `val`, `test`, or another name if the set has no splits."""
    paths: tuple[str, ...]
    """N names, relative to the folder of the set. Images in memory are named `00000`, `00001` and so on."""
    sizes: np.ndarray
    """Sizes in bytes, (N,) int64; MISSING if there is no such file, which makes it an unreadable image."""
    labels: np.ndarray | None = None
    """Indices into `classes`, (N,) int64. For multi-label sets (N, C) int8: 1 present, 0 absent, -1 difficult, which is
    excluded from the scores of that class. None if the set has no labels."""
    classes: tuple[str, ...] = ()
    """C class names."""
    stamp: str
    """A digest that changes if a file is replaced by another of the same size: of location and modification times, or of
    pixels."""
    reader: ImageReader
    """Returns the content of an image by its row. It can be pickled if the images are files or arrays."""
    rule: ImageRule = DEFAULT_RULE
    """The rule by which the images are decoded."""
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of files that were found beside the images and left out, by ending; `hidden` counts hidden images and folders."""
    notes: tuple[str, ...] = ()
    """Sentences about what was left out or is unusual, for the Result."""

    __repr__ = short_repr

    def __post_init__(self) -> None:
        assert self.labels is None or self.labels.shape in ((len(self.paths),), (len(self.paths), len(self.classes)))

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def multi_label(self) -> bool:
        """Whether an image can have any number of classes."""
        return self.labels is not None and self.labels.ndim == 2

    @property
    def small(self) -> bool:
        """Whether decoding all images takes less time than starting worker processes."""
        return len(self) < 2000 and int(self.sizes.sum()) < 50_000_000

    def open(self, row: int) -> Image.Image:
        """Decode an image to RGB by the rule of the set.

        Args:
            row: Number of the image, 0 <= row < N.

        Returns:
            The RGB image. `info` holds the remarks about it.

        Raises:
            BadImage: If the image cannot be decoded.
            DataError: If the disk fails.
        """
        return load_image(self.reader, row, self.paths[row], self.rule)

    def with_rule(self, rule: ImageRule) -> ImageSet:
        """Return the same images, decoded by another rule.

        Args:
            rule: The rule.

        Returns:
            An image set with equal names and labels.
        """
        return self if rule == self.rule else dataclasses.replace(self, rule=rule)

    def remarks(self) -> dict[str, list[str]]:
        """Find the remarks about all images.

        Only the beginning of a file is read, unless its format requires more. The processes of a run share the work.

        Returns:
            Names of images by remark. Unreadable images have none.

        Raises:
            DataError: If the disk fails.
        """
        found = survey(range(len(self)), self._remarks_of)
        named = {remark: [self.paths[row] for row, of_image in found if remark in of_image] for remark in REMARKS}
        return {remark: names for remark, names in named.items() if names}

    def _remarks_of(self, row: int) -> set[str] | None:
        with contextlib.suppress(BadImage), report_read_errors(self.paths[row]):
            source = open_source(self.reader, row)
            with contextlib.nullcontext() if isinstance(source, (bytes, Image.Image)) else source:
                return self.rule.remarks(source) or None
        return None

    def content(self, row: int, last: int | None = None) -> bytes:
        """Read what an image consists of, without decoding it.

        Args:
            row: Number of the image.
            last: Read only this many bytes at the end of a file.

        Returns:
            The bytes of the file, or the pixels of an image in memory.

        Raises:
            BadImage: If the file does not exist, may not be read, or is not a regular file.
            DataError: If the disk fails.
        """
        with report_read_errors(self.paths[row]):
            source = open_source(self.reader, row)
            if isinstance(source, Image.Image):
                return source.tobytes()
            if isinstance(source, bytes):
                return source
            with source:
                size = int(self.sizes[row])
                source.seek(max(0, size - (last or size)))
                return source.read(last or size)

    def fingerprint(self) -> str:
        """Hash the ordered names, sizes, labels and class names.

        Returns:
            16 hex digits. Copies of a set on other machines have the same fingerprint.
        """
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes.tolist(), strict=True):
            digest.update(f"{path}\0{size}\n".encode(errors="surrogateescape"))
        if self.labels is not None:
            digest.update(b"multi-label\0" if self.multi_label else b"")
            digest.update(self.labels.astype("<i8").tobytes())
            digest.update("\0".join(self.classes).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def subset(self, rows: Sequence[int] | np.ndarray) -> ImageSet:
        """Select images.

        Args:
            rows: Rows to keep, (n,) int, in the order of the result.

        Returns:
            An image set of n images with the same classes.
        """
        rows = np.asarray(rows)
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[row] for row in rows.tolist()),
            sizes=self.sizes[rows],
            labels=None if self.labels is None else self.labels[rows],
            reader=SubsetReader(self.reader, rows),
        )


Splits = tuple[ImageSet, ImageSet]
"""The training and the evaluation split of a dataset."""


def from_files(
    name: str, split: str, root: Path, names: Sequence[str], labels: np.ndarray | None = None, classes: Sequence[str] = ()
) -> ImageSet:
    """Make an image set from files.

    Args:
        name: Name of the set.
        split: Name of the split.
        root: Folder of the files.
        names: Paths of the N files relative to `root`.
        labels: (N,) int64 or (N, C) int8, see ImageSet.
        classes: C class names.

    Returns:
        The image set, in the order of `names`.

    Raises:
        DataError: If none of the files exists, a path is invalid, or the disk fails. A part of the files may be missing.
    """
    full = tuple(os.path.join(root, entry) for entry in names)  # noqa: PTH118  A million Path objects take long.
    try:
        stats = list(map(stat_file, full))
    except OSError as error:
        raise DataError(f"{name} lists image {error.filename}, which cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{name} lists an invalid path: {error}") from error
    if stats and all(size == MISSING for size, *_ in stats):
        raise DataError(f"none of the {len(full):,} images of {name} ({split}) is an existing file: {join_names(full, 2)}")
    # Archives restore the modification time, so the time of the last change of the file record and the location count too.
    times = np.array([times for _, *times in stats], "<i8").reshape(-1, 2)
    return ImageSet(
        name=name,
        split=split,
        paths=tuple(names),
        sizes=np.array([size for size, *_ in stats], np.int64),
        labels=labels,
        classes=tuple(classes),
        stamp=hashlib.sha256(os.fsencode(root.resolve()) + times.tobytes()).hexdigest()[:16],
        reader=FileReader(full),
    )


def require_files(images: ImageSet, advice: str = ", or pass --bad-images skip") -> None:
    """Check that all files of an image set exist, before hours of work.

    Args:
        images: An image set.
        advice: End of the error message; empty if images cannot be skipped.

    Raises:
        DataError: If files are missing; the message names them.
    """
    missing = [images.paths[row] for row in np.flatnonzero(images.sizes == MISSING)]
    if missing:
        raise DataError(
            f"{len(missing):,} of {len(images):,} images of {images.name} ({images.split}) cannot be read, because they are not "
            f"existing files, such as broken links: {join_names(missing, 20)}. Fix or remove them{advice}."
        )


def from_pixels(name: str, split: str, pixels: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> ImageSet:
    """Make an image set from an array.

    Args:
        name: Name of the set.
        split: Name of the split.
        pixels: RGB images, (N, H, W, 3) uint8.
        labels: Indices into `classes`, (N,) int.
        classes: Class names.

    Returns:
        The image set.

    Examples:
        >>> images = from_pixels("gray", "train", np.full((2, 8, 8, 3), 128, np.uint8), np.array([0, 1]), ["a", "b"])
        >>> len(images), images.paths, images.open(1).size
        (2, ('00000.png', '00001.png'), (8, 8))
    """
    return ImageSet(
        name=name,
        split=split,
        paths=tuple(f"{row:05d}.png" for row in range(len(pixels))),
        sizes=np.full(len(pixels), pixels[0].nbytes, np.int64),
        labels=np.asarray(labels, np.int64),
        classes=tuple(classes),
        stamp=hashlib.sha256(pixels.tobytes()).hexdigest()[:16],
        reader=PixelReader(pixels),
    )


def in_memory(images: Sequence[Image.Image], first: int = 0) -> ImageSet:
    """Make an image set without labels from open images.

    Args:
        images: N images of any mode.
        first: Number in the name of the first image.

    Returns:
        The image set. Its stamp is random, so no two such sets share cached features.
    """
    names = tuple(f"{first + row:05d}" for row in range(len(images)))
    sizes, reader = np.zeros(len(names), np.int64), tuple(images).__getitem__
    return ImageSet(name="memory", split="all", paths=names, sizes=sizes, stamp=secrets.token_hex(), reader=reader)


def join_images(sets: Sequence[ImageSet]) -> ImageSet:
    """Join image sets, of files or of open images, to one set without labels.

    Args:
        sets: Image sets.

    Returns:
        Their images in order. The stamp is random, so no two such sets share cached features.
    """
    names = [name for one in sets for name in one.paths]
    return ImageSet(
        name="memory",
        split="all",
        paths=tuple(names),
        sizes=np.concatenate([one.sizes for one in sets]) if names else np.zeros(0, np.int64),
        stamp=secrets.token_hex(),
        reader=JoinedReader(tuple((one.reader, row) for one in sets for row in range(len(one)))),
    )


def classes_with_images(images: ImageSet) -> np.ndarray:
    """Find the classes that have an image.

    Args:
        images: A labeled image set of C classes.

    Returns:
        (C,) bool.
    """
    assert images.labels is not None
    return (images.labels == 1).any(0) if images.multi_label else np.bincount(images.labels, minlength=len(images.classes)) > 0


def require_classes(images: ImageSet, at_least: int = 2) -> None:
    """Check that an image set has images of enough classes.

    Args:
        images: A labeled image set.
        at_least: Number of classes that must have an image.

    Raises:
        DataError: If there are fewer classes, or no labels.
    """
    if images.labels is None:
        raise DataError(f"{images.name} ({images.split}) has no labels")
    present = classes_with_images(images)
    if present.sum() < at_least:
        found = join_names(np.array(images.classes, object)[present]) or "none"
        raise DataError(f"{images.name} ({images.split}) has images of too few classes: at least {at_least} needed, found {found}")
