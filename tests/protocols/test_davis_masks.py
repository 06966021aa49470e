"""`dinoeval davis --masks`: scores of hand-made masks against a slow oracle, and the objects that count."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from segmentation_factories import slow_boundary
from video_factories import davis_tree, synthetic_video

import dinoeval
from dinoeval.data.davis import open_davis
from dinoeval.data.masks import palette
from dinoeval.errors import DataError
from dinoeval.protocols._davis_masks import open_predictions

SIZE = (40, 56)  # height and width in pixels: the tolerance of contours is 1 pixel
FRAMES = 5


def boxes(frame: int, shift: int = 0, labels: tuple[int, int] = (1, 2)) -> np.ndarray:
    """Two boxes that move to the right, (H, W) uint8."""
    mask = np.zeros(SIZE, np.uint8)
    mask[4:18, 4 + frame + shift : 20 + frame + shift] = labels[0]
    mask[22:36, 26 + shift : 42 + shift // 2] = labels[1]
    return mask


def write(folder: Path, masks: list[np.ndarray]) -> None:
    """Write indexed masks with a palette in which no color occurs twice."""
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        image = Image.fromarray(mask)
        image.putpalette(palette().tobytes())
        image.save(folder / f"{number:05d}.png")


def predictions(folder: Path, masks: list[np.ndarray]) -> Path:
    """Write masks whose gray values are the labels."""
    folder.mkdir(parents=True)
    for number, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{number:05d}.png")
    return folder


def slow_j(truth: np.ndarray, mask: np.ndarray) -> float:
    pixels = [(bool(one), bool(other)) for one, other in zip(truth.ravel(), mask.ravel(), strict=True)]
    union = sum(one or other for one, other in pixels)
    return sum(one and other for one, other in pixels) / union if union else 1.0


def slow_f(truth: np.ndarray, mask: np.ndarray) -> float:
    tolerance = math.ceil(0.008 * math.hypot(*truth.shape))
    one, other = slow_boundary(truth), slow_boundary(mask)
    if not one or not other:
        return float(not one and not other)
    shares = [
        sum(any(math.dist(point, near) <= tolerance for near in others) for point in points) / len(points)
        for points, others in ((one, other), (other, one))
    ]
    return 2 * shares[0] * shares[1] / sum(shares) if sum(shares) else 0.0


def slow_scores(truths: list[np.ndarray], masks: list[np.ndarray], labels: tuple[int, ...]) -> dict[str, list[float]]:
    """Average J and F of each object over all frames but the first and the last."""
    pairs = list(zip(truths, masks, strict=True))[1:-1]
    return {
        name: [float(np.mean([metric(truth == label, mask == label) for truth, mask in pairs])) for label in labels]
        for name, metric in (("J", slow_j), ("F", slow_f))
    }


@pytest.fixture(scope="module")
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture
def score(backbone):
    """Return a function that writes annotations and masks of `clip` and evaluates them, without frames."""

    def evaluate(root: Path, truths: list[np.ndarray], masks: list[np.ndarray], save=write):
        write(root / "Annotations/480p/clip", truths)
        save(root / "masks/clip", masks)
        return dinoeval.evaluate("davis", backbone, data=str(root), masks=str(root / "masks"), sequences=("clip",))

    return evaluate


@pytest.mark.parametrize("labels", [(1, 2), (1, 3), (2, 1), (1, 75), (40, 41)])
def test_scores_are_means_over_the_objects_that_exist(score, tmp_path, labels):
    """No label between 1 and the largest counts unless it is an object."""
    truths, masks = ([boxes(frame, shift, labels) for frame in range(FRAMES)] for shift in (0, 3))
    result = score(tmp_path, truths, masks)
    expected = slow_scores(truths, masks, tuple(sorted(labels)))
    assert result.samples["path"] == [f"clip/{label}" for label in sorted(labels)]
    for name in "JF":
        assert result.samples[name] == pytest.approx(expected[name])
        assert result.metrics[name] == pytest.approx(100 * np.mean(expected[name]))
    assert result.details["objects"] == 2
    unused = {(1, 3): "clip 2:", (1, 75): "clip 2 to 74", (40, 41): "clip 1 to 39"}.get(labels, "")
    assert any("not objects" in note and note.endswith(unused.rstrip(":")) for note in result.notes) == bool(unused)


def test_objects_that_enter_later_are_named_and_not_scored(score, tmp_path):
    truths = [boxes(frame) for frame in range(FRAMES)]
    truths[0][truths[0] == 2] = 0
    truths[1][truths[1] == 2] = 0
    missed = [np.where(truth == 2, 0, truth) for truth in truths]
    result = score(tmp_path / "missed", truths, missed)
    assert result.samples["path"] == ["clip/1"]
    assert any("clip 2 (from frame 00002)" in note for note in result.notes)
    found = score(tmp_path / "found", truths, truths)
    assert (found.metrics, found.notes) == (result.metrics, result.notes)


def test_frames_do_not_change_the_scores_of_existing_masks(score, tmp_path):
    truths, masks = ([boxes(frame, shift) for frame in range(FRAMES)] for shift in (0, 2))
    bare = score(tmp_path / "bare", truths, masks)
    write(tmp_path / "whole/JPEGImages/480p/clip", truths)
    whole = score(tmp_path / "whole", truths, masks)
    assert (bare.metrics, bare.samples, bare.details) == (whole.metrics, whole.samples, whole.details)
    assert bare.details["frames"] == FRAMES
    assert "frames" not in bare.data


def test_void_empty_masks_and_extra_masks_are_noted(score, tmp_path):
    truths = [boxes(frame) for frame in range(FRAMES)]
    truths[2][0] = 255
    result = score(tmp_path, truths, [np.zeros(SIZE, np.uint8)] * (FRAMES + 1))
    assert result.metrics["J&F"] == 0
    for named in ("label 255.*clip \\(1 of 5\\)", "no object.*clip", "clip/00005.png"):
        assert any(re.search(named, note) for note in result.notes), named


def test_exchanged_palette_of_predictions_is_noted(score, tmp_path):
    """The index counts, as in the official evaluation, but objects of the same color should have the same number."""

    def save(folder, masks):
        folder.mkdir(parents=True)
        for number, mask in enumerate(masks):
            image = Image.fromarray(np.array([0, 2, 1], np.uint8)[mask])
            image.putpalette(palette()[[0, 2, 1]].tobytes())
            image.save(folder / f"{number:05d}.png")

    truths = [boxes(frame) for frame in range(FRAMES)]
    result = score(tmp_path, truths, truths, save)
    assert result.metrics["J"] == 0
    assert any("palette" in note and "masks/clip/00001.png" in note for note in result.notes)


def test_first_mask_without_background_is_noted(score, tmp_path):
    truths = [np.maximum(boxes(frame), 1) for frame in range(FRAMES)]
    assert any("no background" in note and note.endswith("clip") for note in score(tmp_path, truths, truths).notes)


def test_gray_labels_score_like_indices(score, tmp_path):
    """Predictions that were saved as gray values 1 and 2."""
    truths, masks = ([boxes(frame, shift) for frame in range(FRAMES)] for shift in (0, 3))
    assert score(tmp_path / "gray", truths, masks, predictions).metrics == score(tmp_path / "indexed", truths, masks).metrics


@pytest.fixture
def video(tmp_path):
    return open_davis(davis_tree(tmp_path / "DAVIS", {"cat": synthetic_video(4)}))[0]


def test_predictions_are_those_of_scored_frames(video, tmp_path):
    masks = [mask for _, mask in synthetic_video(4)]
    found = open_predictions(video, predictions(tmp_path / "masks", [*masks, masks[0]]))
    assert [path.name for path in found.paths] == ["00001.png", "00002.png"]
    assert (found.extra, found.empty) == (("00004",), False)
    assert open_predictions(video, predictions(tmp_path / "empty", [0 * mask for mask in masks])).empty


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda mask: np.where(mask == 2, 3, mask), r"00001\.png has object 3.* 1, 2"),
        (lambda mask: np.where(mask == 2, 255, mask), r"00001\.png has object 255"),
        (lambda mask: np.where(mask > 0, 255, 0), r"00001\.png is black and white.* 1, 2"),
        (lambda mask: mask * 100, r"00001\.png has gray levels \(100, 200\)"),
        (lambda mask: mask[:, :-2], r"00001\.png has 126 x 64 pixels.* 128 x 64"),
    ],
)
def test_predictions_that_do_not_fit_are_rejected(video, tmp_path, change, named):
    folder = predictions(tmp_path / "masks", [change(mask).astype(np.uint8) for _, mask in synthetic_video(4)])
    with pytest.raises(DataError, match=named):
        open_predictions(video, folder)


def test_missing_predictions_are_counted(video, tmp_path):
    with pytest.raises(DataError, match=r"lacks 2 of 2 masks: 00001\.png, 00002\.png"):
        open_predictions(video, predictions(tmp_path / "masks", [synthetic_video(4)[0][1]]))
