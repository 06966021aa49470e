"""DAVIS: videos with masks of the objects in them.

Files are ROOT/JPEGImages/480p/<sequence>/NNNNN.jpg, ROOT/Annotations/480p/<sequence>/NNNNN.png, and lists of sequences in
ROOT/ImageSets. Annotations of DAVIS 2017 are indexed, one label per object; those of DAVIS 2016 are binary, one object.
Opening a dataset checks all annotations, and the headers of the frames. To score existing masks, annotations are enough.
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
from dinoeval.data.masks import VOID, Encoding, check_siblings, decode_mask
from dinoeval.data.names import is_hidden
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
    names: tuple[str, ...]
    """T names of frames and masks, without endings."""
    frames: tuple[Path, ...]
    """T image files; none if the sequence was opened with its annotations alone."""
    size: tuple[int, int]
    """Width and height of all frames and annotations in pixels."""
    annotations: tuple[Path, ...]
    """T masks; or the mask of the first frame only, and then the sequence cannot be scored."""
    first_mask: np.ndarray
    """The first mask, (H, W) uint8: 0 background, which includes void, 1 and up objects."""
    encodings: tuple[Encoding, ...]
    """How each annotation stores its labels, and which it has."""
    remarks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of frames by remark, as `sequence/NNNNN.jpg`."""

    __repr__ = short_repr

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the objects: those of the first mask, in ascending order."""
        return tuple(np.unique(self.first_mask[self.first_mask > 0]).tolist())

    @property
    def late_labels(self) -> dict[int, str]:
        """Labels that only later annotations contain, with the first such frame."""
        late: dict[int, str] = {}
        for encoding in self.encodings:
            for label in sorted(encoding.labels - {*self.labels, VOID}):
                late.setdefault(label, encoding.path.stem)
        return late

    @property
    def unused_labels(self) -> list[int]:
        """Labels below the largest that no annotation contains; no objects."""
        return sorted(set(range(1, max(self.labels))) - {*self.labels, *self.late_labels})

    @property
    def vanished_labels(self) -> list[int]:
        """Objects that no scored annotation contains."""
        scored = self.encodings[1:-1]
        return [label for label in self.labels if scored and not any(label in encoding.labels for encoding in scored)]

    @property
    def void(self) -> int:
        """Number of annotations that contain label 255."""
        return sum(VOID in encoding.labels for encoding in self.encodings)

    @property
    def annotated(self) -> bool:
        """Whether all frames have annotations, and not the first alone."""
        return len(self.annotations) == len(self.names) and (len(self.names) > 1 or bool(self.frames))

    def mask_name(self, number: int) -> str:
        """Return the file name of the mask of a frame.

        Args:
            number: Number of the frame, 0 <= number < T.

        Returns:
            The name of the frame with the ending .png.
        """
        return f"{self.names[number]}.png"

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
        return void_to_background(decode_mask(self.annotations[number])[0])


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


def list_masks(folder: Path) -> list[Path]:
    """List the masks of a sequence.

    Args:
        folder: May not exist.

    Returns:
        PNG files in the order of their numbers, which may have no leading zeros.
    """
    found = [path for path in folder.glob("*.png") if not is_hidden(path.name)] if folder.is_dir() else []
    return sorted(found, key=lambda path: (len(path.stem), path.stem))


def open_davis(data: str | Path, sequences: Sequence[str] = (), rule: ImageRule = DEFAULT_RULE, *, images: bool = True) -> list[Video]:
    """Open sequences of DAVIS.

    Args:
        data: The folder that contains JPEGImages/ and Annotations/.
        sequences: Names of sequences, or one text file that lists them. By default the first of LISTS that exists.
        rule: The rule by which frames are decoded.
        images: Whether the frames are needed. Otherwise JPEGImages/ may be missing.

    Returns:
        The sequences in the order of their names, without repetitions.

    Raises:
        DataError: If frames or annotations are missing, have different sizes or no objects, if the annotations of a sequence
            do not store labels in the same way, or if only some sequences have annotations of all frames.
    """
    root = expand(data)
    if absent := [folder for folder in (FRAMES, ANNOTATIONS) if not (root / folder).is_dir() and (images or folder == ANNOTATIONS)]:
        expected = "expected JPEGImages/, Annotations/ and ImageSets/"
        raise DataError(f"{root} has no folder {' and no '.join(absent)}: {expected}, found {list_entries(root)}")
    entries = (root / (FRAMES if images else ANNOTATIONS)).iterdir()
    present = sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    videos = [_open_video(root, name, rule if images else None) for name in _resolve_sequences(root, sequences, present)]
    partial = [video.name for video in videos if not video.annotated]
    if partial and len(partial) < len(videos):
        raise DataError(
            f"{root} has annotations of the first frame only for {join_names(partial)}, and of all frames for other sequences: "
            "evaluate them separately with --sequences"
        )
    return videos


def _resolve_sequences(root: Path, sequences: Sequence[str], present: list[str]) -> list[str]:
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
            raise DataError(unknown(f"sequence in {root}", name, present))
    return list(dict.fromkeys(names))


def _read_sequence_list(path: Path) -> list[str]:
    """Read names, one per line, or the lists of DAVIS 2016, whose lines begin with /JPEGImages/480p/<sequence>/00000.jpg."""
    try:
        lines = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return [Path(line).parent.name if "/" in line else line for line in lines]


def _open_video(root: Path, name: str, rule: ImageRule | None) -> Video:
    folders = root / FRAMES / name, root / ANNOTATIONS / name
    # Frames that are not needed are listed if they exist, to find those without annotation.
    frames = list_frames(folders[0]) if rule or any(not is_hidden(entry.name) for entry in folders[0].glob("*")) else []
    annotations = list_masks(folders[1])
    names = tuple(path.stem for path in frames or annotations)
    annotated = {path.stem for path in annotations}
    if missing := sorted({*_gaps(frames), *(annotated - set(names))}):
        raise DataError(
            f"{folders[0]} lacks frames: {join_names(missing)}. All frames are needed, because masks are propagated from frame to frame."
        )
    missing = sorted({*(set(names) - annotated), *_gaps(annotations)})
    if missing == sorted(names[1:]) and annotations:
        annotations = annotations[:1]
    elif missing or not annotations:
        listed = join_names(f"{stem}.png" for stem in missing) or "it contains no PNG file"
        others = "" if annotations else f" It contains {list_entries(folders[1])}."
        raise DataError(f"{folders[1]} lacks annotations: {listed}. Scoring needs all of them, propagation only the first.{others}")
    size, remarks = _common_size(frames, rule) if rule else (None, {})
    frames = frames if rule else []
    first_mask, encodings = _check_annotations(annotations, size, frames)
    return Video(
        name=name,
        names=names,
        frames=tuple(frames),
        size=(first_mask.shape[1], first_mask.shape[0]),
        annotations=tuple(annotations),
        first_mask=first_mask,
        encodings=encodings,
        remarks=remarks,
    )


def _gaps(paths: list[Path]) -> list[str]:
    return missing_frames(paths) if paths else []


def _check_annotations(
    paths: Sequence[Path], size: tuple[int, int] | None, frames: Sequence[Path]
) -> tuple[np.ndarray, tuple[Encoding, ...]]:
    """Read all annotations of a sequence once; return the first mask, and how each stores its labels."""
    first_mask = np.empty((0, 0), np.uint8)
    encodings: list[Encoding] = []
    for path in paths:
        mask, encoding = decode_mask(path)
        own = mask.shape[1], mask.shape[0]
        if not encodings:
            first_mask, size = void_to_background(mask), size or own
        if size is not None and own != size:
            other, rotated = frames[0] if frames else paths[0], " (see --exif-transpose)" if own == size[::-1] and frames else ""
            raise DataError(f"mask {path} has {own[0]} x {own[1]} pixels, but {other} has {size[0]} x {size[1]}{rotated}")
        encodings.append(encoding)
    check_siblings(encodings)
    if not first_mask.any():
        raise DataError(f"first mask {paths[0]} has no object to propagate: only the objects of the first frame are evaluated")
    return first_mask, tuple(encodings)


def _common_size(frames: Sequence[Path], rule: ImageRule) -> tuple[tuple[int, int], dict[str, list[str]]]:
    """Return the width and height of the frames, which must be equal, and the names of frames by remark."""
    remarks: dict[str, list[str]] = {}
    headers = [frame_header(path, rule) for path in frames]
    width, height = headers[0][0]
    for path, (own, found) in zip(frames, headers, strict=True):
        for remark in found:
            remarks.setdefault(remark, []).append(f"{path.parent.name}/{path.name}")
        if own != (width, height):
            raise DataError(f"frames differ in size: {path} has {own[0]} x {own[1]} pixels, {frames[0].name} has {width} x {height}")
    return (width, height), remarks
