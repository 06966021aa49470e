from __future__ import annotations

import numpy as np
import pytest
from factories import class_folders, synthetic_images
from paper_results import missing_facts

import dinoeval
from dinoeval.cli import main
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.protocols import knn
from dinoeval.results import Result
from dinoeval.session import SessionConfig


def slow_knn(train: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """The paper's formula in twenty lines of NumPy, (Q, classes) sums of exp(cosine / 0.07)."""
    cosines = l2_normalize(queries).astype(np.float64) @ l2_normalize(train).astype(np.float64).T
    scores = np.zeros((len(queries), labels.max() + 1))
    for query, row in enumerate(cosines):
        for neighbour in np.argsort(-row, kind="stable")[:k]:
            scores[query, labels[neighbour]] += np.exp(row[neighbour] / 0.07)
    return scores


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def test_scores_equal_the_formula_on_the_same_features(backbone, tmp_path):
    folder = class_folders(tmp_path, classes=7, train=9, val=4)
    result = dinoeval.evaluate("knn", backbone, data=str(folder), k=(1, 3, 10, 40))
    train, val = (dinoeval.embed(backbone, folder / split) for split in ("train", "val"))
    truth = np.array(result.samples["label"])
    for k in (1, 3, 10, 40):
        scores = slow_knn(train, np.repeat(np.arange(7), 9), val, k)
        ranked = np.argsort(-scores, axis=1, kind="stable")
        voted = np.take_along_axis(scores, ranked, 1) > 0
        assert result.samples[f"prediction@{k}"] == ranked[:, 0].tolist()
        assert result.metrics[f"top1@{k}"] == pytest.approx(100 * np.mean(ranked[:, 0] == truth))
        top5 = ((ranked[:, :5] == truth[:, None]) & voted[:, :5]).any(1)
        assert result.metrics[f"top5@{k}"] == pytest.approx(100 * top5.mean())
        assert result.samples[f"top5@{k}"] == top5.astype(int).tolist()
        share = top5.mean()
        assert result.standard_errors[f"top5@{k}"] == pytest.approx(100 * np.sqrt(share * (1 - share) / 28))


def test_another_k_runs_no_forward_pass(backbone, image_folder, monkeypatch):
    dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(3,))
    monkeypatch.setattr(backbone.network, "forward", None)  # a call would fail
    again = dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(5, 7), temperature=0.1)
    assert set(again.metrics) == {"top1@5", "top5@5", "top1@7", "top5@7"}


def test_one_query_and_one_bank_row_a_class(backbone, tmp_path):
    folder = class_folders(tmp_path, classes=2, train=1, val=1)
    result = dinoeval.evaluate("knn", backbone, data=str(folder))
    assert result.metrics == {"top1@2": 100.0, "top5@2": 100.0}
    assert result.notes == ["k = 10, 20, 100, 200 left out: there are only 2 training images"]


def test_one_class_alone_is_no_question(backbone, tmp_path):
    with pytest.raises(DataError, match="at least 2 needed, found class0"):
        dinoeval.evaluate("knn", backbone, data=str(class_folders(tmp_path, classes=1)))


def test_k_has_to_fit_the_part_that_is_searched(backbone, image_folder):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="50pct", subset_seeds=1)
    assert (result.data["train"]["images"], result.config["k"]) == (12, [10])
    assert result.samples["top1@10"]  # one run: its outcomes are there
    assert result.deviations == {}
    with pytest.raises(ConfigError, match="--k 13 exceeds the 12"):
        dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="50pct", k=(13,))


def test_parts_are_made_alone_and_taken_from_the_whole_where_that_is_there(backbone, image_folder, monkeypatch):
    made = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="20pct", k=(2,))
    assert {getattr(entry, "num_rows", None) for _, entry in FeatureCache().entries()} == {
        4,
        9,
    }  # floor(24 / 5) of train three times, and val
    dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(2,))
    assert 24 in {getattr(entry, "num_rows", None) for _, entry in FeatureCache().entries()}
    monkeypatch.setattr(backbone.network, "forward", None)  # a call would fail
    other = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="30pct", k=(2,))
    again = dinoeval.evaluate("knn", backbone, data=str(image_folder), train_subset="20pct", k=(2,))
    assert again.metrics == made.metrics
    assert other.data["train"]["images"] == 7


def test_training_on_several_labels_an_image_wants_no_knn_score(tmp_path, capsys):
    for number, picture in enumerate(synthetic_images(4)):
        picture.save(tmp_path / f"{number}.png")
    (tmp_path / "t.csv").write_text("path,labels,split\n0.png,a;b,train\n1.png,,train\n2.png,a,val\n3.png,b,val\n")
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--data", str(tmp_path / "t.csv"), "--arch", "vit_xs4_16", "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert "--knn-every 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_default_list_is_cut_and_a_k_that_was_asked_for_is_not(backbone, image_folder):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder))
    assert [name for name in result.metrics if name.startswith("top1")] == ["top1@10", "top1@20"]
    assert result.notes == ["k = 100, 200 left out: there are only 24 training images"]
    with pytest.raises(ConfigError, match="--k 25 exceeds the 24"):
        dinoeval.evaluate("knn", backbone, data=str(image_folder), k=(5, 25))
    for wrong in ({"k": ()}, {"k": (0,)}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            dinoeval.evaluate("knn", backbone, data=str(image_folder), **wrong)


def test_skipped_images_change_the_denominator_and_are_recorded(backbone, tmp_path):
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


def test_without_data_imagenet_is_looked_for_and_else_the_digits_taken_with_a_line_that_says_so(monkeypatch, tmp_path):
    assert knn.resolve_dataset("some", "vit_s8") == ("some", [])
    data, notes = knn.resolve_dataset(None, "vit_s8")
    assert data == "digits"
    assert "$DINOEVAL_DATA/imagenet was not found" in notes[0]
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    (tmp_path / "imagenet/train").mkdir(parents=True)
    assert knn.resolve_dataset(None, "vit_s8") == ("imagenet", [])


def test_a_result_survives_the_disk(backbone, image_folder, tmp_path):
    result = dinoeval.evaluate("knn", backbone, data=str(image_folder))
    result.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == result
    assert result.backbone["digest"] == backbone.digest
    assert result.transform == "dino@1:16/16"
