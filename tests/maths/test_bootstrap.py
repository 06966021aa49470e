from __future__ import annotations

import numpy as np
import pytest

from dinoeval.maths.bootstrap import bootstrap_mean


def test_the_error_is_that_of_a_mean():
    values = np.random.default_rng(0).uniform(0, 100, 70)
    spread = bootstrap_mean(values)
    assert spread.mean == pytest.approx(values.mean())
    assert spread.error == pytest.approx(values.std() / np.sqrt(70), rel=0.03)
    assert spread.high - spread.low == pytest.approx(2 * 1.96 * spread.error, rel=0.05)
    assert spread.low < spread.mean < spread.high


def test_draws_repeat_and_one_value_has_no_spread():
    values = np.arange(10.0)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)
    one = bootstrap_mean(np.array([40.0]))
    assert (one.mean, one.error, one.low, one.high) == (40, None, 40, 40)


def test_the_size_of_the_table_does_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(1).uniform(0, 1, 50)
    whole = bootstrap_mean(values, draws=500)
    monkeypatch.setattr("dinoeval.maths.bootstrap._TABLE", 50 * 7)
    assert bootstrap_mean(values, draws=500) == whole
