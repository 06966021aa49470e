"""Patch features of images as colors: their first three principal components, fitted to all images together.

M images, each of h x w patches of p pixels, D dimensions.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.loading import ImageRule
from dinoeval.data.remarks import add_remarks, log_remarks
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.panels import Panel, draw_rows, split_rows
from dinoeval.figures.preprocessing import FigureTransform, ImageSource, figure_transform, open_figure_images
from dinoeval.figures.style import blend, enlarge, png_of
from dinoeval.guard import entry_point
from dinoeval.progress import Progress

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dinoeval.data.images import ImageSet
    from dinoeval.models.backbone import Backbone

FITTED_TOKENS = 200_000
"""Maximum number of tokens that the components are fitted to; more are sampled with seed 0."""
_WARN_BYTES = 4e9  # Size of all tokens above which a warning is logged.
_MAX_IMAGES, _IMAGES_PER_ROW = 12, 2  # In a figure.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PcaConfig:
    """Options of principal components."""

    only_foreground: bool = False
    """Fit the components again, only to patches whose first component is above its mean. Other patches are white."""
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Percentiles of a component over all images that become black and full color."""

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"--percentiles must be two numbers, 0 <= LOW < HIGH <= 100, got {low:g} {high:g}")


@dataclasses.dataclass(frozen=True)
class FeatureMaps:
    """Principal components of patch tokens, and the images made from them."""

    names: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    """The resized and cropped images, each (h*p, w*p, 3) uint8."""
    scores: tuple[np.ndarray, ...]
    """Projections of the tokens on the three components, each (h, w, 3) float32."""
    foreground: tuple[np.ndarray, ...]
    """Whether the first component of all tokens is above its mean over all images, each (h, w) bool."""
    only_foreground: bool
    """Whether the three components were fitted again, to the foreground only."""
    components: np.ndarray
    """Orthonormal components, (3, D) float32."""
    mean: np.ndarray
    """Mean token, (D,) float32, which is subtracted before the projection."""
    explained_variance_ratio: np.ndarray
    """Fraction of the variance of the fitted tokens that each component explains, (3,)."""
    limits: np.ndarray
    """Percentiles of each component over all images, (3, 2): the values of black and of full color."""
    patch: int
    """Patch size in pixels."""
    transform: str
    """Id of the transform, such as `figure@1:480x480:bilinear`."""

    __repr__ = short_repr
    _repr_png_ = png_of

    def colors(self, number: int) -> np.ndarray:
        """Return the components of an image as red, green and blue.

        Args:
            number: Number of the image, from 0.

        Returns:
            Colors (h, w, 3) uint8. The background is white if the components were fitted to the foreground only.
        """
        low, high = self.limits.T
        shown = ((self.scores[number] - low) / np.where(high > low, high - low, 1)).clip(0, 1)
        if self.only_foreground:
            shown = np.where(self.foreground[number][..., None], shown, 1)
        return np.rint(255 * shown).astype(np.uint8)

    def components_image(self, number: int) -> np.ndarray:
        """Draw the components of an image in its size.

        Args:
            number: Number of the image, from 0.

        Returns:
            Image (h*p, w*p, 3) uint8.
        """
        return enlarge(self.colors(number), self.patch)

    def foreground_image(self, number: int) -> np.ndarray:
        """Draw an image with a whitened background.

        Args:
            number: Number of the image, from 0.

        Returns:
            Image (h*p, w*p, 3) uint8.
        """
        background = ~enlarge(self.foreground[number], self.patch)
        return blend(self.images[number], np.array([255, 255, 255]), 0.85 * background)

    def figure(self) -> Figure:
        """Draw image, foreground and components of the first twelve images.

        Returns:
            A figure as wide as a column of a paper.
        """
        panels = []
        for number in range(min(len(self.images), _MAX_IMAGES)):
            parts = {"image": self.images[number], "foreground": self.foreground_image(number), "PCA": self.components_image(number)}
            panels += [Panel(image, title if number < _IMAGES_PER_ROW else "") for title, image in parts.items()]
        scales = [f"{color} {low:.3g} to {high:.3g}" for color, (low, high) in zip(("red", "green", "blue"), self.limits, strict=True)]
        caption = f"PCA components 1 to 3, one scale for all images, from black: {', '.join(scales)}."
        return draw_rows(split_rows(panels, 3 * min(_IMAGES_PER_ROW, len(self.images))), caption=caption)[0]


@entry_point
def pca(
    backbone: Backbone | str | Path,
    images: ImageSource | Iterable[ImageSource],
    config: PcaConfig = PcaConfig(),
    *,
    image_size: int | str = 480,
    exif_transpose: bool = False,
    transform: str = "auto",
    batch_size: int | None = None,
) -> FeatureMaps:
    """Fit three principal components to the patch tokens of all images together.

    The components are those of scikit-learn, with fixed signs. The first component has a lower mean at the border of the
    images than inside, because photographs show their subject away from the border. The largest weight of the other
    components is positive. Patches whose first component is above its mean are the foreground.

    Args:
        backbone: A vision transformer, or a name or a file that `dinoeval.load` takes.
        images: A folder, a file, an open image, or several of them.
        config: Options.
        image_size: As for `attention`.
        exif_transpose: Whether to rotate the images by their EXIF orientation.
        transform: `auto` or `dino`: selects the mean and standard deviation.
        batch_size: Images per forward pass (default: chosen for the device).

    Returns:
        Components, projections, and the methods that draw them.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If an image cannot be used, fewer than four patches differ, or a token is NaN or infinite.

    Examples:
        >>> import dinoeval
        >>> from PIL import Image
        >>> image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
        >>> maps = pca(dinoeval.load(device="cpu"), [image, image.rotate(90)], image_size=64)
        >>> maps.colors(0).shape, maps.components.shape
        ((8, 8, 3), (3, 96))
    """
    from dinoeval.models.loading import as_backbone

    opened = open_figure_images(images)
    backbone = as_backbone(backbone)
    loaded = figure_transform(backbone, image_size, ImageRule(exif_transpose), transform)
    pixels, remarks = [], {}
    for row in range(len(opened)):
        try:
            image = loaded.open(opened, row)
            add_remarks(remarks, image, opened.paths[row])
            pixels.append(loaded(image))
        except BadImage as error:
            raise DataError(f"{opened.paths[row]} cannot be used: {error}") from error
    log_remarks(remarks, exif_transpose)
    return compute_components(backbone, opened, pixels, loaded, config, batch_size=batch_size)


