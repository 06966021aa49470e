from __future__ import annotations

import numpy as np
import pytest

from dinoeval.maths.bootstrap import bootstrap_mean


def test_bootstrap_error_is_standard_error_of_the_mean():
    values = np.random.default_rng(0).uniform(0, 100, 70)
    estimate = bootstrap_mean(values)
    assert estimate.mean == pytest.approx(values.mean())
    assert estimate.error == pytest.approx(values.std() / np.sqrt(70), rel=0.03)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * estimate.error, rel=0.05)
    assert estimate.low < estimate.mean < estimate.high


def test_bootstrap_is_reproducible_by_seed():
    values = np.arange(10.0)
    assert bootstrap_mean(values) == bootstrap_mean(values)
    assert bootstrap_mean(values) != bootstrap_mean(values, seed=1)


def test_bootstrap_of_single_value_has_no_error():
    one = bootstrap_mean(np.array([40.0]))
    assert (one.mean, one.error, one.low, one.high) == (40, None, 40, 40)


def test_bootstrap_draws_do_not_depend_on_block_size(monkeypatch):
    values = np.random.default_rng(1).uniform(0, 1, 50)
    whole = bootstrap_mean(values, draws=500)
    monkeypatch.setattr("dinoeval.maths.bootstrap._TABLE_COUNTS", 50 * 7)
    assert bootstrap_mean(values, draws=500) == whole
