"""What the last block attends to in one image: maps of heads, masks, the overlay of Figure 3, maps of chosen points.

A heads, h x w patches of p pixels, P points.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.preprocessing import FigureTransform, Picture, figure_transform, open_pictures
from dinoeval.figures.style import COLOURS, blended, coloured, enlarged, outlined, panels, rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from dinoeval.models.backbone import Backbone

MASS = 0.6  # of the attention that a mask keeps: main text; the appendix says 0.8
THRESHOLD = 0.2  # of a head's own range, in the overlay: the authors' word on Figure 3
MAPS = "viridis"  # matplotlib's default, which visualize_attention.py leaves as it is
_ACROSS = 4  # panels a line
_MANY_TOKENS = 10_000
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """The attention of one image's last block, and the pictures it makes."""

    name: str
    image: np.ndarray
    """(h*p, w*p, 3) uint8: the picture as the network saw it, before its colours were normalised."""
    maps: np.ndarray
    """(A, h, w) float32: what [CLS] pays to each patch; a map's sum is 1 less what went to [CLS] (and registers)."""
    masks: np.ndarray
    """(A, h, w) bool: the patches of largest attention that hold `mass` of a map."""
    points: tuple[tuple[float, float], ...]
    """P points (x, y), pixels of the picture as it was given."""
    point_patches: tuple[tuple[int, int], ...]
    """Row and column of the patch under each point."""
    point_maps: np.ndarray
    """(P, A, h, w) float32: what those patches pay to each patch."""
    mass: float
    patch: int
    """Pixels."""
    transform: str
    """How the picture was read."""

    @property
    def num_heads(self) -> int:
        return len(self.maps)

    def head(self, number: int) -> np.ndarray:
        """The map of a head as a picture, (h*p, w*p, 3) uint8, from its least to its largest value."""
        return enlarged(coloured(self.maps[number], MAPS), self.patch)

    def mask(self, number: int) -> np.ndarray:
        """The mask of a head over the image, (h*p, w*p, 3) uint8."""
        mask, colour = enlarged(self.masks[number], self.patch), rgb(COLOURS[number % len(COLOURS)])
        return outlined(blended(self.image, colour, 0.5 * mask), mask, colour, _line_width(self.image))

    def overlay(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> np.ndarray:
        """Several heads over the image, each in its own colour, (h*p, w*p, 3) uint8: Figure 3.

        Each map is scaled to [0, 1]; a patch takes the colour of the head that is highest there, as strongly as that head
        is high, and stays as it is where none reaches `threshold`. At most seven heads can be told apart.
        """
        chosen = self.choose(heads)
        if len(chosen) > len(COLOURS):
            raise ConfigError(f"{len(chosen)} heads in one picture: at most {len(COLOURS)} colours can be told apart")
        if not 0 <= threshold < 1:
            raise ConfigError(f"threshold must be from 0 to 1: {threshold}")
        scaled = np.stack([_scaled(self.maps[head]) for head in chosen])  # (heads, h, w)
        highest, first = scaled.max(0), scaled.argmax(0)
        colours = np.stack([rgb(colour) for colour in _colours(chosen)])[first]  # (h, w, 3)
        share = np.where(highest >= threshold, 0.2 + 0.7 * highest, 0)
        return blended(self.image, enlarged(colours, self.patch), enlarged(share, self.patch))

    def point(self, number: int, heads: Sequence[int] | None = None) -> np.ndarray:
        """The map of a point as a picture, (h*p, w*p, 3) uint8: the mean of all heads, or of some."""
        chosen = range(self.num_heads) if heads is None else self._known(heads)
        return enlarged(coloured(self.point_maps[number, list(chosen)].mean(0), MAPS), self.patch)

    def choose(self, heads: Sequence[int] | None) -> tuple[int, ...]:
        """The heads asked for; by default all, or the first seven where there are more than colours."""
        return tuple(range(min(self.num_heads, len(COLOURS)))) if heads is None else self._known(heads)

    def figure(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> Figure:
        """The image, every head's map, the overlay of some heads, every head's mask; as wide as a column of a paper."""
        chosen, every = self.choose(heads), range(self.num_heads)
        shown = "heads " + " ".join(map(str, chosen)) if len(chosen) <= 3 else f"{len(chosen)} heads"  # as much as fits
        shown = "all heads" if len(chosen) == self.num_heads else shown
        maps = [("image", self.image), *((f"head {head}", self.head(head)) for head in every), (shown, self.overlay(chosen, threshold))]
        masks = [(f"{self.mass:.0%}, head {head}", self.mask(head)) for head in every]
        return panels([*maps, *masks], _ACROSS)[0]

    def pointing_figure(self, heads: Sequence[int] | None = None) -> Figure:
        """The image with its points, and the map of each: the mean of all heads, or of some."""
        if not self.points:
            raise ConfigError("name the points whose attention is to be drawn")
        maps = [(f"point {number}", self.point(number, heads)) for number in range(len(self.points))]
        figure, axes = panels([("image", self.image), *maps], min(_ACROSS, 1 + len(maps)))
        for number, (row, column) in enumerate(self.point_patches):
            centre = (column + 0.5) * self.patch - 0.5, (row + 0.5) * self.patch - 0.5
            for axis in (axes[0], axes[1 + number]):
                axis.plot(*centre, "x", color="white", markersize=6, markeredgewidth=2.5)
                axis.plot(*centre, "x", color=COLOURS[4], markersize=5, markeredgewidth=1.2)
            axes[0].annotate(str(number), centre, (3, 3), textcoords="offset points", fontsize=7, color="white", weight="bold")
        return figure

    def pictures(self, heads: Sequence[int] | None = None, threshold: float = THRESHOLD) -> dict[str, np.ndarray]:
        """Everything as single pictures of the image's size, by name: image, head0, mask0, overlay, point0, ..."""
        drawn = {"image": self.image, "overlay": self.overlay(heads, threshold)}
        for head in range(self.num_heads):
            drawn |= {f"head{head}": self.head(head), f"mask{head}": self.mask(head)}
        return drawn | {f"point{number}": self.point(number, heads) for number in range(len(self.points))}

    def _known(self, heads: Sequence[int]) -> tuple[int, ...]:
        if not heads:
            raise ConfigError("name at least one head")
        if wrong := [head for head in heads if not 0 <= head < self.num_heads]:
            raise ConfigError(f"no head {wrong[0]}: the last block has {self.num_heads}, numbered from 0")
        return tuple(dict.fromkeys(heads))


def attention(
    backbone: Backbone,
    image: Picture,
    *,
    image_size: int | str = 480,
    mass: float = MASS,
    points: Sequence[tuple[float, float]] = (),
    exif_transpose: bool = True,
    transform: str = "auto",
) -> AttentionMaps:
    """Look at what the last block attends to in an image: a file or a PIL image.

    `image_size` is the side of the square it is squashed to as released, `640x480` (width and height), or `native`;
    `points` are (x, y) in pixels of the picture as it is given, upright unless `upright` is false. Raises DataError where
    the image cannot be used or a point lies outside.
    """
    images = open_pictures(image)
    if len(images) != 1:
        raise DataError(f"{image} holds {len(images)} images; one is drawn at a time")
    reading = figure_transform(backbone, image_size, exif_transpose, transform)
    try:
        return read_attention(backbone, images.paths[0], reading.picture(images, 0), reading, mass=mass, points=points)
    except BadImage as fault:
        raise DataError(f"{images.paths[0]} cannot be used: {fault}") from fault


def read_attention(
    backbone: Backbone,
    name: str,
    picture: Image.Image,
    reading: FigureTransform,
    *,
    mass: float = MASS,
    points: Sequence[tuple[float, float]] = (),
) -> AttentionMaps:
    """The same of a picture that is open. Raises BadImage where it is smaller than a patch."""
    import torch

    from dinoeval.maths.attention import mass_masks

    if not 0 < mass <= 1:
        raise ConfigError(f"mass must be above 0 and at most 1: {mass}")
    check_points(points, name, picture.size)
    pixels = reading(picture)
    grid = backbone.grid(*pixels.shape[:2])
    patches = tuple(_patch_at(point, picture.size, reading, grid) for point in points)
    rows = attention_rows(
        backbone, name, pixels, reading, [0, *(1 + row * grid[1] + column for row, column in patches)]
    )  # (A, 1 + P, h, w)
    return AttentionMaps(
        name=name,
        image=pixels,
        maps=rows[:, 0],
        masks=mass_masks(torch.from_numpy(rows[:, 0]), mass).numpy(),
        points=tuple((float(x), float(y)) for x, y in points),
        point_patches=patches,
        point_maps=rows[:, 1:].swapaxes(0, 1),
        mass=mass,
        patch=reading.patch,
        transform=reading.id,
    )


def attention_rows(backbone: Backbone, name: str, pixels: np.ndarray, reading: FigureTransform, queries: Sequence[int]) -> np.ndarray:
    """What some tokens pay to the patches, (A, Q, h, w) float32. Raises DataError where it is not finite."""
    h, w = backbone.grid(*pixels.shape[:2])
    if h * w > _MANY_TOKENS:
        _log.warning("%s has %s patches, and time grows with their square: --image-size 480 is quick", name, f"{h * w:,}")
    rows = backbone.attention(reading.batch(pixels), queries)[..., 1:]  # (1, A, Q, h*w)
    backbone.check_finite(rows, [name])
    return rows[0].unflatten(-1, (h, w)).cpu().numpy()


def check_points(points: Sequence[tuple[float, float]], name: str, size: tuple[int, int]) -> None:
    """Raise ConfigError where a point (x, y) lies outside a picture of this width and height."""
    for x, y in points:
        if not (0 <= x < size[0] and 0 <= y < size[1]):
            raise ConfigError(f"the point {x:g},{y:g} lies outside {name}, which has {size[0]} x {size[1]} pixels; x goes right, y down")


def _patch_at(point: tuple[float, float], size: tuple[int, int], reading: FigureTransform, grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the patch under a point; the nearest where it lies in the rest that is cut off."""
    width, height = reading.size or size
    row, column = int(point[1] * height / size[1]) // reading.patch, int(point[0] * width / size[0]) // reading.patch
    return min(row, grid[0] - 1), min(column, grid[1] - 1)


def _colours(heads: Sequence[int]) -> list[str]:
    """A colour for each head: that of its mask, unless two of these heads would share one."""
    numbers = [head % len(COLOURS) for head in heads]
    return [COLOURS[number] for number in (numbers if len(set(numbers)) == len(numbers) else range(len(numbers)))]


def _scaled(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / ((high - low) or 1)


def _line_width(image: np.ndarray) -> int:
    return max(1, min(image.shape[:2]) // 160)
