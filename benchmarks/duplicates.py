"""Duplicates added to real images: what the calibrated threshold finds, and thresholds around it.

    python benchmarks/duplicates.py NAME=FOLDER... --weights FILE [--copied 100] [--max-images 20000]

Of --copied images of each folder, one copy of each of several kinds is written next to links to at most --max-images of its
images. dinoeval.search indexes all of them like a folder of a user. A pair of an original and its copy, or of two copies of
one original, is correct. Every other pair counts as wrong, although the dataset itself contains some duplicates: see the
contact sheets that --sheets writes.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import numpy as np
from measurement import Options, write_record
from PIL import Image

import dinoeval
from dinoeval import search
from dinoeval.data.loading import EXTENSIONS
from dinoeval.search.sheet import Section, Tile, write_sheet
from dinoeval.testing import TINY_ARCH

Change = Callable[[Image.Image], Image.Image]


def resized(fraction: float) -> Change:
    """Return the change that resizes an image to this fraction of its width and height."""
    return lambda image: image.resize((round(image.width * fraction), round(image.height * fraction)), Image.Resampling.LANCZOS)


def cropped(fraction: float) -> Change:
    """Return the change that cuts off this fraction of the width and height, one half of it on each side."""

    def crop(image: Image.Image) -> Image.Image:
        left, top = round(image.width * fraction / 2), round(image.height * fraction / 2)
        return image.crop((left, top, round(image.width * (1 - fraction / 2)), round(image.height * (1 - fraction / 2))))

    return crop


COPIES: dict[str, tuple[Change | None, int | None]] = {
    "JPEG 90": (None, 90),
    "JPEG 75": (None, 75),
    "JPEG 50": (None, 50),
    "JPEG 30": (None, 30),
    "resized to 75 %": (resized(0.75), None),
    "resized to 50 %": (resized(0.5), None),
    "cropped by 5 %": (cropped(0.05), None),
    "cropped by 10 %": (cropped(0.1), None),
}
"""A change and a JPEG quality; without a quality the copy is a PNG."""


def add_copies(source: Path, target: Path, copied: int, max_images: int) -> Path:
    """Link images as `target/<number>.<suffix>`, and write copies as `target/<number>+<kind>.<suffix>`."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS)
    chosen = np.random.default_rng(0).permutation(len(paths))[:max_images]
    target.mkdir()
    for number, row in enumerate(chosen):
        (target / f"{number:06}{paths[row].suffix}").symlink_to(paths[row].resolve())
    for number in range(min(copied, len(chosen))):
        image = Image.open(paths[chosen[number]]).convert("RGB")
        for kind, (change, quality) in enumerate(COPIES.values()):
            copy = change(image) if change else image
            path = target / f"{number:06}+{kind}"
            copy.save(f"{path}.jpg", quality=quality) if quality else copy.save(f"{path}.png")
    return target


def score_threshold(index: search.ImageIndex, threshold: float) -> dict[str, Any]:
    """Return the recall of each kind of copy, and the precision of all pairs with at least this cosine."""
    names = [Path(path).stem for path in index.paths]
    numbers = np.array([int(name.partition("+")[0]) for name in names])
    kinds = np.array([int(name.partition("+")[2] or -1) for name in names])
    vectors = index.vectors()
    originals = {int(number): row for row, number in enumerate(numbers) if kinds[row] < 0}
    recall = {
        name: float(np.mean([vectors[row] @ vectors[originals[int(numbers[row])]] >= threshold for row in np.flatnonzero(kinds == kind)]))
        for kind, name in enumerate(COPIES)
    }
    correct = wrong = 0
    for start in range(0, len(vectors), 1000):
        one, other = np.nonzero(vectors[start : start + 1000] @ vectors.T >= threshold)
        later = other > one + start
        equal = numbers[one[later] + start] == numbers[other[later]]
        correct, wrong = correct + int(equal.sum()), wrong + int((~equal).sum())
    started = time.monotonic()
    groups = index.duplicates(threshold)
    return {
        "threshold": threshold,
        "recall": recall,
        "correct_pairs": correct,
        "wrong_pairs": wrong,
        "precision": correct / max(1, correct + wrong),
        "groups": len(groups),
        "seconds": time.monotonic() - started,
    }


def measure(folder: Path, backbone: dinoeval.Backbone, args, sheet: Path | None) -> dict[str, Any]:
    """Index a folder with copies and score thresholds around the calibrated one."""
    with tempfile.TemporaryDirectory() as scratch:
        images = add_copies(folder, Path(scratch) / "images", args.copied, args.max_images)
        index = search.build(images, Path(scratch) / "index", backbone)
        calibrated = index.measure_threshold()
        distance = 1 - calibrated.cosine
        thresholds = [round(1 - distance * factor, 6) for factor in (0.25, 0.5, 1, 2, 4)]
        if sheet:
            write_other_groups(index, calibrated.cosine, sheet)
        scores = [score_threshold(index, threshold) for threshold in thresholds]
        return {"images": len(index), "calibrated": dataclasses.asdict(calibrated), "thresholds": scores}


def write_other_groups(index: search.ImageIndex, threshold: float, path: Path) -> None:
    """Write a contact sheet of the groups that contain different originals."""
    sections = []
    for group in index.duplicates(threshold):
        names = [Path(one).name for one in group.paths]
        if len({name[:6] for name in names}) > 1:
            tiles = [Tile(one, name, f"{cosine:.5f}") for one, name, cosine in zip(group.paths, names, group.cosines, strict=True)]
            sections.append(Section(f"{len(tiles)} images", tiles))
    write_sheet(path, "Groups of different originals", sections)


def main() -> None:
    options = Options(__file__, "duplicates", __doc__)
    options.add_input("datasets", "folders of images, as NAME=FOLDER", many=True, of=str)
    options.add_argument("--weights", help="a checkpoint that names its architecture (default: the bundled one)")
    options.add_argument("--copied", type=int, default=100, help="images of each folder that are copied (default: 100)")
    options.add_argument("--max-images", type=int, default=20_000, help="images of each folder (default: 20,000)")
    options.add_argument("--sheets", type=Path, help="folder for contact sheets (default: none are written)")
    args = options.parse()
    datasets = {name: Path(folder) for name, _, folder in (word.partition("=") for word in args.datasets)}
    with tempfile.TemporaryDirectory() as folder:
        if args.tiny:
            args.copied, args.weights = 4, inputs.save_weights(Path(folder) / "weights.safetensors", TINY_ARCH)
            datasets = {"synthetic": Path(folder) / "images"}
            inputs.save_images(datasets["synthetic"], 12)
        backbone = dinoeval.load(weights=args.weights)
        record: dict[str, Any] = {"network": backbone.arch, "digest": backbone.digest, "copied": args.copied, "datasets": {}}
        for name, images in datasets.items():
            found = measure(images, backbone, args, args.sheets / f"{name}.html" if args.sheets else None)
            record["datasets"][name] = found
            print(name, json.dumps(found, indent=1), flush=True)
    limits = f"--copied {args.copied} --max-images {args.max_images}"
    write_record(args, f"python benchmarks/duplicates.py NAME=FOLDER... --weights FILE {limits}", record)


if __name__ == "__main__":
    main()
