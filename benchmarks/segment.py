"""Segmentation by attention on every tenth frame of DAVIS sequences with one object: checkpoints beside two floors.

    python benchmarks/segment.py DAVIS WEIGHTS

DAVIS holds JPEGImages/480p and Annotations/480p, WEIGHTS is a checkpoint that names its architecture. Scored are it, the
bundled one, and random weights of both architectures, at several image sizes and masses. The other floor is a mask that
covers the whole image. VOC 2012, which Figure 4 is of, is not here: nothing is compared with the paper. Writes
benchmarks/results/segment_davis.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import dinoeval
from dinoeval.data.masks import read_mask
from dinoeval.environment import describe_machine

ROOT = Path(__file__).resolve().parent.parent
STEP = 10
SETTINGS: tuple[dict[str, Any], ...] = (
    {"image_size": 128},
    {"image_size": 480},
    {"image_size": "native"},
    {"image_size": 480, "mass": 0.8},
)


def frames(davis: Path, folder: Path) -> int:
    """Link every STEP-th frame and its annotation into images/ and masks/; the number of sequences."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    sequences = [path for path in sorted((davis / "JPEGImages/480p").iterdir()) if path.is_dir()]
    for sequence in sequences:
        for frame in sorted(sequence.glob("*.jpg"))[::STEP]:
            mask = davis / f"Annotations/480p/{sequence.name}/{frame.stem}.png"
            (folder / f"images/{sequence.name}-{frame.name}").symlink_to(frame.resolve())
            (folder / f"masks/{sequence.name}-{mask.name}").symlink_to(mask.resolve())
    return len(sequences)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("davis", type=Path)
    parser.add_argument("weights", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "davis"
        sequences = frames(args.davis, folder)
        trained = [dinoeval.load(weights=args.weights), dinoeval.load()]
        backbones = trained + [dinoeval.load(backbone.arch, weights="random") for backbone in trained]
        for backbone in backbones:
            for setting in SETTINGS:
                result = dinoeval.evaluate("segment", backbone, data=str(folder), **setting)
                rows.append({
                    "weights": Path(result.backbone["weights"]).name, "arch": backbone.arch, "digest": backbone.digest,
                    "transform": result.transform,
                    "config": {**result.config, "data": folder.name}, "metrics": result.metrics, "standard_errors": result.standard_errors,
                    "table": result.table, "seconds": result.seconds["total"],
                })  # fmt: skip
                print(rows[-1]["weights"], backbone.arch, setting, {metric: round(value, 2) for metric, value in result.metrics.items()})
        shares = [100 * float((read_mask(path) > 0).mean()) for path in sorted((folder / "masks").iterdir())]
    facts = {
        "images": len(shares), "sequences": sequences, "every": STEP, "a mask of the whole image, percent": float(np.mean(shares)),
        "rows": rows, "command": "python benchmarks/segment.py DAVIS WEIGHTS", "machine": describe_machine(),
    }  # fmt: skip
    (ROOT / "benchmarks/results/segment_davis.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
