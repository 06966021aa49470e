"""Features of pictures of their own sizes: batches of equal size against one by one, and a million distractors in bounded memory.

    python benchmarks/speed/retrieval.py PICTURES FRAMES [--parts ...] [--images 96] [--rounds 5]
        [--weights FILE --distractors FOLDER --whitening FOLDER --square 96]

PICTURES is a folder of images, FRAMES one with a folder of frames a video. The parts, by default all: `batches`, JPEG files to
[CLS] of ViT-S/16 at 224, the same files in turn with batches of equal size (the default) and of one. `strangers`, the rank of
4,993 database rows of 384 dims for 70 queries among 1,000,000 made-up distractors, and what that adds to the memory of the
process. `whole`, both protocols by their command lines on made-up sets of the published size, with a checkpoint: alone, and with
distractors and a whitening; Copydays' pictures are squashed to squares of --square pixels.
Writes benchmarks/results/speed_retrieval.json, in which parts that were not run stay as they were.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from factories import synthetic_state  # noqa: E402
from set_factories import copydays_tree, frames_below, revisited_set  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.retrieval import PUBLISHED_COUNTS, open_retrieval  # noqa: E402
from dinoeval.data.transforms import Thumbnail  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.features.cache import FeatureCache  # noqa: E402
from dinoeval.features.extract import ExtractOptions, extract  # noqa: E402
from dinoeval.features.readout import Cls  # noqa: E402
from dinoeval.maths.neighbors import l2_normalize  # noqa: E402
from dinoeval.maths.ranks import count_closer_distractors  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402

DATABASE, QUERIES = PUBLISHED_COUNTS["roxford5k"]


def batches(work: Path, root: Path, count: int, rounds: int) -> dict:
    """Images a second, the median of rounds in turn."""
    save_backbone(work / "vit_s16.safetensors", synthetic_state("vit_s16"), arch="vit_s16")
    backbone = dinoeval.load(weights=work / "vit_s16.safetensors")
    images = open_retrieval(root, "roxford5k").database
    images = images.subset(np.linspace(0, len(images) - 1, count).astype(int))
    speeds: dict[str, list[float]] = {"batches of equal size": [], "one by one": []}
    rows = {}
    for number in range(rounds):
        for name, batch_size in (("batches of equal size", None), ("one by one", 1)):
            cache = FeatureCache(work / f"cache {name} {number}")
            began = time.monotonic()
            rows[name] = extract(backbone, images, Cls(), Thumbnail(224), cache, options=ExtractOptions(batch_size=batch_size)).numpy()
            speeds[name].append(count / (time.monotonic() - began))
    gap = np.abs(np.subtract(*rows.values())).max()
    ratios = [batched / single for batched, single in zip(*speeds.values(), strict=True)]
    return {
        "images": count,
        "images a second": {name: round(statistics.median(found), 2) for name, found in speeds.items()},
        "rounds": {name: [round(one, 2) for one in found] for name, found in speeds.items()},
        "batches over one by one, median of the rounds": round(statistics.median(ratios), 2),
        "largest difference": float(gap),
    }


def strangers(count: int = 1_000_000, dim: int = 384) -> dict:
    """Seconds and memory of ranking among made-up distractors."""
    random = np.random.default_rng(0)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, count, 40_000):  # as large as Features.blocks gives
            yield l2_normalize(random.standard_normal((min(40_000, count - first), dim), np.float32))

    queries, database = (l2_normalize(random.standard_normal((rows, dim), np.float32)) for rows in (QUERIES, DATABASE))
    began = time.monotonic()
    for _ in blocks():
        pass
    making, before = time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.monotonic()
    closer = count_closer_distractors(queries, queries @ database.T, blocks())
    seconds = time.monotonic() - began - making
    assert closer.max() <= count
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "distractors": count,
        "dims": dim,
        "seconds": round(seconds, 1),
        "seconds to make them": round(making, 1),
        "added peak memory, MB": round((after - before) / 1e3),
        "size of the distractors, MB": round(4 * count * dim / 1e6),
    }


def whole(work: Path, root: Path, pictures: list[Path], args: argparse.Namespace) -> dict:
    """Both protocols on sets of the published size."""
    copydays_tree(work / "copydays", pictures)
    sets = {"retrieval": ["--data", str(root)], "copydays": ["--data", str(work / "copydays"), "--image-size", str(args.square)]}
    more = ["--distractors", str(args.distractors), "--whitening", str(args.whitening)]
    both = bool(args.distractors and args.whitening)
    found = {}
    for protocol, words in sets.items():
        for name, added in ((protocol, []), *([(f"{protocol} with distractors and whitening", more)] if both else [])):
            target = work / "result.json"
            subprocess.run([sys.executable, "-m", "dinoeval", protocol, *words, *added, "--weights", str(args.weights),
                            "--cache", str(work / "cache"), "--json", str(target)], check=True)  # fmt: skip
            result = json.loads(target.read_text())
            found[name] = {
                "images": {kind: facts["images"] for kind, facts in result["data"].items() if isinstance(facts, dict)},
                "metrics": {metric: round(value, 2) for metric, value in result["metrics"].items()},
                "seconds": round(result["seconds"]["total"], 1),
                "seconds by stage": {stage: round(seconds, 1) for stage, seconds in result["seconds"].items()},
                "load average of the machine": round(os.getloadavg()[0], 1),
                "weights": Path(result["backbone"]["weights"]).name,
                "digest": result["backbone"]["digest"],
                "transform": result["transform"],
                "not comparable": result["not_comparable"].replace(str(args.weights), args.weights.name),
                "notes": result["notes"],
            }
    return found


PARTS = {"batches": "ViT-S/16 at 224", "strangers": "distractors", "whole": "made-up sets of the published size"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("frames", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=Path, help="the checkpoint of `whole`")
    parser.add_argument("--distractors", type=Path)
    parser.add_argument("--whitening", type=Path)
    parser.add_argument("--square", type=int, default=96)
    args = parser.parse_args()
    pictures = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    target = ROOT / "benchmarks/results/speed_retrieval.json"
    facts = json.loads(target.read_text()) if target.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if {"batches", "whole"} & set(args.parts):
            database = DATABASE if "whole" in args.parts else 600
            root = revisited_set(work / "sets", frames_below(args.frames), queries=QUERIES, database=database, others=pictures)
        for part in args.parts:
            match part:
                case "batches":
                    found = batches(work, root, args.images, args.rounds)
                case "strangers":
                    found = strangers()
                case _:
                    found = whole(work, root, pictures, args)
            facts[PARTS[part]] = found
            print(PARTS[part], json.dumps(found, indent=1), flush=True)
    facts |= {
        "command": "python benchmarks/speed/retrieval.py PICTURES FRAMES --weights WEIGHTS --distractors CIFAR10/test --whitening 20000/",
        "machine": describe_machine(),
    }
    target.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
