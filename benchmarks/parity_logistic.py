"""cyanure against scikit-learn on real features: the same checkpoint and images, 1, 10 and 100 % of the training images.

    python benchmarks/parity_logistic.py DATA CHECKPOINT

DATA holds train/ and test/ (or val/) class folders, such as CIFAR-10's. Both solvers fit the very same features and parts
(three seeds for a percentage). Their minimum is one, so that top-1 may differ by what a duality gap of a thousandth
leaves: 0.3 points at most are called agreement. Writes benchmarks/results/parity_logistic.json, and exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import dinoeval
from dinoeval.environment import describe_machine

ROOT = Path(__file__).resolve().parent.parent
PARTS, MOST = ("1pct", "10pct", None), 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("checkpoint", type=Path)
    args = parser.parse_args()
    backbone = dinoeval.load(weights=args.checkpoint)
    dinoeval.evaluate("knn", backbone, data=str(args.data))  # whose features all parts are taken from
    rows = []
    for part in PARTS:
        row: dict = {"train_subset": part or "all"}
        for solver in ("cyanure", "sklearn"):
            result = dinoeval.evaluate("logistic", backbone, data=str(args.data), solver=solver, train_subset=part)
            row |= {"images": result.data["train"]["images"], "runs": max(1, len(result.table))}
            row[solver] = {"top1": result.metrics["top1"], "standard error": result.standard_errors["top1"],
                           "top1 of each seed": [run["top1"] for run in result.table], "seconds": result.seconds["fit"],
                           "not converged": [note for note in result.notes if "not converged" in note]}  # fmt: skip
        row["difference"] = row["cyanure"]["top1"] - row["sklearn"]["top1"]
        rows.append(row)
        print(json.dumps(row), flush=True)
    facts = {"network": backbone.arch, "dims": backbone.dim, "rows": rows, "agree within points": MOST,
             "agree": all(abs(row["difference"]) <= MOST for row in rows), "machine": describe_machine(),
             "command": "python benchmarks/parity_logistic.py DATA CHECKPOINT"}  # fmt: skip
    (ROOT / "benchmarks/results/parity_logistic.json").write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(0 if facts["agree"] else 1)


if __name__ == "__main__":
    main()
