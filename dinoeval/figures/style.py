"""The style of all figures: colors that color-blind readers can distinguish, the width of a paper column, reproducible files.

h x w patches or pixels, H x W pixels. Images are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.guard import entry_point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.25
"""Width of a figure in inches: a column of the paper, which has the CVPR style."""
TEXT = 7
"""Font size in points: the smallest that is easy to read in print."""
DPI = 300
INK = "#222222"
COLORS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#F0E442")
"""Palette of Okabe and Ito without black, ordered so that the first colors differ most on photographs."""
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # No time: files are reproducible.
_GAP = 0.04  # Inches between panels.
_TITLE_HEIGHT = 0.14  # Inches.


def check_figure(path: str | Path) -> None:
    """Check that a figure can be written to a path, before the work starts.

    Args:
        path: File to be written.

    Raises:
        DinoevalError: If the extension is unknown, or the file cannot be written.
    """
    if expand(path).suffix.lower() not in _METADATA:
        raise ConfigError(f"figure {path} has an unknown extension: use one of {', '.join(_METADATA)}")
    check_writable(path)


@entry_point
def save(figure: Figure, path: str | Path, *, dpi: int = DPI) -> None:
    """Write a figure as PNG, PDF or SVG. The same figure gives the same bytes.

    Args:
        figure: The figure.
        path: File to write. Its extension selects the format.
        dpi: Pixels per inch of PNG files and of images inside PDF and SVG files.

    Raises:
        DinoevalError: If the extension is unknown, or the file cannot be written.
    """
    import matplotlib

    check_figure(path)
    extension = expand(path).suffix.lower()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "dinoeval"}):  # Type 42 is TrueType, which publishers require.
        write_whole(path, lambda target: figure.savefig(target, format=extension[1:], dpi=dpi, metadata=_METADATA[extension]))


def new_figure(width: float, height: float) -> Figure:
    """Create an empty white figure that pyplot does not manage.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure, with an Agg canvas.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def draw_panels(panels: Sequence[tuple[str, np.ndarray]], per_row: int, *, width: float = COLUMN) -> tuple[Figure, list[Axes]]:
    """Draw images in rows. A row is as high as its highest image.

    Args:
        panels: Title (empty for none) and image of each panel.
        per_row: Panels in a row.
        width: Width of the figure, in inches.

    Returns:
        The figure and the axes of the panels, in order.
    """
    cell = (width - _GAP * (per_row - 1)) / per_row
    rows = [panels[start : start + per_row] for start in range(0, len(panels), per_row)]
    heights = [cell * max(image.shape[0] / image.shape[1] for _, image in row) + _GAP for row in rows]
    title_heights = [_TITLE_HEIGHT * any(title for title, _ in row) for row in rows]
    top = total = sum(heights) + sum(title_heights)
    figure, axes = new_figure(width, total), []
    for row, height, title_height in zip(rows, heights, title_heights, strict=True):
        top -= title_height
        for column, (title, image) in enumerate(row):
            image_height = cell * image.shape[0] / image.shape[1]
            box = (column * (cell + _GAP) / width, (top - image_height) / total, cell / width, image_height / total)
            axis = figure.add_axes(box)
            axis.imshow(image, aspect="auto")
            axis.set_axis_off()
            axis.set_title(title, fontsize=TEXT, color=INK, pad=2, parse_math=False)
            axes.append(axis)
        top -= height
    return figure, axes


def apply_colormap(values: np.ndarray, colormap: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Turn values into colors.

    Args:
        values: (h, w) float.
        colormap: Name of a matplotlib color map.
        limits: Values of the first and the last color (default: the minimum and the maximum).

    Returns:
        Colors, (h, w, 3) uint8.

    Examples:
        >>> apply_colormap(np.array([[0.0, 1.0]]), "gray").tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    import matplotlib

    low, high = limits or (float(values.min()), float(values.max()))
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return matplotlib.colormaps[colormap](scaled, bytes=True)[..., :3]


def enlarge(values: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every cell, as nearest-neighbor interpolation by an integer factor does.

    Args:
        values: (h, w, ...).
        factor: Pixels per cell, in both directions.

    Returns:
        Array (h * factor, w * factor, ...).
    """
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def rgb(color: str) -> np.ndarray:
    """Parse a hexadecimal color.

    Args:
        color: Such as `#E69F00`.

    Returns:
        Red, green and blue, (3,) uint8.

    Examples:
        >>> rgb("#E69F00").tolist()
        [230, 159, 0]
    """
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)


def blend(image: np.ndarray, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend a color into an image.

    Args:
        image: (H, W, 3) uint8.
        color: (3,) or (H, W, 3) uint8.
        alpha: Opacity of the color, (H, W), from 0 to 1.

    Returns:
        The image, (H, W, 3) uint8.
    """
    alpha = alpha[..., None].astype(np.float64)
    return np.rint(image * (1 - alpha) + color * alpha).astype(np.uint8)


def outline(image: np.ndarray, mask: np.ndarray, color: np.ndarray, width: int) -> np.ndarray:
    """Draw the border of a mask on an image, inside the mask.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) bool. No border is drawn at the edges of the image.
        color: (3,) uint8.
        width: Width of the border, in pixels.

    Returns:
        The image, (H, W, 3) uint8.
    """
    padded = np.pad(mask, width, constant_values=True)
    rows, columns = mask.shape
    inner = mask.copy()
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        inner &= padded[down * width : down * width + rows, right * width : right * width + columns]
    drawn = image.copy()
    drawn[mask & ~inner] = color
    return drawn
