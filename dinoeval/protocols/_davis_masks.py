"""Masks of DAVIS sequences that some program predicted: checks, and J and F of the objects."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinoeval.data.davis import Video, list_masks
from dinoeval.data.masks import check_siblings, decode_mask, find_exchanged_color
from dinoeval.errors import DataError, join_names
from dinoeval.maths.segmentation import contour_accuracy, region_similarity, sequence_statistics

METRICS = ("J&F", "J", "F", "J_recall", "J_decay", "F_recall", "F_decay")


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Masks of a sequence that were made by some program, checked."""

    paths: tuple[Path, ...]
    """Masks of the frames that are scored: all but the first and the last."""
    extra: tuple[str, ...]
    """Names of masks of no frame, without ending."""
    empty: bool
    """Whether no mask contains an object."""
    exchanged: str | None
    """Which color has another palette index than in the annotations, if any has."""


def open_predictions(video: Video, folder: Path) -> Predictions:
    """Open masks of a sequence and check them.

    Args:
        video: The sequence.
        folder: Folder of the masks, NNNNN.png. Those of the first and the last frame are not needed.

    Returns:
        The masks of the frames that are scored.

    Raises:
        DataError: If a mask is missing, differs in size from the annotations, or has an object that these do not have; or if
            the masks do not store labels in the same way.
    """
    found = {path.stem for path in list_masks(folder)}
    paths = tuple(folder / video.mask_name(number) for number in range(1, len(video.names) - 1))
    if missing := [path.name for path in paths if path.stem not in found]:
        raise DataError(f"{folder} lacks {len(missing)} of {len(paths)} masks: {join_names(missing)}. Every scored frame needs one.")
    encodings = []
    for path in paths:
        mask, encoding = decode_mask(path)
        if mask.shape[::-1] != video.size:
            size = f"{video.size[0]} x {video.size[1]}"
            raise DataError(f"mask {path} has {mask.shape[1]} x {mask.shape[0]} pixels, but its frame has {size}")
        encodings.append(encoding)
    check_siblings(encodings)
    objects = join_names(map(str, video.labels), 10)
    for encoding in encodings:
        if others := sorted(encoding.labels - {*video.labels, *video.late_labels}):
            raise DataError(f"mask {encoding.path} has object {others[-1]}, but the first mask of {video.name} has the objects {objects}")
    binary = [encoding for encoding in encodings if encoding.labels and encoding.kind in ("white", "blank")]
    if binary and len(video.labels) > 1:
        raise DataError(f"mask {binary[0].path} is black and white, so it has one object, but {video.name} has the objects {objects}")
    extra = tuple(sorted(found - set(video.names)))
    empty = bool(paths) and not any(encoding.labels for encoding in encodings)
    return Predictions(paths, extra, empty, find_exchanged_color([*video.encodings, *encodings]))


def score_objects(video: Video, predictions: Predictions) -> dict[str, np.ndarray]:
    """Score the masks of a sequence by the official evaluation.

    The first and the last frame do not count.

    Args:
        video: The sequence, with annotations of all frames.
        predictions: Its masks.

    Returns:
        Fractions (objects,) by metric, in the order of `video.labels`; NaN if the sequence has fewer than 3 frames.

    Raises:
        DataError: If a mask cannot be read.
    """
    values = np.zeros((2, len(video.labels), len(predictions.paths)))
    for frame, path in enumerate(predictions.paths):
        mask, ground_truth = decode_mask(path)[0], video.ground_truth(frame + 1)
        for place, label in enumerate(video.labels):
            pair = ground_truth == label, mask == label
            values[:, place, frame] = region_similarity(*pair), contour_accuracy(*pair)
    found = {metric: np.full(len(video.labels), np.nan) for metric in METRICS}
    for place in range(len(video.labels) if predictions.paths else 0):
        for name, per_frame in zip("JF", values[:, place], strict=True):
            found[name][place], found[f"{name}_recall"][place], found[f"{name}_decay"][place] = sequence_statistics(per_frame)
    found["J&F"] = (found["J"] + found["F"]) / 2
    return found


def format_ranges(labels: Sequence[int]) -> str:
    """Write a list of labels with the runs in it shortened.

    Args:
        labels: In ascending order.

    Returns:
        Text.

    Examples:
        >>> format_ranges([2, 4, 5, 6])
        '2, 4 to 6'
    """
    runs: list[list[int]] = []
    for label in labels:
        if runs and label == runs[-1][-1] + 1:
            runs[-1].append(label)
        else:
            runs.append([label])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
