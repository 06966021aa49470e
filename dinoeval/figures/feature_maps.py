"""The patch tokens of a set of images as colours: the first three principal components, fitted to all images at once.

M images of h x w patches of p pixels (each of its own), D dims.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.preprocessing import FigureTransform, Picture, figure_transform, open_pictures
from dinoeval.figures.style import blended, enlarged, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dinoeval.data.images import ImageSet
    from dinoeval.models.backbone import Backbone

PERCENTILES = (1.0, 99.0)  # of a component's scores, that become black and full colour
_FITTED = 200_000  # tokens at most that components are fitted to, drawn with seed 0
_MUCH = 4e9  # bytes of tokens of which a warning tells
_MOST_IMAGES, _ACROSS = 12, 2  # in a figure
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """Principal components of the patch tokens of several images, and the pictures they make."""

    names: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    """Each (h*p, w*p, 3) uint8: the picture as the network saw it."""
    scores: tuple[np.ndarray, ...]
    """Each (h, w, 3) float32: the tokens along the three components."""
    foreground: tuple[np.ndarray, ...]
    """Each (h, w) bool: the first component of all tokens is above its mean over the set."""
    only_foreground: bool
    """Whether the three components were fitted anew, to the foreground alone."""
    components: np.ndarray
    """(3, D) float32, orthonormal."""
    mean: np.ndarray
    """(D,) float32: subtracted first."""
    explained_variance_ratio: np.ndarray
    """(3,) of the variance of the tokens that were fitted."""
    limits: np.ndarray
    """(3, 2): the percentiles of each component's scores over all images."""
    patch: int
    transform: str

    def colours(self, number: int) -> np.ndarray:
        """An image's components as red, green and blue, (h, w, 3) uint8; what is no foreground is white where that alone was fitted."""
        low, high = self.limits.T
        shown = ((self.scores[number] - low) / np.where(high > low, high - low, 1)).clip(0, 1)
        if self.only_foreground:
            shown = np.where(self.foreground[number][..., None], shown, 1)
        return np.rint(255 * shown).astype(np.uint8)

    def picture(self, number: int) -> np.ndarray:
        """The same in the size of the image, (h*p, w*p, 3) uint8."""
        return enlarged(self.colours(number), self.patch)

    def cut_out(self, number: int) -> np.ndarray:
        """The image with its background whitened, (h*p, w*p, 3) uint8."""
        background = ~enlarged(self.foreground[number], self.patch)
        return blended(self.images[number], np.array([255, 255, 255]), 0.85 * background)

    def figure(self) -> Figure:
        """Image, components and foreground side by side, of the first twelve images; as wide as a column of a paper."""
        pictures = []
        for number in range(min(len(self.images), _MOST_IMAGES)):
            parts = {"image": self.images[number], "foreground": self.cut_out(number), "PCA": self.picture(number)}
            pictures += [(title if number < _ACROSS else "", picture) for title, picture in parts.items()]
        return panels(pictures, 3 * min(_ACROSS, len(self.images)))[0]


def pca(
    backbone: Backbone,
    images: Picture | Iterable[Picture],
    *,
    image_size: int | str = 480,
    only_foreground: bool = False,
    percentiles: tuple[float, float] = PERCENTILES,
    exif_transpose: bool = True,
    transform: str = "auto",
    batch_size: int | None = None,
) -> FeatureMaps:
    """Fit three principal components to the patch tokens of all images together, by scikit-learn.

    Signs are fixed: the first component is turned so that patches on the border of their image have the lower mean (a
    photograph shows its subject within), the others so that their largest weight is positive. Foreground is where the
    first is above its mean over the set; with `only_foreground` the three are fitted anew, to those patches alone. A
    component becomes a colour between its `percentiles` over all images. `image_size` is a side, `640x480` or `native`.
    """
    opened = open_pictures(images)
    reading = figure_transform(backbone, image_size, exif_transpose, transform)
    pixels = []
    for row in range(len(opened)):
        try:
            pixels.append(reading(reading.picture(opened, row)))
        except BadImage as fault:
            raise DataError(f"{opened.paths[row]} cannot be used: {fault}") from fault
    return read_features(backbone, opened, pixels, reading, only_foreground=only_foreground, percentiles=percentiles, batch_size=batch_size)