def compute_components(
    backbone: Backbone,
    images: ImageSet,
    pixels: Sequence[np.ndarray],
    transform: FigureTransform,
    config: PcaConfig,
    *,
    batch_size: int | None = None,
) -> FeatureMaps:
    """Fit three principal components to the patch tokens of images that were read.

    Args:
        backbone: A vision transformer.
        images: The image set, for the names.
        pixels: Pixels of each image, (h*p, w*p, 3) uint8.
        transform: Normalizes the pixels.
        config: Options.
        batch_size: Images per forward pass (default: chosen for the device).

    Returns:
        As from `pca`.

    Raises:
        DataError: If fewer than four patches differ, or a token is NaN or infinite.
    """
    tokens = _patch_tokens(backbone, images.paths, pixels, transform, batch_size)
    mean, components, ratio = _fit([maps.reshape(-1, maps.shape[-1]) for maps in tokens])
    first = _project(tokens, mean, components[:1])
    if (sign := _inward_sign([scores[..., 0] for scores in first])) != 0:
        components[0] *= sign
        first = [scores * sign for scores in first]
    foreground = [scores[..., 0] > 0 for scores in first]
    if config.only_foreground:
        mean, components, ratio = _fit([maps[mask] for maps, mask in zip(tokens, foreground, strict=True)])
    scores = _project(tokens, mean, components)
    colored = [maps[mask] if config.only_foreground else maps.reshape(-1, 3) for maps, mask in zip(scores, foreground, strict=True)]
    return FeatureMaps(
        names=images.paths,
        images=tuple(pixels),
        scores=tuple(scores),
        foreground=tuple(foreground),
        only_foreground=config.only_foreground,
        components=components,
        mean=mean,
        explained_variance_ratio=ratio,
        limits=np.percentile(np.concatenate(colored), config.percentiles, axis=0).T,
        patch=transform.patch,
        transform=transform.id,
    )


def _patch_tokens(
    backbone: Backbone, names: Sequence[str], pixels: Sequence[np.ndarray], transform: FigureTransform, batch_size: int | None
) -> list[np.ndarray]:
    """Return the patch tokens of each image, (h, w, D) float32. Consecutive images of one size share a forward pass."""
    import torch

    size = 4 * backbone.dim * sum(image.shape[0] * image.shape[1] for image in pixels) / transform.patch**2
    if size > _WARN_BYTES:
        _log.warning("the patch tokens of %s images need %.1f GB of memory", f"{len(pixels):,}", size / 1e9)
    batch_size = batch_size or backbone.fast_batch(max(max(image.shape[:2]) for image in pixels))
    found: list[np.ndarray] = []
    with Progress("images", len(pixels), "images") as progress:
        while (start := len(found)) < len(pixels):
            end = start + 1
            while end < len(pixels) and end - start < batch_size and pixels[end].shape == pixels[start].shape:
                end += 1
            tokens = backbone(torch.cat([transform.batch(image) for image in pixels[start:end]])).patches
            assert tokens is not None
            backbone.check_finite(tokens, names[start:end])
            found += list(tokens.cpu().numpy())
            progress.update(end - start)
    return found


def _fit(tokens: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean (D,), three components (3, D) whose largest weights are positive, and their explained variance ratios (3,)."""
    from sklearn.decomposition import PCA

    samples = np.concatenate(tokens)
    if len(samples) > FITTED_TOKENS:
        samples = samples[np.random.default_rng(0).choice(len(samples), FITTED_TOKENS, replace=False)]
    if len(samples) < 4 or not samples.var(0).any():
        raise DataError(
            f"three components need at least 4 patches that differ, got {len(samples)} patches: pass more images or a larger --image-size"
        )
    fitted: Any = PCA(n_components=3, random_state=0).fit(samples)
    components = fitted.components_
    largest = components[np.arange(3), np.abs(components).argmax(1)]
    return fitted.mean_, components * np.sign(largest)[:, None], fitted.explained_variance_ratio_


def _project(tokens: Sequence[np.ndarray], mean: np.ndarray, components: np.ndarray) -> list[np.ndarray]:
    return [(maps - mean) @ components.T for maps in tokens]


def _inward_sign(first: Sequence[np.ndarray]) -> int:
    """Return 1 if scores (h, w) are lower at the borders of their images, -1 if higher, 0 if no image has an inner patch."""
    border, inner = [], []
    for scores in first:
        within = np.zeros(scores.shape, bool)
        within[1:-1, 1:-1] = True
        border.append(scores[~within])
        inner.append(scores[within])
    rest = np.concatenate(inner)
    return int(np.sign(rest.mean() - np.concatenate(border).mean())) if len(rest) else 0
