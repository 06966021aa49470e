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
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.paper.comparable import comparable
from dinoeval.results import Result
from dinoeval.session import SessionConfig
from dinoeval.verdicts import compare_results

HAS_CYANURE = importlib.util.find_spec("cyanure") is not None  # it has no wheels for Python 3.13
SOLVER = "cyanure" if HAS_CYANURE else "sklearn"


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def score(backbone, data: Path, **options) -> Result:
    return dinoeval.evaluate("logistic", backbone, data=str(data), **{"solver": SOLVER, **options})


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory) -> Path:
    """Four classes of 30 + 12 pictures, some of which lie in a wrong folder, so that scores are not all right."""
    root = tmp_path_factory.mktemp("overlapping")
    random = np.random.default_rng(0)
    for split, count in (("train", 30), ("val", 12)):
        for label in range(4):
            for number in range(count):
                tint = label if random.random() < 0.7 else random.integers(4)
                tinted_image(root / f"{split}/class{label}/{split}{label}_{number:02}.png", int(tint), seed=int(random.integers(10_000)))
    return root


def slow_weights(features: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """The minimum of the objective as issue 121 has it, by a general minimiser; (D, C)."""
    rows, one_hot = l2_normalize(features).astype(np.float64), np.eye(labels.max() + 1)[labels]
    shape = rows.shape[1], one_hot.shape[1]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        scores = rows @ weights
        sums = logsumexp(scores, axis=1, keepdims=True)
        gradient = rows.T @ (np.exp(scores - sums) - one_hot) / len(rows) + strength / len(rows) * weights
        return float((sums[:, 0] - (scores * one_hot).sum(1)).mean() + strength / len(rows) / 2 * (weights**2).sum()), gradient.ravel()

    return minimize(objective, np.zeros(shape[0] * shape[1]), jac=True, method="L-BFGS-B", tol=1e-14, options={"maxiter": 5000}).x.reshape(
        shape
    )


@pytest.mark.parametrize(
    "solver", ["sklearn", pytest.param("cyanure", marks=pytest.mark.skipif(not HAS_CYANURE, reason="not for this Python"))]
)
def test_scores_equal_the_formula_on_the_same_features(backbone, overlapping, solver):
    result = score(backbone, overlapping, solver=solver, tolerance=1e-8)
    train, val = (dinoeval.embed(backbone, overlapping / split) for split in ("train", "val"))
    scores = l2_normalize(val).astype(float) @ slow_weights(train, np.repeat(np.arange(4), 30), 0.1)
    truth = np.repeat(np.arange(4), 12)
    assert result.samples["label"] == truth.tolist()
    assert result.samples["prediction"] == scores.argmax(1).tolist()
    top1 = (scores.argmax(1) == truth).mean()
    assert 0.3 < top1 < 0.95
    assert result.metrics == {"top1": pytest.approx(100 * top1), "top5": 100.0}
    assert result.standard_errors["top1"] == pytest.approx(100 * np.sqrt(top1 * (1 - top1) / 48))
    assert result.samples["top1"] == (scores.argmax(1) == truth).astype(int).tolist()
    assert (result.deviations, result.table, result.notes) == ({}, [], [])


def test_the_features_are_those_of_knn(backbone, overlapping, monkeypatch):
    dinoeval.evaluate("knn", backbone, data=str(overlapping), k=(3,))
    monkeypatch.setattr(backbone.network, "forward", None)  # a call would fail
    score(backbone, overlapping)
    score(backbone, overlapping, train_subset="20pct")


@pytest.mark.parametrize("protocol", ["logistic", "knn"])
def test_a_percentage_is_the_mean_of_its_seeds(backbone, overlapping, tmp_path, protocol):
    """Each seed's part, written as a list of names, gives that seed's score."""
    options = {"k": (5, 9)} if protocol == "knn" else {"solver": SOLVER}
    images, _ = open_splits(str(overlapping))
    alone = []
    for seed in range(3):
        (tmp_path / "list.txt").write_text("".join(f"{images.paths[row]}\n" for row in subset_rows(images, "25pct", seed)))
        alone.append(dinoeval.evaluate(protocol, backbone, data=str(overlapping), train_subset=str(tmp_path / "list.txt"), **options))
    result = dinoeval.evaluate(protocol, backbone, data=str(overlapping), train_subset="25pct", **options)
    assert result.data["train"]["images"] == alone[0].data["train"]["images"] == 30
    assert result.data["train"]["fingerprint"] == alone[0].data["train"]["fingerprint"]
    for metric, value in result.metrics.items():
        runs = [one.metrics[metric] for one in alone]
        assert value == pytest.approx(statistics.fmean(runs))
        assert result.deviations[metric] == pytest.approx(statistics.stdev(runs))
        own = statistics.fmean(one.standard_errors[metric] for one in alone)
        assert result.standard_errors[metric] == pytest.approx(np.hypot(own, statistics.stdev(runs) / np.sqrt(3)))
        assert [row[metric] for row in result.table] == pytest.approx(runs)
    assert any(result.deviations.values())
    assert set(result.samples) == {"path", "label"}
    assert set(alone[0].samples) > {"path", "label"}
    assert (result.config["train_subset"], result.config["subset_seeds"]) == ("25pct", 3)
    assert (alone[0].config["train_subset"], alone[0].config["subset_seeds"]) == ("list.txt", None)
    assert "trained on 30 of 120 images (25pct), drawn with the seeds 0 to 2" in result.notes[0]
    (verdict, *_), reason = compare_results(result, result)
    assert (reason, verdict.method.split(":")[0]) == (None, "unpaired")
    assert compare_results(result, alone[0])[1] is not None


def test_of_several_lambdas_the_best_on_held_out_images_is_fitted_again(backbone, overlapping):
    result = score(backbone, overlapping, lambdas=(1000.0, 0.00001, 0.1), tolerance=1e-6)
    features, labels = dinoeval.embed(backbone, overlapping / "train"), np.repeat(np.arange(4), 30)
    kept, held = hold_out(labels, 0.1, 0)
    right = []
    for strength in (1000.0, 0.00001, 0.1):
        weights = slow_weights(features[kept], labels[kept], strength)
        right.append(100 * float(((l2_normalize(features[held]) @ weights).argmax(1) == labels[held]).mean()))
    assert [(row["lambda"], row["held_out"]) for row in result.table] == list(zip((1000.0, 0.00001, 0.1), right, strict=True))
    assert max(right) > right[0]
    best = (1000.0, 0.00001, 0.1)[int(np.argmax(right))]
    assert [row["lambda"] for row in result.table if row["chosen"]] == [best]
    again = score(backbone, overlapping, lambdas=(best,), tolerance=1e-6)
    assert (again.samples, again.table) == (result.samples, [])


@pytest.fixture
def voc07(tmp_path, monkeypatch):
    """40 + 24 pictures under VOC's class lists, with difficult ones; the marks as published, 1, -1 and 0."""
    monkeypatch.setenv("DINOEVAL_DATA", str(tmp_path))
    return voc07_tree(tmp_path / "voc07", trainval=40, test=24)


def slow_precision(scores: np.ndarray, marks: np.ndarray) -> float:
    """Mean average precision of scores (Q, C), in percent; marks as published, of which 0 is left out."""
    precisions = []
    for column in range(20):
        known = marks[:, column] != 0
        precisions.append(average_precision_score(marks[known, column] == 1, scores[known, column]))
    return 100 * float(np.mean(precisions))


def test_several_labels_an_image_are_fitted_one_against_all(backbone, voc07):
    result = score(backbone, Path("voc07"), tolerance=1e-8)
    train, val = (l2_normalize(dinoeval.embed(backbone, [Path(path) for path in paths])).astype(float) for paths in voc_files(voc07))
    scores = np.zeros((24, 20))
    for column in range(20):
        known = voc07["trainval"][:, column] != 0
        # The softmax of two columns with half the penalty each, in which the logistic loss of their difference is written.
        weights = slow_weights(train[known], (voc07["trainval"][known, column] == 1).astype(int), 0.2)
        scores[:, column] = val @ (weights[:, 1] - weights[:, 0])
    assert result.metrics["mAP"] == pytest.approx(slow_precision(scores, voc07["test"]), abs=0.5)  # of near-equal scores any may lead
    assert set(result.metrics) == set(result.standard_errors) == {"mAP", "mAP_11point"}
    assert 0 < result.standard_errors["mAP"] < 20
    assert [row["images"] for row in result.table] == (voc07["test"] == 1).sum(0).tolist()
    assert np.mean([row["AP"] for row in result.table]) == pytest.approx(result.metrics["mAP"])
    assert result.samples["label"] == [np.flatnonzero(row == 1).tolist() for row in voc07["test"]]


def voc_files(marks: dict[str, np.ndarray]) -> list[list[str]]:
    train, val = open_splits("voc07")
    return [[str(half.reader.paths[row]) for row in range(len(half))] for half in (train, val)]


def test_neighbours_with_several_labels_score_by_their_share_of_the_weight(backbone, voc07):
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


def test_classes_that_a_part_does_not_have_are_named(backbone, overlapping, voc07, tmp_path):
    images, _ = open_splits(str(overlapping))
    (tmp_path / "two.txt").write_text("".join(f"{path}\n" for path in images.paths if "class1" in path or "class3" in path))
    result = score(backbone, overlapping, train_subset=str(tmp_path / "two.txt"))
    assert set(result.samples["prediction"]) == {1, 3}
    assert result.metrics["top5"] == 50
    assert "2 classes could not be learned from these training images: class0, class2" in result.notes
    (tmp_path / "one.txt").write_text(images.paths[0] + "\n")
    with pytest.raises(DataError, match="found class0"):
        score(backbone, overlapping, train_subset=str(tmp_path / "one.txt"))
    few = score(backbone, Path("voc07"), train_subset="10pct", subset_seeds=2)
    assert any("could not be learned" in note for note in few.notes)
    lone = tmp_path / "lone.txt"
    lone.write_text("000001.jpg\n")
    with pytest.raises(DataError, match="among the 1 training images"):
        score(backbone, Path("voc07"), train_subset=str(lone))


def test_a_fit_that_did_not_converge_says_so_and_has_no_reference(backbone, overlapping):
    result = score(backbone, overlapping, max_iter=1)
    assert "not converge in 1 iterations" in result.notes[0]
    assert result.details["duality_gap"] > 1e-3


def test_images_that_cannot_be_read_are_left_out(backbone, tmp_path):
    folder = class_folders(tmp_path)
    (folder / "val/class0/1.png").write_text("text")
    (folder / "train/class1/0.png").write_text("text")
    result = score(backbone, folder, session=SessionConfig(bad_images="skip"))
    assert (result.data["train"]["images"], len(result.samples["label"])) == (23, 8)
    (folder / "val/class0/1.png").unlink()
    (folder / "train/class1/0.png").unlink()
    assert score(backbone, folder).samples == result.samples


def test_what_cannot_be_asked(backbone, image_folder, tmp_path):
    wrong_values = {"lambdas": [(), (0.0,), (np.inf,)], "tolerance": [0.0], "max_iter": [0], "train_subset": ["120pct", "none.txt"]}
    for options in ({name: value} for name, values in wrong_values.items() for value in values):
        with pytest.raises(ConfigError):
            score(backbone, image_folder, **options)
    with pytest.raises(ConfigError, match="--subset-seeds"):
        score(backbone, image_folder, train_subset="50pct", subset_seeds=0)
    with pytest.raises(DataError, match="too few classes"):
        score(backbone, class_folders(tmp_path, classes=1))


def test_without_cyanure_the_other_solver_is_named_and_not_taken(image_folder, tiny_weights):
    code = "import sys; sys.modules.update(cyanure=None); from dinoeval.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "logistic", "--weights", str(tiny_weights), "--data", str(image_folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--solver sklearn" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_subset_is_related_to_table_10_and_not_compared(backbone, image_folder):
    result = score(backbone, image_folder, train_subset="50pct", subset_seeds=2)
    assert missing_facts(result) == set()
    splits = {name: dict(split) for name, split in result.splits.items()}
    splits["train"] |= {"images": 12_811, "classes": 1000}
    splits["val"]["images"] = 50_000
    details = {**result.details, "train_images_total": 1_281_167}
    part = scored_as(dataclasses.replace(result, data=splits, details=details, transform="dino@1:256/224"), "vit_s16")
    found = comparable(part)
    assert found.rows == ()
    assert [(row.source, row.value) for row in found.related] == [("Table 10 and Table 12", 64.5)]


def test_the_command_prints_metrics_deviations_and_every_lambda(capsys, overlapping, tiny_weights, tmp_path):
    words = ["logistic", "--weights", str(tiny_weights), "--data", str(overlapping), "--solver", SOLVER, "--lambdas", "0.1", "1",
             "--train-subset", "50pct", "--subset-seeds", "2", "--json", str(tmp_path / "r.json")]  # fmt: skip
    with pytest.raises(SystemExit) as stopped:
        main(words)
    out, err = capsys.readouterr()
    assert stopped.value.code == 0
    assert f"{SOLVER} fits 60 features of 96 dimensions to 4 classes" in err
    result = Result.load(tmp_path / "r.json")
    lines = [line.split() for line in out.splitlines()]
    shown = ["top1", f"{result.metrics['top1']:.2f}", "±", f"{result.standard_errors['top1']:.2f}", f"({result.deviations['top1']:.2f})"]
    assert shown in lines
    assert ["seed", "lambda", "held_out", "chosen"] in lines
    assert sum(line[:2] == ["1", "0.1"] for line in lines) == 1
