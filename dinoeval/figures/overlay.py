"""Masks over the frames of a video: an animated GIF, and a contact sheet of a few frames.

H x W pixels; pictures are (H, W, 3) uint8, masks (H, W) uint8 with 0 for background and 255 for void.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.masks import VOID
from dinoeval.errors import DinoevalError
from dinoeval.figures.style import COLOURS, blended, outlined, panels, rgb, save
from dinoeval.files import write_whole

SHARE = 0.5  # of a mask's colour in the picture
TILES, ACROSS = 8, 2
MILLISECONDS = 80  # a frame; GIF counts hundredths of a second
_WIDTH = 480  # pixels: GIFs are large
_DPI = 200


def overlay(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Tint the objects of a mask and draw their borders; colours come again after seven objects."""
    drawn = picture
    for label in np.unique(mask).tolist():
        if label not in (0, VOID):
            inside, colour = mask == label, rgb(COLOURS[(label - 1) % len(COLOURS)])
            drawn = outlined(blended(drawn, colour, SHARE * inside), inside, colour, 1)
    return drawn


def make_folder(folder: Path) -> None:
    """Make the folder of pictures; before hours of work, to find out whether it can be. Raises DinoevalError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DinoevalError(f"{folder} cannot be written: {error.strerror}") from error


def overlay_paths(folder: Path, name: str) -> tuple[Path, Path]:
    """The film and the sheet of a video."""
    return folder / f"{name}_overlay.gif", folder / f"{name}_overlay.png"


def draw_video(
    folder: Path, name: str, names: Sequence[str], pictures: Iterable[Image.Image], masks: Iterable[np.ndarray]
) -> tuple[Path, Path]:
    """Write FOLDER/<name>_overlay.gif and .png, a sheet of frames at equal distances; returns both paths.

    `names` are of the frames. Pictures are taken one at a time; of a long film the drawn ones are all in memory.
    """
    shown = set(np.linspace(0, len(names) - 1, min(TILES, len(names))).round().astype(int).tolist())
    tiles: list[tuple[str, np.ndarray]] = []

    def pages() -> Iterator[Image.Image]:
        for number, (title, picture, mask) in enumerate(zip(names, pictures, masks, strict=True)):
            small = picture.copy()
            small.thumbnail((_WIDTH, _WIDTH), Image.Resampling.LANCZOS)
            drawn = overlay(np.asarray(small), np.asarray(Image.fromarray(mask).resize(small.size, Image.Resampling.NEAREST)))
            if number in shown:
                tiles.append((title, drawn))
            yield Image.fromarray(drawn).quantize(256)

    make_folder(folder)
    film, sheet = overlay_paths(folder, name)
    all_pages = pages()
    first = next(all_pages)
    write_whole(
        film, lambda path: first.save(path, "GIF", save_all=True, append_images=all_pages, duration=MILLISECONDS, loop=0, optimize=True)
    )
    for _ in all_pages:  # a picture of one frame takes no others
        pass
    save(panels(tiles, min(ACROSS, len(tiles)))[0], sheet, dpi=_DPI)
    return film, sheet
