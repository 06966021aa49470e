"""Order of operations in the evaluations, by hand-computed cases.

Whole runs are compared with slow formulas in tests/protocols. Scripts are those of facebookresearch/dino at 7c446df.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from factories import synthetic_images
from PIL import Image
from video_factories import davis_tree, synthetic_video

import dinoeval
from dinoeval.data.masks import write_mask
from dinoeval.data.retrieval import Query
from dinoeval.data.transforms import CenterCrop
from dinoeval.maths.neighbors import vote
from dinoeval.maths.ranks import positive_ranks, trapezoid_precision
from dinoeval.maths.whitening import learn_whitening
from dinoeval.protocols import segment
from dinoeval.protocols.copydays import score_copies


def test_knn_counts_votes_of_k_neighbors_only():
    """eval_knn.py: with cosines of 0.9 and twice 0.85, one vote of class 0 wins for k = 1 and loses for k = 3.

    exp(0.9 / 0.07) = 383,000 and 2 * exp(0.85 / 0.07) = 375,000 are nearly equal; a third vote decides.
    """
    cosines, labels = np.array([[0.9, 0.85, 0.85, 0.84]]), np.array([[0, 1, 1, 1]])
    predictions = vote(cosines, labels, ks=[1, 3, 4], temperature=0.07, num_classes=2)
    assert predictions[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("rank", "cut", "full"), [(0, 1.0, 1.0), (1, 0.25, 0.25), (2, 1 / 6, 1 / 6), (19, 0.025, 0.025), (20, 0.0, 0.5 / 21), (24, 0.0, 0.02)]
)
def test_copy_scores_half_of_the_inverse_rank_below_20(rank, cut, full):
    """eval_copy_detection.py: trapezoids of the first 20 ranks; one positive at rank r > 0 scores 0.5 / (r + 1)."""
    cosines, originals = np.linspace(0.9, 0.1, 25)[None], np.array([f"scene{number}" for number in range(25)])
    found = score_copies(cosines, None, originals[[rank]], originals, 20)
    assert [one.tolist() for one in found] == [[pytest.approx(cut)], [pytest.approx(full)]]


def test_distractors_push_an_original_beyond_rank_20():
    """eval_copy_detection.py: the database is the originals and the distractors."""
    cosines, originals = np.array([[0.9, 0.5]]), np.array(["2000", "2001"])
    for distractors, expected in ((0, 1.0), (1, 0.25), (19, 0.025), (20, 0.0)):
        cut, _ = score_copies(cosines, np.array([[distractors, distractors]]), np.array(["2000"]), originals, 20)
        assert cut[0] == pytest.approx(expected)


def test_copydays_images_are_resized_to_a_square():
    """eval_copy_detection.py: Resize((side, side)) with the bicubic filter and no crop."""
    image = synthetic_images(1, (60, 20))[0]
    found = CenterCrop(32, 32, "bicubic", squash=True)(image).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(found, np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)))


def test_whitening_maps_features_before_they_are_normalized():
    """eval_copy_detection.py: the mean of the whitening images is subtracted, their uncentered covariance divides."""
    features = np.array([[3.0, 1.0], [3.0, -1.0]])  # The mean is (3, 0), the uncentered covariance diag(9, 1).
    white = learn_whitening([features])(np.array([[6.0, 1.0]]))
    assert np.abs(white).tolist() == [[1.0, 1.0]]  # (6 - 3) / 3 and (1 - 0) / 1


@pytest.mark.parametrize(("level", "expected"), [("easy", 1.0), ("medium", (1 + (1 / 2 + 2 / 3) / 2) / 2), ("hard", 0.25)])
def test_junk_is_removed_before_ranks_are_counted(level, expected):
    """compute_map of revisitop: medium finds easy and hard images; easy images are junk at the level hard, and vice versa."""
    query = Query({"easy": np.array([1]), "hard": np.array([3]), "junk": np.array([0])}, box=None)
    correct, junk = query.ground_truth(level)
    ranking = np.array([0, 1, 2, 3])  # junk, easy, a wrong image, hard
    assert trapezoid_precision(positive_ranks(ranking, correct, junk), len(correct)) == pytest.approx(expected)


@pytest.fixture
def davis_root(tmp_path):
    """Two sequences, of two objects and of one, with perfect masks in tmp_path / "masks"."""
    videos = {"one": synthetic_video(4, objects=2, seed=1), "two": synthetic_video(4, objects=1, seed=2)}
    for name, video in videos.items():
        (tmp_path / "masks" / name).mkdir(parents=True)
        for number, (_, mask) in enumerate(video):
            write_mask(tmp_path / f"masks/{name}/{number:05d}.png", mask)
    return davis_tree(tmp_path / "DAVIS", videos)


def test_davis_ignores_the_first_and_last_frame(davis_root, tmp_path, tiny_weights):
    """davis2017-evaluation, semi-supervised: `all_gt_masks[:, 1:-1]`."""
    for number in (0, 3):
        write_mask(tmp_path / f"masks/one/{number:05d}.png", np.zeros((64, 128), np.uint8))
    backbone = dinoeval.load(weights=tiny_weights, device="cpu")
    result = dinoeval.evaluate("davis", backbone, data=str(davis_root), masks=str(tmp_path / "masks"))
    assert result.metrics["J&F"] == 100
    write_mask(tmp_path / "masks/one/00001.png", np.zeros((64, 128), np.uint8))
    result = dinoeval.evaluate("davis", backbone, data=str(davis_root), masks=str(tmp_path / "masks"))
    assert result.samples["J"] == [0.5, 0.5, 1]


def test_davis_averages_objects_and_not_sequences(davis_root, tmp_path, tiny_weights):
    """davis2017-evaluation: J of the objects is 1, 0 and 1; a mean over sequences would be 75. J&F is the mean of J and F."""
    for number in (1, 2):
        path = tmp_path / f"masks/one/{number:05d}.png"
        labels = np.asarray(Image.open(path))
        write_mask(path, np.where(labels == 2, 0, labels).astype(np.uint8))
    result = dinoeval.evaluate(
        "davis", dinoeval.load(weights=tiny_weights, device="cpu"), data=str(davis_root), masks=str(tmp_path / "masks")
    )
    assert result.samples["J"] == [1, 0, 1]
    assert result.metrics["J"] == pytest.approx(200 / 3)
    assert result.metrics["J&F"] == pytest.approx((result.metrics["J"] + result.metrics["F"]) / 2)


def test_segment_averages_objects_of_an_image_before_images():
    """Issue 54: the single object of one image counts as much as the three objects of another."""
    scores = [np.array([[0.9, 0.2, 0]]), np.array([[0.1, 0.3, 0], [0.1, 0.3, 0], [0.4, 0.3, 0]])]
    outcomes, _ = segment.summarize(scores)
    np.testing.assert_allclose(outcomes["jaccard"], [0.9, (0.3 + 0.3 + 0.4) / 3])
    np.testing.assert_allclose(outcomes["jaccard_fixed_head"], [0.9, 0.2])  # head 0: (0.9 + 0.2) / 2 exceeds (0.2 + 0.3) / 2


def test_segment_renormalizes_attention_over_patches():
    """visualize_attention.py: a mask keeps 60 % of the attention to patches, whatever [CLS] pays to itself."""
    attention = torch.tensor([[[0.5, 0.3], [0.1, 0.1]]])
    labels = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]], np.uint8)
    for factor in (1.0, 0.2):
        found = segment.score_masks(factor * attention, labels, mass=0.6, void="ignored")
        assert found.tolist() == [[0.5, 0.5], [0.5, 0.5]]  # The mask has the patches of 0.5 and 0.3.
