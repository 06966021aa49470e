"""The style of all figures: colors that color-blind readers can distinguish, the width of a paper column, reproducible files.

Figures are drawn with the default settings of matplotlib and without pyplot, so they depend neither on the backend nor on
the settings of the user, and change neither. h x w patches or pixels, H x W pixels. Images are (H, W, 3) uint8.
"""

from __future__ import annotations

import colorsys
import contextlib
import functools
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.guard import entry_point

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMN = 3.25
"""Width of a figure in inches: a column of the paper, which has the CVPR style."""
TEXT = 7
"""Font size in points: the smallest that is easy to read in print."""
DPI = 300
INK = "#222222"
COLORS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#F0E442")
"""Palette of Okabe and Ito without black, ordered so that the first colors differ most on photographs."""
NOTEBOOK_DPI = 200
_DARKER = 0.5  # Brightness of the second seven colors.
_METADATA = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # No time: files are reproducible.
_NAN_COLOR = "#808080"
FONT = "DejaVu Sans"
"""It comes with matplotlib."""
_SETTINGS = {"pdf.fonttype": 42, "svg.hashsalt": "dinoeval", "font.family": [FONT]}  # Type 42 is TrueType, which publishers require.
_lock = threading.RLock()  # The settings of matplotlib are global.


class HasFigure(Protocol):
    """An object that draws a figure, such as AttentionMaps."""

    def figure(self) -> Figure:
        """Return the figure."""
        ...


def load_matplotlib() -> Any:
    """Import matplotlib, also if $MPLBACKEND names a backend that does not exist.

    Returns:
        The module. A valid backend of the user stays selected.

    Raises:
        DinoevalError: If matplotlib cannot be imported, for example without any writable folder.
    """
    with _lock:
        # matplotlib reads the variable when it is imported, and cannot be imported if the value is misspelled.
        backend = os.environ.pop("MPLBACKEND", None) if "matplotlib" not in sys.modules else None
        try:
            import matplotlib
        except (OSError, ValueError) as error:  # No folder is writable, or matplotlibrc is not text.
            raise DinoevalError(f"matplotlib, which draws figures, cannot be imported: {error}") from error
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
        if backend:
            with contextlib.suppress(ValueError):  # Figures do not use a backend.
                matplotlib.rcParams["backend"] = backend
    return matplotlib


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Draw with the default settings of matplotlib.

    The settings of matplotlibrc and of the caller do not count. Only one thread draws at a time.

    Yields:
        Nothing. The settings of the caller are restored at the end.
    """
    matplotlib = load_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name not in ("backend", "interactive")}
    with _lock, matplotlib.rc_context({**defaults, **_SETTINGS}):
        yield


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
def save(figure: Figure | HasFigure, path: str | Path, *, dpi: int = DPI) -> None:
    """Write a figure as PNG, PDF or SVG. The same figure gives the same bytes.

    Args:
        figure: The figure, or an object with the method `figure`, such as AttentionMaps.
        path: File to write. Its extension selects the format.
        dpi: Pixels per inch of PNG files and of images inside PDF and SVG files.

    Raises:
        DinoevalError: If the extension is unknown, or the file cannot be written.
    """
    check_figure(path)
    load_matplotlib()
    from matplotlib.figure import Figure

    extension = expand(path).suffix.lower()
    if not isinstance(figure, Figure) and not callable(getattr(figure, "figure", None)):
        raise ConfigError(f"an object of type {type(figure).__name__} is not a figure: pass maps or maps.figure()")
    drawn = figure if isinstance(figure, Figure) else figure.figure()
    with default_settings():
        write_whole(path, lambda target: drawn.savefig(target, format=extension[1:], dpi=dpi, metadata=_METADATA[extension]))


def png(figure: Figure) -> bytes:
    """Return a figure as the content of a PNG file, for notebooks.

    Args:
        figure: The figure.
    """
    stream = io.BytesIO()
    with default_settings():
        figure.savefig(stream, format="png", dpi=NOTEBOOK_DPI, metadata=_METADATA[".png"])
    return stream.getvalue()


def png_of(self: HasFigure) -> bytes:
    """Return the figure of an object as the content of a PNG file.

    Assign it in the body of a class, so that notebooks show the figure: `_repr_png_ = png_of`.

    Args:
        self: The object.
    """
    return png(self.figure())


@default_settings()
def new_figure(width: float, height: float) -> Figure:
    """Create an empty white figure that pyplot does not manage.

    Args:
        width: Width in inches.
        height: Height in inches.

    Returns:
        The figure, with an Agg canvas. Notebooks show it, also without an inline backend.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    figure._repr_png_ = functools.partial(png, figure)  # type: ignore[attr-defined]
    return figure


def color(number: int) -> str:
    """Return the color of a category.

    The first seven are `COLORS`, the next seven are darker. Later ones have hues that are spread over the circle.

    Args:
        number: From 0.

    Returns:
        Such as `#E69F00`.

    Examples:
        >>> color(0), color(7), len({color(number) for number in range(255)})
        ('#E69F00', '#735000', 255)
    """
    if number < len(COLORS):
        return COLORS[number]
    if number < 2 * len(COLORS):
        values = (rgb(COLORS[number - len(COLORS)]) * _DARKER).round()
    else:
        hue, level = number * 0.618034 % 1, number % 3  # The golden ratio spreads hues.
        values = np.array(colorsys.hsv_to_rgb(hue, (1.0, 0.55, 0.8)[level], (1.0, 0.95, 0.6)[level])) * 255
    return "#" + "".join(f"{int(value):02X}" for value in values)


def apply_colormap(values: np.ndarray, colormap: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Turn values into colors.

    Args:
        values: (h, w) float.
        colormap: Name of a matplotlib color map.
        limits: Values of the first and the last color (default: the minimum and the maximum). NaN is gray.

    Returns:
        Colors, (h, w, 3) uint8.

    Examples:
        >>> apply_colormap(np.array([[0.0, 1.0]]), "gray").tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    matplotlib = load_matplotlib()
    low, high = limits or value_range(values)
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return matplotlib.colormaps[colormap].with_extremes(bad=_NAN_COLOR)(scaled, bytes=True)[..., :3]


def value_range(values: np.ndarray) -> tuple[float, float]:
    """Return the smallest and the largest finite value, or zeros if there is none.

    Args:
        values: Of any shape.
    """
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


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
