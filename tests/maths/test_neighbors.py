from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoeval.maths.neighbors import faiss, l2_normalize, nearest, vote


def blocks(bank: np.ndarray, size: int) -> list[np.ndarray]:
    return [bank[start : start + size] for start in range(0, len(bank), size)]


def slow_nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """All cosines in double precision, sorted by (-cosine, row)."""
    unit = [rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True) for rows in (queries, bank)]
    cosines = unit[0] @ unit[1].T
    order = np.lexsort((np.broadcast_to(np.arange(len(bank)), cosines.shape), -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), order


def slow_vote(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """The formula, one query at a time: classes with a vote by (-sum, class), at most five, then -1."""
    predictions = []
    for similar, voters in zip(cosines.astype(np.float64), labels, strict=True):
        scores: dict[int, float] = {}
        for cosine, label in zip(similar[:k], voters[:k], strict=True):
            scores[int(label)] = scores.get(int(label), 0.0) + np.exp(cosine / temperature)
        ranked = sorted(scores, key=lambda label: (-scores[label], label))[:5]
        predictions.append(ranked + [-1] * (5 - len(ranked)))
    return np.array(predictions)


@pytest.mark.parametrize("num_queries", [1, 19, 20, 99, 101])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_nearest_equals_the_sorted_list_of_all_cosines(num_queries, block):
    random = np.random.default_rng(num_queries)
    queries, bank = (random.standard_normal((n, 24), dtype=np.float32) * 3 for n in (num_queries, 150))
    cosines, rows = nearest(queries, blocks(bank, block), 30)
    expected = slow_nearest(queries, bank, 30)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    np.testing.assert_array_equal(rows, expected[1])


@pytest.mark.parametrize("num_queries", [1, 30])
def test_rows_of_length_one_need_no_pass_of_their_own(num_queries):
    random = np.random.default_rng(num_queries)
    queries, bank = random.standard_normal((num_queries, 24)) * 3, l2_normalize(random.standard_normal((150, 24)))
    bank.flags.writeable = False  # as the memory map of an index
    cosines, rows = nearest(queries, blocks(bank, 64), 30, unit=True)
    expected = slow_nearest(queries, bank, 30)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    np.testing.assert_array_equal(rows, expected[1])
    np.testing.assert_array_equal(nearest(queries, [2 * bank], 1, unit=True)[0], 2 * cosines[:, :1])  # it is believed


def test_equal_cosines_come_in_order_of_row_within_and_across_blocks():
    """Rows 0, 2, 3, 5 and 6 are the same direction at other lengths; 1 and 4 are further off."""
    east, north = np.array([1.0, 0]), np.array([0, 1.0])
    bank = np.array([east, north, 4 * east, 2 * east, north, 0.5 * east, 8 * east], np.float32)
    for size in (1, 2, 3, 7):
        _, rows = nearest(np.array([east], np.float32), blocks(bank, size), 7)
        assert rows.tolist() == [[0, 2, 3, 5, 6, 1, 4]]


@pytest.mark.parametrize("k", [1, 3, 5, 20, 100])
@pytest.mark.parametrize("block", [50, 1000])
def test_of_equal_cosines_at_the_cut_the_smaller_rows_are_kept(k, block):
    """A bank of ten directions, each many times over: nearly every cut falls inside a tie."""
    random = np.random.default_rng(k)
    directions = random.standard_normal((10, 16), dtype=np.float32)
    bank = directions[random.integers(0, 10, 400)]
    cosines, rows = nearest(directions, blocks(bank, block), k)
    expected = slow_nearest(directions, bank, k)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    for found, same in zip(rows, expected[1], strict=True):
        # The slow list may order two directions of nearly equal cosine otherwise; the rows of each come in order.
        assert sorted(found) == sorted(same)


def test_the_result_does_not_depend_on_how_many_queries_come_at_once():
    random = np.random.default_rng(0)
    queries, bank = (random.standard_normal((n, 384), dtype=np.float32) for n in (64, 500))
    together = nearest(queries, [bank], 10)
    for count in (1, 3, 19, 21):
        alone = nearest(queries[:count], [bank], 10)
        np.testing.assert_array_equal(alone[1], together[1][:count])
        np.testing.assert_allclose(alone[0], together[0][:count], atol=3e-7)


def test_a_bank_smaller_than_k_is_refused_and_empty_blocks_are_not_searched():
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match="a bank of 3 rows has no 4 neighbours"):
        nearest(rows, [rows], 4)
    assert nearest(rows, [rows[:0], rows, rows[:0]], 1)[1].tolist() == [[0], [1], [2]]


def test_normalise_leaves_its_input_alone_and_a_zero_row_zero():
    rows = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(l2_normalize(rows), [[0.6, 0.8], [0, 0]])
    assert rows[0, 0] == 3


def test_vote_by_hand():
    """Neighbours, nearest first: classes 2, 0, 0, 1 at cosines .9 .8 .8 .5, temperature .1.

    Weights e^9 = 8103, e^8 = 2981 twice, e^5 = 148. k = 1: class 2. k = 3: class 2 (8103) before 0 (5962).
    k = 4: the same, then 1. Classes 3 and 4 never get a vote and are no prediction.
    """
    predictions = vote(np.array([[0.9, 0.8, 0.8, 0.5]]), np.array([[2, 0, 0, 1]]), ks=[4, 1, 3], temperature=0.1, num_classes=5)
    assert predictions[:, 0].tolist() == [[2, 0, 1, -1, -1], [2, -1, -1, -1, -1], [2, 0, -1, -1, -1]]


def test_of_equal_sums_the_earlier_class_wins():
    predictions = vote(np.array([[0.5, 0.5, 0.5]]), np.array([[4, 1, 3]]), ks=[3], temperature=0.07, num_classes=5)
    assert predictions[0, 0].tolist() == [1, 3, 4, -1, -1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 130), st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
def test_vote_equals_the_formula_for_any_size(num_queries, num_classes, k, seed):
    random = np.random.default_rng(seed)
    cosines = -np.sort(-random.uniform(-1, 1, (num_queries, 30)).astype(np.float32), axis=1)
    labels = random.integers(0, num_classes, (num_queries, 30))
    found = vote(cosines, labels, ks=[30, k], temperature=0.07, num_classes=num_classes)
    np.testing.assert_array_equal(found[1], slow_vote(cosines, labels, k, 0.07, num_classes))
    np.testing.assert_array_equal(found[0], slow_vote(cosines, labels, 30, 0.07, num_classes))


def test_votes_of_many_classes_are_counted_in_parts(monkeypatch):
    from dinoeval.maths import neighbors

    random = np.random.default_rng(1)
    cosines, labels = random.uniform(0, 1, (50, 8)), random.integers(0, 1000, (50, 8))
    whole = vote(cosines, labels, ks=[8], temperature=0.07, num_classes=1000)
    monkeypatch.setattr(neighbors, "_VOTE_BYTES", 8 * 1000 * 7)  # seven queries at a time
    np.testing.assert_array_equal(vote(cosines, labels, ks=[8], temperature=0.07, num_classes=1000), whole)


@pytest.mark.parametrize("temperature", [1e-4, 5e-4, 1e-3])
def test_small_temperatures_neither_overflow_nor_lose_votes(temperature):
    """Two strong votes for class 1; class 0 gets two weak ones and class 2 a negative one."""
    predictions = vote(
        np.array([[0.99, 0.98, 0.5, 0.5, -0.9]]), np.array([[1, 1, 0, 0, 2]]), ks=[5], temperature=temperature, num_classes=3
    )
    assert predictions[0, 0].tolist() == [1, 0, 2, -1, -1]


def test_weights_stay_finite_where_the_released_ones_are_largest():
    assert vote(np.ones((1, 200)), np.zeros((1, 200), int), ks=[200], temperature=0.07, num_classes=2)[0, 0, 0] == 0


def test_the_choice_of_kernels_leaves_no_trace(monkeypatch):
    import os

    faiss()
    assert "OPENBLAS_CORETYPE" not in os.environ
