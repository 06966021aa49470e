from __future__ import annotations

import numpy as np
import pytest

from dinoeval.maths.neighbors import l2_normalize
from dinoeval.search import duplicates
from dinoeval.search.duplicates import is_chain, link_duplicates, lowest_cosine
from dinoeval.search.vectors import VectorFile, write_vectors


def write(path, values: np.ndarray) -> VectorFile:
    values = l2_normalize(values)
    write_vectors(path, [values[:3], values[3:]], *values.shape)
    return VectorFile(path, *values.shape)


def test_linked_images_form_one_group_singletons_none(tmp_path):
    """The directions 0, 10 and 20 degrees are linked in steps of 10; 90 and 94 are linked; 200 is not."""
    angles = np.radians([0, 90, 10, 200, 20, 94])
    vectors = write(tmp_path / "vectors", np.stack((np.cos(angles), np.sin(angles)), 1))
    groups, best = link_duplicates(vectors, np.cos(np.radians(10.5)))
    assert [group.tolist() for group in groups] == [[1, 5], [0, 2, 4]]  # the most similar pair first
    np.testing.assert_allclose(best[[0, 2, 4]], np.cos(np.radians(10)), atol=1e-6)
    np.testing.assert_allclose(best[[1, 5]], np.cos(np.radians(4)), atol=1e-6)
    assert best[3] == -np.inf


@pytest.mark.parametrize("count", [1, 7, 8, 9, 60])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 0.6, 0.9, 1.1])
def test_groups_equal_a_walk_over_all_pairs(tmp_path, monkeypatch, count, threshold):
    monkeypatch.setattr(duplicates, "_BLOCK", 8)
    monkeypatch.setattr(duplicates, "_PENDING", 5)
    values = l2_normalize(np.random.default_rng(count).standard_normal((count, 4)))
    groups, best = link_duplicates(write(tmp_path / "vectors", values), threshold)
    cosines = values @ values.T - 9 * np.eye(count, dtype=np.float32)
    expected, seen = set(), set()
    for start in range(count):
        reached, border = {start}, [start]
        while border:
            new = set(np.flatnonzero(cosines[border.pop()] >= threshold).tolist()) - reached
            reached |= new
            border += new
        if start not in seen and len(reached) > 1:
            expected.add(tuple(sorted(reached)))
        seen |= reached
    assert {tuple(group.tolist()) for group in groups} == expected
    nearest = cosines.max(1) if count > 1 else np.array([-9.0])
    np.testing.assert_allclose(best, np.where(nearest >= threshold, nearest, -np.inf), atol=1e-6)


def test_lowest_cosine_is_of_the_ends_of_a_chain(tmp_path, monkeypatch):
    """Steps of 10 degrees; the ends are 40 degrees apart. Blocks of two, so that pairs of blocks are compared."""
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    angles = np.radians([20, 0, 10, 200, 30, 40])
    vectors = write(tmp_path / "vectors", np.stack((np.cos(angles), np.sin(angles)), 1))
    assert lowest_cosine(vectors, np.array([0, 1, 2, 4, 5])) == pytest.approx(np.cos(np.radians(40)), abs=1e-6)
    assert is_chain(0.9, threshold=0.95)
    assert not is_chain(0.95 - 1e-7, threshold=0.95)  # float32 rounding


def test_only_the_given_rows_are_compared(tmp_path):
    """All six point in one direction, but 1 and 4 are left out."""
    vectors = write(tmp_path / "vectors", np.ones((6, 2)))
    groups, best = link_duplicates(vectors, 0.99, np.array([0, 2, 3, 5]))
    assert [group.tolist() for group in groups] == [[0, 2, 3, 5]]
    np.testing.assert_array_equal(np.isinf(best), [False, True, False, False, True, False])
