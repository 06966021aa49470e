"""k-NN classification: scores, subsets, and what it rejects."""

from __future__ import annotations

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from paper_results import missing_facts

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.forward import Extractor
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.results import Result
from dinoeval.session import SessionConfig


def slow_knn(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Sum exp(cosine / 0.07) over the neighbors of each class, (Q, C)."""
    cosines = l2_normalize(queries).astype(np.float64) @ l2_normalize(train).astype(np.float64).T
    scores = np.zeros((len(queries), labels.max() + 1))
    for query, row in enumerate(cosines):
        for neighbor in np.argsort(-row, kind="stable")[:k]:
            scores[query, labels[neighbor]] += np.exp(row[neighbor] / 0.07)
    return scores


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def test_scores_equal_the_formula_on_the_same_features(backbone, tmp_path):
    folder = class_folders(tmp_path, classes=7, train=9, val=4)
    result = dinoeval.evaluate("knn", backbone, data=str(folder), k=(1, 3, 10, 40))
    train, val = (dinoeval.embed(backbone, folder / split) for split in ("train", "val"))
    labels = np.array(result.samples["label"])
    for k in (1, 3, 10, 40):
        scores = slow_knn(train, np.repeat(np.arange(7), 9), val, k)
        ranked = np.argsort(-scores, axis=1, kind="stable")
        voted = np.take_along_axis(scores, ranked, 1) > 0
        assert result.samples[f"prediction@{k}"] == ranked[:, 0].tolist()
        assert result.metrics[f"top1@{k}"] == pytest.approx(100 * np.mean(ranked[:, 0] == labels))
        top5 = ((ranked[:, :5] == labels[:, None]) & voted[:, :5]).any(1)
        assert result.metrics[f"top5@{k}"] == pytest.approx(100 * top5.mean())
        assert result.samples[f"top5@{k}"] == top5.astype(int).tolist()
        accuracy = top5.mean()
        assert result.standard_errors[f"top5@{k}"] == pytest.approx(100 * np.sqrt(accuracy * (1 - accuracy) / 28))


def test_other_options_run_no_forward_pass(backbone, image_folder, monkeypatch):
    dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(3,))
    monkeypatch.setattr(Extractor, "compute", None)  # a call would fail
    again = dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(5, 7), temperature=0.1)
    assert set(again.metrics) == {"top1@5", "top5@5", "top1@7", "top5@7"}


def test_k_is_cut_to_two_training_images(backbone, tmp_path):
    folder = class_folders(tmp_path, classes=2, train=1, val=1)
    result = dinoeval.evaluate("knn", backbone, data=str(folder))
    assert result.metrics == {"top1@2": 100.0, "top5@2": 100.0}
    (note,) = result.notes
    assert "10, 20, 100, 200" in note
    assert "2 training images" in note


def test_run_rejects_a_single_class(backbone, tmp_path):
    with pytest.raises(DataError, match=r"\b2\b.*\bclass0\b"):
        dinoeval.evaluate("knn", backbone, data=str(class_folders(tmp_path, classes=1)))


def test_k_is_cut_to_the_training_subset(backbone, image_folder):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="50pct", subset_seeds=1)
    assert (result.data["train"]["images"], result.config["k"]) == (12, [10])
    assert result.samples["top1@10"]  # A single run keeps its outcomes.
    assert result.deviations == {}
    with pytest.raises(ConfigError, match=r"--k 13 .*\b12\b"):
        dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="50pct", k=(13,))


def test_subset_features_are_reused_or_taken_from_the_whole(backbone, image_folder, monkeypatch):
    first = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="20pct", k=(2,))
    # Three subsets of floor(24 / 5) training images, and the 9 images of val.
    assert {getattr(entry, "num_rows", None) for _, entry in FeatureCache().entries()} == {4, 9}
    dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(2,))
    assert 24 in {getattr(entry, "num_rows", None) for _, entry in FeatureCache().entries()}
    monkeypatch.setattr(Extractor, "compute", None)  # a call would fail
    other = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="30pct", k=(2,))
    again = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="20pct", k=(2,))
    assert again.metrics == first.metrics
    assert other.data["train"]["images"] == 7


def test_pretraining_rejects_knn_eval_on_multilabel_data(tmp_path, capsys):
    for number, image in enumerate(synthetic_images(4)):
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text("path,labels,split\n0.png,a;b,train\n1.png,,train\n2.png,a,val\n3.png,b,val\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", str(tmp_path / "t.csv"), "--arch", "vit_xs4_16", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "--knn-every 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_default_ks_are_cut_and_passed_ks_are_rejected(backbone, image_folder):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder))
    assert [name for name in result.metrics if name.startswith("top1")] == ["top1@10", "top1@20"]
    (note,) = result.notes
    assert "100, 200" in note
    assert "24 training images" in note
    with pytest.raises(ConfigError, match=r"--k 25 .*\b24\b"):
        dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(5, 24, 25))


def test_subsets_as_large_as_the_whole_use_its_features(backbone, image_folder):
    """Two halves of 24 training images: the whole split is extracted once."""
    dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="50pct", subset_seeds=2, k=(2,))
    assert {getattr(entry, "num_rows", None) for _, entry in FeatureCache().entries()} == {24, 9}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"k": ()}, "--k .* none"),
        ({"k": (0,)}, "--k .* 0$"),
        ({"temperature": 0.0}, r"--temperature .* 0\.0"),
        ({"temperature": float("inf")}, "--temperature .* inf"),
        ({"train_subset": "50pct", "subset_seeds": 0}, "--subset-seeds .* 0"),
    ],
)
def test_run_rejects_invalid_options(backbone, image_folder, options, named):
    with pytest.raises(ConfigError, match=named):
        dinoeval.evaluate("knn", backbone, data=str(image_folder), **options)


def test_skipped_images_are_recorded_and_not_counted(backbone, tmp_path):
    folder = class_folders(tmp_path)
    (folder / "val/class0/1.png").write_text("text")
    (folder / "train/class1/0.png").write_text("text")
    result = dinoeval.evaluate("knn", backbone, session=SessionConfig(bad_images="skip"), data=str(folder), k=(5,))
    assert len(result.samples["label"]) == 8
    assert (result.data["train"]["images"], result.data["val"]["bad_images"]) == (23, ["class0/1.png"])
    (folder / "val/class0/1.png").unlink()
    (folder / "train/class1/0.png").unlink()
    without = dinoeval.evaluate("knn", backbone, data=str(folder), k=(5,))
    assert without.samples == result.samples


def test_result_holds_every_fact_that_rows_require(backbone, image_folder):
    assert missing_facts(dinoeval.evaluate("knn", backbone, data=str(image_folder))) == set()


def test_result_is_equal_after_saving_and_loading(backbone, image_folder, tmp_path):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder))
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    assert result.backbone["digest"] == backbone.digest
    assert result.transform == "dino@1:16/16"
