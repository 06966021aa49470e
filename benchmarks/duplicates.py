"""Duplicates planted among real images: what the measured threshold finds, and thresholds around it.

    python benchmarks/duplicates.py NAME=FOLDER... --weights FILE [--planted 100] [--most 20000]

From `planted` images of each folder one copy each of several kinds is written beside links to up to `most` of its images; all go
through `dinoeval.search` as a user's folder would. A pair of an original and its copy is right, or of two copies of one
original; every other pair is counted as wrong, though some are duplicates that the set itself holds: the sheet that is
written beside the index shows them. Writes benchmarks/results/duplicates.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

import dinoeval
from dinoeval import search
from dinoeval.data.loading import EXTENSIONS
from dinoeval.environment import describe_machine

ROOT = Path(__file__).resolve().parent.parent


def smaller(part: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.resize((round(picture.width * part), round(picture.height * part)), Image.Resampling.LANCZOS)


def cropped(part: float) -> Callable[[Image.Image], Image.Image]:
    """Cut this part of the width and height off, half on each side."""
    return lambda picture: picture.crop(
        (
            round(picture.width * part / 2),
            round(picture.height * part / 2),
            round(picture.width * (1 - part / 2)),
            round(picture.height * (1 - part / 2)),
        )
    )


def same(picture: Image.Image) -> Image.Image:
    return picture


COPIES: dict[str, tuple[Callable[[Image.Image], Image.Image], int | None]] = {
    "JPEG 90": (same, 90), "JPEG 75": (same, 75), "JPEG 50": (same, 50), "JPEG 30": (same, 30), "75 % of its size": (smaller(0.75), None),
    "half its size": (smaller(0.5), None), "5 % cropped": (cropped(0.05), None), "10 % cropped": (cropped(0.1), None),
}  # fmt: skip


def plant(source: Path, target: Path, planted: int, most: int) -> None:
    """Links `target/<number>.<ending>`, and copies `target/<number>+<kind>.<ending>`."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in EXTENSIONS)
    random = np.random.default_rng(0)
    chosen = random.permutation(len(paths))[:most]
    target.mkdir()
    for number, row in enumerate(chosen):
        (target / f"{number:06}{paths[row].suffix}").symlink_to(paths[row].resolve())
    for number in range(min(planted, len(chosen))):
        picture = Image.open(paths[chosen[number]]).convert("RGB")
        for kind, (change, quality) in enumerate(COPIES.values()):
            copy = target / f"{number:06}+{kind}"
            changed = change(picture)
            changed.save(f"{copy}.jpg", quality=quality) if quality else changed.save(f"{copy}.png")


def judge(library: search.ImageIndex, threshold: float, planted: int) -> dict:
    """Recall of each kind: copies that are that near to their original; precision: pairs that near that are of one original."""
    names = [Path(path).stem for path in library.paths]
    numbers = np.array([int(name.partition("+")[0]) for name in names])
    kinds = np.array([int(name.partition("+")[2] or -1) for name in names])
    rows = library.vectors()
    original = {int(number): row for row, number in enumerate(numbers) if kinds[row] < 0}
    found = {
        name: float(np.mean([rows[row] @ rows[original[int(numbers[row])]] >= threshold for row in np.flatnonzero(kinds == kind)]))
        for kind, name in enumerate(COPIES)
    }
    right = wrong = 0
    for start in range(0, len(rows), 1000):
        one, other = np.nonzero(rows[start : start + 1000] @ rows.T >= threshold)
        later = other > one + start
        equal = numbers[one[later] + start] == numbers[other[later]]
        right, wrong = right + int(equal.sum()), wrong + int((~equal).sum())
    began = time.monotonic()
    groups = library.duplicates(threshold)
    return {
        "threshold": threshold, "recall": found, "right pairs": right, "other pairs": wrong,
        "precision of pairs": right / max(1, right + wrong), "groups": len(groups), "seconds": time.monotonic() - began,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--planted", type=int, default=100)
    parser.add_argument("--most", type=int, default=20_000)
    parser.add_argument("--sheets", type=Path, help="a folder for contact sheets")
    args = parser.parse_args()
    backbone = dinoeval.load(weights=args.weights)
    facts: dict = {"network": backbone.arch, "digest": backbone.digest, "planted": args.planted, "sets": {}}
    for given in args.sets:
        name, _, folder = given.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            plant(Path(folder), Path(scratch) / "photos", args.planted, args.most)
            library = search.build(Path(scratch) / "photos", Path(scratch) / "index", backbone)
            measured = library.measure_threshold()
            distance = 1 - measured.cosine
            around = [round(1 - distance * factor, 6) for factor in (0.25, 0.5, 1, 2, 4)]
            told = {"images": len(library), "measured": dataclasses.asdict(measured)}
            facts["sets"][name] = {**told, "thresholds": [judge(library, threshold, args.planted) for threshold in around]}
            print(name, json.dumps(facts["sets"][name], indent=1), flush=True)
            if args.sheets:
                write_sheet(library, measured.cosine, args.sheets / f"{name}.html")
    facts["machine"] = describe_machine()
    facts["command"] = f"python benchmarks/duplicates.py NAME=FOLDER... --weights FILE --planted {args.planted} --most {args.most}"
    (ROOT / "benchmarks/results/duplicates.json").write_text(json.dumps(facts, indent=1) + "\n")


def write_sheet(library: search.ImageIndex, threshold: float, path: Path) -> None:
    """Only the groups that hold other pairs than planted ones, which are the ones to look at."""
    from dinoeval.search.sheet import Section, Tile, write_sheet

    strips = []
    for group in library.duplicates(threshold):
        names = [Path(one).name for one in group.paths]
        if len({name[:6] for name in names}) > 1:
            tiles = [Tile(one, name, f"{cosine:.5f}") for one, name, cosine in zip(group.paths, names, group.cosines, strict=True)]
            strips.append(Section(f"{len(tiles)} images", tiles))
    write_sheet(path, "Groups of different originals", strips)


if __name__ == "__main__":
    main()
