from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoeval.maths.segmentation import boundary, contour_accuracy, dilate, jaccards, region_similarity, statistics


def drawn(*rows: str) -> np.ndarray:
    return np.array([[sign == "#" for sign in row] for row in rows])


def slow_boundary(mask: np.ndarray) -> list[tuple[int, int]]:
    """Pixels one of whose neighbours to the right, below, or both, is inside the picture and of the other kind."""
    height, width = mask.shape
    return [
        (row, column)
        for row in range(height)
        for column in range(width)
        if any(
            mask[row + down, column + right] != mask[row, column]
            for down, right in ((0, 1), (1, 0), (1, 1))
            if row + down < height and column + right < width
        )
    ]


def slow_accuracy(truth: np.ndarray, mask: np.ndarray, tolerance: float) -> float:
    """F from the distances of all pairs of boundary pixels."""
    radius = math.ceil(tolerance * math.hypot(*truth.shape))
    wanted, found = slow_boundary(truth), slow_boundary(mask)
    if not wanted and not found:
        return 1.0

    def matched(ones: list, others: list) -> float:
        near = [any((a - c) ** 2 + (b - d) ** 2 <= radius**2 for c, d in others) for a, b in ones]
        return sum(near) / len(near) if near else 0.0

    precision, recall = matched(found, wanted), matched(wanted, found)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@st.composite
def pairs(draw):
    """Two masks of one shape, from noise, boxes and nothing at all."""
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


def test_region_similarity_by_hand():
    truth, mask = drawn("##..", "##.."), drawn(".##.", ".##.")
    assert region_similarity(truth, mask) == 2 / 6
    assert region_similarity(truth, ~truth) == 0
    assert region_similarity(truth, truth) == 1
    assert region_similarity(truth, np.zeros_like(truth)) == 0
    assert region_similarity(np.zeros_like(truth), np.zeros_like(truth)) == 1


def test_a_boundary_lies_half_a_pixel_up_and_left():
    # The pixel itself and its three neighbours whose right, lower or lower right neighbour it is.
    assert (boundary(drawn("....", "..#.", "....")) == drawn(".##.", ".##.", "....")).all()


def test_a_boundary_at_the_border_of_the_picture():
    # The last row has a neighbour to the right only, the last column one below only, the corner none.
    assert (boundary(drawn("...", "...", "..#")) == drawn("...", ".##", ".#.")).all()
    assert (boundary(drawn("#..", "...", "...")) == drawn("#..", "...", "...")).all()
    assert not boundary(np.ones((3, 4), bool)).any(), "what fills the picture has no boundary"


def test_a_disk():
    # Distance 2: (0, 2) lies within, (1, 2) with its root of 5 does not.
    pixels = np.zeros((5, 5), bool)
    pixels[2, 2] = True
    assert (dilate(pixels, 2) == drawn("..#..", ".###.", "#####", ".###.", "..#..")).all()
    assert (dilate(pixels, 0) == pixels).all()
    assert dilate(pixels, 30).all()


def test_contour_accuracy_by_hand():
    # 6 x 8 pixels, diagonal 10: a tolerance of 0.1 is one pixel, of 0.1001 two.
    truth, mask = np.zeros((2, 6, 8), bool)
    truth[2, 2], mask[2, 4] = True, True  # boundaries: rows 1 and 2, columns 1 and 2; columns 3 and 4
    # Column 2 is one pixel from column 3: half of each boundary is matched.
    assert contour_accuracy(truth, mask, 0.1) == 0.5
    assert contour_accuracy(truth, mask, 0.1001) == 1
    truth[:], mask[:] = False, False
    truth[2, 2], mask[2, 5:7] = True, True  # 4 pixels of boundary in columns 1, 2; 6 in columns 4, 5, 6
    # Within two pixels: column 4 of the mask's (2 of 6), column 2 of the truth's (2 of 4).
    assert contour_accuracy(truth, mask, 0.1001) == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))


def test_empty_masks():
    empty, one = np.zeros((5, 5), bool), drawn(".....", ".....", "..#..", ".....", ".....")
    assert contour_accuracy(empty, empty) == 1
    assert contour_accuracy(one, empty) == contour_accuracy(empty, one) == 0
    assert contour_accuracy(np.ones_like(empty), empty) == 1, "neither has a boundary, as the official evaluation has it"


@given(pairs(), st.sampled_from([0.008, 0.1, 0.2, 0.5, 3.0]))
def test_contour_accuracy_equals_all_distances(masks, tolerance):
    assert contour_accuracy(*masks, tolerance) == pytest.approx(slow_accuracy(*masks, tolerance), abs=1e-12)
    assert contour_accuracy(masks[0], masks[0], tolerance) == 1
    assert [tuple(pixel) for pixel in np.argwhere(boundary(masks[0]))] == slow_boundary(masks[0])


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_jaccards_are_those_of_every_pair(objects, heads, seed):
    random = np.random.default_rng(seed)
    truths, masks = random.random((objects, 7, 9)) < 0.3, random.random((heads, 7, 9)) < 0.4
    expected = [[region_similarity(truth, mask) for mask in masks] for truth in truths]
    np.testing.assert_allclose(jaccards(truths, masks), expected, atol=1e-12)
    counted = random.random((7, 9)) < 0.8
    expected = [[region_similarity(truth & counted, mask & counted) for mask in masks] for truth in truths]
    np.testing.assert_allclose(jaccards(truths, masks, counted), expected, atol=1e-12)


def test_jaccard_of_nothing_with_nothing():
    assert jaccards(np.zeros((1, 2, 2), bool), np.array([[[0, 0], [0, 0]], [[1, 0], [0, 0]]], bool)).tolist() == [[1, 0]]


def test_statistics_by_hand():
    # Nine frames, borders at 1, 3, 5, 7, 9: the bins share the frame at their border.
    mean, recall, decay = statistics(np.array([1, 0.9, 0.8, 0.5, 0.5, 0.5, 0.3, 0.2, 0.1]))
    assert mean == pytest.approx(4.8 / 9)
    assert recall == 3 / 9, "a half is not recalled"
    assert decay == pytest.approx((1 + 0.9 + 0.8) / 3 - (0.3 + 0.2 + 0.1) / 3)


def test_borders_of_bins_are_rounded_half_up():
    # Seven frames: 1, 2.5, 4, 5.5, 7 become 1, 3, 4, 6, 7, so that the first bin has three frames and the last two.
    assert statistics(np.array([0.9, 0.6, 0.3, 0, 0, 0.2, 0.1]))[2] == pytest.approx(0.6 - 0.15)


def test_statistics_of_few_and_of_many_frames():
    assert statistics(np.array([0.7])) == (0.7, 1.0, 0.0)
    long = np.linspace(1, 0, 1001)  # beyond the 8 bits of the official borders
    assert statistics(long)[2] == pytest.approx(0.75)


def test_frames_without_a_value_are_left_out_of_means():
    mean, recall, decay = statistics(np.array([np.nan, 0.8, 0.6, 0.4]))  # borders 1, 2, 3, 3, 4
    assert mean == pytest.approx(0.6)
    assert recall == 2 / 4
    assert decay == pytest.approx(0.8 - (0.6 + 0.4) / 2)
    assert all(map(math.isnan, (statistics(np.array([np.nan]))[index] for index in (0, 2))))
