from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dinoeval.maths.average_precision import average_precision, mean_average_precision


def slow_11_point(scores: list[float], present: list[bool]) -> float:
    """Evaluate the formula in fractions: each distinct score is a threshold with a precision and a recall."""
    total = sum(present)
    points = []
    for threshold in set(scores):
        retrieved = [is_present for score, is_present in zip(scores, present, strict=True) if score >= threshold]
        points.append((Fraction(sum(retrieved), total), Fraction(sum(retrieved), len(retrieved))))
    best = [max(precision for recall, precision in points if recall >= Fraction(tenth, 10)) for tenth in range(11)]
    return float(sum(best) / 11)


def test_average_precision_matches_hand_computed_case():
    """The positives have ranks 1, 3 and 5: precisions 1, 2/3, 3/5 at the recalls 1/3, 2/3, 1."""
    scores, present = np.array([0.1, 0.9, 0.3, 0.5, 0.7]), np.array([1, 1, 0, 1, 0])
    assert average_precision(scores, present) == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # Recalls 0 to 0.3 have precision 1, 0.4 to 0.6 have 2/3, 0.7 to 1 have 3/5.
    assert average_precision(scores, present, "11-point") == pytest.approx((4 * 1 + 3 * 2 / 3 + 4 * 3 / 5) / 11)


def test_11_point_counts_three_of_ten_as_recall_0_3():
    """3 positives, 7 negatives, 7 positives: recalls 0 to 0.3 have precision 1, the others at best 10/17."""
    present = np.array([1] * 3 + [0] * 7 + [1] * 7)
    assert average_precision(-np.arange(17.0), present, "11-point") == pytest.approx((4 + 7 * 10 / 17) / 11)


def test_average_precision_ignores_order_of_equal_scores():
    for present in ([1, 0, 0, 0], [0, 0, 0, 1]):
        for area in ("exact", "11-point"):
            assert average_precision(np.zeros(4), np.array(present), area) == 0.25


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=30).filter(lambda rows: any(mark for _, mark in rows)))
def test_average_precision_equals_oracles(rows):
    scores, present = [float(score) for score, _ in rows], [is_present for _, is_present in rows]
    exact, points = (average_precision(np.array(scores), np.array(present), area) for area in ("exact", "11-point"))
    assert exact == pytest.approx(average_precision_score(present, scores))
    assert points == pytest.approx(slow_11_point(scores, present))


def test_class_without_positives_is_nan_and_not_averaged():
    assert np.isnan(average_precision(np.arange(3.0), np.zeros(3)))
    assert np.isnan(average_precision(np.empty(0), np.empty(0)))
    scores, labels = np.array([[3.0, 1], [2, 2], [1, 3]]), np.array([[0, 0], [1, 0], [0, 0]])
    found = mean_average_precision(scores, labels)
    assert np.isnan(found.per_class[1])
    assert (found.per_class[0], found.mean) == (0.5, 0.5)


def test_difficult_images_are_excluded_from_their_class_only():
    random = np.random.default_rng(0)
    scores, labels = random.random((40, 3)), random.choice([1, 0, 0, -1], (40, 3))
    found = mean_average_precision(scores, labels)
    changed = np.where(labels == -1, random.random((40, 3)), scores)
    assert mean_average_precision(changed, labels).mean == found.mean
    assert mean_average_precision(scores, np.maximum(labels, 0)).mean != found.mean
    for column in range(3):
        known = labels[:, column] >= 0
        assert found.per_class[column] == pytest.approx(average_precision_score(labels[known, column], scores[known, column]))


@pytest.mark.parametrize("area", ["exact", "11-point"])
def test_map_error_is_standard_deviation_over_resampled_images(area):
    """Compare with images that are resampled by another generator: 100 and 400 draws, each accurate to about 10 %."""
    random = np.random.default_rng(1)
    labels = (random.random((150, 4)) < 0.3).astype(np.int8)
    scores = random.random((150, 4)).round(1) + 0.4 * labels
    draws = []
    for _ in range(400):
        rows = random.integers(0, 150, 150)
        draws.append(np.mean([average_precision(scores[rows, column], labels[rows, column], area) for column in range(4)]))
    found = mean_average_precision(scores, labels, area)
    assert found.mean == pytest.approx(np.mean([average_precision(scores[:, c], labels[:, c], area) for c in range(4)]))
    assert found.error == pytest.approx(np.std(draws), rel=0.3)


def test_map_error_is_taken_over_100_draws_of_a_fixed_generator():
    random = np.random.default_rng(2)
    labels, scores = (random.random(30) < 0.4).astype(np.int8)[:, None], random.random((30, 1))
    counts = np.random.default_rng(0).multinomial(30, np.full(30, 1 / 30), 100)
    draws = [average_precision(np.repeat(scores[:, 0], count), np.repeat(labels[:, 0], count)) for count in counts]
    assert mean_average_precision(scores, labels).error == pytest.approx(np.std(draws, ddof=1), rel=1e-9)
