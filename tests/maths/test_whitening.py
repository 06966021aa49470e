from __future__ import annotations

import numpy as np
import pytest

from dinoeval.maths.whitening import learn_whitening


@pytest.fixture
def rows() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((400, 5)) @ random.standard_normal((5, 5)) + 3


def test_centred_whitening_makes_the_features_uncorrelated(rows):
    white = learn_whitening([rows[:150], rows[150:]], centred=True)(rows).astype(np.float64)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(white.T @ white / len(rows), np.eye(5), atol=1e-4)


def test_the_released_one_subtracts_the_mean_but_learns_from_features_as_they_are(rows):
    whitening = learn_whitening([rows])
    as_they_are = rows @ whitening.projection.T
    np.testing.assert_allclose(as_they_are.T @ as_they_are / len(rows), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(whitening(rows), as_they_are - as_they_are.mean(0), atol=1e-5)


def test_small_eigenvalues_are_raised_to_a_floor_and_the_largest_comes_first():
    rows = np.array([[100.0, 0, 0], [0, 1, 0], [0, 0, 0]])  # eigenvalues 10000/3, 1/3, 0; the floor is 0.1/3
    lengths = np.linalg.norm(learn_whitening([rows]).projection, axis=1)
    np.testing.assert_allclose(lengths, (np.array([10000, 1, 0.1]) / 3) ** -0.5)


def test_the_number_of_blocks_does_not_matter(rows):
    one, many = learn_whitening([rows]), learn_whitening(np.array_split(rows, 7))
    np.testing.assert_allclose(abs(one.projection), abs(many.projection), rtol=1e-9)
