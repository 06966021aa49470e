"""Attention over the frames of a video, averaged over heads, with one color scale for all frames.

The released video_generation.py scales the colors of each frame separately. F frames, h x w patches of p pixels.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dinoeval.data.frames import Animation
from dinoeval.data.image_files import read_file
from dinoeval.data.images import ImageSet
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.data.opening import open_images
from dinoeval.data.remarks import add_remarks
from dinoeval.display import short_repr
from dinoeval.errors import BadImage, ConfigError, DataError
from dinoeval.figures.panels import Panel, draw_rows, split_rows
from dinoeval.figures.preprocessing import NATIVE, FigureTransform, figure_transform
from dinoeval.figures.queries import attention_rows
from dinoeval.figures.style import apply_colormap, enlarge, png_of
from dinoeval.files import check_writable, expand, write_whole
from dinoeval.guard import entry_point
from dinoeval.models.backbone import Backbone
from dinoeval.progress import track

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORMAP = "inferno"
"""As in video_generation.py."""
FPS = 24.0
"""Frames per second of a folder of frames, as in DAVIS."""
_MAX_WIDTH = 640  # Pixels: GIF files are large.
_MIN_SCALE_WIDTH = 160  # Pixels.
_MAX_SHOWN = 4  # Frames in a figure.


@dataclasses.dataclass(frozen=True)
class AttentionVideo:
    """The attention for the frames of a video, and the images made from it."""

    frames: ImageSet
    maps: np.ndarray
    """Attention of [CLS] to each patch, averaged over heads, (F, h, w) float32."""
    seconds: float
    """Duration of a frame."""
    transform: FigureTransform
    remarks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of frames by remark."""

    __repr__ = short_repr
    _repr_png_ = png_of

    @functools.cached_property
    def limits(self) -> tuple[float, float]:
        """Limits of the color scale: the minimum and the 99th percentile of all frames."""
        return float(self.maps.min()), float(np.quantile(self.maps, 0.99))

    @property
    def milliseconds(self) -> int:
        """Duration of a frame in the GIF.

        A multiple of 10, and at least 20, because viewers slow down faster animations.
        """
        return max(20, round(self.seconds * 100) * 10)

    def attention_image(self, number: int) -> np.ndarray:
        """Draw the attention of a frame.

        Args:
            number: Number of the frame, from 0.

        Returns:
            Image (h*p, w*p, 3) uint8.
        """
        return enlarge(apply_colormap(self.maps[number], COLORMAP, self.limits), self.transform.patch)

    def figure(self) -> Figure:
        """Draw four equally spaced frames next to their attention.

        Returns:
            A figure as wide as a column of a paper.

        Raises:
            DataError: If a frame cannot be decoded.
        """
        panels: list[Panel] = []
        for number in np.unique(np.linspace(0, len(self.maps) - 1, _MAX_SHOWN).round().astype(int)).tolist():
            panels.append(Panel(_read_pixels(self.frames, number, self.transform)[0], Path(self.frames.paths[number]).stem))
            panels.append(Panel(self.attention_image(number), "attention", self.limits, COLORMAP))
        caption = "All frames have one color scale, up to the 99th percentile."
        return draw_rows(split_rows(panels, 2 * min(2, len(panels) // 2)), caption=caption)[0]

    def image_pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield each resized and cropped frame, and its attention.

        Yields:
            Two images (h*p, w*p, 3) uint8.

        Raises:
            DataError: If a frame cannot be decoded.
        """
        for number in range(len(self.maps)):
            yield _read_pixels(self.frames, number, self.transform)[0], self.attention_image(number)

    def save(self, path: str | Path) -> None:
        """Write frames next to their attention as an animated GIF.

        Args:
            path: A file with the extension .gif.

        Raises:
            DinoevalError: If the extension is another, or the file cannot be written.
        """
        check_video(path)
        pages = (_gif_page(frame, attention, self.limits) for frame, attention in self.image_pairs())
        first = next(pages)
        options = {"save_all": True, "append_images": pages, "duration": self.milliseconds, "loop": 0}
        write_whole(path, lambda target: first.save(target, "GIF", **options))


def check_video(path: str | Path) -> None:
    """Check that a GIF can be written to a path, before the work starts.

    Args:
        path: File to be written.

    Raises:
        DinoevalError: If the extension is not .gif, or the file cannot be written.
    """
    if expand(path).suffix.lower() != ".gif":
        raise ConfigError(f"video {path} must have the extension .gif. For other formats run `ffmpeg -i FRAMES OUT.mp4` on the frames")
    check_writable(path)


@entry_point
def attention_video(
    backbone: Backbone | str | Path,
    frames: str | Path,
    *,
    image_size: int | str = NATIVE,
    fps: float | None = None,
    exif_transpose: bool = False,
    transform: str = "auto",
) -> AttentionVideo:
    """Compute the attention of the last block for all frames of a video.

    Args:
        backbone: A vision transformer, or a name or a file that `dinoeval.load` takes.
        frames: A folder of frames, which are ordered by the numbers in their names, or an animated image.
        image_size: As for `attention`; `native` keeps the size of the frames.
        fps: Frames per second (default: those of the animated image, 24 for a folder).
        exif_transpose: Whether to rotate the frames by their EXIF orientation.
        transform: `auto` or `dino`: selects the mean and standard deviation.

    Returns:
        The maps, and the methods that draw them.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If a frame cannot be used, frames differ in size, or the attention is NaN or infinite.
    """
    from dinoeval.models.loading import as_backbone

    opened, seconds = open_frame_set(frames, ImageRule(exif_transpose))
    if fps is not None and not 0 < fps < float("inf"):
        raise ConfigError(f"--fps must be a finite number above 0, got {fps:g}")
    backbone = as_backbone(backbone)
    loaded = figure_transform(backbone, image_size, ImageRule(exif_transpose), transform)
    maps: list[np.ndarray] = []
    remarks: dict[str, list[str]] = {}
    for number in track(range(len(opened)), "frames", len(opened), "frames"):
        pixels, image = _read_pixels(opened, number, loaded)
        add_remarks(remarks, image, opened.paths[number])
        rows = attention_rows(backbone, opened.paths[number], pixels, loaded, [0])  # (A, 1, h, w)
        maps.append(rows.mean((0, 1)))
        if maps[-1].shape != maps[0].shape:
            sizes = " and ".join(f"{w} x {h}" for h, w in (maps[0].shape, maps[-1].shape))
            names = f"{opened.paths[0]} and {opened.paths[number]}"
            raise DataError(f"frames differ in size: {names} have {sizes} patches. Resize all frames with --image-size, such as 480")
    return AttentionVideo(opened, np.stack(maps), 1 / fps if fps else seconds, loaded, remarks)


def open_frame_set(source: str | Path, rule: ImageRule = DEFAULT_RULE) -> tuple[ImageSet, float]:
    """Open a folder of frames or an animated image as an image set.

    Figures need random access to the frames. Label propagation reads each frame once, by `dinoeval.data.frames.read_frames`.

    Args:
        source: A folder, whose frames are ordered by the numbers in their names, or an animated image.
        rule: The rule by which frames are decoded.

    Returns:
        The frames, and the duration of a frame in seconds.

    Raises:
        DataError: If the source is neither, or its first frame cannot be decoded.
    """
    path = expand(source)
    if path.is_dir():
        images = open_images(path)
        order = sorted(range(len(images)), key=lambda row: _numeric_key(images.paths[row]))
        return images.subset(order).with_rule(rule), 1 / FPS
    try:
        animation = Animation(read_file(path), rule)
    except (BadImage, OSError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        advice = f"pass a folder of frames or an animated GIF; `ffmpeg -i {path.name} frames/%05d.png` extracts the frames of a video"
        raise DataError(f"{path}: {reason}; {advice}") from error
    if (count := len(animation)) < 2:
        raise DataError(f"{path} is a single image, not an animation: remove --video")
    names, sizes = tuple(f"{number:05d}" for number in range(count)), np.zeros(count, np.int64)
    try:
        animation(0)  # Pillow reads the frame duration of a WebP only when it decodes the frame.
    except BadImage as error:
        raise DataError(f"frame {names[0]} of {path} cannot be used: {error}") from error
    seconds = float(animation.milliseconds or 100) / 1000
    return ImageSet(name=str(path), split="all", paths=names, sizes=sizes, stamp="", reader=animation), seconds


def _numeric_key(name: str) -> list[str | int]:
    """Split `clip/frame10.jpg` into text and numbers, so that frame 10 comes after frame 9."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", name))]


