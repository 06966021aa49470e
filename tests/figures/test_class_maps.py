"""t-SNE of equal points, and its number of iterations."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import TSNE

import dinoeval
from dinoeval.errors import DataError
from dinoeval.figures import TsneConfig


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((6, 8), np.float32), "1 of 6 points differ"),
        (np.float32(3) + np.random.default_rng(0).uniform(0, 1e-6, (6, 8)).astype(np.float32), "1 of 6 points differ"),
        (np.zeros((6, 8), np.float32), "1 of 6 points differ"),
        (np.arange(6, dtype=np.float32)[:, None], "in 1 dimension"),
    ],
)
def test_tsne_rejects_points_that_do_not_differ(features, message):
    with pytest.raises(DataError, match=message):
        dinoeval.figures.tsne(features, list("abcdef"))


def test_tsne_runs_all_iterations(monkeypatch):
    """scikit-learn stops after a few hundred by default."""
    iterations = []
    fit_transform = TSNE.fit_transform

    def watched(machine, *args):
        points = fit_transform(machine, *args)
        iterations.append(machine.n_iter_)
        return points

    monkeypatch.setattr(TSNE, "fit_transform", watched)
    dinoeval.figures.tsne(np.random.default_rng(0).standard_normal((10, 5)), list("abcdefghij"), TsneConfig(iterations=2000))
    assert iterations == [1999]  # Counted from 0.
