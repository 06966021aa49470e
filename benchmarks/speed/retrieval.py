"""Features of images of different sizes in batches and one by one, and a million distractors in bounded memory.

    python benchmarks/speed/retrieval.py IMAGES FRAMES [--parts ...] [--images 96] [--rounds 5]
        [--weights FILE --distractors FOLDER --whitening FOLDER --square 96]

IMAGES is a folder of images, FRAMES a folder with one subfolder of frames per video. There are three parts; a part that does
not run keeps its earlier values in the record.

- `batches`: JPEG files to [CLS] of ViT-S/16 at 224 pixels, with batches of images of equal size (the default) and one by one,
  in turn.
- `distractors`: ranking 4,993 database features of 384 dims for 70 queries among 1,000,000 random distractors, and the memory
  that it adds to the process.
- `datasets`: both protocols by their command lines, on synthetic datasets of the published size, with a checkpoint, without and
  with distractors and whitening. Images of Copydays are resized to squares of --square pixels without keeping the aspect ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs
from measurement import Options, in_turn, load_average, memory_kib, run_dinoeval, seconds_of, write_record

import dinoeval
from dinoeval.data.retrieval import PUBLISHED_COUNTS, open_retrieval
from dinoeval.data.transforms import Thumbnail
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.readout import Cls
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.maths.ranks import count_closer_distractors

COMMAND = "python benchmarks/speed/retrieval.py IMAGES FRAMES --weights WEIGHTS --distractors CIFAR10/test --whitening 20000/"
BLOCK = 40_000
"""Features per block of distractors, about as many as `Features.blocks` yields."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem."""

    arch: str = "vit_s16"
    database: int = PUBLISHED_COUNTS["roxford5k"][0]
    queries: int = PUBLISHED_COUNTS["roxford5k"][1]
    distractors: int = 1_000_000
    dim: int = 384
    scenes: int = 157
    strong: int = 229


TINY = Sizes("vit_ti32", 30, 4, 1_000, 16, 4, 6)


def measure_batches(work: Path, root: Path, sizes: Sizes, args: argparse.Namespace) -> dict[str, Any]:
    """Return images per second, as medians of rounds in turn."""
    backbone = dinoeval.load(weights=inputs.save_weights(work / "weights.safetensors", sizes.arch))
    images = open_retrieval(root, "roxford5k").database
    images = images.subset(np.linspace(0, len(images) - 1, args.images).astype(int))
    features = {}

    def run(name: str, batch_size: int | None) -> float:
        def run_once() -> None:
            with tempfile.TemporaryDirectory() as cache:
                options = ExtractOptions(batch_size=batch_size)
                features[name] = extract(backbone, images, Cls(), Thumbnail(224), FeatureCache(cache), options=options).numpy()

        return args.images / seconds_of(run_once)

    batch_sizes = {"batches": None, "one_by_one": 1}
    rates = in_turn({name: functools.partial(run, name, size) for name, size in batch_sizes.items()}, args.rounds)
    ratios = [batched / single for batched, single in zip(*rates.values(), strict=True)]
    return {
        "images": args.images,
        "images_per_second": {name: round(statistics.median(found), 2) for name, found in rates.items()},
        "rounds": {name: [round(rate, 2) for rate in found] for name, found in rates.items()},
        "median_speedup_of_batches": round(statistics.median(ratios), 2),
        "largest_difference": float(np.abs(np.subtract(*features.values())).max()),
    }