def _read_pixels(frames: ImageSet, number: int, transform: FigureTransform) -> tuple[np.ndarray, Image.Image]:
    """Return the resized and cropped pixels of a frame, and the frame."""
    try:
        image = transform.open(frames, number)
        return transform(image), image
    except BadImage as error:
        raise DataError(f"frame {frames.paths[number]} cannot be used: {error}") from error


def _gif_page(frame: np.ndarray, attention: np.ndarray, limits: tuple[float, float]) -> Image.Image:
    """Draw a frame next to its attention, with the color scale below them if there is space for it."""
    page = Image.fromarray(np.concatenate((frame, attention), axis=1))
    if page.width > _MAX_WIDTH:
        page = page.resize((_MAX_WIDTH, max(1, round(page.height * _MAX_WIDTH / page.width))), Image.Resampling.LANCZOS)
    if page.width >= _MIN_SCALE_WIDTH:
        page = Image.fromarray(np.concatenate((np.asarray(page), _draw_scale(page.width, limits))))
    return page.quantize(256)


def _draw_scale(width: int, limits: tuple[float, float]) -> np.ndarray:
    """Draw a color bar between its limits, (H, width, 3) uint8."""
    strip = Image.new("RGB", (width, 18), "white")
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(12)
    left, right = (f"{limit:.3g}" for limit in limits)
    start, end = (round(draw.textlength(text, font)) + 8 for text in (left, right))
    draw.text((4, 9), left, "black", font, anchor="lm")
    draw.text((width - 4, 9), right, "black", font, anchor="rm")
    bar = apply_colormap(np.linspace(0, 1, width - start - end)[None].repeat(8, 0), COLORMAP, (0.0, 1.0))
    strip.paste(Image.fromarray(bar), (start, 5))
    return np.asarray(strip)
