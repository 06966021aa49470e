"""DAVIS label propagation on real sequences with one object: checkpoints and two baselines.

    python benchmarks/davis.py DAVIS WEIGHTS... [--frames 30]

DAVIS is a folder in the layout of 2016 (JPEGImages/480p, Annotations/480p), WEIGHTS are checkpoints that name their
architecture. The first frames of every sequence are used, to limit the time. Scored are each checkpoint, random weights of
its architecture, and the first mask copied to all frames. The sequences are not the validation set of 2017, so no score is
compared with the paper. Rerun the command to resume an interrupted run from --work.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import inputs
from measurement import Options, run_dinoeval, write_record

import dinoeval
from dinoeval.data.masks import read_mask, write_mask
from dinoeval.environment import cache_folder

METRICS = ("J&F", "J", "F")


def link_frames(davis: Path, tree: Path, frames: int) -> list[str]:
    """Link the first frames and annotations of all sequences, and return their names."""
    names = sorted(path.name for path in (davis / "JPEGImages/480p").iterdir() if path.is_dir())
    for name in names:
        for kind, suffix in (("JPEGImages", "jpg"), ("Annotations", "png")):
            folder = tree / kind / "480p" / name
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((davis / kind / "480p" / name).glob(f"*.{suffix}"))[:frames]:
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())
    return names


def copy_first_masks(tree: Path, names: list[str], out: Path) -> Path:
    """Write the first mask of each sequence as the mask of all its frames."""
    for name in names:
        paths = sorted((tree / "Annotations/480p" / name).iterdir())
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            write_mask(out / name / path.name, read_mask(paths[0]))
    return out


class Evaluation:
    """`dinoeval davis` on the same sequences."""

    def __init__(self, tree: Path, names: list[str], work: Path, size: list[object]) -> None:
        self.words = ["--data", tree, "--sequences", *names, "--cache", work / "cache"]
        self.size = size

    def score(self, masks: str, *words: object) -> dict[str, Any]:
        """Score masks, and describe them as `masks`."""
        result = run_dinoeval("davis", *self.words, *words)
        return {
            "masks": masks,
            "metrics": result["metrics"],
            "standard_errors": result["standard_errors"],
            "sequences": {row["sequence"]: {metric: row[metric] for metric in METRICS} for row in result["table"]},
            "transform": result["transform"],
            "notes": result["notes"],
        }

    def score_network(self, weights: Path) -> list[dict[str, Any]]:
        """Score a checkpoint, and random weights of its architecture."""
        backbone = dinoeval.load(weights=weights)
        about = {"arch": backbone.arch, "patch_size": backbone.patch_size}
        return [
            {"digest": backbone.digest[:12], **about, **self.score("checkpoint", "--weights", weights, *self.size)},
            {**about, **self.score("random weights", "--arch", backbone.arch, "--weights", "random", *self.size)},
        ]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Score everything; `args` holds davis, weights, frames, work."""
    tree = args.work / f"first {args.frames}"
    names = link_frames(args.davis, tree, args.frames)
    evaluation = Evaluation(tree, names, args.work, ["--image-size", 64] if args.tiny else [])
    copied = copy_first_masks(tree, names, args.work / f"copied {args.frames}")
    rows = [evaluation.score("first mask copied to all frames", "--masks", copied)]
    for weights in args.weights:
        rows += evaluation.score_network(weights)
    return {"frames": {name: len(list((tree / "JPEGImages/480p" / name).iterdir())) for name in names}, "rows": rows}


def main() -> None:
    options = Options(__file__, "davis", __doc__)
    options.add_input("davis", "a folder with JPEGImages/480p and Annotations/480p")
    options.add_input("weights", "checkpoints that name their architecture", many=True)
    options.add_argument("--frames", type=int, default=30, help="frames per sequence (default: 30)")
    options.add_argument("--work", type=Path, help="folder of unfinished runs (default: davis-benchmark in the feature cache)")
    args = options.parse()
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.work, args.frames = Path(folder) / "work", 4
            args.davis = inputs.tiny_davis(Path(folder) / "davis", ("one", "two"), year=2016)
            args.weights = [inputs.save_weights(Path(folder) / "weights.safetensors", "vit_xs16_64")]
        args.work = args.work or cache_folder() / "davis-benchmark"
        record = measure(args)
    write_record(args, f"python benchmarks/davis.py DAVIS WEIGHTS... --frames {args.frames}", record)
    for row in record["rows"]:
        scores = ", ".join(f"{metric} {row['metrics'][metric]:.2f}" for metric in METRICS)
        print(f"{row['masks']:<34}{row.get('arch', ''):<14}{scores}")


if __name__ == "__main__":
    main()
