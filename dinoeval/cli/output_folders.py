"""The folders that `attention` and `pca` write to: apart from the pictures they read, without what an earlier run left there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoeval.errors import ConfigError
from dinoeval.files import check_writable, expand, write_whole

if TYPE_CHECKING:
    import numpy as np

    from dinoeval.data.images import ImageSet

_NUMBERED = re.compile(r"(head|mask|point)(0|[1-9]\d*)\.png|points\.(png|pdf|svg)")  # how many there are depends on network and options
_FRAME = re.compile(r"\d{5}\.png")
_OURS = re.compile(rf"(image|overlay|components|foreground)\.png|figure\.(png|pdf|svg)|{_NUMBERED.pattern}|{_FRAME.pattern}", re.IGNORECASE)


def create_output_folder(out: str, images: Sequence[str]) -> Path:
    """Make the folder that --out names. Raises ConfigError where it lies in one that is read."""
    folder = expand(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out}: that is a file; name a folder")
    check_apart(out, images)
    _make(folder)
    check_writable(folder / "image.png")
    return folder


def check_apart(out: str, images: Sequence[str]) -> None:
    """Raise ConfigError where --out is one of the files or folders that are read, or lies in one of them."""
    target = _real(expand(out))
    for given in images:
        if given and target.is_relative_to(_real(expand(given))):
            raise ConfigError(
                f"--out {out} is, or lies in, {given}, whose pictures are read: they might be overwritten, and the next run would take "
                "what this one writes for yours. Name another --out"
            )


def check_targets(inputs: Iterable[Path], files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Raise ConfigError where an input is one of these files, or has in one of these folders a name that is written there."""
    read = {_real(path) for path in inputs}
    inside = (entry for folder in folders for entry in folder.glob("*") if _OURS.fullmatch(entry.name))
    for target in (*files, *inside):
        if _real(target) in read:
            raise ConfigError(f"{target} is one of the pictures that are read, and would be overwritten: name another --out")


def _real(path: Path) -> Path:
    """Without links; unlike Path.resolve, also of links that form a circle."""
    return Path(os.path.realpath(path))


def files_of(opened: ImageSet, images: Sequence[str]) -> list[Path]:
    """Where the pictures lie that were opened by these words: names from one folder or table are relative to it."""
    root = Path()
    if len(images) == 1:
        given = expand(images[0])
        root = given if given.is_dir() else given.parent if given.suffix.lower() in (".csv", ".tsv") else root
    return [root / path for path in opened.paths]


def write_pictures(folder: Path, pictures: Mapping[str, np.ndarray]) -> None:
    from PIL import Image

    _make(folder)
    for name, pixels in pictures.items():
        write_whole(folder / f"{name}.png", lambda target, pixels=pixels: Image.fromarray(pixels).save(target, "PNG"))


def drop_heads_and_points(folder: Path, pictures: Iterable[str]) -> None:
    """Delete an earlier run's pictures of heads and points that are not among these `pictures`: it had more points, or another network.

    A folder without the pictures that such a run begins with is the user's own.
    """
    if (folder / "image.png").is_file() and (folder / "overlay.png").is_file():
        written = {f"{name}.png" for name in pictures}
        figures = {f"points.{kind}" for kind in ("png", "pdf", "svg")} if "point0.png" in written else set()
        _drop(folder, _NUMBERED, written | figures)


def drop_frames(folder: Path, count: int) -> None:
    """Delete an earlier video's frames from number `count` on. Without its GIF beside them they are the user's own."""
    if (folder / "attention.gif").is_file():
        _drop(folder / "frames", _FRAME, {f"{number:05d}.png" for number in range(count)})


def _drop(folder: Path, pattern: re.Pattern[str], kept: set[str]) -> None:
    for entry in folder.glob("*.*"):
        if pattern.fullmatch(entry.name) and entry.name not in kept:
            try:
                entry.unlink()
            except OSError as error:
                raise ConfigError(f"{entry}, of an earlier run, cannot be deleted: {error.strerror}") from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be made: {error.strerror}") from error
