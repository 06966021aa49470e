"""The cosine above which two images count as duplicates, calibrated on the images of an index.

No fixed value suits all networks: unrelated photographs have cosines near 0 with one network and near 0.99 with
another. So copies of some images are made by re-encoding, downscaling and cropping. The threshold is the value that
best separates these copies from images that are merely similar.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

from dinoeval.data.images import in_memory
from dinoeval.data.loading import DEFAULT_RULE
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import crop_box
from dinoeval.errors import BadImage, DataError, join_names
from dinoeval.features.forward import forward
from dinoeval.features.readout import parse_readout
from dinoeval.maths.neighbors import l2_normalize, nearest
from dinoeval.search.store import StoredIndex
from dinoeval.search.vectors import sample
from dinoeval.session import Session

_COPIED, _COMPARED = 64, 1000  # images to copy, and images whose nearest neighbors are compared
_QUALITIES = (75, 50)  # of JPEG
_CROP = 0.05  # of width and height; crops of 0.1 let a weak network accept non-duplicates
_BETA_SQUARED = 0.25**2  # F0.25: a false duplicate costs more than a missed one, because most images have no duplicate


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A calibrated threshold, and its effect on the images that it was calibrated on."""

    cosine: float
    """Smallest cosine of two duplicates."""
    recall: float
    """Share of the copies that it finds."""
    alike: float
    """Share of the images with another image at least that similar: real duplicates and false ones."""
    images: int
    """Number of images that were copied."""


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
    copies = []
    for quality in _QUALITIES:
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality)
        copies.append(DEFAULT_RULE.decode(stream.getvalue()))
    half_size = (max(1, image.width // 2), max(1, image.height // 2))
    left, top = round(image.width * _CROP / 2), round(image.height * _CROP / 2)
    cropped = crop_box(image, (left, top, image.width - left, image.height - top))
    return [*copies, image.resize(half_size, Image.Resampling.LANCZOS), cropped]


def choose_threshold(of_copies: np.ndarray, of_others: np.ndarray, images: int) -> Threshold:
    """Choose the threshold with the largest F0.25 score.

    Real duplicates among the images count as false ones. They do so for every threshold.

    Args:
        of_copies: Cosines of copies with their originals, (n,) float.
        of_others: Cosines of images with their nearest other image, (m,) float.
        images: Number of images that were copied.

    Returns:
        The threshold, midway between the accepted cosines and the next smaller one.

    Examples:
        >>> choose_threshold(np.array([0.98, 0.99, 1.0]), np.array([0.5, 0.9, 0.94]), images=1)
        Threshold(cosine=0.96, recall=1.0, alike=0.0, images=1)
    """
    candidates = np.unique(of_copies)
    recall = (of_copies >= candidates[:, None]).mean(1)
    alike = (of_others >= candidates[:, None]).mean(1)
    precision = recall / (recall + alike)
    score = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    least = candidates[int(score.argmax())]
    both = np.concatenate((of_copies, of_others))
    below = max(both[both < least], default=least - 1e-5)
    cosine = round(float((least + below) / 2), 6)  # midway, because other images and other batches differ slightly
    return Threshold(cosine, float((of_copies >= cosine).mean()), float((of_others >= cosine).mean()), images)


def measure_threshold(stored: StoredIndex, session: Session) -> Threshold:
    """Calibrate the threshold on the images of an index.

    Up to 64 images are copied, and compared with the nearest neighbors of up to 1,000.

    Args:
        stored: The index.
        session: The backbone and transform of the index.

    Returns:
        The calibrated threshold.

    Raises:
        DataError: If the images are missing or have changed since the index was built.
    """
    count, vectors = len(stored.vectors), stored.vectors
    chosen = sample(count, min(_COPIED, max(8, count // 10)))
    readout = parse_readout(stored.manifest["readout"])
    try:
        images = open_images([stored.paths[row] for row in chosen]).with_rule(session.rule)
        if changed := [stored.paths[row] for row in chosen if stored.is_changed(row)]:
            raise DataError(f"{len(changed)} of {len(chosen)} images changed since the index was built: {join_names(changed)}")
        parts = []
        for row in range(len(images)):  # one at a time, because photographs are large
            copies = in_memory(make_copies(images.open(row)))
            parts.append(l2_normalize(forward(session.backbone, copies, readout, session.transform)))
    except (BadImage, DataError, OSError) as error:
        raise DataError(f"cannot calibrate the threshold: {error}. Rebuild the index, or pass --threshold") from error
    copied = np.concatenate(parts)
    originals = np.repeat(vectors.take(chosen), len(copied) // len(chosen), axis=0)
    compared = sample(count, _COMPARED)
    cosines, found = nearest(vectors.take(compared), vectors.blocks(), 2, normalized=True)
    # The nearest neighbor of an image is usually the image itself. It is not if the image has exact copies.
    is_self = found == compared[:, None]
    self_place = np.where(is_self.any(1), is_self.argmax(1), 1)
    of_others = np.take_along_axis(cosines, 1 - self_place[:, None], 1)[:, 0]
    return choose_threshold(np.einsum("nd,nd->n", copied, originals), of_others, len(chosen))
