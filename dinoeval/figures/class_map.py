"""Classes or images as points in two dimensions: mean features, PCA, t-SNE. The figure of the appendix.

N images, C points, D dimensions.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dinoeval.display import short_repr
from dinoeval.errors import ConfigError, DataError
from dinoeval.figures.names import write_names
from dinoeval.figures.panels import LINE, LegendEntry, draw_legend, legend_size
from dinoeval.figures.style import COLORS, COLUMN, INK, TEXT, color, default_settings, new_figure, png_of
from dinoeval.guard import entry_point
from dinoeval.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIN_POINTS = 4
"""Minimum number of points of an embedding."""
_POINTS_PER_COLUMN = 40  # Points whose names fit in the width of a column; with more, the figure is wider.
_MAX_WIDTH = 20.0  # Inches.
_THUMBNAIL = 64  # Pixels.
_DIGITS = 5  # Decimals of features, divided by the largest, that count as a difference; the others are rounding.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Markers of matplotlib: circle, square, triangle, diamond, triangle down, plus, cross, star."""
MAX_LOOKS = 2 * len(_MARKERS) * len(COLORS)
"""Groups that differ in color or marker. More groups are named in the plot instead of in a legend."""
_MAX_NAMED = 12  # Groups whose names are also written in the plot.
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TsneConfig:
    """Options of t-SNE.

    The defaults are those of the paper, for the 1,000 class means of ImageNet.
    """

    pca_dims: int = 30
    """Number of principal components that are passed to t-SNE, at least 2."""
    perplexity: float = 20.0
    """Perplexity of t-SNE. If there are few points, it is reduced to a third of the number of other points."""
    learning_rate: float = 200.0
    """Learning rate of t-SNE in the convention of scikit-learn: 200 equals 800 in other implementations."""
    iterations: int = 5000
    """Number of iterations of t-SNE, at least 250."""
    seed: int = 0
    """Random seed for sampling and t-SNE."""

    def __post_init__(self) -> None:
        limits = [
            ("pca-dims", self.pca_dims, self.pca_dims >= 2, "at least 2"),
            ("perplexity", self.perplexity, 0 < self.perplexity < math.inf, "a finite number above 0"),
            # If points leave the range of float32, scikit-learn ends the process without a message.
            ("learning-rate", self.learning_rate, 0 < self.learning_rate <= 1e9, "above 0 and at most 1e9"),
            ("iterations", self.iterations, self.iterations >= 250, "at least 250"),
            ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 4294967295"),
        ]
        for name, value, valid, expected in limits:
            if not valid:
                raise ConfigError(f"--{name} must be {expected}, got {value}")


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """A t-SNE embedding in two dimensions."""

    points: np.ndarray
    """(C, 2) float32."""
    names: tuple[str, ...]
    groups: np.ndarray | None
    """Number of the group of each point, (C,) int, or None."""
    group_names: tuple[str, ...]
    pca_dims: int
    """Number of principal components that were kept."""
    perplexity: float
    divergence: float
    """Kullback-Leibler divergence that t-SNE reached, in nats; the largest float with 250 iterations, which do not compute it."""

    __repr__ = short_repr

    _repr_png_ = png_of

    @default_settings()
    def figure(self, thumbnails: Sequence[Image.Image] | None = None) -> Figure:
        """Draw the points with their names, groups with a legend, or images.

        Each group has its own color and marker, up to 112 groups. With more, looks repeat, and the name of each group is
        written at its median instead of in a legend.

        Args:
            thumbnails: An image per point (default: names or groups are drawn).

        Returns:
            A figure as wide as a column of a paper, or wider if many names or images need space.
        """
        present = [] if self.groups is None or thumbnails is not None else np.unique(self.groups).tolist()
        width = min(_MAX_WIDTH, COLUMN * max(1.0, ((len(present) or len(self.points)) / _POINTS_PER_COLUMN) ** 0.5))
        low, high = self.points.min(0), self.points.max(0)
        extent = float(max(high - low)) or 1.0
        half = np.maximum((high - low) / 2, extent / 4) + 0.08 * extent  # A margin for names at the sides.
        legend = [LegendEntry(self.group_names[group], *_look(place)) for place, group in enumerate(present)]
        columns, lines = legend_size([entry.name for entry in legend] if len(legend) <= MAX_LOOKS else [], width)
        height = width * half[1] / half[0] + LINE * lines
        figure, below = new_figure(width, height), LINE * lines / height
        axis = figure.add_axes((0.01, below + 0.01 * (1 - below), 0.98, 0.98 * (1 - below)))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("#bbbbbb")
        middle = (low + high) / 2
        axis.set_xlim(middle[0] - half[0], middle[0] + half[0])
        axis.set_ylim(middle[1] - half[1], middle[1] + half[1])
        if thumbnails is not None:
            self._draw_thumbnails(axis, thumbnails, extent)
        elif self.groups is None:
            axis.scatter(*self.points.T, s=9, c=COLORS[1], linewidths=0)
            _draw_names(axis, self.points, self.names)
        else:
            self._draw_groups(axis, self.groups, legend)
            if lines:
                draw_legend(figure, legend, columns, below)
        return figure

    def _draw_groups(self, axis: Axes, groups: np.ndarray, legend: Sequence[LegendEntry]) -> None:
        """Draw each group in its own look; write the names of few groups, or of too many for a legend, at their medians."""
        members = [self.points[groups == group] for group in np.unique(groups)]
        size = 7 if len(members) <= len(COLORS) else 12  # Markers must be large enough to differ.
        for points, entry in zip(members, legend, strict=True):
            axis.scatter(*points.T, s=size, c=entry.color, marker=entry.marker, linewidths=0.15, edgecolors="white")
        if not _MAX_NAMED < len(members) <= MAX_LOOKS:
            centers = np.stack([np.median(points, axis=0) for points in members])
            _draw_names(axis, centers, [entry.name for entry in legend], halo=True)

    def _draw_thumbnails(self, axis: Axes, thumbnails: Sequence[Image.Image], extent: float) -> None:
        assert len(thumbnails) == len(self.points)
        span = 0.75 * extent / max(4.0, len(self.points) ** 0.5)  # A fraction of the longer side: a grid of all images fits.
        for (x, y), image in zip(self.points, thumbnails, strict=True):
            small = image.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            half_width, half_height = (length / max(small.size) * span / 2 for length in small.size)
            box = (x - half_width, x + half_width, y - half_height, y + half_height)
            axis.imshow(small, extent=box, interpolation="antialiased", aspect="auto", zorder=2)


