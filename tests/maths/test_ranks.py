from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoeval.maths.ranks import count_closer_distractors, order_of, positive_ranks, precision_at, score_ranks, trapezoid_precision


def slow_precision(listed: list[int], right: set[int], junk: set[int]) -> float:
    """Walk down the list and add a trapezoid at every right image; what is junk is as if it were not there."""
    area, found, seen, before = 0.0, 0, 0, 1.0
    for row in listed:
        if row in junk - right:
            continue
        seen += 1
        if row in right:
            found += 1
            area += (before + found / seen) / 2
        before = found / seen
    return area / len(right)


def test_a_case_by_hand():
    # Ranked 4 1 3 0 2; 4 is junk, so 1 has rank 0, 3 rank 1, 0 rank 2, 2 rank 3. Right are 1 and 2.
    order = order_of(np.array([[0.2, 0.8, 0.1, 0.7, 0.9]]))[0]
    assert order.tolist() == [4, 1, 3, 0, 2]
    ranks = positive_ranks(order, [1, 2], [4])
    assert ranks.tolist() == [0, 3]
    # (1 + 1) / 2 at rank 0; at rank 3 the mean of 1/3 and 2/4; over two right images.
    assert trapezoid_precision(ranks, 2) == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2)
    assert [precision_at(ranks, k) for k in (1, 2, 10)] == [1.0, 0.5, 2 / 4]  # down to the last right one only: 4 images


def test_the_second_place_scores_a_quarter_and_a_query_without_right_images_nothing():
    scores, at = score_ranks([np.array([1]), np.array([], int), np.array([], int)], [1, 0, 2], (1, 5))
    np.testing.assert_array_equal(scores, [0.25, np.nan, 0.0])
    np.testing.assert_array_equal(at, [[0, 0.5], [np.nan, np.nan], [0, 0]])


def test_equal_similarities_keep_the_order_of_the_database():
    assert order_of(np.array([[0.5, 0.9, 0.5, 0.9]])).tolist() == [[1, 3, 0, 2]]


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_scores_equal_a_walk_down_the_list(rows, seed):
    random = np.random.default_rng(seed)
    order = random.permutation(rows)
    kinds = random.integers(0, 3, rows)  # other, right, junk
    right, junk = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 2)
    ranks = positive_ranks(order, right, junk)
    if len(right):
        slow = slow_precision(order.tolist(), set(right.tolist()), set(junk.tolist()))
        assert trapezoid_precision(ranks, len(right)) == pytest.approx(slow, abs=1e-12)
    else:
        assert not len(ranks)


@given(st.integers(1, 30), st.integers(0, 60), st.integers(1, 7), st.integers(0, 2**31))
def test_distractors_in_blocks_rank_as_if_they_were_in_the_database(rows, strangers, step, seed):
    random = np.random.default_rng(seed)
    queries, database, others = (random.integers(-2, 3, (count, 2)).astype(np.float32) for count in (3, rows, strangers))  # many ties
    cosines = queries @ database.T
    closer = count_closer_distractors(queries, cosines, (others[first : first + step] for first in range(0, strangers, step)))
    whole = order_of(queries @ np.concatenate((database, others)).T)
    order = order_of(cosines)
    right, junk = np.arange(0, rows, 2), np.arange(1, rows, 4)
    for query in range(3):
        expected = positive_ranks(whole[query], right, junk)
        np.testing.assert_array_equal(positive_ranks(order[query], right, junk, closer[query]), expected)