def measure_distractors(sizes: Sizes) -> dict[str, Any]:
    """Return seconds and memory of ranking among random distractors."""
    random = np.random.default_rng(0)

    def blocks() -> Iterator[np.ndarray]:
        for first in range(0, sizes.distractors, BLOCK):
            yield l2_normalize(random.standard_normal((min(BLOCK, sizes.distractors - first), sizes.dim), np.float32))

    shapes = ((sizes.queries, sizes.dim), (sizes.database, sizes.dim))
    queries, database = (l2_normalize(random.standard_normal(shape, np.float32)) for shape in shapes)
    drawing, before = seconds_of(lambda: [None for _ in blocks()]), memory_kib("VmHWM")
    closer = []
    seconds = seconds_of(lambda: closer.append(count_closer_distractors(queries, queries @ database.T, blocks()))) - drawing
    assert closer[0].max() <= sizes.distractors
    added = memory_kib("VmHWM") - before
    return {
        "distractors": sizes.distractors,
        "dims": sizes.dim,
        "seconds": round(seconds, 1),
        "seconds_to_draw": round(drawing, 1),
        "added_peak_mb": round(added / 1e3) if added == added else None,
        "distractors_mb": round(4 * sizes.distractors * sizes.dim / 1e6),
    }


def measure_datasets(work: Path, root: Path, sizes: Sizes, args: argparse.Namespace) -> dict[str, Any]:
    """Run both protocols on synthetic datasets of the published size."""
    inputs.copydays_tree(work / "copydays", inputs.image_files(args.images_folder), scenes=sizes.scenes, strong=sizes.strong)
    words = {"retrieval": ["--data", root], "copydays": ["--data", work / "copydays", "--image-size", args.square]}
    additions: dict[str, list[object]] = {"": []}
    if args.distractors and args.whitening:
        additions[" with distractors and whitening"] = ["--distractors", args.distractors, "--whitening", args.whitening]
    found = {}
    for protocol, options in words.items():
        for name, added in additions.items():
            result = run_dinoeval(protocol, *options, *added, "--weights", args.weights, "--cache", work / "cache")
            found[f"{protocol}{name}"] = {
                "images": {kind: metadata["images"] for kind, metadata in result["data"].items() if isinstance(metadata, dict)},
                "metrics": {metric: round(value, 2) for metric, value in result["metrics"].items()},
                "seconds": round(result["seconds"]["total"], 1),
                "seconds_by_stage": {stage: round(seconds, 1) for stage, seconds in result["seconds"].items()},
                "load_average": load_average(),
                "weights": Path(result["backbone"]["weights"]).name,
                "digest": result["backbone"]["digest"],
                "transform": result["transform"],
                "notes": result["notes"],
            }
    return found


PARTS = ("batches", "distractors", "datasets")


def main() -> None:
    options = Options(__file__, "speed_retrieval", __doc__)
    options.add_input("images_folder", "a folder of images")
    options.add_input("frames", "a folder with one subfolder of frames per video")
    options.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    options.add_argument("--images", type=int, default=96, help="images of `batches` (default: 96)")
    options.add_argument("--rounds", type=int, default=5, help="rounds of `batches` (default: 5)")
    options.add_argument("--weights", type=Path, help="checkpoint of `datasets` (default: the bundled one)")
    options.add_argument("--distractors", type=Path, help="folder of distractors (default: none)")
    options.add_argument("--whitening", type=Path, help="folder of images that the whitening is learned from (default: none)")
    options.add_argument("--square", type=int, default=96, help="pixels of the images of Copydays (default: 96)")
    args = options.parse()
    sizes = TINY if args.tiny else Sizes()
    record: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.tiny:
            args.images, args.rounds, args.images_folder, args.frames = 4, 1, work / "images", work / "frames"
            inputs.save_images(args.images_folder, 12, (160, 128))
            inputs.synthetic_videos(args.frames, videos=2, frames=6, size=(160, 128))
            args.weights = inputs.save_weights(work / "checkpoint.safetensors", sizes.arch)
        if {"batches", "datasets"} & set(args.parts):
            database = sizes.database if args.tiny or "datasets" in args.parts else 600
            videos, others = inputs.frames_below(args.frames), inputs.image_files(args.images_folder)
            root = inputs.revisited_set(work / "datasets", videos, queries=sizes.queries, database=database, others=others)
        for part in args.parts:
            match part:
                case "batches":
                    record[part] = measure_batches(work, root, sizes, args)
                case "distractors":
                    record[part] = measure_distractors(sizes)
                case _:
                    record[part] = measure_datasets(work, root, sizes, args)
    write_record(args, COMMAND, record)


if __name__ == "__main__":
    main()
