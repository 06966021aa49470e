from __future__ import annotations

import numpy as np
import pytest

from dinoeval.maths.whitening import learn_whitening


@pytest.fixture
def features() -> np.ndarray:
    random = np.random.default_rng(0)
    return random.standard_normal((400, 5)) @ random.standard_normal((5, 5)) + 3


def test_centered_whitening_decorrelates_features(features):
    white = learn_whitening([features[:150], features[150:]], center=True)(features).astype(np.float64)
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(white.T @ white / len(features), np.eye(5), atol=1e-4)


def test_released_whitening_uses_uncentered_covariance(features):
    whitening = learn_whitening([features])
    uncentered = features @ whitening.projection.T
    np.testing.assert_allclose(uncentered.T @ uncentered / len(features), np.eye(5), atol=1e-9)
    np.testing.assert_allclose(whitening(features), uncentered - uncentered.mean(0), atol=1e-5)


def test_whitening_floors_small_eigenvalues_largest_first():
    features = np.array([[100.0, 0, 0], [0, 1, 0], [0, 0, 0]])  # eigenvalues 10000/3, 1/3, 0; the floor is 0.1/3
    lengths = np.linalg.norm(learn_whitening([features]).projection, axis=1)
    np.testing.assert_allclose(lengths, (np.array([10000, 1, 0.1]) / 3) ** -0.5)


def test_whitening_does_not_depend_on_block_size(features):
    one, many = learn_whitening([features]), learn_whitening(np.array_split(features, 7))
    np.testing.assert_allclose(abs(one.projection), abs(many.projection), rtol=1e-9)
