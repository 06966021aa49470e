"""Figures of several images in rows, with titles, color bars, a caption and a legend.

Lengths are in inches. Images are (H, W, 3) uint8.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.figures.names import write_names
from dinoeval.figures.style import COLUMN, INK, TEXT, apply_colormap, default_settings, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_GAP = 0.04  # Between panels.
LINE = 0.14
"""Height of a line of text."""
_BAR = 0.05  # Height of a color bar.
_TALLEST = 2.5  # Height of a panel in units of its width. Taller images are drawn narrower.
_CHARACTER = 0.051  # Width of a character of a caption.
_SWATCH = 0.24  # Width of the mark of a legend entry, with its margins.


@dataclasses.dataclass(frozen=True)
class Panel:
    """An image of a figure."""

    image: np.ndarray
    title: str = ""
    limits: tuple[float, float] | None = None
    """Values of the first and the last color, which a color bar below the image states."""
    colormap: str = ""

    @property
    def aspect(self) -> float:
        """Height in units of the width."""
        return min(self.image.shape[0] / self.image.shape[1], _TALLEST)


@dataclasses.dataclass(frozen=True)
class LegendEntry:
    """The look of a category."""

    name: str
    color: str
    marker: str = "s"


Row = Sequence[Panel | None]
"""Panels of equal width. None leaves a place empty."""


def split_rows(panels: Sequence[Panel], per_row: int) -> list[Row]:
    """Split panels into rows of equal length.

    Args:
        panels: The panels, in order.
        per_row: Panels in a row. The last row is filled up with None.

    Returns:
        The rows.
    """
    padded = [*panels, *[None] * (-len(panels) % per_row)]
    return [padded[start : start + per_row] for start in range(0, len(padded), per_row)]


@default_settings()
def draw_rows(
    rows: Sequence[Row], *, caption: str = "", legend: Sequence[LegendEntry] = (), width: float = COLUMN
) -> tuple[Figure, list[Axes]]:
    """Draw rows of panels. A row is as high as its highest image.

    Args:
        rows: At least one row.
        caption: Text below all rows. It is wrapped.
        legend: Categories, below the caption.
        width: Width of the figure.

    Returns:
        The figure and the axes of the panels, in order.
    """
    columns, lines = legend_size([entry.name for entry in legend], width)
    heights = [_row_height(row, width) for row in rows]
    wrapped = textwrap.wrap(caption, int(width / _CHARACTER))
    total = sum(heights) + LINE * (len(wrapped) + lines)
    figure, axes = new_figure(width, total), []
    titles = [panel.title for row in rows for panel in row if panel is not None]
    written = dict(zip(titles, write_names(titles), strict=True))
    top = total
    for row, height in zip(rows, heights, strict=True):
        axes += _draw_row(figure, row, top, written)
        top -= height
    for line in wrapped:
        figure.text(0, (top - LINE / 2) / total, line, fontsize=TEXT, color=INK, va="center", parse_math=False)
        top -= LINE
    if legend:
        draw_legend(figure, legend, columns, top / total)
    return figure, axes


@default_settings()
def legend_size(names: Sequence[str], width: float) -> tuple[int, int]:
    """Choose how many columns and lines the names of a legend need.

    Args:
        names: All names.
        width: Width of the figure.

    Returns:
        Number of columns and of lines; both are 0 without names.

    Examples:
        >>> legend_size(["cat", "dog", "owl"], 3.25), legend_size(["a name of 26 characters...."] * 3, 3.25)
        ((3, 1), (2, 2))
    """
    if not names:
        return 0, 0
    figure = new_figure(1, 1)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    style = {"fontsize": TEXT, "parse_math": False}
    texts = [figure.text(0, 0, name["text"], family=name["family"], **style) for name in write_names(names)]
    longest = max(text.get_window_extent(renderer).width for text in texts) / figure.dpi
    columns = min(len(names), max(1, int(width / (_SWATCH + longest))))
    lines = -(-len(names) // columns)
    return -(-len(names) // lines), lines


def draw_legend(figure: Figure, legend: Sequence[LegendEntry], columns: int, top: float) -> None:
    """Draw a legend in the whole width of a figure, column by column.

    Args:
        figure: The figure.
        legend: The entries.
        columns: From `legend_size`.
        top: Upper end of the legend, as a fraction of the height of the figure.
    """
    width, height = figure.get_size_inches()
    lines = -(-len(legend) // columns)
    axis = figure.add_axes((0, top - lines * LINE / height, 1, lines * LINE / height))
    axis.set(xlim=(0, width), ylim=(-lines, 0))
    axis.set_axis_off()
    for number, (entry, name) in enumerate(zip(legend, write_names([entry.name for entry in legend]), strict=True)):
        x, y = width * (number // lines) / columns, -0.5 - number % lines
        axis.plot(x + 0.07, y, entry.marker, color=entry.color, markersize=5, markeredgewidth=0)
        axis.text(x + 0.15, y, name["text"], family=name["family"], fontsize=TEXT, color=INK, va="center", parse_math=False)


def _row_height(row: Row, width: float) -> float:
    panels = [panel for panel in row if panel is not None]
    cell = _cell_width(len(row), width)
    title, bar = any(panel.title for panel in panels), any(panel.limits for panel in panels)
    return LINE * title + max(cell * panel.aspect for panel in panels) + (_BAR + LINE) * bar + _GAP


def _cell_width(count: int, width: float) -> float:
    return (width - _GAP * (count - 1)) / count


def _draw_row(figure: Figure, row: Row, top: float, titles: Mapping[str, dict[str, Any]]) -> list[Axes]:
    """Draw a row whose upper end is `top` inches above the lower end of the figure. `titles` are as from `write_names`."""
    width, total = figure.get_size_inches()
    cell, axes = _cell_width(len(row), width), []
    if any(panel is not None and panel.title for panel in row):
        top -= LINE
    for column, panel in enumerate(row):
        if panel is None:
            continue
        height, left = cell * panel.aspect, column * (cell + _GAP)
        drawn = min(cell, height * panel.image.shape[1] / panel.image.shape[0])
        left += (cell - drawn) / 2
        axis = figure.add_axes((left / width, (top - height) / total, drawn / width, height / total))
        axis.imshow(panel.image, aspect="auto")
        axis.set_axis_off()
        if panel.title:
            title = titles[panel.title]
            axis.set_title(title["text"], family=title["family"], fontsize=TEXT, color=INK, pad=2, parse_math=False)
        axes.append(axis)
        if panel.limits:
            bar = figure.add_axes((column * (cell + _GAP) / width, (top - height - _BAR) / total, cell / width, 0.8 * _BAR / total))
            _draw_bar(bar, panel)
    return axes


def _draw_bar(axis: Axes, panel: Panel) -> None:
    """Draw a color bar with its limits below it."""
    assert panel.limits is not None
    axis.imshow(apply_colormap(np.linspace(0, 1, 256)[None], panel.colormap), aspect="auto")
    axis.set_axis_off()
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top", "fontsize": TEXT, "color": INK}
    for x, horizontal, value in ((0, "left", panel.limits[0]), (1, "right", panel.limits[1])):
        axis.annotate(f"{value:.2g}", (x, 0), (0, -2), ha=horizontal, **style)
