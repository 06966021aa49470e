"""Parts that the classification protocols share: averages over training subsets, and the default dataset."""

from __future__ import annotations

import math

import pytest

from dinoeval.protocols._classification import average_runs, dataset_notes, proportion_errors, resolve_dataset


def test_average_runs_combines_errors_of_images_and_subsets():
    runs = [{"top1": 60.0}, {"top1": 64.0}]
    means, errors, deviations = average_runs(runs, proportion_errors(runs, 100))
    assert (means["top1"], deviations["top1"]) == (62.0, pytest.approx(math.sqrt(8)))
    assert errors["top1"] == pytest.approx(math.sqrt(0.62 * 0.38 / 100 * 100**2 + 8 / 2))


def test_average_runs_of_one_run_keeps_its_own_error():
    runs = [{"top1": 50.0}]
    assert average_runs(runs, proportion_errors(runs, 100)) == ({"top1": 50.0}, {"top1": 5.0}, {})


def test_resolve_dataset_prefers_imagenet_and_notes_the_digits(monkeypatch, tmp_path):
    assert (resolve_dataset("some"), dataset_notes("some", "vit_s8")) == ("some", [])
    assert dataset_notes("digits", "vit_s8")
    assert resolve_dataset(None) == "digits"
    (note,) = dataset_notes(None, "vit_s8")
    assert "$DINOEVAL_DATA/imagenet" in note
    assert "vit_s8" in note
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    assert resolve_dataset(None) == "digits"
    (tmp_path / "imagenet/train").mkdir(parents=True)
    assert (resolve_dataset(None), dataset_notes(None, "vit_s8")) == ("imagenet", [])
