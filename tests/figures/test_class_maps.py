"""Maps of classes that have little to show, and how long t-SNE works."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.manifold import TSNE

import dinoeval
from dinoeval.errors import DataError


@pytest.mark.parametrize(("rows", "says"), [
    (np.ones((6, 8), np.float32), "1 of 6 points differ"),
    (np.float32(3) + np.random.default_rng(0).uniform(0, 1e-6, (6, 8)).astype(np.float32), "1 of 6 points differ"),
    (np.zeros((6, 8), np.float32), "1 of 6 points differ"),
    (np.arange(6, dtype=np.float32)[:, None], "in 1 dims"),
])  # fmt: skip
def test_points_that_are_the_same_are_no_map(rows, says):
    with pytest.raises(DataError, match=says):
        dinoeval.figures.tsne(rows, list("abcdef"))


def test_all_the_steps_that_are_asked_for_are_taken(monkeypatch):
    """scikit-learn would stop after some hundred."""
    taken = []
    whole = TSNE.fit_transform

    def watched(machine, *args):
        points = whole(machine, *args)
        taken.append(machine.n_iter_)
        return points

    monkeypatch.setattr(TSNE, "fit_transform", watched)
    dinoeval.figures.tsne(np.random.default_rng(0).standard_normal((10, 5)), list("abcdefghij"), steps=2000)
    assert taken == [1999]  # counted from 0
