"""One style for all figures: colours that the colour-blind tell apart, a paper's column, files that come out the same again.

h x w patches or pixels, H x W pixels; pictures are (H, W, 3) uint8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, expand, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN = 3.25  # inches: a column of the paper, which is set in CVPR's style
TEXT = 7  # points: the smallest that is read with ease in print
DPI = 300
INK = "#222222"
# Okabe and Ito's palette without black, those first that differ most on photographs.
COLOURS = ("#E69F00", "#0072B2", "#CC79A7", "#009E73", "#D55E00", "#56B4E9", "#F0E442")
_ENDINGS = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}  # without the time of day
_GAP = 0.04  # inches between panels
_LINE = 0.14  # inches that a title takes


def check_figure(path: str | Path) -> None:
    """Find out before the work whether a figure can be written there. Raises a DinoevalError."""
    if expand(path).suffix.lower() not in _ENDINGS:
        raise ConfigError(f"figure {path}: the name must end in {', '.join(_ENDINGS)}")
    check_writable(path)


def save(figure: Figure, path: str | Path, *, dpi: int = DPI) -> None:
    """Write a figure as PNG, PDF or SVG, by the ending of its name; the same figure gives the same bytes."""
    import matplotlib

    check_figure(path)
    ending = expand(path).suffix.lower()
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "dinoeval"}):  # TrueType, which publishers ask for
        write_whole(path, lambda target: figure.savefig(target, format=ending[1:], dpi=dpi, metadata=_ENDINGS[ending]))


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, without the state that pyplot keeps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(pictures: Sequence[tuple[str, np.ndarray]], across: int, *, width: float = COLUMN) -> tuple[Figure, list[Axes]]:
    """Pictures in lines of `across`, each below its title where it has one; a line is as high as its highest picture."""
    cell = (width - _GAP * (across - 1)) / across
    lines = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    heights = [cell * max(picture.shape[0] / picture.shape[1] for _, picture in line) + _GAP for line in lines]
    titles = [_LINE * any(title for title, _ in line) for line in lines]
    top = total = sum(heights) + sum(titles)
    figure, axes = new_figure(width, total), []
    for line, height, above in zip(lines, heights, titles, strict=True):
        top -= above
        for column, (title, picture) in enumerate(line):
            tall = cell * picture.shape[0] / picture.shape[1]
            box = (column * (cell + _GAP) / width, (top - tall) / total, cell / width, tall / total)
            axis = figure.add_axes(box)
            axis.imshow(picture, aspect="auto")
            axis.set_axis_off()
            axis.set_title(title, fontsize=TEXT, color=INK, pad=2, parse_math=False)
            axes.append(axis)
        top -= height
    return figure, axes


def coloured(values: np.ndarray, colours: str, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Turn values (h, w) into a picture by a colour map of matplotlib; from their least to their largest unless `limits` are given."""
    import matplotlib

    low, high = limits or (float(values.min()), float(values.max()))
    scaled = (values.astype(np.float64) - low) / ((high - low) or 1.0)
    return matplotlib.colormaps[colours](scaled, bytes=True)[..., :3]


def enlarged(values: np.ndarray, factor: int) -> np.ndarray:
    """Repeat every cell of (h, w, ...) factor x factor times, as nearest interpolation by the patch does."""
    return values.repeat(factor, axis=0).repeat(factor, axis=1)


def rgb(colour: str) -> np.ndarray:
    """`#E69F00` as (3,) uint8."""
    return np.frombuffer(bytes.fromhex(colour[1:]), np.uint8)


def blended(picture: np.ndarray, colour: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mix a colour, (3,) or (H, W, 3), into a picture; `share` (H, W) of it is the colour's."""
    share = share[..., None].astype(np.float64)
    return np.rint(picture * (1 - share) + colour * share).astype(np.uint8)


def outlined(picture: np.ndarray, mask: np.ndarray, colour: np.ndarray, width: int) -> np.ndarray:
    """Draw the border of a mask (H, W) on a picture, `width` pixels wide, inside the mask."""
    inner = np.pad(mask, width, constant_values=True)  # a mask that touches the frame is open there
    height, across = mask.shape
    kept = mask.copy()
    for down, right in ((0, 1), (2, 1), (1, 0), (1, 2)):
        kept &= inner[down * width : down * width + height, right * width : right * width + across]
    drawn = picture.copy()
    drawn[mask & ~kept] = colour
    return drawn
