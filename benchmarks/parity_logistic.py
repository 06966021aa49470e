"""cyanure against scikit-learn on real features of 1, 10 and 100 % of the training images.

    python benchmarks/parity_logistic.py DATA CHECKPOINT

DATA is a folder with train/ and test/ (or val/) class folders, such as those of CIFAR-10, CHECKPOINT a file that names its
architecture. Both solvers fit the same features and subsets (three seeds for a percentage). They have the same minimum, so
top-1 may differ only by what a relative duality gap of 0.001 allows. They agree if the difference is at most 0.3 points.
Exit code 1 if they do not agree.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import inputs
from measurement import Options, write_record

import dinoeval
from dinoeval.testing import TINY_ARCH, tiny_image_folder

COMMAND = "python benchmarks/parity_logistic.py DATA CHECKPOINT"
SUBSETS, SOLVERS, MAX_DIFFERENCE = ("1pct", "10pct", None), ("cyanure", "sklearn"), 0.3


def evaluate(backbone: dinoeval.Backbone, data: Path, solver: str, subset: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the number of images and runs, and the scores of a solver."""
    result = dinoeval.evaluate("logistic", backbone, data=str(data), solver=solver, train_subset=subset)
    scores = {
        "top1": result.metrics["top1"],
        "standard_error": result.standard_errors["top1"],
        "top1_per_seed": [run["top1"] for run in result.table],
        "seconds": result.seconds["fit"],
        "not_converged": [note for note in result.notes if "not converged" in note],
    }
    return {"images": result.data["train"]["images"], "runs": max(1, len(result.table))}, scores


def main() -> None:
    options = Options(__file__, "parity_logistic", __doc__)
    options.add_input("data", "a folder with train/ and test/ class folders")
    options.add_input("checkpoint", "a checkpoint that names its architecture")
    args = options.parse()
    solvers = [solver for solver in SOLVERS if importlib.util.find_spec(solver)]
    reason = None if len(solvers) == len(SOLVERS) else "cyanure: it is not installed (pip install cyanure, for Python 3.12 or older)"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.data = tiny_image_folder(Path(folder) / "data", train=20, val=4)
            args.checkpoint = inputs.save_weights(Path(folder) / "weights.safetensors", TINY_ARCH)
        backbone = dinoeval.load(weights=args.checkpoint)
        dinoeval.evaluate("knn", backbone, data=str(args.data), k=(10,))  # All subsets are taken from the features that it caches.
        for subset in ("10pct", None) if args.tiny else SUBSETS:
            found = {solver: evaluate(backbone, args.data, solver, subset) for solver in solvers}
            row: dict[str, Any] = {"train_subset": subset or "all", **found["sklearn"][0]}
            row |= {solver: scores for solver, (_, scores) in found.items()}
            if not reason:
                row["difference"] = row["cyanure"]["top1"] - row["sklearn"]["top1"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    agree = all(abs(row.get("difference", 0)) <= MAX_DIFFERENCE for row in rows)
    about = {"network": backbone.arch, "dims": backbone.dim}
    write_record(args, COMMAND, {**about, "rows": rows, "max_difference": MAX_DIFFERENCE, "agree": agree}, [reason])
    sys.exit(0 if agree or args.tiny else 1)


if __name__ == "__main__":
    main()
