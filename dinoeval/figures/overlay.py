"""Masks over the frames of a video: an animated GIF, and a contact sheet of a few frames.

H x W pixels. Images are (H, W, 3) uint8; masks are (H, W) uint8 with 0 for the background and 255 for void.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoeval.data.masks import VOID
from dinoeval.errors import DinoevalError
from dinoeval.figures.panels import LegendEntry, Panel, draw_rows, split_rows
from dinoeval.figures.style import blend, color, outline, rgb, save
from dinoeval.files import write_whole

ALPHA = 0.5
"""Opacity of the masks."""
TILES, TILES_PER_ROW = 8, 2
MILLISECONDS = 80
"""Duration of a frame. The GIF format counts hundredths of a second."""
_MAX_SIDE = 480  # Pixels: GIF files are large.
_DPI = 200
_ENTRY = 44, 17  # Width and height of an entry of the legend, in pixels.


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint the objects of a mask and draw their borders.

    An object has the color `style.color(label - 1)`.

    Args:
        image: (H, W, 3) uint8.
        mask: Labels, (H, W) uint8. Background and void are not drawn.

    Returns:
        The image, (H, W, 3) uint8.
    """
    drawn = image
    for label in np.unique(mask).tolist():
        if label not in (0, VOID):
            inside, tint = mask == label, rgb(color(label - 1))
            drawn = outline(blend(drawn, tint, ALPHA * inside), inside, tint, 1)
    return drawn


def make_folder(folder: Path) -> None:
    """Create the folder of the overlays, before the work starts.

    Args:
        folder: May exist.

    Raises:
        DinoevalError: If it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DinoevalError(f"cannot create the folder {folder}: {error.strerror}") from error


def overlay_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of the animation and of the contact sheet.

    Args:
        folder: Folder of the overlays.
        name: Name of the video.

    Returns:
        FOLDER/<name>_overlay.gif and FOLDER/<name>_overlay.png.
    """
    return folder / f"{name}_overlay.gif", folder / f"{name}_overlay.png"


def draw_video(
    folder: Path, name: str, titles: Sequence[str], frames: Iterable[Image.Image], read_masks: Callable[[], Iterable[np.ndarray]]
) -> tuple[Path, Path]:
    """Write an animation of all frames, and a contact sheet of equally spaced frames.

    Frames are read one at a time, but the drawn frames of the whole video are kept in memory.

    Args:
        folder: Created if it does not exist.
        name: Name of the video.
        titles: Name of each frame.
        frames: RGB images.
        read_masks: Yields the mask of each frame, of its size. It is called twice: the legend needs the objects of all frames.

    Returns:
        The paths, as from `overlay_paths`.

    Raises:
        DinoevalError: If the files cannot be written.
    """
    in_sheet = set(np.linspace(0, len(titles) - 1, min(TILES, len(titles))).round().astype(int).tolist())
    objects = sorted(set().union(*(np.unique(mask).tolist() for mask in read_masks())) - {0, VOID})
    tiles: list[Panel] = []

    def draw_frames() -> Iterator[Image.Image]:
        for number, (title, frame, mask) in enumerate(zip(titles, frames, read_masks(), strict=True)):
            small = frame.copy()
            small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
            drawn = overlay(np.asarray(small), np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST)))
            if number in in_sheet:
                tiles.append(Panel(drawn, title))
            yield Image.fromarray(np.concatenate((drawn, _draw_legend(objects, drawn.shape[1])))).quantize(256)

    make_folder(folder)
    animation, sheet = overlay_paths(folder, name)
    drawn_frames = draw_frames()
    first = next(drawn_frames)
    options = {"save_all": True, "append_images": drawn_frames, "duration": MILLISECONDS, "loop": 0, "optimize": True}
    write_whole(animation, lambda path: first.save(path, "GIF", **options))
    for _ in drawn_frames:  # Pillow does not read the others if the image has a single frame.
        pass
    legend = [LegendEntry(f"object {label}", color(label - 1)) for label in objects]
    save(draw_rows(split_rows(tiles, min(TILES_PER_ROW, len(tiles))), legend=legend)[0], sheet, dpi=_DPI)
    return animation, sheet


def _draw_legend(objects: Sequence[int], width: int) -> np.ndarray:
    """Draw the number of each object next to its color, for the frames of an animation, (H, width, 3) uint8."""
    columns = max(1, width // _ENTRY[0])
    lines = -(-len(objects) // columns)
    strip = Image.new("RGB", (width, lines * _ENTRY[1]), "white")
    draw = ImageDraw.Draw(strip)
    for place, label in enumerate(objects):
        x, y = place % columns * _ENTRY[0], place // columns * _ENTRY[1]
        draw.rectangle((x + 3, y + 3, x + 13, y + 13), fill=color(label - 1))
        draw.text((x + 17, y + _ENTRY[1] // 2), str(label), fill="black", anchor="lm", font=ImageFont.load_default(12))
    return np.asarray(strip)
