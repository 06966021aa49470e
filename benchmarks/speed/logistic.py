"""Logistic regression on 50,000 x 384 features of 100 overlapping classes, lambda = 0.1 / n, by cyanure and by scikit-learn.

    python benchmarks/speed/logistic.py [--rounds 3]

Each runs in processes of its own and in turn: `fit` of dinoeval with either solver, to a duality gap of a thousandth; and
scikit-learn as users call it, with the same C and its own tolerance of 1e-4. Also once, because it takes minutes: cyanure
on the same features in single precision. Objectives are the formula's, in double precision, and the gap bounds how far
each is above the minimum. Writes benchmarks/results/speed_logistic.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
ROWS, QUERIES, DIM, CLASSES, LAMBDA = 50_000, 5_000, 384, 100, 0.1
ONCE = "cyanure, single precision"


def make(folder: Path) -> None:
    """Clusters so near to each other that a quarter of the queries come out wrong; rows of length 1."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLASSES, DIM), dtype=np.float32)
    for name, count in (("train", ROWS), ("test", QUERIES)):
        labels = random.integers(0, CLASSES, count)
        rows = centres[labels] * 0.18 + random.standard_normal((count, DIM), dtype=np.float32)
        np.save(folder / f"{name}_labels.npy", labels)
        np.save(folder / f"{name}.npy", rows / np.linalg.norm(rows, axis=1, keepdims=True))


def one(folder: Path, way: str) -> dict:
    import cyanure.estimators  # what a fit imports, so that it is not timed
    import sklearn.linear_model

    from dinoeval.maths.logistic import duality_gap, fit_logistic

    train, labels = np.load(folder / "train.npy"), np.load(folder / "train_labels.npy")
    warnings.simplefilter("ignore")
    began = time.monotonic()
    match way:
        case "cyanure" | "sklearn":
            model = fit_logistic(train, labels, strength=LAMBDA, solver=way)
            weights, passes = model.weights, model.passes
        case "sklearn, its own tolerance":
            model = sklearn.linear_model.LogisticRegression(C=1 / LAMBDA, fit_intercept=False, max_iter=2000).fit(train, labels)
            weights, passes = model.coef_.T, int(model.n_iter_.max())
        case _:
            model = cyanure.estimators.Classifier(
                loss="multiclass-logistic", penalty="l2", fit_intercept=False, lambda_1=LAMBDA / ROWS, tol=1e-3, max_iter=2000,
                duality_gap_interval=10, verbose=False,
            ).fit(train, labels)  # fmt: skip
            weights, passes = model.coef_, int(model.n_iter_.max())
    seconds = time.monotonic() - began
    objective, gap = duality_gap(train.astype(np.float64), labels, weights.astype(np.float64), LAMBDA)
    right = (np.load(folder / "test.npy") @ weights).argmax(1) == np.load(folder / "test_labels.npy")
    facts = {"seconds": seconds, "passes": passes, "objective": objective, "duality gap": gap, "top1": 100 * float(right.mean())}
    return facts | ({"duality gap it says": float(model.optimization_info_[0, 3, -1])} if way == ONCE else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.folder, args.one)))
        return
    from dinoeval.environment import describe_machine

    runs: dict[str, list[dict]] = {"cyanure": [], "sklearn": [], "sklearn, its own tolerance": [], ONCE: []}
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as name:
        make(Path(name))
        for number in range(args.rounds):
            for way, results in runs.items():
                if way == ONCE and number:
                    continue
                command = [sys.executable, __file__, "--one", way, "--folder", name]
                results.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
                print(number, way, results[-1], flush=True)
                loads.append(os.getloadavg()[0])
    medians = {way: statistics.median(run["seconds"] for run in results) for way, results in runs.items()}
    facts = {
        "what": f"{ROWS} x {DIM} features of {CLASSES} classes, lambda = {LAMBDA} / {ROWS}", "median seconds": medians,
        "ratio cyanure / sklearn": medians["cyanure"] / medians["sklearn"],
        **{about: {way: results[0][about] for way, results in runs.items()} for about in ("objective", "duality gap", "top1")},
        "runs": runs, "load average": [round(load, 1) for load in loads], "threads": os.environ.get("OMP_NUM_THREADS"),
        "machine": describe_machine(), "command": "python benchmarks/speed/logistic.py",
    }  # fmt: skip
    (ROOT / "benchmarks/results/speed_logistic.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key not in ("runs", "machine")}, indent=1))


if __name__ == "__main__":
    main()
