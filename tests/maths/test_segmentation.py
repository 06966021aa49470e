from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from segmentation_factories import slow_boundary

from dinoeval.maths.segmentation import boundary, contour_accuracy, dilate, jaccard_indices, region_similarity, sequence_statistics


def parse_mask(*rows: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in rows])


def slow_accuracy(ground_truth: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    """Compute F from the distances of all pairs of boundary pixels."""
    radius = math.ceil(tolerance * math.hypot(*ground_truth.shape))
    expected, found = slow_boundary(ground_truth), slow_boundary(mask)
    if not expected and not found:
        return 1.0

    def matched(ones: list, others: list) -> float:
        near = [any((a - c) ** 2 + (b - d) ** 2 <= radius**2 for c, d in others) for a, b in ones]
        return sum(near) / len(near) if near else 0.0

    precision, recall = matched(found, expected), matched(expected, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@st.composite
def pairs(draw):
    """Draw two masks of one shape: noise, a box, a pixel, empty or full."""
    shape = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    random = np.random.default_rng(draw(st.integers(0, 2**31)))
    masks = []
    for kind in draw(st.tuples(*[st.sampled_from(["noise", "box", "pixel", "empty", "full"])] * 2)):
        mask = np.full(shape, kind == "full")
        top, left = random.integers(shape[0]), random.integers(shape[1])
        if kind == "noise":
            mask = random.random(shape) < 0.3
        elif kind == "box":
            mask[top : random.integers(top, shape[0]) + 1, left : random.integers(left, shape[1]) + 1] = True
        elif kind == "pixel":
            mask[top, left] = True
        masks.append(mask)
    return masks


def test_region_similarity_matches_hand_computed_cases():
    ground_truth, mask = parse_mask("##..", "##.."), parse_mask(".##.", ".##.")
    assert region_similarity(ground_truth, mask) == 2 / 6
    assert region_similarity(ground_truth, ~ground_truth) == 0
    assert region_similarity(ground_truth, ground_truth) == 1
    assert region_similarity(ground_truth, np.zeros_like(ground_truth)) == 0
    assert region_similarity(np.zeros_like(ground_truth), np.zeros_like(ground_truth)) == 1


def test_boundary_marks_pixel_and_its_upper_left_neighbors():
    # The boundary is the pixel itself and the three pixels of which it is the right, lower or lower right neighbor.
    assert (boundary(parse_mask("....", "..#.", "....")) == parse_mask(".##.", ".##.", "....")).all()


def test_boundary_ignores_neighbors_outside_the_image():
    # The last row has only right neighbors, the last column only lower ones, the corner none.
    assert (boundary(parse_mask("...", "...", "..#")) == parse_mask("...", ".##", ".#.")).all()
    assert (boundary(parse_mask("#..", "...", "...")) == parse_mask("#..", "...", "...")).all()
    assert not boundary(np.ones((3, 4), bool)).any(), "a mask that fills the image has no boundary"


def test_dilate_grows_a_pixel_to_a_disk():
    # The offset (0, 2) is within distance 2, (1, 2) is at distance sqrt(5).
    pixels = np.zeros((5, 5), bool)
    pixels[2, 2] = True
    assert (dilate(pixels, 2) == parse_mask("..#..", ".###.", "#####", ".###.", "..#..")).all()
    assert (dilate(pixels, 0) == pixels).all()
    assert dilate(pixels, 30).all()


def test_contour_accuracy_matches_hand_computed_cases():
    # 6 x 8 pixels have a diagonal of 10: a tolerance of 0.1 is one pixel, of 0.1001 two.
    ground_truth, mask = np.zeros((2, 6, 8), bool)
    ground_truth[2, 2], mask[2, 4] = True, True  # boundaries: rows 1 and 2, columns 1 and 2; columns 3 and 4
    # Columns 2 and 3 are one pixel apart, so half of each boundary is matched.
    assert contour_accuracy(ground_truth, mask, 0.1) == 0.5
    assert contour_accuracy(ground_truth, mask, 0.1001) == 1
    ground_truth[:], mask[:] = False, False
    ground_truth[2, 2], mask[2, 5:7] = True, True  # 4 boundary pixels in columns 1, 2; 6 in columns 4, 5, 6
    # Column 4 of the mask (2 of 6) and column 2 of the ground truth (2 of 4) are two pixels apart.
    assert contour_accuracy(ground_truth, mask, 0.1001) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_contour_accuracy_of_empty_masks():
    empty, one = np.zeros((5, 5), bool), parse_mask(".....", ".....", "..#..", ".....", ".....")
    assert contour_accuracy(empty, empty) == 1
    assert contour_accuracy(one, empty) == contour_accuracy(empty, one) == 0
    assert contour_accuracy(np.ones_like(empty), empty) == 1, "neither has a boundary, as in the official evaluation"


@given(pairs(), st.sampled_from([0.008, 0.1, 0.2, 0.5, 3.0]))
def test_contour_accuracy_equals_slow_oracle(masks, tolerance):
    assert contour_accuracy(*masks, tolerance) == pytest.approx(slow_accuracy(*masks, tolerance), abs=1e-12)
    assert contour_accuracy(masks[0], masks[0], tolerance) == 1
    assert [tuple(pixel) for pixel in np.argwhere(boundary(masks[0]))] == slow_boundary(masks[0])


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_jaccard_indices_equal_region_similarity(objects, heads, seed):
    random = np.random.default_rng(seed)
    ground_truths, masks = random.random((objects, 7, 9)) < 0.3, random.random((heads, 7, 9)) < 0.4
    expected = [[region_similarity(ground_truth, mask) for mask in masks] for ground_truth in ground_truths]
    np.testing.assert_allclose(jaccard_indices(ground_truths, masks), expected, atol=1e-12)
    valid = random.random((7, 9)) < 0.8
    expected = [[region_similarity(ground_truth & valid, mask & valid) for mask in masks] for ground_truth in ground_truths]
    np.testing.assert_allclose(jaccard_indices(ground_truths, masks, valid), expected, atol=1e-12)


def test_jaccard_index_of_two_empty_masks_is_one():
    assert jaccard_indices(np.zeros((1, 2, 2), bool), np.array([[[0, 0], [0, 0]], [[1, 0], [0, 0]]], bool)).tolist() == [[1, 0]]


def test_sequence_statistics_match_hand_computed_case():
    # Nine frames have borders at 1, 3, 5, 7, 9; bins share the frame at their border.
    mean, recall, decay = sequence_statistics(np.array([1, 0.9, 0.8, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1]))
    assert mean == pytest.approx(4.8 / 9)
    assert recall == 3 / 9, "0.5 is not above the threshold"
    assert decay == pytest.approx((1 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.1) / 3)


def test_decay_bin_borders_are_rounded_half_up():
    # For seven frames, 1, 2.5, 4, 5.5, 7 become 1, 3, 4, 6, 7: the first bin has three frames, the last two.
    assert sequence_statistics(np.array([0.9, 0.6, 0.3, 0, 0, 0.2, 0.1]))[2] == pytest.approx(0.6 - 0.15)


def test_sequence_statistics_of_one_and_of_1001_frames():
    assert sequence_statistics(np.array([0.7])) == (0.7, 1.0, 0.0)
    long = np.linspace(1, 0, 1001)  # exceeds the 8 bits of the official borders
    assert sequence_statistics(long)[2] == pytest.approx(0.75)


def test_nan_frames_are_left_out_of_means():
    mean, recall, decay = sequence_statistics(np.array([np.nan, 0.8, 0.6, 0.4]))  # borders 1, 2, 3, 3, 4
    assert mean == pytest.approx(0.6)
    assert recall == 2 / 4
    assert decay == pytest.approx(0.8 - (0.6 + 0.4) / 2)
    assert all(map(math.isnan, (sequence_statistics(np.array([np.nan]))[index] for index in (0, 2))))
