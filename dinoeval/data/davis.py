"""DAVIS: videos, their frames, and masks of the objects in them.

ROOT/JPEGImages/480p/<sequence>/NNNNN.jpg, ROOT/Annotations/480p/<sequence>/NNNNN.png, and lists of sequences in
ROOT/ImageSets. Annotations of 2017 are indexed, one number an object; those of 2016 are black and white, one object.
What is wrong with a tree is found when it is opened, before hours of work, but for frames that are damaged behind their
heads.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.frames import frame_size, frames_in, missing_frames
from dinoeval.data.masks import VOID, black_and_white, read_mask
from dinoeval.errors import DataError, join_names, unknown
from dinoeval.files import expand

FRAMES, ANNOTATIONS = "JPEGImages/480p", "Annotations/480p"
LISTS = ("ImageSets/2017/val.txt", "ImageSets/2016/val.txt", "ImageSets/480p/val.txt")
PUBLISHED = (30, 61, 1999)
"""Sequences, objects and frames of the validation set of 2017."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """One sequence."""

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    """Width and height of all frames and annotations."""
    annotations: tuple[Path, ...]
    """One a frame; or that of the first frame alone, and then the video cannot be scored."""
    first: np.ndarray
    """(H, W) uint8, the first mask: 0 background, 1 and up objects; void counts as background."""
    black_and_white: bool = False
    """Whether the first mask is: then 255 is the object, and otherwise void, in all annotations."""

    @property
    def objects(self) -> int:
        """The largest label of the first mask, as the official evaluation counts."""
        return int(self.first.max())

    @property
    def unseen(self) -> list[int]:
        """Objects below the largest that the first mask does not have."""
        return sorted(set(range(1, self.objects)) - set(np.unique(self.first).tolist()))

    @property
    def annotated(self) -> bool:
        return len(self.annotations) == len(self.frames)

    def mask_name(self, number: int) -> str:
        return f"{self.frames[number].stem}.png"

    def fingerprint(self) -> str:
        """Hash the contents of all frames and of the first mask (16 hex digits)."""
        digest = hashlib.sha256()
        for path in self.frames:
            digest.update(f"{path.stem}\0".encode())
            digest.update(hashlib.sha256(_content(path)).digest())
        digest.update(self.first.tobytes())
        return digest.hexdigest()[:16]

    def truth(self, number: int) -> np.ndarray:
        """The annotation of a frame, (H, W) uint8; void counts as background, as in the official evaluation."""
        return without_void(read_mask(self.annotations[number], white_is_object=self.black_and_white))


def without_void(mask: np.ndarray) -> np.ndarray:
    return np.where(mask == VOID, 0, mask).astype(np.uint8)


def open_davis(data: str | Path, sequences: Sequence[str] = ()) -> list[Video]:
    """Open sequences of a tree: those named, those in a file that is named, or the validation list.

    Raises DataError where frames or annotations are missing, of odd sizes or without objects, or where some sequences have
    annotations of all frames and others of the first alone.
    """
    root = expand(data)
    if absent := [folder for folder in (FRAMES, ANNOTATIONS) if not (root / folder).is_dir()]:
        held = join_names(sorted(entry.name for entry in root.iterdir())) if root.is_dir() else "nothing"
        raise DataError(f"{root} has no folder {' and no '.join(absent)}; DAVIS has JPEGImages/, Annotations/, ImageSets/. It holds {held}")
    videos = [_open_video(root, name) for name in _names(root, sequences)]
    alone = [video.name for video in videos if not video.annotated]
    if alone and len(alone) < len(videos):
        raise DataError(
            f"{root} has annotations of the first frame alone for {join_names(alone)}, and of all frames for the others: "
            "score them apart, by --sequences"
        )
    return videos


def _names(root: Path, sequences: Sequence[str]) -> list[str]:
    there = sorted(entry.name for entry in (root / FRAMES).iterdir() if entry.is_dir())
    if not sequences:
        sequences = [name for name in LISTS if (root / name).is_file()][:1]
        if not sequences:
            raise DataError(f"{root} has no {' and no '.join(LISTS)}: name sequences with --sequences. It holds {join_names(there)}")
    names = list(sequences)
    if len(names) == 1 and names[0] not in there:
        for path in (expand(names[0]), root / names[0]):
            if path.is_file():
                names = _listed(path)
                break
    if not names:
        raise DataError(f"{sequences[0]} lists no sequence")
    for name in names:
        if name not in there:
            raise DataError(unknown(f"sequence in {root / FRAMES}", name, there))
    return list(dict.fromkeys(names))


def _listed(path: Path) -> list[str]:
    """Names of sequences, one a line; DAVIS-2016 lists frames and annotations, /JPEGImages/480p/<sequence>/00000.jpg and so on."""
    try:
        lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [Path(line).parent.name if "/" in line else line for line in lines]


def _open_video(root: Path, name: str) -> Video:
    frames = frames_in(root / FRAMES / name)
    folder = root / ANNOTATIONS / name
    present = {path.stem for path in folder.glob("*.png") if not path.name.startswith(".")} if folder.is_dir() else set()
    missing = sorted({*missing_frames(frames), *(present - {path.stem for path in frames})})
    if missing:
        raise DataError(
            f"{root / FRAMES / name} lacks frames: {join_names(missing)}. Every frame counts, because labels go from one to the next."
        )
    size = frame_size(frames[0])
    for path in frames:
        if (own := frame_size(path)) != size:
            raise DataError(
                f"{path} has {own[0]} x {own[1]} pixels, and {frames[0].name} has {size[0]} x {size[1]}: frames are of one size"
            )
    annotations = [folder / f"{path.stem}.png" for path in frames]
    lacking = [path.name for path in annotations if path.stem not in present]
    if len(lacking) == len(frames) - 1 and annotations[0].stem in present:
        annotations = annotations[:1]
    elif lacking:
        raise DataError(f"{folder} has no annotation {join_names(lacking)}. All are needed for a score, the first alone to propagate.")
    white = black_and_white(annotations[0])
    masks = (_mask_of_size(path, size, frames[0], white) for path in annotations)
    first = without_void(next(masks))
    if not first.any():
        raise DataError(f"the first mask, {annotations[0]}, holds no object: there is nothing to propagate")
    for _ in masks:  # that they can be read
        pass
    return Video(name=name, frames=tuple(frames), size=size, annotations=tuple(annotations), first=first, black_and_white=white)


def _mask_of_size(path: Path, size: tuple[int, int], frame: Path, white_is_object: bool) -> np.ndarray:
    mask = read_mask(path, white_is_object=white_is_object)
    if (own := mask.shape[::-1]) != size:
        turned = " (turned by its EXIF tag)" if own == size[::-1] else ""
        raise DataError(f"the mask {path} has {own[0]} x {own[1]} pixels, and its frames, as {frame}, {size[0]} x {size[1]}{turned}")
    return mask


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
