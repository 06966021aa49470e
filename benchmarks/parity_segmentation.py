"""J, F and their statistics: the official evaluation of DAVIS beside dinoeval, and the time of both.

    python benchmarks/parity_segmentation.py DAVIS2017 DAVIS [--rounds 7]

DAVIS2017 is davisvideochallenge/davis2017-evaluation, with the results it comes with; DAVIS a tree with annotations of one
object in Annotations/480p. Masks: those annotations against OSVOS's masks of the same frames; OSVOS's against RVOS's,
object by object, of all 30 sequences; and made-up ones (empty, full, one pixel, lines at the border). Times are of real
masks, both in turn, medians over the rounds. Writes benchmarks/results/parity_segmentation.json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent

from dinoeval.data.masks import read_mask  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.maths.segmentation import contour_accuracy, region_similarity, sequence_statistics  # noqa: E402

Pair = tuple[np.ndarray, ...]  # truth and mask, (H, W) bool
TIMED = 60
WAYS = {"OSVOS": "semi-supervised/osvos", "RVOS": "unsupervised/rvos"}


def annotated(checkout: Path, davis: Path) -> Iterator[Pair]:
    """The annotation of one object and OSVOS's mask, of every second frame."""
    for sequence in sorted((davis / "Annotations/480p").iterdir()):
        for path in sorted(sequence.iterdir())[::2]:
            found = checkout / "results" / WAYS["OSVOS"] / sequence.name / path.name
            if found.is_file():
                yield read_mask(path) > 0, read_mask(found) > 0


def by_object(checkout: Path) -> Iterator[Pair]:
    """Masks of the same object of the same frame by two networks, of every eighth frame."""
    folders = [checkout / "results" / place for place in WAYS.values()]
    for sequence in sorted(folders[0].iterdir()):
        for path in sorted(sequence.iterdir())[::8]:
            other = folders[1] / sequence.name / path.name
            one, two = read_mask(path), read_mask(other)
            for label in range(1, int(one.max()) + 2):  # and one that neither or only RVOS has
                yield one == label, two == label


def made_up() -> Iterator[Pair]:
    """All pairs of masks without much in them, in several sizes; and noise."""
    random = np.random.default_rng(0)
    for height, width in ((480, 854), (101, 60), (7, 300), (1, 40), (40, 1), (1, 1), (2, 2)):
        masks = [np.zeros((height, width), bool), np.ones((height, width), bool)]
        for row, column in itertools.product((0, height // 2, height - 1), (0, width // 2, width - 1)):
            masks.append(np.zeros((height, width), bool))
            masks[-1][row, column] = True
        for line in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            masks.append(np.zeros((height, width), bool))
            masks[-1][line] = True
        masks += [random.random((height, width)) < share for share in (0.001, 0.5)]
        yield from itertools.product(masks, repeat=2) if height < 480 else zip(masks, masks[3:] + masks[:3], strict=True)


def differences(pairs: list[Pair], official: dict[str, Callable]) -> dict[str, float]:
    """The largest of J and of F, and how many masks were special."""
    ours = {"J": region_similarity, "F": contour_accuracy}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the official J divides by zero before it says 1
        worst = {name: max(abs(ours[name](*pair) - float(official[name](*pair))) for pair in pairs) for name in ours}
    sizes = [int(mask.sum()) for pair in pairs for mask in pair]
    return {"pairs": len(pairs), "empty masks": sizes.count(0), "of one pixel": sizes.count(1), **worst}


def of_statistics(checkout: Path, official: Callable) -> dict[str, float]:
    """The largest difference of mean, recall and decay: of J of the objects of every sequence over its frames, and of random values."""
    folders = [checkout / "results" / place for place in WAYS.values()]
    values = []
    for sequence in sorted(folders[0].iterdir())[::3]:
        masks = [[read_mask(folder / sequence.name / path.name) for path in sorted(sequence.iterdir())] for folder in folders]
        for label in range(1, int(masks[0][0].max()) + 1):
            values.append(np.array([region_similarity(one == label, two == label) for one, two in zip(*masks, strict=True)]))
    random = np.random.default_rng(1)
    real = len(values)
    for length in range(1, 256):  # the official code counts frames in 8 bits
        values.append(random.random(length))
        values.append(np.where(random.random(length) < 0.3, np.nan, random.random(length)))
    gaps = []
    for one in values:
        ours, theirs = np.array(sequence_statistics(one)), np.array(official(one), float)
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))
        gaps.append(np.nanmax(abs(ours - theirs)))
    return {"objects of real sequences": real, "made-up rows": len(values) - real, "mean, recall, decay": float(max(gaps))}


def times(pairs: list[Pair], official: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds a mask: medians over the rounds, in each of which both run, in turn."""
    found = {}
    for name, ours in (("J", region_similarity), ("F", contour_accuracy)):
        runs = []
        for _ in range(rounds):
            seconds = []
            for way in (ours, official[name]):
                began = time.perf_counter()
                for pair in pairs:
                    way(*pair)
                seconds.append((time.perf_counter() - began) * 1e3 / len(pairs))
            runs.append(seconds)
        found[name] = {
            "ours, ms": statistics.median(one for one, _ in runs),
            "official, ms": statistics.median(other for _, other in runs),
            "times faster": statistics.median(other / one for one, other in runs),
            "slowest round, times faster": min(other / one for one, other in runs),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("davis", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    sys.path.insert(0, str(args.checkout))
    import cv2
    from davis2017.metrics import db_eval_boundary, db_eval_iou
    from davis2017.utils import db_statistics

    official = {"J": db_eval_iou, "F": db_eval_boundary}
    real = list(annotated(args.checkout, args.davis))
    kinds = {"annotations and OSVOS": real, "OSVOS and RVOS": list(by_object(args.checkout)), "made up": list(made_up())}
    step = math.ceil(len(real) / TIMED)
    facts = {
        "largest differences, fractions": {kind: differences(pairs, official) for kind, pairs in kinds.items()},
        "statistics": of_statistics(args.checkout, db_statistics),
        "milliseconds a mask": times(real[::step], official, args.rounds),
        "timed masks": len(real[::step]), "size": list(real[0][0].shape), "rounds": args.rounds,
        "OpenCV": {"version": importlib.metadata.version("opencv-python-headless"), "threads": cv2.getNumThreads()},
        "load average": round(os.getloadavg()[0], 1),
        "command": "python benchmarks/parity_segmentation.py DAVIS2017 DAVIS",
        "machine": describe_machine(),
    }  # fmt: skip
    (ROOT / "benchmarks/results/parity_segmentation.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
