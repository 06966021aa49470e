"""How runs on several training subsets are averaged."""

from __future__ import annotations

import math

import pytest

from dinoeval.protocols._classification import average_runs, proportion_errors


def test_runs_on_subsets_are_averaged_with_both_errors():
    runs = [{"top1": 60.0}, {"top1": 64.0}]
    means, errors, deviations = average_runs(runs, proportion_errors(runs, 100))
    assert (means["top1"], deviations["top1"]) == (62.0, pytest.approx(math.sqrt(8)))
    assert errors["top1"] == pytest.approx(math.sqrt(0.62 * 0.38 / 100 * 100**2 + 8 / 2))


def test_one_run_has_the_error_of_a_proportion_only():
    runs = [{"top1": 50.0}]
    assert average_runs(runs, proportion_errors(runs, 100)) == ({"top1": 50.0}, {"top1": 5.0}, {})
