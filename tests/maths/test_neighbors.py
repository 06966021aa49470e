from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dinoeval.maths.neighbors import _openblas_kernels, l2_normalize, load_faiss, multilabel_scores, nearest, vote


def blocks(bank: np.ndarray, size: int) -> list[np.ndarray]:
    return [bank[start : start + size] for start in range(0, len(bank), size)]


def slow_nearest(queries: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort all cosines in double precision by (-cosine, index)."""
    normalized = [one.astype(np.float64) / np.linalg.norm(one.astype(np.float64), axis=1, keepdims=True) for one in (queries, bank)]
    cosines = normalized[0] @ normalized[1].T
    order = np.lexsort((np.broadcast_to(np.arange(len(bank)), cosines.shape), -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), order


def slow_vote(cosines: np.ndarray, labels: np.ndarray, k: int, temperature: float, num_classes: int) -> np.ndarray:
    """Evaluate the formula one query at a time: at most five classes with a vote by (-sum, class), then -1."""
    predictions = []
    for query_cosines, query_labels in zip(cosines.astype(np.float64), labels, strict=True):
        scores: dict[int, float] = {}
        for cosine, label in zip(query_cosines[:k], query_labels[:k], strict=True):
            scores[int(label)] = scores.get(int(label), 0.0) + np.exp(cosine / temperature)
        ranked = sorted(scores, key=lambda label: (-scores[label], label))[:5]
        predictions.append(ranked + [-1] * (5 - len(ranked)))
    return np.array(predictions)


@pytest.mark.parametrize("num_queries", [1, 19, 20, 99, 101])
@pytest.mark.parametrize("block", [7, 64, 1000])
def test_nearest_equals_sorted_list_of_all_cosines(num_queries, block):
    random = np.random.default_rng(num_queries)
    queries, bank = (random.standard_normal((n, 24), dtype=np.float32) * 3 for n in (num_queries, 150))
    cosines, indices = nearest(queries, blocks(bank, block), 30)
    expected = slow_nearest(queries, bank, 30)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    np.testing.assert_array_equal(indices, expected[1])


@pytest.mark.parametrize("num_queries", [1, 30])
def test_nearest_does_not_renormalize_a_normalized_bank(num_queries):
    random = np.random.default_rng(num_queries)
    queries, bank = random.standard_normal((num_queries, 24)) * 3, l2_normalize(random.standard_normal((150, 24)))
    bank.flags.writeable = False  # like the memory map of an index
    cosines, indices = nearest(queries, blocks(bank, 64), 30, normalized=True)
    expected = slow_nearest(queries, bank, 30)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    np.testing.assert_array_equal(indices, expected[1])
    np.testing.assert_array_equal(nearest(queries, [2 * bank], 1, normalized=True)[0], 2 * cosines[:, :1])  # the flag is not checked


def test_equal_cosines_are_ordered_by_index_across_blocks():
    """Vectors 0, 2, 3, 5 and 6 have the same direction and other lengths; 1 and 4 are less similar."""
    east, north = np.array([1.0, 0]), np.array([0, 1.0])
    bank = np.array([east, north, 4 * east, 2 * east, north, 0.5 * east, 8 * east], np.float32)
    for size in (1, 2, 3, 7):
        _, indices = nearest(np.array([east], np.float32), blocks(bank, size), 7)
        assert indices.tolist() == [[0, 2, 3, 5, 6, 1, 4]]


@pytest.mark.parametrize("k", [1, 3, 5, 20, 100])
@pytest.mark.parametrize("block", [50, 1000])
def test_ties_at_the_cutoff_keep_the_smaller_indices(k, block):
    """Ten directions fill the bank, so nearly every cutoff falls inside a tie."""
    random = np.random.default_rng(k)
    directions = random.standard_normal((10, 16), dtype=np.float32)
    bank = directions[random.integers(0, 10, 400)]
    cosines, indices = nearest(directions, blocks(bank, block), k)
    expected = slow_nearest(directions, bank, k)
    np.testing.assert_allclose(cosines, expected[0], atol=1e-6)
    for found, same in zip(indices, expected[1], strict=True):
        # The oracle may swap two directions with nearly equal cosines.
        assert sorted(found) == sorted(same)


def test_nearest_does_not_depend_on_number_of_queries():
    random = np.random.default_rng(0)
    queries, bank = (random.standard_normal((n, 384), dtype=np.float32) for n in (64, 500))
    together = nearest(queries, [bank], 10)
    for count in (1, 3, 19, 21):
        alone = nearest(queries[:count], [bank], 10)
        np.testing.assert_array_equal(alone[1], together[1][:count])
        np.testing.assert_allclose(alone[0], together[0][:count], atol=3e-7)


def test_nearest_raises_if_k_exceeds_the_bank():
    bank = np.eye(3, dtype=np.float32)
    with pytest.raises(ValueError, match=r"k = 4 .*\b3\b"):
        nearest(bank, [bank], 4)


def test_nearest_skips_empty_blocks():
    bank = np.eye(3, dtype=np.float32)
    assert nearest(bank, [bank[:0], bank, bank[:0]], 1)[1].tolist() == [[0], [1], [2]]


def test_l2_normalize_keeps_its_input_and_zero_vectors():
    vectors = np.array([[3, 4], [0, 0]], np.float32)
    np.testing.assert_allclose(l2_normalize(vectors), [[0.6, 0.8], [0, 0]])
    assert vectors[0, 0] == 3


def test_vote_matches_hand_computed_case():
    """The neighbors have classes 2, 0, 0, 1 and cosines .9 .8 .8 .5; the temperature is .1.

    Weights e^9 = 8103, e^8 = 2981 twice, e^5 = 148. k = 1: class 2. k = 3: class 2 (8103) before 0 (5962).
    k = 4: the same, then 1. Classes 3 and 4 get no vote and are not predicted.
    """
    predictions = vote(np.array([[0.9, 0.8, 0.8, 0.5]]), np.array([[2, 0, 0, 1]]), ks=[4, 1, 3], temperature=0.1, num_classes=5)
    assert predictions[:, 0].tolist() == [[2, 0, 1, -1, -1], [2, -1, -1, -1, -1], [2, 0, -1, -1, -1]]


def test_vote_ties_go_to_the_lower_class_index():
    predictions = vote(np.array([[0.5, 0.5, 0.5]]), np.array([[4, 1, 3]]), ks=[3], temperature=0.07, num_classes=5)
    assert predictions[0, 0].tolist() == [1, 3, 4, -1, -1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 130), st.integers(1, 12), st.integers(1, 30), st.integers(0, 10_000))
def test_vote_equals_slow_formula(num_queries, num_classes, k, seed):
    random = np.random.default_rng(seed)
    cosines = -np.sort(-random.uniform(-1, 1, (num_queries, 30)).astype(np.float32), axis=1)
    labels = random.integers(0, num_classes, (num_queries, 30))
    found = vote(cosines, labels, ks=[30, k], temperature=0.07, num_classes=num_classes)
    np.testing.assert_array_equal(found[1], slow_vote(cosines, labels, k, 0.07, num_classes))
    np.testing.assert_array_equal(found[0], slow_vote(cosines, labels, 30, 0.07, num_classes))


def test_vote_does_not_depend_on_block_size(monkeypatch):
    from dinoeval.maths import neighbors

    random = np.random.default_rng(1)
    cosines, labels = random.uniform(0, 1, (50, 8)), random.integers(0, 1000, (50, 8))
    whole = vote(cosines, labels, ks=[8], temperature=0.07, num_classes=1000)
    monkeypatch.setattr(neighbors, "_VOTE_BYTES", 8 * 1000 * 7)  # seven queries at a time
    np.testing.assert_array_equal(vote(cosines, labels, ks=[8], temperature=0.07, num_classes=1000), whole)


@pytest.mark.parametrize("temperature", [1e-4, 5e-4, 1e-3])
def test_small_temperatures_do_not_overflow_or_lose_votes(temperature):
    """Two strong votes for class 1; class 0 gets two weak ones and class 2 a negative one."""
    predictions = vote(
        np.array([[0.99, 0.98, 0.5, 0.5, -0.9]]), np.array([[1, 1, 0, 0, 2]]), ks=[5], temperature=temperature, num_classes=3
    )
    assert predictions[0, 0].tolist() == [1, 0, 2, -1, -1]


def test_vote_is_finite_for_the_largest_released_weights():
    assert vote(np.ones((1, 200)), np.zeros((1, 200), int), ks=[200], temperature=0.07, num_classes=2)[0, 0, 0] == 0


def test_load_faiss_leaves_the_environment_unchanged():
    load_faiss()
    assert "OPENBLAS_CORETYPE" not in os.environ


def test_multilabel_scores_match_hand_computed_case():
    """Weights 1 and 1/2. Class 0 is present in the first neighbor, class 1 in the second, class 2 is difficult in both."""
    cosines, temperature = np.array([[1.0, 0.5]]), 0.5 / np.log(2)
    labels = np.array([[0, 1, -1], [1, 0, -1]], np.int8)
    scores = multilabel_scores(cosines, labels, np.array([[1, 0]]), ks=[2, 1], temperature=temperature)
    np.testing.assert_allclose(scores, [[[2 / 3, 1 / 3, 0]], [[1, 0, 0]]])


def test_multilabel_scores_ignore_neighbors_that_are_difficult():
    """The nearer neighbor is difficult for the class, so the other one decides alone."""
    labels = np.array([[-1], [1]], np.int8)
    assert multilabel_scores(np.array([[0.9, 0.1]]), labels, np.array([[0, 1]]), ks=[1, 2], temperature=0.07).tolist() == [[[0]], [[1]]]


@pytest.mark.skipif(_openblas_kernels() is None, reason="FAISS chooses its kernels itself")
def test_faiss_imported_first_is_a_warning():
    code = "import faiss, logging; logging.basicConfig(); from dinoeval.maths.neighbors import load_faiss; load_faiss()"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "import dinoeval first" in done.stderr
