"""Logistic regression on 50,000 x 384 features of 100 overlapping classes, lambda = 0.1 / n, by cyanure and by scikit-learn.

    python benchmarks/speed/logistic.py [--rounds 3]

In turn, each in a new process: `fit_logistic` of dinoeval with either solver, to a relative duality gap of 0.001; and
scikit-learn with the same C and its default tolerance of 1e-4. Once, because it takes minutes: cyanure on the same features in
single precision. Objectives are computed in double precision, and the duality gap bounds their distance to the minimum.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measurement import Options, in_turn, load_average, medians, run_worker, write_record

COMMAND = "python benchmarks/speed/logistic.py"
LAMBDA = 0.1
DEFAULT, SINGLE = "sklearn, default tolerance", "cyanure, single precision"
WAYS = ("cyanure", "sklearn", DEFAULT, SINGLE)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem."""

    features: int = 50_000
    queries: int = 5_000
    dim: int = 384
    classes: int = 100


TINY = Sizes(200, 50, 16, 4)


def write_inputs(folder: Path, sizes: Sizes) -> None:
    """Write unit vectors of overlapping clusters, of which a quarter are classified wrongly."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((sizes.classes, sizes.dim), dtype=np.float32)
    for name, count in (("train", sizes.features), ("test", sizes.queries)):
        labels = random.integers(0, sizes.classes, count)
        features = centers[labels] * 0.18 + random.standard_normal((count, sizes.dim), dtype=np.float32)
        np.save(folder / f"{name}_labels.npy", labels)
        np.save(folder / f"{name}.npy", features / np.linalg.norm(features, axis=1, keepdims=True))


def fit(way: str, features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int, Any]:
    """Fit one model.

    Args:
        way: An item of WAYS.
        features: (N, D) float32.
        labels: (N,) int64.

    Returns:
        The weights (D, classes), the number of passes over the features, and the model.
    """
    import sklearn.linear_model

    from dinoeval.maths.logistic import fit_logistic

    match way:
        case "cyanure" | "sklearn":
            model: Any = fit_logistic(features, labels, strength=LAMBDA, solver=way)
            return model.weights, model.passes, model
        case "sklearn, default tolerance":
            model = sklearn.linear_model.LogisticRegression(C=1 / LAMBDA, fit_intercept=False, max_iter=2000).fit(features, labels)
            return model.coef_.T, int(model.n_iter_.max()), model
        case _:
            import cyanure.estimators

            options = {"loss": "multiclass-logistic", "penalty": "l2", "fit_intercept": False, "tol": 1e-3, "max_iter": 2000}
            model = cyanure.estimators.Classifier(lambda_1=LAMBDA / len(features), duality_gap_interval=10, verbose=False, **options)
            model.fit(features, labels)
            return model.coef_, int(model.n_iter_.max()), model


def measure(folder: Path, way: str) -> dict[str, float]:
    """Time one fit and compute its objective, duality gap and top-1."""
    if way.startswith("cyanure"):
        import cyanure.estimators  # noqa: F401  It is imported here, so that the import is not timed.
    import sklearn.linear_model  # noqa: F401

    from dinoeval.maths.logistic import duality_gap

    features, labels = np.load(folder / "train.npy"), np.load(folder / "train_labels.npy")
    warnings.simplefilter("ignore")
    started = time.monotonic()
    weights, passes, model = fit(way, features, labels)
    seconds = time.monotonic() - started
    objective, gap = duality_gap(features.astype(np.float64), labels, weights.astype(np.float64), LAMBDA)
    hits = (np.load(folder / "test.npy") @ weights).argmax(1) == np.load(folder / "test_labels.npy")
    record = {"seconds": seconds, "passes": passes, "objective": objective, "duality_gap": gap, "top1": 100 * float(hits.mean())}
    return record | ({"reported_duality_gap": float(model.optimization_info_[0, 3, -1])} if way == SINGLE else {})


def main() -> None:
    options = Options(__file__, "speed_logistic", __doc__)
    options.add_argument("--rounds", type=int, default=3, help="runs of each solver (default: 3)")
    args = options.parse()
    if args.worker:
        folder, way = args.worker
        options.answer(measure(Path(folder), way))
    sizes, loads = TINY if args.tiny else Sizes(), [load_average()]
    reason = None if importlib.util.find_spec("cyanure") else "cyanure: it is not installed (pip install cyanure, for Python 3.12 or older)"

    def run(way: str) -> dict[str, float]:
        found = run_worker(__file__, args, folder, way)
        loads.append(load_average())
        return found

    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder), sizes)
        ways = {way: functools.partial(run, way) for way in WAYS if not (reason and way.startswith("cyanure"))}
        runs = in_turn(ways, 1 if args.tiny else args.rounds, once=[SINGLE])
    seconds = medians({way: [run["seconds"] for run in found] for way, found in runs.items()})
    record: dict[str, Any] = {
        "problem": f"{sizes.features} x {sizes.dim} features of {sizes.classes} classes, lambda = {LAMBDA} / {sizes.features}",
        "median_seconds": seconds,
        **{name: {way: found[0][name] for way, found in runs.items()} for name in ("objective", "duality_gap", "top1")},
        "runs": runs,
        "load_average": loads,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    if not reason:
        record["cyanure_over_sklearn"] = seconds["cyanure"] / seconds["sklearn"]
    write_record(args, COMMAND, record, [reason])


if __name__ == "__main__":
    main()
