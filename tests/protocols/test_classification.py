"""Parts that the classification protocols share: averages over training subsets, and the default dataset."""

from __future__ import annotations

import math
import shutil

import numpy as np
import pytest
from factories import class_folders

import dinoeval
from dinoeval.protocols._classification import average_runs, dataset_notes, proportion_errors, resolve_dataset, score_predictions
from dinoeval.reports.table import format_result
from dinoeval.session import SessionConfig
from dinoeval.testing import tiny_backbone


def test_average_runs_combines_errors_of_images_and_subsets():
    runs = [{"top1": 60.0}, {"top1": 64.0}]
    means, errors, deviations = average_runs(runs, proportion_errors(runs, 100))
    assert (means["top1"], deviations["top1"]) == (62.0, pytest.approx(math.sqrt(8)))
    assert errors["top1"] == pytest.approx(math.sqrt(0.62 * 0.38 / 100 * 100**2 + 8 / 2))


def test_average_runs_of_one_run_keeps_its_own_error():
    runs = [{"top1": 50.0}]
    assert average_runs(runs, proportion_errors(runs, 100)) == ({"top1": 50.0}, {"top1": 5.0}, {})


def test_top5_does_not_count_the_sixth_class():
    scores = score_predictions(np.array([[9, 1, 2, 3, 4, 5], [0, 1, 2, 3, 5, 4]]), np.array([5, 5]))
    assert scores.metrics == {"top1": 0.0, "top5": 50.0}


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


def test_result_counts_and_names_what_was_left_out(tmp_path):
    """Every classification protocol counts the same images in the same way."""
    root = class_folders(tmp_path / "images")
    (root / "train/class0/notes.txt").write_text("text")
    (root / "train/class0/0.png").write_text("no image")
    (root / "val/class1/lost.png").symlink_to("nowhere")
    shutil.copy(root / "train/class2/1.png", root / "val/class2/0.png")
    backbone = tiny_backbone()
    session = SessionConfig(cache=str(tmp_path / "cache"), bad_images="skip", workers=0)
    for protocol, options in (("knn", {"k": (3,)}), ("logistic", {"solver": "sklearn"}), ("linear", {"epochs": 1, "lrs": (0.1,)})):
        result = dinoeval.evaluate(protocol, backbone, session=session, data=str(root), **options)
        train, val = result.data["train"], result.data["val"]
        assert (train["images"], train["bad_images"], train["skipped_files"]) == (23, ["class0/0.png"], {".txt": 1}), protocol
        assert (val["images"], val["bad_images"], val["skipped_files"]) == (9, ["class1/lost.png"], {}), protocol
        assert len(result.samples["path"]) == 9
        assert any("1 of 10 images of val are also in train" in note for note in result.notes)
        text = format_result(result)
        assert "other files left out of train: 1 .txt" in text
        assert "left out of val because they cannot be read: 1 images" in text