def _look(place: int) -> tuple[str, str]:
    """Return the color and the marker of a group."""
    place %= MAX_LOOKS
    marker, dark = place // len(COLORS) % len(_MARKERS), place // (len(COLORS) * len(_MARKERS))
    return color(place % len(COLORS) + len(COLORS) * dark), _MARKERS[marker]


@entry_point
def class_means(features: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Average the features of each class.

    Args:
        features: (N, D) float.
        labels: Class indices, (N,) int; or (N, classes) with 1 for each class of an image, which counts for all of them.
        classes: Names of the classes.

    Returns:
        Mean features, (C, D) float32, and names of the C classes that have images.

    Examples:
        >>> class_means(np.array([[1.0], [3.0], [5.0]]), np.array([0, 0, 2]), ("cat", "dog", "owl"))
        (array([[2.],
               [5.]], dtype=float32), ('cat', 'owl'))
    """
    members = labels[:, None] == np.arange(len(classes)) if labels.ndim == 1 else labels == 1  # (N, classes)
    counts = members.sum(0)
    present = np.flatnonzero(counts)
    means = np.stack([features[members[:, label]].mean(0, dtype=np.float64) for label in present]).astype(np.float32)
    return means, tuple(classes[label] for label in present.tolist())


@entry_point
def tsne(
    features: np.ndarray,
    names: Sequence[str],
    config: TsneConfig = TsneConfig(),
    *,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] = (),
) -> ClassMap:
    """Embed features in two dimensions by PCA and t-SNE, both of scikit-learn.

    t-SNE starts from the first two components; the paper does not state its initialization. With few points, fewer
    components are kept, and the perplexity is at most a third of the number of other points.

    Args:
        features: (C, D) float.
        names: Names of the points.
        config: Options.
        groups: Number of the group of each point, (C,) int, for colors (default: no groups).
        group_names: Names by group number.

    Returns:
        The points, and the method that draws them.

    Raises:
        DataError: If fewer than four points differ, features are NaN or infinite, or sizes do not match.

    Examples:
        >>> features = np.random.default_rng(0).standard_normal((10, 32))
        >>> tsne(features, list("abcdefghij"), TsneConfig(perplexity=3, iterations=250)).points.shape
        (10, 2)
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    features = np.asarray(features, np.float32)
    count = len(features)
    if features.ndim != 2 or count != len(names) or (groups is not None and len(groups) != count):
        given = f"{len(names)} names" + ("" if groups is None else f" and {len(groups)} groups")
        raise DataError(f"t-SNE needs features (points, dimensions) with one name and group per point, got {features.shape} and {given}")
    if not np.isfinite(features).all():
        raise DataError(f"the features of {names[int(np.argmin(np.isfinite(features).all(1)))]} are NaN or infinite")
    if count < MIN_POINTS:
        raise DataError(
            f"a t-SNE figure needs at least {MIN_POINTS} points, got {count}: use a dataset with more classes, or pass --per-image"
        )
    kept = min(config.pca_dims, count - 1, features.shape[1])
    distinct = len(np.unique((features / (np.abs(features).max() or 1)).round(_DIGITS), axis=0))
    if distinct < MIN_POINTS or kept < 2:
        dims = features.shape[1]
        raise DataError(
            f"a t-SNE figure needs at least {MIN_POINTS} points that differ, in at least 2 dimensions: "
            f"{distinct} of {count} points differ, in {dims} dimension{'s' * (dims > 1)}"
        )
    perplexity = min(config.perplexity, (count - 1) / 3)
    if perplexity < config.perplexity:
        limit = f"a third of the other points, and there are {count} points"
        _log.warning("perplexity %.3g instead of %g: it is at most %s", perplexity, config.perplexity, limit)
    reduced = PCA(n_components=kept, random_state=config.seed).fit_transform(features)
    iterations = "max_iter" if "max_iter" in inspect.signature(TSNE).parameters else "n_iter"  # Renamed in scikit-learn 1.5.
    options: dict[str, Any] = {
        iterations: config.iterations,
        # Without the next two, scikit-learn stops early: after a few hundred of the 5,000 iterations of the paper.
        "n_iter_without_progress": config.iterations,
        "min_grad_norm": 0.0,
        "perplexity": perplexity,
        "learning_rate": config.learning_rate,
        "init": "pca",
        "random_state": config.seed,
    }
    machine = TSNE(2, **options)
    with Progress(f"t-SNE of {count:,} points"):
        points = machine.fit_transform(reduced)
    return ClassMap(points, tuple(names), groups, tuple(group_names), kept, perplexity, float(machine.kl_divergence_))


def _draw_names(axis: Axes, points: np.ndarray, names: Sequence[str], *, halo: bool = False) -> None:
    """Write each name next to its point, or on it with a halo, at the place that overlaps least with earlier names."""
    from matplotlib.patheffects import withStroke

    renderer = axis.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axis.get_window_extent(renderer)
    boxes: list[Any] = []
    style = {"fontsize": TEXT, "color": INK, "parse_math": False}
    style["path_effects"] = [withStroke(linewidth=2, foreground="white")] if halo else []
    positions = (
        *([(0, 0, "center", "center")] if halo and len(names) <= _MAX_NAMED else []),
        (4, 0, "left", "center"),
        (-4, 0, "right", "center"),
        (0, 4, "center", "bottom"),
        (0, -4, "center", "top"),
    )
    for point, written in zip(points, write_names(names), strict=True):
        candidates = []
        for right, up, horizontal, vertical in positions:
            text = axis.annotate(
                written["text"],
                point,
                (right, up),
                textcoords="offset points",
                ha=horizontal,
                va=vertical,
                family=written["family"],
                **style,
            )
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _shared_area(box, frame)
            covered = sum(_shared_area(box, other) for other in boxes) + 10 * outside  # A name that is cut off is worst.
            candidates.append((covered, len(candidates), text, box))
            if covered == 0:
                break
        best = min(candidates, key=lambda candidate: candidate[:2])
        boxes.append(best[3])
        for _, _, text, _ in candidates:
            if text is not best[2]:
                text.remove()


def _shared_area(one: Any, other: Any) -> float:
    """Return the area that two boxes of matplotlib share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)
