from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinoeval.maths.ranks import (
    count_closer_distractors,
    positive_ranks,
    precision_at,
    rank_by_similarity,
    score_ranks,
    trapezoid_precision,
)


def slow_precision(listed: list[int], positives: set[int], junk: set[int]) -> float:
    """Walk down the list without junk and add a trapezoid at every positive."""
    area, found, seen, before = 0.0, 0, 0, 1.0
    for row in listed:
        if row in junk - positives:
            continue
        seen += 1
        if row in positives:
            found += 1
            area += (before + found / seen) / 2
        before = found / seen
    return area / len(positives)


def test_scores_match_hand_computed_case():
    # The order is 4 1 3 0 2. 4 is junk, so 1 has rank 0, 3 rank 1, 0 rank 2, 2 rank 3. The positives are 1 and 2.
    order = rank_by_similarity(np.array([[0.2, 0.8, 0.1, 0.7, 0.9]]))[0]
    assert order.tolist() == [4, 1, 3, 0, 2]
    ranks = positive_ranks(order, [1, 2], [4])
    assert ranks.tolist() == [0, 3]
    # (1 + 1) / 2 at rank 0; at rank 3 the mean of 1/3 and 2/4; divided by two positives.
    assert trapezoid_precision(ranks, 2) == pytest.approx((1 + (1 / 3 + 2 / 4) / 2) / 2)
    assert [precision_at(ranks, k) for k in (1, 2, 10)] == [1.0, 0.5, 2 / 4]  # 4 images down to the last positive


def test_score_ranks_is_nan_without_positives():
    scores, at = score_ranks([np.array([1]), np.array([], int), np.array([], int)], [1, 0, 2], (1, 5))
    np.testing.assert_array_equal(scores, [0.25, np.nan, 0.0])
    np.testing.assert_array_equal(at, [[0, 0.5], [np.nan, np.nan], [0, 0]])


def test_equal_similarities_keep_database_order():
    assert rank_by_similarity(np.array([[0.5, 0.9, 0.5, 0.9]])).tolist() == [[1, 3, 0, 2]]


@given(st.integers(1, 40), st.integers(0, 2**31))
def test_trapezoid_precision_equals_slow_oracle(rows, seed):
    random = np.random.default_rng(seed)
    order = random.permutation(rows)
    kinds = random.integers(0, 3, rows)  # negative, positive, junk
    positives, junk = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 2)
    ranks = positive_ranks(order, positives, junk)
    if len(positives):
        slow = slow_precision(order.tolist(), set(positives.tolist()), set(junk.tolist()))
        assert trapezoid_precision(ranks, len(positives)) == pytest.approx(slow, abs=1e-12)
    else:
        assert not len(ranks)


@given(st.integers(1, 30), st.integers(0, 60), st.integers(1, 7), st.integers(0, 2**31))
def test_distractors_in_blocks_rank_like_database_images(rows, distractors, step, seed):
    random = np.random.default_rng(seed)
    queries, database, others = (random.integers(-2, 3, (count, 2)).astype(np.float32) for count in (3, rows, distractors))  # many ties
    cosines = queries @ database.T
    closer = count_closer_distractors(queries, cosines, (others[first : first + step] for first in range(0, distractors, step)))
    whole = rank_by_similarity(queries @ np.concatenate((database, others)).T)
    order = rank_by_similarity(cosines)
    positives, junk = np.arange(0, rows, 2), np.arange(1, rows, 4)
    for query in range(3):
        expected = positive_ranks(whole[query], positives, junk)
        np.testing.assert_array_equal(positive_ranks(order[query], positives, junk, closer[query]), expected)
