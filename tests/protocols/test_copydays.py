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


def slow_copydays(backbone, root, distractors, whitening, top) -> list[float]:
    """Scores of the strong copies, from the formulas, one picture a pass."""
    rows = []
    for where in (root / "strong", root / "original", distractors, whitening):
        transform = CenterCrop(32, 32, squash=True)
        rows.append(forward(backbone, open_images(where), ClsGem(), transform, batch_size=1).astype(np.float64))
    strong, originals, others, white = rows
    values, vectors = np.linalg.eigh(white.T @ white / len(white))
    values = np.maximum(values, 1e-5 * values.max())
    turned = [(one - white.mean(0)) @ vectors / np.sqrt(values) for one in (strong, np.concatenate((originals, others)))]
    queries, database = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in turned)
    scores = []
    for query, path in zip(queries, sorted((root / "strong").iterdir()), strict=True):
        listed = np.argsort(-(database @ query), kind="stable").tolist()
        place = listed.index(sorted(one.name[:4] for one in (root / "original").iterdir()).index(path.name[:4]))
        scores.append(0.0 if place >= top else 1.0 if place == 0 else 0.5 / (place + 1))
    return scores


def test_scores_equal_the_formulas(backbone, root, frames, image_folder):
    folder = frames[0].parent.parent
    options = {"distractors": str(folder), "whitening": str(image_folder), **OPTIONS}
    result = dinoeval.evaluate("copydays", backbone, data=str(root), ap_cutoff=3, **options)
    for metric, top in (("mAP_strong", 3), ("mAP_full_strong", 1000)):
        expected = slow_copydays(backbone, root, folder, image_folder, top)
        found = [value for value in result.samples[metric] if value is not None]
        assert found == pytest.approx(expected)
        assert result.metrics[metric] == pytest.approx(100 * np.mean(expected))
    assert result.metrics["mAP_full_strong"] > result.metrics["mAP_strong"]
    assert any("learned from 33 images, fewer than its 192 dimensions" in note for note in result.notes)


def test_what_departs_from_the_paper_is_said(backbone, root):
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


def test_all_blocks(backbone, tmp_path, frames):
    root = copydays_tree(tmp_path / "whole", frames[::3], scenes=3, strong=3)
    result = dinoeval.evaluate("copydays", backbone, data=str(root), **OPTIONS)
    assert len(result.table) == 20
    assert {"mAP_jpegqual/3", "mAP_crops/80"} <= set(result.metrics)
    (root / "crops/80/200000.jpg").unlink()
    with pytest.raises(DataError, match=r"crops/80/200000\.jpg"):
        dinoeval.evaluate("copydays", backbone, data=str(root), **OPTIONS)
    again = dinoeval.evaluate("copydays", backbone, session=SessionConfig(bad_images="skip"), data=str(root), **OPTIONS)
    assert again.metrics["mAP_strong"] == pytest.approx(result.metrics["mAP_strong"])
    assert any("crops/80/200000.jpg" in note for note in again.notes)


def test_the_centre_of_the_whitening_is_a_switch(backbone, root, image_folder, frames):
    options = {"data": str(root), "whitening": str(image_folder), "distractors": str(frames[0].parent.parent), **OPTIONS}
    released, centred = (dinoeval.evaluate("copydays", backbone, center_whitening=one, **options) for one in (False, True))
    assert released.samples["mAP_strong"] != centred.samples["mAP_strong"]
    assert "config.center_whitening: yes" in reasons(centred, "vit_b16")


def test_whitening_needs_pictures_that_differ(backbone, root, tmp_path, frames):
    for copies, says in ((1, "1 readable image"), (2, "same features")):
        folder = tmp_path / f"same{copies}"
        folder.mkdir()
        for number in range(copies):
            (folder / f"{number}.jpg").symlink_to(frames[0])
        with pytest.raises(DataError, match=says):
            dinoeval.evaluate("copydays", backbone, data=str(root), whitening=str(folder), center_whitening=True, **OPTIONS)


@pytest.mark.parametrize(
    "options", [{"image_size": 0}, {"gem_p": 0.0}, {"gem_p": float("nan")}, {"ap_cutoff": 0}, {"center_whitening": True}]
)
def test_options_that_make_no_sense(backbone, root, options):
    with pytest.raises(ConfigError):
        dinoeval.evaluate("copydays", backbone, data=str(root), **{**OPTIONS, **options})
