"""Logistic regression: scores, subsets, several lambdas, and what it rejects."""

from __future__ import annotations

import dataclasses
import importlib.util
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_factories import tinted_image, voc07_tree
from factories import class_folders
from paper_results import missing_facts, scored_as
from scipy.optimize import minimize
from scipy.special import logsumexp
from sklearn.metrics import average_precision_score

import dinoeval
from dinoeval.cli import main
from dinoeval.data.opening import open_splits
from dinoeval.data.subsets import hold_out, subset_rows
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.forward import Extractor
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.paper.comparable import comparable
from dinoeval.results import Result
from dinoeval.session import SessionConfig
from dinoeval.verdicts import compare_results

HAS_CYANURE = importlib.util.find_spec("cyanure") is not None  # It has no wheels for Python 3.13.
SOLVER = "cyanure" if HAS_CYANURE else "sklearn"


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def score(backbone, data: Path, **options) -> Result:
    return dinoeval.evaluate("logistic", backbone, data=str(data), **{"solver": SOLVER, **options})


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory) -> Path:
    """Four classes of 30 training and 12 validation images. Some images are in a wrong folder, so that scores are below 100."""
    root = tmp_path_factory.mktemp("overlapping")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 12)):
        for label in range(4):
            for number in range(count):
                tint = label if random.random() < 0.7 else random.integers(4)
                tinted_image(root / f"{split}/class{label}/{split}{label}_{number:02}.png", int(tint), seed=int(random.integers(10_000)))
    return root


