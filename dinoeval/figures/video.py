"""Attention over the frames of a video: the mean of all heads, on one scale of colours (video_generation.py draws each on its own).

F frames, h x w patches of p pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_images
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.attention_maps import attention_rows
from dinoeval.figures.preprocessing import NATIVE, FigureTransform, figure_transform
from dinoeval.figures.style import coloured, enlarged
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.models.backbone import Backbone

COLOURS = "inferno"  # video_generation.py
FPS = 24.0  # of a folder of frames; DAVIS's
_WIDTH = 640  # pixels of the GIF, whose files are large


@dataclasses.dataclass(frozen=True)
class AttentionVideo:
    """The attention of the frames of a video, and the pictures it makes."""

    frames: ImageSet
    maps: np.ndarray
    """(F, h, w) float32: what [CLS] pays to each patch, the mean of all heads."""
    seconds: float
    """How long a frame is shown."""
    reading: FigureTransform

    @functools.cached_property
    def limits(self) -> tuple[float, float]:
        """The scale of colours, the same for all frames: from the least value to that which one in a hundred exceeds."""
        return float(self.maps.min()), float(np.quantile(self.maps, 0.99))

    def picture(self, number: int) -> np.ndarray:
        """A frame's attention, (h*p, w*p, 3) uint8."""
        return enlarged(coloured(self.maps[number], COLOURS, self.limits), self.reading.patch)

    def pictures(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each frame as the network saw it, and its attention."""
        for number in range(len(self.maps)):
            yield _pixels(self.frames, number, self.reading), self.picture(number)

    def save(self, path: str | Path) -> None:
        """Write frames beside their attention as an animated GIF."""
        check_video(path)
        pages = (self._page(*pair) for pair in self.pictures())
        first = next(pages)
        options = {"save_all": True, "append_images": pages, "duration": self.milliseconds, "loop": 0}
        write_whole(path, lambda target: first.save(target, "GIF", **options))

    @property
    def milliseconds(self) -> int:
        """How long the GIF shows a frame: it counts hundredths of a second, and what is faster than 50 a second viewers slow down."""
        return max(20, round(self.seconds * 100) * 10)

    def _page(self, frame: np.ndarray, attention: np.ndarray) -> Image.Image:
        page = Image.fromarray(np.concatenate((frame, attention), axis=1))
        if page.width > _WIDTH:
            page = page.resize((_WIDTH, max(1, round(page.height * _WIDTH / page.width))), Image.Resampling.LANCZOS)
        return page.quantize(256)


def check_video(path: str | Path) -> None:
    """Find out before the work whether a GIF can be written there. Raises a DinoevalError."""
    if expand(path).suffix.lower() != ".gif":
        raise ConfigError(f"video {path}: the name must end in .gif; `ffmpeg -i FRAMES OUT.mp4` makes others of the frames")
    check_writable(path)


def attention_video(
    backbone: Backbone,
    frames: str | Path,
    *,
    image_size: int | str = NATIVE,
    fps: float | None = None,
    exif_transpose: bool = True,
    transform: str = "auto",
) -> AttentionVideo:
    """Look at the attention of all frames of a video: a folder of frames, or an animated picture.

    Frames go by the numbers in their names. `fps` is by default that of an animated picture, else 24.
    """
    opened, seconds = open_frame_set(frames)
    if fps is not None and not 0 < fps < float("inf"):
        raise ConfigError(f"fps must be above 0: {fps}")
    reading = figure_transform(backbone, image_size, exif_transpose, transform)
    maps: list[np.ndarray] = []
    for number in tqdm(range(len(opened)), desc="frames", unit="frame", disable=None, leave=False):
        rows = attention_rows(backbone, opened.paths[number], _pixels(opened, number, reading), reading, [0])  # (A, 1, h, w)
        maps.append(rows.mean((0, 1)))
        if maps[-1].shape != maps[0].shape:
            sizes = " and ".join(f"{w} x {h}" for h, w in (maps[0].shape, maps[-1].shape))
            raise DataError(f"frames differ in size: {opened.paths[0]} and {opened.paths[number]} have {sizes} patches. "
                            "Say --image-size 480, or another, to bring all to one.")  # fmt: skip
    return AttentionVideo(opened, np.stack(maps), 1 / fps if fps else seconds, reading)


def open_frame_set(where: str | Path) -> tuple[ImageSet, float]:
    """Open a folder of frames or an animated picture, and tell the seconds a frame."""
    path = expand(where)
    if path.is_dir():
        images = open_images(path)
        order = sorted(range(len(images)), key=lambda row: _by_number(images.paths[row]))
        return images.subset(order), 1 / FPS
    try:
        animation = _Animation(path.read_bytes())
        count = getattr(animation.picture, "n_frames", 1)
    except MemoryError:
        raise
    except Exception as error:  # as below
        wrong = "no picture" if path.exists() else "no such file"
        advice = f"a folder of frames or an animated GIF is wanted; `ffmpeg -i {path.name} frames/%05d.png` makes frames of a film"
        raise DataError(f"{path}: {wrong}; {advice}") from error
    if count < 2:
        raise DataError(f"{path} is one picture that does not move: leave out --video")
    names, sizes = tuple(f"{number:05d}" for number in range(count)), np.zeros(count, np.int64)
    try:
        animation(0)  # Pillow knows how long a WebP's frame is shown once it has decoded it
    except BadImage as fault:
        raise DataError(f"frame {names[0]} cannot be used: {fault}") from fault
    seconds = float(animation.picture.info.get("duration") or 100) / 1000
    return ImageSet(name=str(path), split="all", paths=names, sizes=sizes, stamp="", reader=animation), seconds


def _by_number(name: str) -> list[str | int]:
    """`clip/frame10.jpg` -> text and numbers in turn, so that frame 10 comes after frame 9."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def _pixels(frames: ImageSet, number: int, reading: FigureTransform) -> np.ndarray:
    try:
        return reading(reading.picture(frames, number))
    except BadImage as fault:
        raise DataError(f"frame {frames.paths[number]} cannot be used: {fault}") from fault


class _Animation:
    """Reads the frames of an animated picture, quickest one after the other."""

    def __init__(self, content: bytes) -> None:
        self.picture = Image.open(io.BytesIO(content))

    def __call__(self, row: int) -> Image.Image:
        try:
            self.picture.seek(row)
            return self.picture.convert("RGB")
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise whatever a broken file leads them to
            raise BadImage(str(error).strip() or type(error).__name__) from error
