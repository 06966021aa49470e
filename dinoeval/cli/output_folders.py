"""The output folders of `attention` and `pca`: separate from the images that are read, without leftovers of an earlier run."""

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

_NUMBERED = re.compile(r"(head|mask|point)(0|[1-9]\d*)\.png|points\.(png|pdf|svg)")  # Their number depends on network and options.
_FRAME = re.compile(r"\d{5}\.png")
_OUTPUT = re.compile(
    rf"(image|overlay|components|foreground)\.png|figure\.(png|pdf|svg)|{_NUMBERED.pattern}|{_FRAME.pattern}", re.IGNORECASE
)


def create_output_folder(out: str, images: Sequence[str]) -> Path:
    """Create the folder of --out.

    Args:
        out: The value of --out.
        images: Files and folders that are read.

    Returns:
        The folder.

    Raises:
        ConfigError: If it is a file, cannot be written, or is inside a folder that is read.
    """
    folder = expand(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {out} is a file: pass a folder")
    check_apart(out, images)
    _create(folder)
    check_writable(folder / "image.png")
    return folder


def check_apart(out: str, images: Sequence[str]) -> None:
    """Check that --out is outside the files and folders that are read.

    Args:
        out: The value of --out.
        images: Files and folders that are read.

    Raises:
        ConfigError: If it is one of them or inside one of them.
    """
    target = _real_path(expand(out))
    for given in images:
        if given and target.is_relative_to(_real_path(expand(given))):
            raise ConfigError(
                f"--out {out} is the same as {given} or inside it: images might be overwritten, and the next run would read the figures "
                "of this one. Pass another --out"
            )


def check_targets(inputs: Iterable[Path], files: Iterable[Path], folders: Iterable[Path]) -> None:
    """Check that no image that is read would be overwritten.

    Args:
        inputs: Files that are read.
        files: Files that are written.
        folders: Folders that figures are written to.

    Raises:
        ConfigError: If an input is one of the files, or is in one of the folders with a name that figures have.
    """
    inputs = {_real_path(path) for path in inputs}
    existing = (entry for folder in folders for entry in folder.glob("*") if _OUTPUT.fullmatch(entry.name))
    for target in (*files, *existing):
        if _real_path(target) in inputs:
            raise ConfigError(f"{target} is an input image and would be overwritten: pass another --out")


def input_paths(opened: ImageSet, images: Sequence[str]) -> list[Path]:
    """Return the paths of opened images.

    Names from a single folder or table are relative to it.

    Args:
        opened: The image set.
        images: The arguments that it was opened from.

    Returns:
        The path of each image.
    """
    root = Path()
    if len(images) == 1:
        given = expand(images[0])
        root = given if given.is_dir() else given.parent if given.suffix.lower() in (".csv", ".tsv") else root
    return [root / path for path in opened.paths]


def write_images(folder: Path, images: Mapping[str, np.ndarray]) -> None:
    """Write images as PNG files.

    Args:
        folder: Created if it does not exist.
        images: (H, W, 3) uint8 by file name, without the extension.

    Raises:
        DinoevalError: If a file cannot be written.
    """
    from PIL import Image

    _create(folder)
    for name, pixels in images.items():
        write_whole(folder / f"{name}.png", lambda target, pixels=pixels: Image.fromarray(pixels).save(target, "PNG"))


def delete_old_heads_and_points(folder: Path, images: Iterable[str]) -> None:
    """Delete heads and points that an earlier run wrote and this one does not.

    The earlier run had another network or more points. A folder without image.png and overlay.png was not written by an
    earlier run and is not changed.

    Args:
        folder: Folder of one image.
        images: Names of the images that this run writes, which are kept.

    Raises:
        ConfigError: If a file cannot be deleted.
    """
    if (folder / "image.png").is_file() and (folder / "overlay.png").is_file():
        written = {f"{name}.png" for name in images}
        figures = {f"points.{extension}" for extension in ("png", "pdf", "svg")} if "point0.png" in written else set()
        _delete(folder, _NUMBERED, written | figures)


def delete_old_frames(folder: Path, count: int) -> None:
    """Delete the frames of an earlier, longer video.

    A folder without attention.gif was not written by an earlier run and is not changed.

    Args:
        folder: Folder of the video.
        count: Number of frames that this run writes.

    Raises:
        ConfigError: If a file cannot be deleted.
    """
    if (folder / "attention.gif").is_file():
        _delete(folder / "frames", _FRAME, {f"{number:05d}.png" for number in range(count)})


def _delete(folder: Path, pattern: re.Pattern[str], kept: set[str]) -> None:
    for entry in folder.glob("*.*"):
        if pattern.fullmatch(entry.name) and entry.name not in kept:
            try:
                entry.unlink()
            except OSError as error:
                raise ConfigError(f"cannot delete {entry} of an earlier run: {error.strerror}") from error


def _create(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot create the folder {folder}: {error.strerror}") from error


def _real_path(path: Path) -> Path:
    """Resolve links. Path.resolve fails for links that form a cycle."""
    return Path(os.path.realpath(path))
