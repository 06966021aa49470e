"""The cosine above which two images count as duplicates, calibrated on the images of an index.

No fixed value suits all networks: unrelated photographs have cosines near 0 with one network and near 0.99 with
another. So copies of some images are made by re-encoding, downscaling and cropping. The threshold is the value that
best separates these copies from images that are merely similar.

Two things keep its statistics valid. Duplicates in the index are recognized by their pixels and do not count as merely
similar images, so their number has no effect. And what is reported of the threshold is measured on other images than those
it was chosen on.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from dinoeval.data.images import in_memory
from dinoeval.data.loading import DEFAULT_RULE
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import crop_box
from dinoeval.errors import BadImage, DataError
from dinoeval.features.forward import forward
from dinoeval.features.readout import parse_readout
from dinoeval.maths.neighbors import l2_normalize, nearest
from dinoeval.search.pixels import SmallVersions, correlate, same_picture_limit
from dinoeval.search.store import StoredIndex
from dinoeval.session import Session

_COPIED = 96  # images that are copied: for one half the threshold is chosen, on the other it is measured
_COMPARED = 300  # images whose nearest other picture is determined, for the same two purposes
_NEIGHBORS = (8, 48)  # nearest images among which another picture is sought
_KEPT = 1000  # images whose small versions stay in memory, 90 kB each
_BETA_SQUARED = 0.25**2  # F0.25: a false duplicate costs more than a missed one, because most images have no duplicate
_Z = 1.96  # of a 95% interval


def _jpeg(image: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return DEFAULT_RULE.decode(stream.getvalue())


def _half_size(image: Image.Image) -> Image.Image:
    return image.resize((max(1, image.width // 2), max(1, image.height // 2)), Image.Resampling.LANCZOS)


def _crop(image: Image.Image, share: float) -> Image.Image:
    left, top = round(image.width * share / 2), round(image.height * share / 2)
    return crop_box(image, (left, top, image.width - left, image.height - top))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 75": functools.partial(_jpeg, quality=75),
    "JPEG, quality 50": functools.partial(_jpeg, quality=50),
    "half the size": _half_size,
    "cropped by 5%": functools.partial(_crop, share=0.05),
}
"""The copies of an image that a duplicate search should find; crops are of width and height."""
# Crops of 10% let a weak network accept non-duplicates, so the threshold is not chosen on them.
_MEASURED = {**COPIES, "cropped by 10%": functools.partial(_crop, share=0.1)}


@dataclasses.dataclass(frozen=True)
class CopyRecall:
    """How many copies of one kind a threshold finds."""

    kind: str
    """What was done to the images."""
    found: int
    """Copies whose cosine with their original reaches the threshold."""
    copies: int
    """Copies, one per image."""

    @property
    def recall(self) -> float:
        """Share of the copies that are found."""
        return self.found / self.copies

    @property
    def interval(self) -> tuple[float, float]:
        """95% confidence interval of the recall, by Wilson's formula.

        Examples:
            >>> [round(bound, 3) for bound in CopyRecall("crop", found=8, copies=10).interval]
            [0.49, 0.943]
        """
        n, share = self.copies, self.recall
        center, half = share + _Z**2 / (2 * n), _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2))
        return max(0.0, (center - half) / (1 + _Z**2 / n)), min(1.0, (center + half) / (1 + _Z**2 / n))


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A calibrated threshold, and its effect on images other than those it was chosen on."""

    cosine: float
    """Smallest cosine of two duplicates."""
    images: int
    """Number of images whose copies it was chosen on."""
    recalls: tuple[CopyRecall, ...]
    """Recall for each kind of copy, measured on copies of other images."""
    alike: float
    """Share of the images that have a non-duplicate, by its pixels, at least that similar."""
    compared: int
    """Number of images that `alike` was measured on."""


def make_copies(image: Image.Image) -> list[Image.Image]:
    """Make the copies of an image that a duplicate search should find.

    Args:
        image: Image, RGB.

    Returns:
        The image as JPEG of quality 75 and 50, at half its size, and with 5% of its width and height cropped.

    Examples:
        >>> [copy.size for copy in make_copies(Image.new("RGB", (400, 200)))]
        [(400, 200), (400, 200), (200, 100), (380, 190)]
    """
    return [copy(image) for copy in COPIES.values()]


