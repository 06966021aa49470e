"""DAVIS: videos with masks of the objects in them.

Files are ROOT/JPEGImages/480p/<sequence>/NNNNN.jpg, ROOT/Annotations/480p/<sequence>/NNNNN.png, and lists of sequences in
ROOT/ImageSets. Annotations of DAVIS 2017 are indexed, one label per object; those of DAVIS 2016 are binary, one object.
Opening a dataset checks all files, but only the headers of the frames.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.folders import list_entries
from dinoeval.data.frames import frame_header, list_frames, missing_frames, read_frame_file
from dinoeval.data.loading import DEFAULT_RULE, ImageRule
from dinoeval.data.masks import VOID, is_binary_mask, read_mask
from dinoeval.display import short_repr
from dinoeval.errors import DataError, join_names, unknown
from dinoeval.files import expand

FRAMES, ANNOTATIONS = "JPEGImages/480p", "Annotations/480p"
"""Folders of the frames and masks."""
LISTS = ("ImageSets/2017/val.txt", "ImageSets/2016/val.txt", "ImageSets/480p/val.txt")
"""Lists of validation sequences; the first that exists is the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """A sequence of T frames."""

    name: str
    """Name of the sequence."""
    frames: tuple[Path, ...]
    """T image files."""
    size: tuple[int, int]
    """Width and height of all frames and annotations in pixels."""
    annotations: tuple[Path, ...]
    """T masks; or the mask of the first frame only, and then the sequence cannot be scored."""
    first_mask: np.ndarray
    """The first mask, (H, W) uint8: 0 background, which includes void, 1 and up objects."""
    remarks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of frames by remark, as `sequence/NNNNN.jpg`."""
    binary: bool = False
    """Whether the first mask is binary. Then 255 is the object in all annotations, otherwise it is void."""

    __repr__ = short_repr

    @property
    def objects(self) -> int:
        """Number of objects, the largest label, as in the official evaluation."""
        return int(self.first_mask.max())

    @property
    def unused_labels(self) -> list[int]:
        """Labels below the largest that the first mask does not contain."""
        return sorted(set(range(1, self.objects)) - set(np.unique(self.first_mask).tolist()))

    @property
    def annotated(self) -> bool:
        """Whether all frames have annotations."""
        return len(self.annotations) == len(self.frames)

    def mask_name(self, number: int) -> str:
        """Return the file name of the mask of a frame.

        Args:
            number: Number of the frame, 0 <= number < T.

        Returns:
            The name of the frame with the ending .png.
        """
        return f"{self.frames[number].stem}.png"

    def fingerprint(self) -> str:
        """Hash the contents of all frames and of the first mask.

        Returns:
            16 hex digits.

        Raises:
            DataError: If a frame cannot be read.
        """
        digest = hashlib.sha256()
        for path in self.frames:
            digest.update(f"{path.stem}\0".encode())
            digest.update(hashlib.sha256(read_frame_file(path)).digest())
        digest.update(self.first_mask.tobytes())
        return digest.hexdigest()[:16]

    def ground_truth(self, number: int) -> np.ndarray:
        """Read the annotation of a frame.

        Args:
            number: Number of the frame, 0 <= number < T.

        Returns:
            Labels, (H, W) uint8; void is background, as in the official evaluation.
        """
        return void_to_background(read_mask(self.annotations[number], white_is_object=self.binary))


def void_to_background(mask: np.ndarray) -> np.ndarray:
    """Replace void with background.

    Args:
        mask: Labels, (H, W) uint8.

    Returns:
        A copy with 0 instead of 255.

    Examples:
        >>> void_to_background(np.array([[0, 3, 255]], np.uint8)).tolist()
        [[0, 3, 0]]
    """
    return np.where(mask == VOID, 0, mask).astype(np.uint8)


def open_davis(data: str | Path, sequences: Sequence[str] = (), rule: ImageRule = DEFAULT_RULE) -> list[Video]:
    """Open sequences of DAVIS.

    Args:
        data: The folder that contains JPEGImages/ and Annotations/.
        sequences: Names of sequences, or one text file that lists them. By default the first of LISTS that exists.
        rule: The rule by which frames are decoded.

    Returns:
        The sequences in the order of their names, without repetitions.

    Raises:
        DataError: If frames or annotations are missing, have different sizes or no objects, or if only some sequences have
            annotations of all frames.
    """
    root = expand(data)
    if absent := [folder for folder in (FRAMES, ANNOTATIONS) if not (root / folder).is_dir()]:
        expected = "expected JPEGImages/, Annotations/ and ImageSets/"
        raise DataError(f"{root} has no folder {' and no '.join(absent)}: {expected}, found {list_entries(root)}")
    videos = [_open_video(root, name, rule) for name in _resolve_sequences(root, sequences)]
    partial = [video.name for video in videos if not video.annotated]
    if partial and len(partial) < len(videos):
        raise DataError(
            f"{root} has annotations of the first frame only for {join_names(partial)}, and of all frames for other sequences: "
            "evaluate them separately with --sequences"
        )
    return videos


def _resolve_sequences(root: Path, sequences: Sequence[str]) -> list[str]:
    present = sorted(entry.name for entry in (root / FRAMES).iterdir() if entry.is_dir())
    if not sequences:
        sequences = [name for name in LISTS if (root / name).is_file()][:1]
        if not sequences:
            raise DataError(f"{root} has no {' and no '.join(LISTS)}: pass --sequences. It contains {join_names(present)}")
    names = list(sequences)
    if len(names) == 1 and names[0] not in present:
        for path in (expand(names[0]), root / names[0]):
            if path.is_file():
                names = _read_sequence_list(path)
                break
    if not names:
        raise DataError(f"{sequences[0]} lists no sequence")
    for name in names:
        if name not in present:
            raise DataError(unknown(f"sequence in {root / FRAMES}", name, present))
    return list(dict.fromkeys(names))


def _read_sequence_list(path: Path) -> list[str]:
    """Read names, one per line, or the lists of DAVIS 2016, whose lines begin with /JPEGImages/480p/<sequence>/00000.jpg."""
    try:
        lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [Path(line).parent.name if "/" in line else line for line in lines]


def _open_video(root: Path, name: str, rule: ImageRule) -> Video:
    frames = list_frames(root / FRAMES / name)
    folder = root / ANNOTATIONS / name
    present = {path.stem for path in folder.glob("*.png") if not path.name.startswith(".")} if folder.is_dir() else set()
    missing = sorted({*missing_frames(frames), *(present - {path.stem for path in frames})})
    if missing:
        raise DataError(
            f"{root / FRAMES / name} lacks frames: {join_names(missing)}. All frames are needed, because masks are propagated from "
            "frame to frame."
        )
    size, remarks = _common_size(frames, rule)
    annotations = [folder / f"{path.stem}.png" for path in frames]
    missing = [path.name for path in annotations if path.stem not in present]
    if len(missing) == len(frames) - 1 and annotations[0].stem in present:
        annotations = annotations[:1]
    elif missing:
        raise DataError(f"{folder} lacks annotations: {join_names(missing)}. Scoring needs all of them, propagation only the first.")
    binary = is_binary_mask(annotations[0])
    masks = (_read_mask_of_size(path, size, frames[0], binary) for path in annotations)
    first_mask = void_to_background(next(masks))
    if not first_mask.any():
        raise DataError(f"first mask {annotations[0]} has no object to propagate")
    for _ in masks:  # Read the other masks to check them.
        pass
    return Video(
        name=name,
        frames=tuple(frames),
        size=size,
        annotations=tuple(annotations),
        first_mask=first_mask,
        binary=binary,
        remarks=remarks,
    )


def _common_size(frames: Sequence[Path], rule: ImageRule) -> tuple[tuple[int, int], dict[str, list[str]]]:
    """Return the width and height of the frames, which must be equal, and the names of frames by remark."""
    remarks: dict[str, list[str]] = {}
    (width, height), _ = frame_header(frames[0], rule)
    for path in frames:
        own, found = frame_header(path, rule)
        for remark in found:
            remarks.setdefault(remark, []).append(f"{path.parent.name}/{path.name}")
        if own != (width, height):
            raise DataError(f"frames differ in size: {path} has {own[0]} x {own[1]} pixels, {frames[0].name} has {width} x {height}")
    return (width, height), remarks


def _read_mask_of_size(path: Path, size: tuple[int, int], frame: Path, white_is_object: bool) -> np.ndarray:
    mask = read_mask(path, white_is_object=white_is_object)
    if (own := mask.shape[::-1]) != size:
        rotated = " (see --exif-transpose)" if own == size[::-1] else ""
        raise DataError(f"mask {path} has {own[0]} x {own[1]} pixels, its frames, such as {frame}, {size[0]} x {size[1]}{rotated}")
    return mask
