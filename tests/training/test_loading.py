"""Seeded draws, unreadable images, and checks of option values."""

from __future__ import annotations

import random
import types

import numpy as np
import pytest
import torch

from dinoeval.data.dataset import Unreadable
from dinoeval.errors import ConfigError, DataError
from dinoeval.training.checks import check_fields, is_area_range
from dinoeval.training.loading import derive_seed, find_error, raise_error, seeded


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def test_seeds_of_different_numbers_differ():
    seeds = {derive_seed(*numbers) for numbers in [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 1, 2), (0, 1, 3), (0, 1, 2, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(3, 4) == int(np.random.SeedSequence((3, 4)).generate_state(1)[0])


def test_seeded_draws_depend_on_the_seed_only():
    found = {}
    for seed in (1, 2, 1):
        draw()
        with seeded(seed):
            found.setdefault(seed, []).append(draw())
    assert found[1][0] == found[1][1]
    assert not set(found[1][0]) & set(found[2][0])


def test_seeded_restores_the_generators():
    def seed_all() -> None:
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)

    seed_all()
    expected = draw()
    seed_all()
    with seeded(1):
        draw()
    assert draw() == expected


def test_find_error_names_each_unreadable_image_once():
    bad = [Unreadable(4, "b.png", "truncated"), "image", Unreadable(1, "a.png", "empty"), Unreadable(4, "b.png", "truncated")]
    error = find_error(bad)
    assert isinstance(error, DataError)
    assert "a.png (empty), b.png (truncated)" in str(error)
    assert find_error(["image"]) is None


def test_find_error_returns_errors_of_the_disk():
    error = DataError("disk")
    assert find_error(["image", Unreadable(1, "a.png", "empty"), error]) is error


def test_raise_error_raises_only_errors():
    assert raise_error([1]) == [1]
    with pytest.raises(DataError, match="disk"):
        raise_error(DataError("disk"))


def test_check_names_option_value_and_range():
    options = types.SimpleNamespace(min_lr=-1.0, crop_scale=(0.4, 0.05))
    with pytest.raises(ConfigError, match=r"--min-lr .*at least 0.* -1\.0"):
        check_fields(options, ["min_lr"], lambda value: value >= 0, "at least 0")
    with pytest.raises(ConfigError, match=r"--crop-scale .*fractions.* 0\.4 0\.05"):
        check_fields(options, ["crop_scale"], is_area_range, "two area fractions")
    check_fields(options, ["min_lr"], lambda value: value < 0, "negative")


@pytest.mark.parametrize(
    ("pair", "valid"), [((0.1, 0.5), True), ((1.0, 1.0), True), ((0.0, 0.5), False), ((0.5, 0.1), False), ((0.5, 1.1), False)]
)
def test_area_range_bounds(pair, valid):
    assert is_area_range(pair) == valid