def choose_threshold(of_copies: np.ndarray, of_others: np.ndarray) -> float:
    """Choose the threshold with the largest F0.25 score.

    Args:
        of_copies: Cosines of copies with their originals, (n,) float.
        of_others: Cosines of images with the nearest image that is not a duplicate, (m,) float.

    Returns:
        The threshold, midway between the accepted cosines and the next smaller one.

    Examples:
        >>> choose_threshold(np.array([0.98, 0.99, 1.0]), np.array([0.5, 0.9, 0.94]))
        0.96
    """
    candidates = np.unique(of_copies)
    recall = (of_copies >= candidates[:, None]).mean(1)
    alike = (of_others >= candidates[:, None]).sum(1) / max(1, len(of_others))
    precision = recall / (recall + alike)
    score = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    least = candidates[int(score.argmax())]
    both = np.concatenate((of_copies, of_others))
    below = max(both[both < least], default=least - 1e-5)
    return round(float((least + below) / 2), 6)  # midway, because other images and other batches differ slightly


def measure_threshold(stored: StoredIndex, session: Session, rows: np.ndarray) -> Threshold:
    """Calibrate the threshold on the images of an index.

    Up to 96 images are copied, and up to 300 compared with their neighbors. One half serves to choose the threshold, the
    other to measure it.

    Args:
        stored: The index.
        session: The backbone and transform of the index.
        rows: Rows of the images to use, (n,) int64; their files must be those that were indexed.

    Returns:
        The calibrated threshold.

    Raises:
        DataError: If there are fewer than two images, or one cannot be read.
    """
    # One row per content, in the order of its digest: a random order that does not depend on names or on copied files.
    drawn = rows[np.unique([stored.records[row].digest for row in rows.tolist()], return_index=True)[1]]
    if len(drawn) < 2:
        raise DataError("cannot calibrate the threshold: all files have the same content. Pass --threshold, such as --threshold 0.999")
    try:
        calibration = _Calibration(stored, session, drawn)
        copied, compared = np.array_split(drawn[:_COPIED], 2), np.array_split(drawn[:_COMPARED], 2)
        of_copies = calibration.cosines_of_copies(copied[0], COPIES)
        of_others = calibration.cosines_of_others(compared[0])
        cosine = choose_threshold(of_copies.ravel(), of_others)
        found = calibration.cosines_of_copies(copied[1], _MEASURED) >= cosine
        alike = calibration.cosines_of_others(compared[1]) >= cosine
    except (BadImage, DataError, OSError) as error:
        raise DataError(f"cannot calibrate the threshold: {error}. Rebuild the index, or pass --threshold") from error
    recalls = tuple(CopyRecall(kind, int(one.sum()), len(one)) for kind, one in zip(_MEASURED, found.T, strict=True))
    return Threshold(cosine, len(copied[0]), recalls, float(alike.mean()) if len(alike) else 0.0, len(alike))


class _Calibration:
    """The images of an index, their copies and their neighbors."""

    def __init__(self, stored: StoredIndex, session: Session, rows: np.ndarray) -> None:
        self._stored, self._session, self._rows = stored, session, np.sort(rows)
        self._readout = parse_readout(stored.manifest["readout"])
        self._small_versions = functools.lru_cache(_KEPT)(lambda row: SmallVersions.of(self._open(row)))
        self._limit = same_picture_limit([self._small_versions(row) for row in rows[: _COPIED // 2].tolist()])

    def _open(self, row: int) -> Image.Image:
        return open_images([self._stored.paths[row]]).with_rule(self._session.rule).open(0)

    def cosines_of_copies(self, rows: np.ndarray, kinds: dict[str, Callable[[Image.Image], Image.Image]]) -> np.ndarray:
        """Cosines (n, kinds) of copies of images with their originals."""
        cosines = []
        for row, original in zip(rows.tolist(), self._stored.vectors.take(rows), strict=True):  # one image at a time: they are large
            image = self._open(row)
            copies = in_memory([copy(image) for copy in kinds.values()])
            features = forward(self._session.backbone, copies, self._readout, self._session.transform)
            cosines.append(l2_normalize(features) @ original)
        return np.stack(cosines)

    def cosines_of_others(self, rows: np.ndarray) -> np.ndarray:
        """Cosine of each image with the nearest one that shows another picture; images with many duplicates are left out."""
        result = np.full(len(rows), np.nan)
        pending = np.arange(len(rows))
        for neighbors in _NEIGHBORS:
            if not len(pending):
                break
            k = min(neighbors, len(self._rows))
            vectors = self._stored.vectors
            cosines, places = nearest(vectors.take(rows[pending]), vectors.blocks(self._rows), k, normalized=True)
            for position, found, candidates in zip(pending, cosines, self._rows[places], strict=True):
                result[position] = next(
                    (cosine for cosine, other in zip(found, candidates, strict=True) if not self._is_same(int(rows[position]), int(other))),
                    np.nan,
                )
            pending = np.flatnonzero(np.isnan(result))
        return result[~np.isnan(result)]

    def _is_same(self, row: int, other: int) -> bool:
        return row == other or correlate(self._small_versions(row), self._small_versions(other)) >= self._limit
