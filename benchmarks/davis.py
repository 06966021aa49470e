"""DAVIS label propagation on real sequences with one object: checkpoints beside two floors that anyone can check.

    python benchmarks/davis.py DAVIS WEIGHTS... [--frames 30]

DAVIS is a tree of 2016 (JPEGImages/480p, Annotations/480p), WEIGHTS are checkpoints that name their architecture. The first
frames of every sequence are taken, to bound the time. Scored are each checkpoint, random weights of its architecture, and
the first mask copied to all frames. The set is not the validation set of 2017: nothing is compared with the paper.
Runs that were stopped go on from --work. Writes benchmarks/results/davis.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import dinoeval
from dinoeval.data.masks import read_mask, write_mask
from dinoeval.environment import cache_folder, describe_machine

ROOT = Path(__file__).resolve().parent.parent


def take(davis: Path, tree: Path, frames: int) -> list[str]:
    """The first frames and annotations of all sequences; their names."""
    names = sorted(path.name for path in (davis / "JPEGImages/480p").iterdir() if path.is_dir())
    for name in names:
        for kind, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
            folder = tree / kind / "480p" / name
            folder.mkdir(parents=True, exist_ok=True)
            for path in sorted((davis / kind / "480p" / name).glob(f"*.{ending}"))[:frames]:
                if not (folder / path.name).exists():
                    (folder / path.name).symlink_to(path.resolve())
    return names


def copy_first(tree: Path, names: list[str], out: Path) -> Path:
    """The first mask for every frame."""
    for name in names:
        paths = sorted((tree / "Annotations/480p" / name).iterdir())
        (out / name).mkdir(parents=True, exist_ok=True)
        for path in paths:
            write_mask(out / name / path.name, read_mask(paths[0]))
    return out


def scored(tree: Path, names: list[str], work: Path, *words: str) -> dict:
    target = work / "result.json"
    command = [sys.executable, "-m", "dinoeval", "davis", "--data", str(tree), "--sequences", *names]
    subprocess.run([*command, "--json", str(target), "--cache", str(work / "cache"), *words], check=True)
    result = json.loads(target.read_text())
    sequences = {row["sequence"]: {metric: row[metric] for metric in ("J&F", "J", "F")} for row in result["table"]}
    return {
        "metrics": result["metrics"],
        "standard errors": result["standard_errors"],
        "sequences": sequences,
        "transform": result["transform"],
        "notes": result["notes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("davis", type=Path)
    parser.add_argument("weights", type=Path, nargs="+")
    parser.add_argument("--frames", type=int, default=30, help="the first ones of every sequence")
    parser.add_argument("--work", type=Path, default=cache_folder() / "davis-benchmark")
    args = parser.parse_args()
    tree = args.work / f"first {args.frames}"
    names = take(args.davis, tree, args.frames)
    copied = copy_first(tree, names, args.work / f"copied {args.frames}")
    rows = [{"what": "first mask copied to all frames", **scored(tree, names, args.work, "--masks", str(copied))}]
    for weights in args.weights:
        backbone = dinoeval.load(weights=weights)
        about = {"arch": backbone.arch, "patch size": backbone.patch_size}
        rows.append(
            {"what": "checkpoint", "digest": backbone.digest[:12], **about, **scored(tree, names, args.work, "--weights", str(weights))}
        )
        rows.append({"what": "random weights", **about, **scored(tree, names, args.work, "--arch", backbone.arch, "--weights", "random")})
    counts = {name: len(list((tree / "JPEGImages/480p" / name).iterdir())) for name in names}
    facts = {"frames": counts, "rows": rows, "command": f"python benchmarks/davis.py DAVIS WEIGHTS... --frames {args.frames}",
             "machine": describe_machine()}  # fmt: skip
    (ROOT / "benchmarks/results/davis.json").write_text(json.dumps(facts, indent=1) + "\n")
    for row in rows:
        scores = ", ".join(f"{metric} {row['metrics'][metric]:.2f}" for metric in ("J&F", "J", "F"))
        print(f"{row['what']:<34}{row.get('arch', ''):<14}{scores}")


if __name__ == "__main__":
    main()
