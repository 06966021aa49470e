"""Attention of the last block for one image: maps and masks of heads, the overlay of Figure 3, maps of chosen points.

A heads, h x w patches of p pixels, P points, Q queries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinoeval.data.loading import ImageRule
from dinoeval.data.remarks import log_remarks, remarks_of
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.panels import Panel, Row, draw_rows, split_rows
from dinoeval.figures.preprocessing import FigureTransform, ImageSource, figure_transform, open_figure_images
from dinoeval.figures.queries import attention_rows, check_points, patch_at
from dinoeval.figures.style import COLORS, TEXT, apply_colormap, blend, default_settings, enlarge, outline, png_of, rgb, value_range
from dinoeval.guard import entry_point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dinoeval.models.backbone import Backbone

MASS = 0.6
"""Fraction of the attention that a mask keeps: 0.6 in the main text, 0.8 in the appendix."""
THRESHOLD = 0.2
"""Lowest attention in the overlay, in the range of each head from 0 to 1. Stated by the authors for Figure 3."""
COLORMAP = "viridis"
"""The default of matplotlib, which visualize_attention.py does not change."""
_PANELS_PER_ROW, _HEADS_PER_ROW = 4, 4
_NUMBER_STYLE = {"fontsize": TEXT, "color": "white", "weight": "bold"}


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The attention of the last block for one image, and the images made from it."""

    name: str
    image: np.ndarray
    """The resized and cropped image, before normalization, (h*p, w*p, 3) uint8."""
    maps: np.ndarray
    """Attention of [CLS] to each patch, (A, h, w) float32. A map sums to 1 minus the attention to [CLS] and registers."""
    masks: np.ndarray
    """The patches of largest attention that hold `mass` of a map, (A, h, w) bool."""
    points: tuple[tuple[float, float], ...]
    """P points (x, y), in pixels of the original image."""
    point_patches: tuple[tuple[int, int], ...]
    """Row and column of the patch under each point."""
    point_maps: np.ndarray
    """Attention of these patches to each patch, (P, A, h, w) float32."""
    mass: float
    """Fraction of the attention that the masks keep."""
    patch: int
    """Patch size in pixels."""
    transform: str
    """Id of the transform, such as `figure@1:480x480:bilinear`."""

    __repr__ = short_repr
    _repr_png_ = png_of

    @property
    def num_heads(self) -> int:
        """Number of heads, A."""
        return len(self.maps)

    def head(self, number: int) -> np.ndarray:
        """Draw the map of a head, from its minimum to its maximum.

        Args:
            number: Number of the head, from 0.

        Returns:
            Image (h*p, w*p, 3) uint8.
        """
        return enlarge(apply_colormap(self.maps[number], COLORMAP), self.patch)

    def mask(self, number: int) -> np.ndarray:
        """Draw the mask of a head over the image.

        Args:
            number: Number of the head, from 0.

        Returns:
            Image (h*p, w*p, 3) uint8.
        """
        mask, color = enlarge(self.masks[number], self.patch), rgb(COLORS[number % len(COLORS)])
        line_width = max(1, min(self.image.shape[:2]) // 160)
        return outline(blend(self.image, color, 0.5 * mask), mask, color, line_width)

    def overlay(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> np.ndarray:
        """Draw several heads over the image, each in its own color, as Figure 3 does.

        Each map is scaled to [0, 1]. A patch gets the color of the head with the highest value there, with an opacity that
        grows with this value. It is not colored if the value is below the threshold.

        Args:
            heads: Numbers of at most seven heads (default: all, or the first seven).
            threshold: Lowest attention that is drawn, from 0 (the minimum of a head) to 1 (its maximum).

        Returns:
            Image (h*p, w*p, 3) uint8.

        Raises:
            ConfigError: If a head does not exist, there are more than seven, or the threshold is out of range.
        """
        chosen = self.choose_heads(heads)
        if len(chosen) > len(COLORS):
            raise ConfigError(f"--heads accepts at most {len(COLORS)} heads, which is the number of colors, got {len(chosen)}")
        if not 0 <= threshold < 1:
            raise ConfigError(f"--threshold must be at least 0 and below 1, got {threshold}")
        scaled = np.stack([_scale(self.maps[head]) for head in chosen])  # (chosen heads, h, w)
        highest, winners = scaled.max(0), scaled.argmax(0)
        colors = np.stack([rgb(color) for color in _head_colors(chosen)])[winners]  # (h, w, 3)
        alpha = np.where(highest >= threshold, 0.2 + 0.7 * highest, 0)
        return blend(self.image, enlarge(colors, self.patch), enlarge(alpha, self.patch))

    def point(self, number: int, heads: Sequence[int] | None = None) -> np.ndarray:
        """Draw the map of a point, averaged over heads.

        Args:
            number: Number of the point, from 0.
            heads: Numbers of the heads (default: all).

        Returns:
            Image (h*p, w*p, 3) uint8.

        Raises:
            ConfigError: If a head does not exist.
        """
        return enlarge(apply_colormap(self._point_values(number, heads), COLORMAP), self.patch)

    def choose_heads(self, heads: Sequence[int] | None) -> tuple[int, ...]:
        """Return the heads of the overlay.

        Args:
            heads: Numbers of heads, or None.

        Returns:
            The heads without repetition; for None all, or the first seven.

        Raises:
            ConfigError: If a head does not exist.
        """
        return tuple(range(min(self.num_heads, len(COLORS)))) if heads is None else self._check_heads(heads)

    def figure(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> Figure:
        """Draw the image, the maps and masks of all heads, and the overlay.

        Args:
            heads: Heads of the overlay, as for `overlay`.
            threshold: As for `overlay`.

        Returns:
            A figure as wide as a column of a paper.

        Raises:
            ConfigError: As for `overlay`.
        """
        chosen = self.choose_heads(heads)
        drawn = f"heads {' '.join(map(str, chosen))}" if len(chosen) <= 3 else f"{len(chosen)} of {self.num_heads} heads"
        title = f"overlay: {'all heads' if len(chosen) == self.num_heads else drawn}"
        rows: list[Row] = [[Panel(self.image, "image"), Panel(self.overlay(chosen, threshold), title)]]
        blocks = -(-self.num_heads // _HEADS_PER_ROW)
        per_row = max(2, -(-self.num_heads // blocks))
        maps = [self._map_panel(f"head {head}", self.head(head), self.maps[head]) for head in range(self.num_heads)]
        masks = [Panel(self.mask(head)) for head in range(self.num_heads)]
        for of_maps, of_masks in zip(split_rows(maps, per_row), split_rows(masks, per_row), strict=True):
            rows += [of_maps, of_masks]
        caption = f"Each map has its own color scale. The patches below it hold {self.mass:.0%} of its attention."
        return draw_rows(rows, caption=caption)[0]

    def points_figure(self, heads: Sequence[int] | None = None) -> Figure:
        """Draw the image with its points, and the map of each point, averaged over heads.

        Args:
            heads: Numbers of the heads (default: all).

        Returns:
            A figure as wide as a column of a paper.

        Raises:
            ConfigError: If there are no points, or a head does not exist.
        """
        if not self.points:
            raise ConfigError("there are no points to draw: pass points=[(x, y), ...] or --points X,Y")
        maps = [
            self._map_panel(f"point {number}", self.point(number, heads), self._point_values(number, heads))
            for number in range(len(self.points))
        ]
        rows = split_rows([Panel(self.image, "image"), *maps], min(_PANELS_PER_ROW, 1 + len(maps)))
        figure, axes = draw_rows(rows, caption="Each map has its own color scale.")
        with default_settings():
            for number, (row, column) in enumerate(self.point_patches):
                center = (column + 0.5) * self.patch - 0.5, (row + 0.5) * self.patch - 0.5
                for axis in (axes[0], axes[1 + number]):
                    _draw_cross(axis, center)
                axes[0].annotate(str(number), center, (3, 3), textcoords="offset points", **_NUMBER_STYLE)
        return figure

    def images(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
        """Draw everything as single images of the size of the image.

        Args:
            heads: Heads of the overlay and of the maps of points.
            threshold: As for `overlay`.

        Returns:
            Images (h*p, w*p, 3) uint8 by name: image, overlay, head0, mask0, ..., point0, ...

        Raises:
            ConfigError: As for `overlay`.
        """
        drawn = {"image": self.image, "overlay": self.overlay(heads, threshold)}
        for head in range(self.num_heads):
            drawn |= {f"head{head}": self.head(head), f"mask{head}": self.mask(head)}
        return drawn | {f"point{number}": self.point(number, heads) for number in range(len(self.points))}

    def _point_values(self, number: int, heads: Sequence[int] | None) -> np.ndarray:
        """Return the map of a point, averaged over heads, (h, w)."""
        chosen = range(self.num_heads) if heads is None else self._check_heads(heads)
        return self.point_maps[number, list(chosen)].mean(0)

    def _map_panel(self, title: str, image: np.ndarray, values: np.ndarray) -> Panel:
        return Panel(image, title, value_range(values), COLORMAP)

    def _check_heads(self, heads: Sequence[int]) -> tuple[int, ...]:
        if not heads:
            raise ConfigError("--heads needs at least one head")
        if unknown := [head for head in heads if not 0 <= head < self.num_heads]:
            raise ConfigError(
                f"--heads: head {unknown[0]} does not exist; the last block has {self.num_heads} heads, 0 to {self.num_heads - 1}"
            )
        return tuple(dict.fromkeys(heads))


@entry_point
def attention(
    backbone: Backbone | str | Path,
    image: ImageSource,
    *,
    image_size: int | str = 480,
    mass: float = MASS,
    points: Sequence[tuple[float, float]] = (),
    exif_transpose: bool = False,
    transform: str = "auto",
) -> AttentionMaps:
    """Compute the attention of the last block for an image.

    Args:
        backbone: A vision transformer, or a name or a file that `dinoeval.load` takes.
        image: An image file, or an open image.
        image_size: Side in pixels of the square that the image is resized to without keeping its aspect ratio, as released;
            `640x480` (width x height); or `native` (the size of the image).
        mass: Fraction of the attention that a mask keeps, above 0 and at most 1.
        points: Points (x, y) whose attention is computed, in pixels of the image, rotated if `exif_transpose`.
        exif_transpose: Whether to rotate the image by its EXIF orientation.
        transform: `auto` or `dino`: selects the mean and standard deviation.

    Returns:
        Maps, masks, and the methods that draw them.

    Raises:
        ConfigError: If an option is out of range, or a point is outside the image.
        DataError: If the image cannot be used, or the attention is NaN or infinite.

    Examples:
        >>> import dinoeval
        >>> image = Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3))
        >>> maps = attention(dinoeval.load(device="cpu"), image, image_size=64, points=[(10, 50)])
        >>> maps.maps.shape, maps.masks.dtype, maps.point_patches
        ((3, 8, 8), dtype('bool'), ((6, 1),))
        >>> sorted(maps.images())
        ['head0', 'head1', 'head2', 'image', 'mask0', 'mask1', 'mask2', 'overlay', 'point0']
    """
    from dinoeval.models.loading import as_backbone

    images = open_figure_images(image)
    if len(images) != 1:
        raise DataError(f"{image} contains {len(images)} images: pass one of them")
    backbone = as_backbone(backbone)
    loaded = figure_transform(backbone, image_size, ImageRule(exif_transpose), transform)
    try:
        opened = loaded.open(images, 0)
        log_remarks({remark: images.paths for remark in remarks_of(opened)}, exif_transpose)
        return compute_attention(backbone, images.paths[0], opened, loaded, mass=mass, points=points)
    except BadImage as error:
        raise DataError(f"{images.paths[0]} cannot be used: {error}") from error


def compute_attention(
    backbone: Backbone,
    name: str,
    image: Image.Image,
    transform: FigureTransform,
    *,
    mass: float = MASS,
    points: Sequence[tuple[float, float]] = (),
) -> AttentionMaps:
    """Compute the attention of the last block for an open image.

    Args:
        backbone: A vision transformer.
        name: Name of the image, for messages.
        image: RGB.
        transform: From the image to the input of the network.
        mass: As for `attention`.
        points: As for `attention`.

    Returns:
        Maps, masks, and the methods that draw them.

    Raises:
        BadImage: If the image is smaller than a patch.
        ConfigError: If an option is out of range, or a point is outside the image.
        DataError: If the attention is NaN or infinite.
    """
    import torch

    from dinoeval.maths.attention import mass_masks

    if not 0 < mass <= 1:
        raise ConfigError(f"--mass must be above 0 and at most 1, got {mass}")
    check_points(points, name, image.size)
    pixels = transform(image)
    grid = backbone.grid(*pixels.shape[:2])
    patches = tuple(patch_at(point, image.size, transform, grid) for point in points)
    tokens = [0, *(1 + row * grid[1] + column for row, column in patches)]
    maps = attention_rows(backbone, name, pixels, transform, tokens)  # (A, 1 + P, h, w)
    return AttentionMaps(
        name=name,
        image=pixels,
        maps=maps[:, 0],
        masks=mass_masks(torch.from_numpy(maps[:, 0]), mass).numpy(),
        points=tuple((float(x), float(y)) for x, y in points),
        point_patches=patches,
        point_maps=maps[:, 1:].swapaxes(0, 1),
        mass=mass,
        patch=transform.patch,
        transform=transform.id,
    )


def _draw_cross(axis: Axes, center: tuple[float, float]) -> None:
    axis.plot(*center, "x", color="white", markersize=6, markeredgewidth=2.5)
    axis.plot(*center, "x", color=COLORS[4], markersize=5, markeredgewidth=1.2)


def _head_colors(heads: Sequence[int]) -> list[str]:
    """Return a color per head: the color of its mask, unless two of these heads would share one."""
    numbers = [head % len(COLORS) for head in heads]
    return [COLORS[number] for number in (numbers if len(set(numbers)) == len(numbers) else range(len(numbers)))]


def _scale(values: np.ndarray) -> np.ndarray:
    """Scale values to [0, 1]; constant values become 0."""
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1)
