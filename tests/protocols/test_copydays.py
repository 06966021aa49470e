"""Copy detection on Copydays: scores, notes, and what it rejects."""

from __future__ import annotations

import numpy as np
import pytest
from paper_results import missing_facts, reasons
from set_factories import copydays_tree, synthetic_videos

import dinoeval
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.forward import forward
from dinoeval.features.readout import ClsGem
from dinoeval.protocols.copydays import Config, _check
from dinoeval.session import SessionConfig

OPTIONS = {"image_size": 32}


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    videos = synthetic_videos(tmp_path_factory.mktemp("videos"), videos=5, frames=3)
    return [path for paths in videos.values() for path in paths]


@pytest.fixture
def root(tmp_path, frames):
    return copydays_tree(tmp_path / "copydays", frames[::3], scenes=5, strong=8, blocks=False)


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def slow_copydays(backbone, root, distractors, whitening, cutoff) -> list[float]:
    """Score the strong copies by the formulas, with one image per forward pass."""
    features = []
    for folder in (root / "strong", root / "original", distractors, whitening):
        transform = CenterCrop(32, 32, squash=True)
        features.append(forward(backbone, open_images(folder), ClsGem(), transform, batch_size=1).astype(np.float64))
    strong, originals, others, white = features
    values, vectors = np.linalg.eigh(white.T @ white / len(white))
    values = np.maximum(values, 1e-5 * values.max())
    whitened = [(one - white.mean(0)) @ vectors / np.sqrt(values) for one in (strong, np.concatenate((originals, others)))]
    queries, database = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in whitened)
    scores = []
    for query, path in zip(queries, sorted((root / "strong").iterdir()), strict=True):
        order = np.argsort(-(database @ query), kind="stable").tolist()
        rank = order.index(sorted(one.name[:4] for one in (root / "original").iterdir()).index(path.name[:4]))
        scores.append(0.0 if rank >= cutoff else 1.0 if rank == 0 else 0.5 / (rank + 1))
    return scores


def test_scores_equal_the_formulas_on_the_same_features(backbone, root, frames, image_folder):
    folder = frames[0].parent.parent
    options = {"distractors": str(folder), "whitening": str(image_folder), **OPTIONS}
    result = dinoeval.evaluate("copydays", backbone, data=str(root), ap_cutoff=3, **options)
    for metric, cutoff in (("mAP_strong", 3), ("mAP_full_strong", 1000)):
        expected = slow_copydays(backbone, root, folder, image_folder, cutoff)
        found = [value for value in result.samples[metric] if value is not None]
        assert found == pytest.approx(expected)
        assert result.metrics[metric] == pytest.approx(100 * np.mean(expected))
    assert result.metrics["mAP_full_strong"] > result.metrics["mAP_strong"]
    assert any("33 images" in note and "192 dimensions" in note for note in result.notes)


def test_result_names_all_differences_from_table_4(backbone, root):
    result = dinoeval.evaluate("copydays", backbone, data=str(root), gem_p=3, ap_cutoff=5, **OPTIONS)
    for fact in (
        "data.distractors.images: missing",
        "data.whitening.images: missing",
        "details.block_images.original: 5",
        "details.block_images.strong: 8",
        "config.gem_p: 3",
        "config.ap_cutoff: 5",
    ):
        assert fact in reasons(result, "vit_b16")
    assert missing_facts(result) == {"data.distractors.images", "data.whitening.images"}
    assert any("missing blocks: jpegqual/3" in note for note in result.notes)
    assert list(result.metrics) == ["mAP_strong", "mAP_full_strong", "mAP_original"]
    assert result.metrics["mAP_original"] == 100
    assert [(row["block"], row["images"]) for row in result.table] == [("strong", 8), ("original", 5)]
    assert result.samples["path"][:5] == [f"original/{2000 + scene}00.jpg" for scene in range(5)]


def test_all_blocks_are_scored_and_missing_images_are_named(backbone, tmp_path, frames):
    root = copydays_tree(tmp_path / "complete", frames[::3], scenes=3, strong=3)
    result = dinoeval.evaluate("copydays", backbone, data=str(root), **OPTIONS)
    assert len(result.table) == 20
    assert {"mAP_jpegqual/3", "mAP_crops/80"} <= set(result.metrics)
    (root / "crops/80/200000.jpg").unlink()
    with pytest.raises(DataError, match=r"crops/80/200000\.jpg"):
        dinoeval.evaluate("copydays", backbone, data=str(root), **OPTIONS)
    again = dinoeval.evaluate("copydays", backbone, session=SessionConfig(bad_images="skip"), data=str(root), **OPTIONS)
    assert again.metrics["mAP_strong"] == pytest.approx(result.metrics["mAP_strong"])
    assert any("crops/80/200000.jpg" in note for note in again.notes)


def test_center_whitening_changes_scores_and_is_recorded(backbone, root, image_folder, frames):
    options = {"data": str(root), "whitening": str(image_folder), "distractors": str(frames[0].parent.parent), **OPTIONS}
    released, centered = (dinoeval.evaluate("copydays", backbone, center_whitening=one, **options) for one in (False, True))
    assert released.samples["mAP_strong"] != centered.samples["mAP_strong"]
    assert "config.center_whitening: yes" in reasons(centered, "vit_b16")


def test_whitening_rejects_images_that_do_not_determine_it(backbone, root, tmp_path, frames):
    for copies, named in ((1, "same1 has 1 "), (2, "same2")):
        folder = tmp_path / f"same{copies}"
        folder.mkdir()
        for number in range(copies):
            (folder / f"{number}.jpg").symlink_to(frames[0])
        with pytest.raises(DataError, match=f"--whitening .*{named}"):
            dinoeval.evaluate("copydays", backbone, data=str(root), whitening=str(folder), center_whitening=True, **OPTIONS)


def test_whitening_accepts_two_different_images(backbone, root, tmp_path, frames):
    (tmp_path / "two").mkdir()
    for number in range(2):
        (tmp_path / f"two/{number}.jpg").symlink_to(frames[3 * number])
    result = dinoeval.evaluate("copydays", backbone, data=str(root), whitening=str(tmp_path / "two"), **OPTIONS)
    assert result.data["whitening"]["images"] == 2


def test_smallest_valid_options_are_accepted():
    _check(Config(image_size=1, gem_p=0.01, ap_cutoff=1))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"image_size": 0}, "--image-size .* 0"),
        ({"gem_p": 0.0}, r"--gem-p .* 0\.0"),
        ({"gem_p": float("nan")}, "--gem-p .* nan"),
        ({"gem_p": float("inf")}, "--gem-p .* inf"),
        ({"ap_cutoff": 0}, "--ap-cutoff .* 0"),
        ({"center_whitening": True}, "--center-whitening .*--whitening"),
    ],
)
def test_run_rejects_invalid_options(backbone, root, options, named):
    with pytest.raises(ConfigError, match=named):
        dinoeval.evaluate("copydays", backbone, data=str(root), **{**OPTIONS, **options})
