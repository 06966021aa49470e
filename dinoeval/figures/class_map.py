"""Classes as points of a plane: the mean feature of each, PCA to 30 dims, t-SNE; the appendix's figure.

N images, C points, D dims.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dinoeval.errors import ConfigError, DataError
from dinoeval.figures.style import COLOURS, COLUMN, INK, TEXT, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DIMS, PERPLEXITY, LEARNING_RATE, STEPS = 30, 20.0, 200.0, 5000  # the paper's
_ROOMY = 40  # points that fit a column's width with their names; of more, the figure grows
_WIDEST = 20.0  # inches
_THUMBNAIL = 64  # pixels
_DIGITS = 5  # of the largest number; rows that differ beyond them only differ by rounding
_SIGNS = ("o", "s", "^", "D")  # matplotlib's: circle, square, triangle, diamond
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ClassMap:
    """Points of a plane that t-SNE found for rows of features."""

    points: np.ndarray
    """(C, 2) float32."""
    names: tuple[str, ...]
    groups: np.ndarray | None
    """(C,) numbers of the groups that points are of, which get a colour and a sign each; or None."""
    group_names: tuple[str, ...]
    dims: int
    """Principal components that were kept."""
    perplexity: float
    divergence: float
    """What t-SNE made small: Kullback and Leibler's, in nats."""

    def figure(self, thumbnails: Sequence[Image.Image] | None = None) -> Figure:
        """Draw the points with their names or those of their groups, or with a picture at each.

        The figure is as wide as a column, or wider where many names or pictures need room.
        """
        crowd = len(self.points) if self.groups is None or thumbnails is not None else 0
        width = min(_WIDEST, COLUMN * max(1.0, (crowd / _ROOMY) ** 0.5))
        low, high = self.points.min(0), self.points.max(0)
        reach = float(max(high - low)) or 1.0
        half = np.maximum((high - low) / 2, reach / 4) + 0.08 * reach  # room for names at the sides
        figure = new_figure(width, width * half[1] / half[0])
        axis = figure.add_axes((0.01, 0.01, 0.98, 0.98))
        axis.set_xticks([])
        axis.set_yticks([])
        axis.spines[:].set_color("#bbbbbb")
        middle = (low + high) / 2
        axis.set_xlim(middle[0] - half[0], middle[0] + half[0])
        axis.set_ylim(middle[1] - half[1], middle[1] + half[1])
        if thumbnails is not None:
            self._place_pictures(axis, thumbnails, reach)
        elif self.groups is None:
            axis.scatter(*self.points.T, s=9, c=COLOURS[1], linewidths=0)
            _place_names(axis, self.points, self.names)
        else:
            self._place_groups(axis, self.groups)
        return figure

    def _place_groups(self, axis: Axes, groups: np.ndarray) -> None:
        """Points of a group in one colour and sign, its name at their middle; of more groups than signs all alike."""
        present = np.unique(groups)
        told_apart = len(present) <= len(COLOURS) * len(_SIGNS)
        for place, group in enumerate(present):
            sign, colour = (_SIGNS[place // len(COLOURS)], COLOURS[place % len(COLOURS)]) if told_apart else (_SIGNS[0], COLOURS[1])
            axis.scatter(*self.points[groups == group].T, s=7, c=colour, marker=sign, linewidths=0)
        centres = np.stack([np.median(self.points[groups == group], axis=0) for group in present])
        _place_names(axis, centres, [self.group_names[group] for group in present.tolist()], halo=True)

    def _place_pictures(self, axis: Axes, thumbnails: Sequence[Image.Image], reach: float) -> None:
        assert len(thumbnails) == len(self.points)
        span = 0.75 * reach / max(4.0, len(self.points) ** 0.5)  # of the longer side, so that a grid of all would fit
        for (x, y), picture in zip(self.points, thumbnails, strict=True):
            small = picture.convert("RGB")
            small.thumbnail((_THUMBNAIL, _THUMBNAIL))
            wide, tall = (length / max(small.size) * span / 2 for length in small.size)
            axis.imshow(small, extent=(x - wide, x + wide, y - tall, y + tall), interpolation="auto", aspect="auto", zorder=2)


def class_means(rows: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The mean row (C, D) of each class that has images, and the names of those.

    `labels` are (N,) numbers, or (N, classes) of 1 where an image is of a class: it counts for each of them.
    """
    belongs = labels[:, None] == np.arange(len(classes)) if labels.ndim == 1 else labels == 1  # (N, classes)
    counts = belongs.sum(0)
    present = np.flatnonzero(counts)
    means = np.stack([rows[belongs[:, label]].mean(0, dtype=np.float64) for label in present]).astype(np.float32)
    return means, tuple(classes[label] for label in present.tolist())


def tsne(
    rows: np.ndarray,
    names: Sequence[str],
    *,
    groups: np.ndarray | None = None,
    group_names: Sequence[str] = (),
    dims: int = DIMS,
    perplexity: float = PERPLEXITY,
    learning_rate: float = LEARNING_RATE,
    steps: int = STEPS,
    seed: int = 0,
) -> ClassMap:
    """Lay rows (C, D) out in a plane: principal components, then t-SNE, both scikit-learn's.

    The defaults are the paper's, for 1,000 means of classes; it starts from the first two components, which the paper
    leaves open. Of few rows fewer components are kept, and the perplexity becomes at most a third of the other rows: a
    point cannot have more neighbours than there are. `groups` (C,) are numbers of `group_names`, for colours. Raises
    DataError where less than four rows differ.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.asarray(rows, np.float32)
    count = len(rows)
    assert rows.ndim == 2
    assert count == len(names)
    if not (dims >= 2 and perplexity > 0 and learning_rate > 0 and steps >= 250):
        raise ConfigError("t-SNE wants 2 dims or more, a perplexity and a learning rate above 0, and 250 steps or more")
    if count < 4:
        raise DataError(f"{count} points are too few for a map: name a set of at least four classes, or draw --each image")
    kept = min(dims, count - 1, rows.shape[1])
    apart = len(np.unique((rows / (np.abs(rows).max() or 1)).round(_DIGITS), axis=0))
    if apart < 4 or kept < 2:
        raise DataError(f"{apart} of {count} points differ, in {rows.shape[1]} dims: a map wants four that do, in two dims or more")
    fitting = min(perplexity, (count - 1) / 3)
    if fitting < perplexity:
        _log.warning("perplexity %.3g instead of %g: there are %d points, and a point's neighbours should be a third of the others at most",
                     fitting, perplexity, count)  # fmt: skip
    reduced = PCA(n_components=kept, random_state=seed).fit_transform(rows)
    said = inspect.signature(TSNE).parameters
    options: dict[str, Any] = {"max_iter" if "max_iter" in said else "n_iter": steps}  # renamed in scikit-learn 1.5
    # Without these it stops where it no longer gains much, some hundred steps into the paper's 5,000.
    options |= {"n_iter_without_progress": steps, "min_grad_norm": 0.0}
    options |= {"perplexity": fitting, "learning_rate": learning_rate, "init": "pca", "random_state": seed}
    machine = TSNE(2, **options)
    points = machine.fit_transform(reduced)
    return ClassMap(points, tuple(names), groups, tuple(group_names), kept, fitting, float(machine.kl_divergence_))


def _place_names(axis: Axes, points: np.ndarray, names: Sequence[str], *, halo: bool = False) -> None:
    """Write each name beside its point (or with a halo over it), where it covers no name that is there already if there is such a place."""
    from matplotlib.patheffects import withStroke

    renderer = axis.figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axis.get_window_extent(renderer)
    boxes: list = []
    effects = [withStroke(linewidth=2, foreground="white")] if halo else []
    places = (
        *([(0, 0, "center", "center")] if halo else []),
        (4, 0, "left", "center"),
        (-4, 0, "right", "center"),
        (0, 4, "center", "bottom"),
        (0, -4, "center", "top"),
    )
    for point, name in zip(points, names, strict=True):
        tried = []
        for right, up, across, along in places:
            text = axis.annotate(name, point, (right, up), textcoords="offset points", fontsize=TEXT, color=INK, ha=across, va=along,
                                 parse_math=False, path_effects=effects)  # fmt: skip
            box = text.get_window_extent(renderer)
            outside = box.width * box.height - _shared(box, frame)
            covered = sum(_shared(box, other) for other in boxes) + 10 * outside  # a name that is cut off is the worst
            tried.append((covered, len(tried), text, box))
            if covered == 0:
                break
        best = min(tried, key=lambda one: one[:2])
        boxes.append(best[3])
        for _, _, text, _ in tried:
            if text is not best[2]:
                text.remove()


def _shared(one, other) -> float:
    """The area that two boxes share."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return max(0.0, width) * max(0.0, height)