def slow_weights(features: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """Minimize the objective of issue 121 with a general solver, (D, C)."""
    vectors, one_hot = l2_normalize(features).astype(np.float64), np.eye(labels.max() + 1)[labels]
    shape = vectors.shape[1], one_hot.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        scores = vectors @ weights
        sums = logsumexp(scores, axis=1, keepdims=True)
        gradient = vectors.T @ (np.exp(scores - sums) - one_hot) / len(vectors) + strength / len(vectors) * weights
        value = (sums[:, 0] - (scores * one_hot).sum(1)).mean() + strength / len(vectors) / 2 * (weights**2).sum()
        return float(value), gradient.ravel()

    start = np.zeros(shape[0] * shape[1])
    return minimize(objective, start, jac=True, method="L-BFGS-B", tol=1e-12, options={"maxiter": 5000}).x.reshape(shape)


@pytest.mark.parametrize(
    "solver", ["sklearn", pytest.param("cyanure", marks=pytest.mark.skipif(not HAS_CYANURE, reason="cyanure is not installed"))]
)
def test_scores_equal_the_formula_on_the_same_features(backbone, overlapping, solver):
    result = score(backbone, overlapping, solver=solver, tolerance=1e-8)
    train, val = (dinoeval.embed(backbone, overlapping / split) for split in ("train", "val"))
    scores = l2_normalize(val).astype(float) @ slow_weights(train, np.repeat(np.arange(4), 30), 0.1)
    labels = np.repeat(np.arange(4), 12)
    assert result.samples["label"] == labels.tolist()
    assert result.samples["prediction"] == scores.argmax(1).tolist()
    top1 = (scores.argmax(1) == labels).mean()
    assert 0.3 < top1 < 0.95
    assert result.metrics == {"top1": pytest.approx(100 * top1), "top5": 100.0}
    assert result.standard_errors["top1"] == pytest.approx(100 * np.sqrt(top1 * (1 - top1) / 48))
    assert result.samples["top1"] == (scores.argmax(1) == labels).astype(int).tolist()
    assert (result.deviations, result.table, result.notes) == ({}, [], [])


def test_features_are_shared_with_knn(backbone, overlapping, monkeypatch):
    dinoeval.evaluate("knn", backbone, data=str(overlapping), k=(3,))
    monkeypatch.setattr(Extractor, "compute", None)  # A call would fail.
    score(backbone, overlapping)
    score(backbone, overlapping, train_subset="20pct")


@pytest.mark.parametrize("protocol", ["logistic", "knn"])
def test_percentage_subset_averages_its_seeds(backbone, overlapping, tmp_path, protocol):
    """A list of the names of one seed's subset gives the score of that seed."""
    options = {"k": (5, 9)} if protocol == "knn" else {"solver": SOLVER}
    images, _ = open_splits(str(overlapping))
    singles = []
    for seed in range(3):
        (tmp_path / "list.txt").write_text("".join(f"{images.paths[row]}\n" for row in subset_rows(images, "25pct", seed)))
        singles.append(dinoeval.evaluate(protocol, backbone, data=str(overlapping), train_subset=str(tmp_path / "list.txt"), **options))
    result = dinoeval.evaluate(protocol, backbone, data=str(overlapping), train_subset="25pct", **options)
    assert result.data["train"]["images"] == singles[0].data["train"]["images"] == 30
    assert result.data["train"]["fingerprint"] == singles[0].data["train"]["fingerprint"]
    for metric, value in result.metrics.items():
        runs = [one.metrics[metric] for one in singles]
        assert value == pytest.approx(statistics.fmean(runs))
        assert result.deviations[metric] == pytest.approx(statistics.stdev(runs))
        own = statistics.fmean(one.standard_errors[metric] for one in singles)
        assert result.standard_errors[metric] == pytest.approx(np.hypot(own, statistics.stdev(runs) / np.sqrt(3)))
        assert [row[metric] for row in result.table] == pytest.approx(runs)
    assert any(result.deviations.values())
    assert set(result.samples) == {"path", "label"}
    assert set(singles[0].samples) > {"path", "label"}
    assert (result.config["train_subset"], result.config["subset_seeds"]) == ("25pct", 3)
    assert (singles[0].config["train_subset"], singles[0].config["subset_seeds"]) == ("list.txt", None)
    for fact in ("30 of 120 images", "25pct", "seeds 0 to 2"):
        assert fact in result.notes[0]
    (verdict, *_), reason = compare_results(result, result)
    assert (reason, verdict.method.split(":")[0]) == (None, "unpaired")
    assert compare_results(result, singles[0])[1] is not None


def test_best_lambda_on_held_out_images_is_fitted_again(backbone, overlapping):
    result = score(backbone, overlapping, lambdas=(1000.0, 0.001, 0.1), tolerance=1e-6)
    features, labels = dinoeval.embed(backbone, overlapping / "train"), np.repeat(np.arange(4), 30)
    kept, held = hold_out(labels, 0.1, 0)
    held_out = []
    for strength in (1000.0, 0.001, 0.1):
        weights = slow_weights(features[kept], labels[kept], strength)
        held_out.append(100 * float(((l2_normalize(features[held]) @ weights).argmax(1) == labels[held]).mean()))
    assert [(row["lambda"], row["held_out"]) for row in result.table] == list(zip((1000.0, 0.001, 0.1), held_out, strict=True))
    assert max(held_out) > held_out[0]
    best = (1000.0, 0.001, 0.1)[int(np.argmax(held_out))]
    assert [row["lambda"] for row in result.table if row["chosen"]] == [best]
    again = score(backbone, overlapping, lambdas=(best,), tolerance=1e-6)
    assert (again.samples, again.table) == (result.samples, [])
    tied = score(backbone, overlapping, lambdas=(1000.0, 0.01, 0.1)).table
    assert len({row["held_out"] for row in tied}) == 1
    assert [row["chosen"] for row in tied] == [True, False, False]


@pytest.fixture
def voc07(tmp_path, monkeypatch):
    """VOC 2007 with 40 training and 24 test images: the published marks by split, 1, -1 and 0 for difficult."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    return voc07_tree(tmp_path / "voc07", trainval=40, test=24)


def slow_precision(scores: np.ndarray, marks: np.ndarray) -> float:
    """Mean average precision of scores (Q, C), in percent; images with the mark 0 are left out."""
    precisions = []
    for column in range(20):
        known = marks[:, column] != 0
        precisions.append(average_precision_score(marks[known, column] == 1, scores[known, column]))
    return 100 * float(np.mean(precisions))


def test_multilabel_scores_equal_one_vs_rest_fits(backbone, voc07):
    result = score(backbone, Path("voc07"), tolerance=1e-8)
    train, val = (l2_normalize(dinoeval.embed(backbone, [Path(path) for path in paths])).astype(float) for paths in voc_files(voc07))
    scores = np.zeros((24, 20))
    for column in range(20):
        known = voc07["trainval"][:, column] != 0
        # A logistic loss equals a softmax of two columns, of which each has half the penalty.
        weights = slow_weights(train[known], (voc07["trainval"][known, column] == 1).astype(int), 0.2)
        scores[:, column] = val @ (weights[:, 1] - weights[:, 0])
    assert result.metrics["mAP"] == pytest.approx(slow_precision(scores, voc07["test"]), abs=0.5)  # Almost equal scores may swap.
    assert set(result.metrics) == set(result.standard_errors) == {"mAP", "mAP_11point"}
    assert 0 < result.standard_errors["mAP"] < 20
    assert [row["images"] for row in result.table] == (voc07["test"] == 1).sum(0).tolist()
    assert np.mean([row["AP"] for row in result.table]) == pytest.approx(result.metrics["mAP"])
    assert result.samples["label"] == [np.flatnonzero(row == 1).tolist() for row in voc07["test"]]


def voc_files(marks: dict[str, np.ndarray]) -> list[list[str]]:
    train, val = open_splits("voc07")
    return [[str(split.reader.paths[row]) for row in range(len(split))] for split in (train, val)]


def test_multilabel_knn_scores_are_fractions_of_the_weight(backbone, voc07):
    result = dinoeval.evaluate("knn", backbone, data="voc07", k=(3, 10))
    train, val = (l2_normalize(dinoeval.embed(backbone, [Path(path) for path in paths])).astype(float) for paths in voc_files(voc07))
    for k in (3, 10):
        scores = np.zeros((24, 20))
        for query, cosines in enumerate(val @ train.T):
            for column in range(20):
                votes = [(np.exp(cosines[row] / 0.07), voc07["trainval"][row, column]) for row in np.argsort(-cosines, kind="stable")[:k]]
                known = sum(weight for weight, mark in votes if mark != 0)
                scores[query, column] = sum(weight for weight, mark in votes if mark == 1) / known if known else 0
        assert result.metrics[f"mAP@{k}"] == pytest.approx(slow_precision(scores.round(9), voc07["test"]), abs=0.3)
    assert set(result.metrics) == {f"{metric}@{k}" for metric in ("mAP", "mAP_11point") for k in (3, 10)}


def test_classes_missing_in_the_subset_are_named(backbone, overlapping, voc07, tmp_path):
    images, _ = open_splits(str(overlapping))
    (tmp_path / "two.txt").write_text("".join(f"{path}\n" for path in images.paths if "class1" in path or "class3" in path))
    result = score(backbone, overlapping, train_subset=str(tmp_path / "two.txt"))
    assert set(result.samples["prediction"]) == {1, 3}
    assert result.metrics["top5"] == 50
    assert any("2 classes" in note and "class0, class2" in note for note in result.notes)
    (tmp_path / "one.txt").write_text(images.paths[0] + "\n")
    with pytest.raises(DataError, match=r"\b2\b.*\bclass0\b"):
        score(backbone, overlapping, train_subset=str(tmp_path / "one.txt"))
    few = score(backbone, Path("voc07"), train_subset="10pct", subset_seeds=2)
    assert any("learned" in note for note in few.notes)
    single = tmp_path / "single.txt"
    single.write_text("000001.jpg\n")
    with pytest.raises(DataError, match="1 training images"):
        score(backbone, Path("voc07"), train_subset=str(single))


def test_unconverged_fit_is_noted(backbone, overlapping):
    result = score(backbone, overlapping, max_iter=1)
    assert "1 iterations" in result.notes[0]
    assert "--max-iter" in result.notes[0]
    assert result.details["duality_gap"] > 1e-3


def test_skipped_images_are_not_counted(backbone, tmp_path):
    folder = class_folders(tmp_path)
    (folder / "val/class0/1.png").write_text("text")
    (folder / "train/class1/0.png").write_text("text")
    result = score(backbone, folder, session=SessionConfig(bad_images="skip"))
    assert (result.data["train"]["images"], len(result.samples["label"])) == (23, 8)
    (folder / "val/class0/1.png").unlink()
    (folder / "train/class1/0.png").unlink()
    assert score(backbone, folder).samples == result.samples


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"lambdas": ()}, "--lambdas .* none"),
        ({"lambdas": (0.0,)}, r"--lambdas .*0\.0"),
        ({"lambdas": (np.inf,)}, "--lambdas .*inf"),
        ({"tolerance": 0.0}, r"--tolerance .* 0\.0"),
        ({"tolerance": 1.0}, r"--tolerance .* 1\.0"),
        ({"max_iter": 0}, "--max-iter .* 0"),
        ({"train_subset": "120pct"}, "--train-subset .* 120pct"),
        ({"train_subset": "none.txt"}, "none.txt"),
        ({"train_subset": "50pct", "subset_seeds": 0}, "--subset-seeds .* 0"),
    ],
)
def test_run_rejects_invalid_options(backbone, image_folder, options, named):
    with pytest.raises(ConfigError, match=named):
        score(backbone, image_folder, **options)


def test_run_rejects_a_single_class(backbone, tmp_path):
    with pytest.raises(DataError, match=r"\b2\b.*\bclass0\b"):
        score(backbone, class_folders(tmp_path, classes=1))


@pytest.mark.slow
def test_missing_cyanure_is_an_error_that_names_sklearn(image_folder, tiny_weights):
    code = "import sys; sys.modules.update(cyanure=None); from dinoeval.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "logistic", "--weights", str(tiny_weights), "--data", str(image_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--solver sklearn" in done.stderr
    assert "Traceback" not in done.stderr


def test_subset_is_related_to_table_10_but_not_compared(backbone, image_folder):
    result = score(backbone, image_folder, train_subset="50pct", subset_seeds=2)
    assert missing_facts(result) == set()
    splits = {name: dict(split) for name, split in result.splits.items()}
    splits["train"] |= {"images": 12_811, "classes": 1000}
    splits["val"]["images"] = 50_000
    details = {**result.details, "train_images_total": 1_281_167}
    subset = scored_as(dataclasses.replace(result, data=splits, details=details, transform="dino@1:256/224"), "vit_s16")
    found = comparable(subset)
    assert found.rows == ()
    assert [(row.source, row.value) for row in found.related] == [("Table 10 and Table 12", 64.5)]


def test_command_prints_metrics_deviations_and_every_lambda(capsys, overlapping, tiny_weights, tmp_path):
    words = ["logistic", "--weights", str(tiny_weights), "--data", str(overlapping), "--solver", SOLVER, "--lambdas", "0.1", "1"]
    words += ["--train-subset", "50pct", "--subset-seeds", "2", "--json", str(tmp_path / "r.json")]
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 0
    for fact in (SOLVER, "60 features", "96 dimensions", "4 classes"):
        assert fact in err
    result = Result.load(tmp_path / "r.json")
    lines = [line.split() for line in out.splitlines()]
    row = ["top1", f"{result.metrics['top1']:.2f}", "±", f"{result.standard_errors['top1']:.2f}", f"({result.deviations['top1']:.2f})"]
    assert row in lines
    assert ["seed", "lambda", "held_out", "chosen"] in lines
    assert sum(line[:2] == ["1", "0.1"] for line in lines) == 1