def read_features(
    backbone: Backbone,
    images: ImageSet,
    pixels: Sequence[np.ndarray],
    reading: FigureTransform,
    *,
    only_foreground: bool = False,
    percentiles: tuple[float, float] = PERCENTILES,
    batch_size: int | None = None,
) -> FeatureMaps:
    """The same of pictures that were read, each (H, W, 3) uint8."""
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ConfigError(f"percentiles must be two numbers from 0 to 100, the lower one first: {percentiles[0]:g} {percentiles[1]:g}")
    tokens = _tokens(backbone, images.paths, pixels, reading, batch_size)
    mean, components, ratio = _fit([maps.reshape(-1, maps.shape[-1]) for maps in tokens])
    first = _scores(tokens, mean, components[:1])
    if (sign := _inward([scores[..., 0] for scores in first])) != 0:
        components[0] *= sign
        first = [scores * sign for scores in first]
    foreground = [scores[..., 0] > 0 for scores in first]
    if only_foreground:
        mean, components, ratio = _fit([maps[mask] for maps, mask in zip(tokens, foreground, strict=True)])
    scores = _scores(tokens, mean, components)
    counted = [maps[mask] if only_foreground else maps.reshape(-1, 3) for maps, mask in zip(scores, foreground, strict=True)]
    return FeatureMaps(
        names=images.paths,
        images=tuple(pixels),
        scores=tuple(scores),
        foreground=tuple(foreground),
        only_foreground=only_foreground,
        components=components,
        mean=mean,
        explained_variance_ratio=ratio,
        limits=np.percentile(np.concatenate(counted), percentiles, axis=0).T,
        patch=reading.patch,
        transform=reading.id,
    )


def _tokens(
    backbone: Backbone, names: Sequence[str], pixels: Sequence[np.ndarray], reading: FigureTransform, batch_size: int | None
) -> list[np.ndarray]:
    """The patch tokens of each image, (h, w, D) float32; neighbours of one size share a forward pass."""
    import torch

    size = 4 * backbone.dim * sum(picture.shape[0] * picture.shape[1] for picture in pixels) / reading.patch**2
    if size > _MUCH:
        _log.warning("the patch tokens of %s images take %.1f GB of memory", f"{len(pixels):,}", size / 1e9)
    most = batch_size or backbone.fast_batch(max(max(picture.shape[:2]) for picture in pixels))
    found: list[np.ndarray] = []
    with tqdm(total=len(pixels), desc="images", unit="img", disable=None, leave=False) as bar:
        while (start := len(found)) < len(pixels):
            end = start + 1
            while end < len(pixels) and end - start < most and pixels[end].shape == pixels[start].shape:
                end += 1
            tokens = backbone(torch.cat([reading.batch(picture) for picture in pixels[start:end]])).patches
            assert tokens is not None
            backbone.check_finite(tokens, names[start:end])
            found += list(tokens.cpu().numpy())
            bar.update(end - start)
    return found


def _fit(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (D,), three components (3, D) whose largest weights are positive, and their shares of the variance, (3,)."""
    from sklearn.decomposition import PCA

    rows = np.concatenate(tokens)
    if len(rows) > _FITTED:
        rows = rows[np.random.default_rng(0).choice(len(rows), _FITTED, replace=False)]
    if len(rows) < 4 or not rows.var(0).any():
        raise DataError(f"{len(rows)} patches that differ are too few for three components: more images, or a larger --image-size")
    fitted: Any = PCA(n_components=3, random_state=0).fit(rows)
    components = fitted.components_
    largest = components[np.arange(3), np.abs(components).argmax(1)]
    return fitted.mean_, components * np.sign(largest)[:, None], fitted.explained_variance_ratio_


def _scores(tokens: Sequence[np.ndarray], mean: np.ndarray, components: np.ndarray) -> list[np.ndarray]:
    return [(maps - mean) @ components.T for maps in tokens]


def _inward(first: Sequence[np.ndarray]) -> int:
    """1 where scores (h, w) are lower on the borders of their images, -1 where they are higher, 0 where there is nothing within."""
    border, inner = [], []
    for scores in first:
        within = np.zeros(scores.shape, bool)
        within[1:-1, 1:-1] = True
        border.append(scores[~within])
        inner.append(scores[within])
    rest = np.concatenate(inner)
    return int(np.sign(rest.mean() - np.concatenate(border).mean())) if len(rest) else 0
