"""The cosine from which on two images count as duplicates, measured on the index's own images.

No number holds for all networks: unrelated photographs have cosines near 0 in one and of 0.99 in another. So copies of
some images are made as people make them, re-encoded, made smaller and with the edges cut off, and the threshold is where
they are best told from images that are merely alike.
"""

from __future__ import annotations

import dataclasses
import io

import numpy as np
from PIL import Image

_QUALITIES = (75, 50)  # of JPEG
_CUT = 0.05  # of width and height; with copies cut by a tenth besides, a weak network's threshold let strangers in
_BETA_SQUARED = 0.25**2  # F0.25: a wrong duplicate costs more than one that is missed, as most images have none


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A threshold, and what it does on the images it was measured on."""

    cosine: float
    recall: float
    """Share of the planted copies that it finds."""
    alike: float
    """Share of the images of which another one is at least as near: duplicates that are there, and wrong ones."""
    images: int
    """How many images copies were made of."""


def copies(picture: Image.Image) -> list[Image.Image]:
    """Re-encode a picture (RGB) as JPEG of quality 75 and 50, halve its size, and cut 5 % of its width and height off."""
    made = []
    for quality in _QUALITIES:
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=quality)
        made.append(Image.open(stream).convert("RGB"))
    half = (max(1, picture.width // 2), max(1, picture.height // 2))
    left, top = round(picture.width * _CUT / 2), round(picture.height * _CUT / 2)
    inside = picture.crop((left, top, picture.width - left, picture.height - top))
    return [*made, picture.resize(half, Image.Resampling.LANCZOS), inside]


def choose_threshold(of_copies: np.ndarray, of_others: np.ndarray, images: int) -> Threshold:
    """Choose the threshold of largest F0.25 between cosines of copies with their originals and of images with their nearest others.

    Both are one-dimensional. Real duplicates that are in the set count as wrong ones, against every threshold alike.
    """
    candidates = np.unique(of_copies)
    recall = (of_copies >= candidates[:, None]).mean(1)
    alike = (of_others >= candidates[:, None]).mean(1)
    precision = recall / (recall + alike)
    score = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    least = candidates[int(score.argmax())]
    both = np.concatenate((of_copies, of_others))
    below = max(both[both < least], default=least - 1e-5)
    cosine = round(float((least + below) / 2), 6)  # midway: other images, and other batches, are a little different
    return Threshold(cosine, float((of_copies >= cosine).mean()), float((of_others >= cosine).mean()), images)
