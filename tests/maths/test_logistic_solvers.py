from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import minimize

from dinoeval.maths.logistic import Logistic, fit_logistic, fit_one_vs_rest
from dinoeval.maths.neighbors import l2_normalize

needs_cyanure = pytest.mark.skipif(importlib.util.find_spec("cyanure") is None, reason="cyanure is not installed")

SOLVERS = [pytest.param("cyanure", marks=needs_cyanure), "sklearn"]


def clusters(num_images: int, dim: int, classes: int, distance: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Overlapping classes on the sphere."""
    random = np.random.default_rng(0)
    labels = np.concatenate((np.arange(classes), random.integers(0, classes, num_images - classes)))
    return l2_normalize(random.standard_normal((classes, dim))[labels] * distance + random.standard_normal((num_images, dim))), labels


def objective(weights: np.ndarray, features: np.ndarray, labels: np.ndarray, strength: float) -> float:
    """Evaluate the formula one image at a time; weights (D, C), labels 0, ..., C-1."""
    losses = []
    for feature, label in zip(features.astype(np.float64), labels, strict=True):
        scores = feature @ weights
        losses.append(np.log(np.exp(scores).sum()) - scores[label])
    return float(np.mean(losses) + strength / (2 * len(labels)) * (weights**2).sum())


def minimum(features: np.ndarray, labels: np.ndarray, strength: float) -> np.ndarray:
    """Return the weights (D, C) of the smallest objective, by a general minimizer that only evaluates the function."""
    shape = features.shape[1], labels.max() + 1
    found = minimize(lambda flat: objective(flat.reshape(shape), features, labels, strength), np.zeros(np.prod(shape)), tol=1e-9)
    return found.x.reshape(shape)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("classes", "strength"), [(2, 0.1), (2, 3.0), (3, 0.1), (4, 1.0)])
def test_solvers_reach_the_minimum_of_the_formula(solver, classes, strength):
    features, labels = clusters(40, 5, classes)
    best = minimum(features, labels, strength)
    model = fit_logistic(features, labels, strength=strength, solver=solver, tolerance=1e-9)
    assert model.objective == pytest.approx(objective(best, features, labels, strength), rel=1e-6)
    assert model.objective == pytest.approx(objective(model.weights.astype(float), features, labels, strength), rel=1e-6)
    np.testing.assert_allclose(model.weights, best, atol=2e-3)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("labels", [[3, 7], [0, 5, 9], ["b", "a", "c", "z"], [1, 2, 3], [-4, 2, 900, 901, 902, 77]])
def test_rank_returns_labels_of_the_type_of_the_input(solver, labels):
    features, numbers = clusters(60, 8, len(labels), distance=2)
    given = np.array(labels)[numbers]  # one cluster per class
    model = fit_logistic(features, given, strength=0.1, solver=solver)
    ranked = model.rank(features)
    assert ranked.shape == (60, min(5, len(labels)))
    assert set(ranked.ravel()) == set(labels)
    assert (ranked[:, 0] == given).mean() > 0.95
    assert all(len(set(row)) == len(row) for row in ranked.tolist())
    order = np.argsort(-model.scores(features), axis=1, kind="stable")
    assert (ranked == np.sort(np.array(labels))[order[:, :5]]).all()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("num_images", "classes", "passes"), [(300, 4, 1), (300, 2, 1), (1200, 4, 3), (1200, 2, 1)])
def test_gap_bounds_the_error_of_a_fit_that_ends_early(solver, num_images, classes, passes):
    """The gap bounds the distance of the objective from its minimum. With enough passes it is below the tolerance."""
    features, labels = clusters(num_images, 16, classes)
    early = fit_logistic(features, labels, strength=0.01, solver=solver, tolerance=1e-6, max_iter=passes)
    whole = fit_logistic(features, labels, strength=0.01, solver=solver, tolerance=1e-6)
    assert early.gap > 1e-6
    assert whole.gap <= 1e-6
    assert whole.passes > early.passes
    assert whole.objective <= early.objective
    assert early.objective - whole.objective <= early.gap * early.objective


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_converges_with_many_images_and_classes(solver):
    """Single precision ends the fit of cyanure with a gap of a percent; the default tolerance of scikit-learn ends it after two steps."""
    features, labels = clusters(6000, 24, 30)
    assert fit_logistic(features, labels, strength=0.1, solver=solver).gap <= 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_fit_does_not_modify_inputs_or_print(solver, capfd):
    for classes in (2, 3):
        features, labels = clusters(50, 8, classes)
        features.flags.writeable = labels.flags.writeable = False  # a modification would raise
        fit_logistic(features, labels + 5, strength=0.1, solver=solver, max_iter=1)
    assert capfd.readouterr() == ("", "")


def test_rank_ties_go_to_the_earlier_class():
    model = Logistic(np.array([[1, 2, 2, 0, 2, 1, 1]], np.float32), np.array(list("abcdefg")), 0, 0, 1)
    assert model.rank(np.ones((2, 1), np.float32)).tolist() == [list("bceaf")] * 2


def test_fit_raises_for_single_class():
    with pytest.raises(ValueError, match=r"\b1\b"):
        fit_logistic(np.eye(3, dtype=np.float32), np.array([4, 4, 4]), strength=0.1, solver="sklearn")


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_vs_rest_excludes_difficult_images_per_class(solver):
    random = np.random.default_rng(0)
    features = l2_normalize(random.standard_normal((60, 6)))
    labels = random.choice([1, 0, -1], (60, 4)).astype(np.int8)
    labels[:, 3] = 1
    model = fit_one_vs_rest(features, labels, strength=0.5, solver=solver, tolerance=1e-9)
    for column in range(3):
        known = labels[:, column] >= 0
        class_features, signs = features[known].astype(np.float64), np.where(labels[known, column] == 1, 1, -1)

        def logistic_loss(weights, class_features=class_features, signs=signs):
            return np.log1p(np.exp(-signs * (class_features @ weights))).mean() + 0.5 / (2 * len(signs)) * (weights**2).sum()

        best = minimize(logistic_loss, np.zeros(6), tol=1e-10)
        np.testing.assert_allclose(model.weights[:, column], best.x, atol=2e-3)
    assert not model.weights[:, 3].any()  # present in every image
    assert model.gap <= 1e-9
    assert model.scores(features).shape == (60, 4)


@pytest.mark.parametrize("fitted", [1, 2])
def test_objective_of_one_vs_rest_is_the_mean_over_fitted_classes(fitted):
    random = np.random.default_rng(1)
    features, present = l2_normalize(random.standard_normal((40, 6))), np.arange(40) % 2
    labels = np.stack([present] * fitted + [np.ones(40, int)], axis=1)
    options = {"solver": "sklearn", "tolerance": 1e-9}
    alone = fit_logistic(features, present, strength=2 * 0.5, **options)
    assert fit_one_vs_rest(features, labels, strength=0.5, **options).objective == pytest.approx(alone.objective, rel=1e-6)


@needs_cyanure
@pytest.mark.slow
def test_faiss_search_ends_after_a_cyanure_fit():
    """A fit changes the settings of OpenMP, with which the OpenBLAS of FAISS hangs. The test uses its own process, which can be stopped."""
    code = (
        "import numpy as np; from dinoeval.maths.logistic import fit_logistic; from dinoeval.maths.neighbors import nearest\n"
        "import ctypes; from threadpoolctl import threadpool_info\n"
        "names = ('omp_get_dynamic', 'omp_get_max_active_levels', 'omp_get_max_threads')\n"
        "def settings():\n"
        "    runtimes = [ctypes.CDLL(one['filepath']) for one in threadpool_info() if one['user_api'] == 'openmp']\n"
        "    return [getattr(runtime, name)() for runtime in runtimes for name in names]\n"
        "x = np.random.default_rng(0).standard_normal((3000, 384)).astype('f4')\n"
        "nearest(x[:50], [x], 5); before = settings()\n"
        "fit_logistic(x, np.arange(3000) % 5, strength=0.1, solver='cyanure')\n"
        "assert settings() == before, (before, settings())\n"
        "nearest(x[:1000], [x], 20)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


@needs_cyanure
@pytest.mark.slow
def test_weights_of_cyanure_do_not_depend_on_threads():
    code = (
        "import hashlib, numpy as np; from dinoeval.maths.logistic import fit_logistic\n"
        "x = np.random.default_rng(0).standard_normal((600, 32)).astype('f4')\n"
        "for classes in (2, 7):\n"
        "    fit = fit_logistic(x, np.arange(600) % classes, strength=0.1, solver='cyanure')\n"
        "    print(hashlib.sha256(fit.weights.tobytes()).hexdigest())"
    )
    run = functools.partial(subprocess.run, [sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert len({run(env={**os.environ, "OMP_NUM_THREADS": threads}).stdout for threads in ("1", "2", "5")}) == 1
