"""Segmentation by attention on every tenth frame of DAVIS sequences with one object: checkpoints and two baselines.

    python benchmarks/segment.py DAVIS WEIGHTS

DAVIS is a folder with JPEGImages/480p and Annotations/480p, WEIGHTS a checkpoint that names its architecture. Scored are this
checkpoint, the bundled one, and random weights of both architectures, at several image sizes and masses, and a mask that
covers the whole image. Figure 4 of the paper uses VOC 2012, so no score is compared with the paper.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from measurement import Options, write_record

import dinoeval
from dinoeval.data.masks import read_mask

COMMAND = "python benchmarks/segment.py DAVIS WEIGHTS"
FRAME_STEP = 10
SETTINGS: tuple[dict[str, Any], ...] = (
    {"image_size": 128},
    {"image_size": 480},
    {"image_size": "native"},
    {"image_size": 480, "mass": 0.8},
)
TINY_SETTINGS: tuple[dict[str, Any], ...] = ({"image_size": 64},)


def link_frames(davis: Path, folder: Path) -> int:
    """Link every FRAME_STEP-th frame and its annotation into images/ and masks/, and return the number of sequences."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    sequences = [path for path in sorted((davis / "JPEGImages/480p").iterdir()) if path.is_dir()]
    for sequence in sequences:
        for frame in sorted(sequence.glob("*.jpg"))[::FRAME_STEP]:
            mask = davis / f"Annotations/480p/{sequence.name}/{frame.stem}.png"
            (folder / f"images/{sequence.name}-{frame.name}").symlink_to(frame.resolve())
            (folder / f"masks/{sequence.name}-{mask.name}").symlink_to(mask.resolve())
    return len(sequences)


def score(backbone: dinoeval.Backbone, folder: Path, setting: dict[str, Any]) -> dict[str, Any]:
    """Score a network with one setting."""
    result = dinoeval.evaluate("segment", backbone, data=str(folder), **setting)
    row = {
        "weights": Path(result.backbone["weights"]).name,
        "arch": backbone.arch,
        "digest": backbone.digest,
        "transform": result.transform,
        "config": {**result.config, "data": folder.name},
        "metrics": result.metrics,
        "standard_errors": result.standard_errors,
        "table": result.table,
        "seconds": result.seconds["total"],
    }
    print(row["weights"], backbone.arch, setting, {metric: round(value, 2) for metric, value in result.metrics.items()}, flush=True)
    return row


def main() -> None:
    options = Options(__file__, "segment_davis", __doc__)
    options.add_input("davis", "a folder with JPEGImages/480p and Annotations/480p")
    options.add_input("weights", "a checkpoint that names its architecture")
    args = options.parse()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "davis"
        if args.tiny:
            args.davis = inputs.tiny_davis(Path(name) / "frames", ("one", "two"), frames=2, year=2016)
            args.weights = inputs.save_weights(Path(name) / "weights.safetensors", "vit_xs16_64")
        sequences = link_frames(args.davis, folder)
        trained = [dinoeval.load(weights=args.weights), dinoeval.load()]
        backbones = trained + [dinoeval.load(backbone.arch, weights="random") for backbone in trained]
        settings = TINY_SETTINGS if args.tiny else SETTINGS
        rows = [score(backbone, folder, setting) for backbone in backbones for setting in settings]
        shares = [100 * float((read_mask(path) > 0).mean()) for path in sorted((folder / "masks").iterdir())]
    record = {"images": len(shares), "sequences": sequences, "frame_step": FRAME_STEP, "whole_image_mask": float(np.mean(shares))}
    write_record(args, COMMAND, {**record, "rows": rows})


if __name__ == "__main__":
    main()
