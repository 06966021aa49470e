"""J, F and their statistics by the official evaluation of DAVIS and by dinoeval, and the time of both.

    python benchmarks/parity_segmentation.py DAVIS2017 DAVIS [--rounds 7]

DAVIS2017 is a checkout of davisvideochallenge/davis2017-evaluation with the results in it; it requires
opencv-python-headless and scikit-image. DAVIS is a folder with annotations of one object in Annotations/480p. Three kinds
of masks are compared: these annotations with the masks of OSVOS for the same frames; masks of OSVOS with those of RVOS,
object by object, of all 30 sequences; and synthetic masks (empty, full, one pixel, lines at the border). Times are of real
masks, in turn, as medians over the rounds.
"""

from __future__ import annotations

import functools
import importlib.metadata
import itertools
import math
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import released
from measurement import Options, load_average, seconds_of, write_record

from dinoeval.data.masks import read_mask
from dinoeval.maths.segmentation import contour_accuracy, region_similarity, sequence_statistics

COMMAND = "python benchmarks/parity_segmentation.py DAVIS2017 DAVIS"
Pair = tuple[np.ndarray, ...]
"""Ground truth and mask, (H, W) bool."""
METRICS: dict[str, Callable] = {"J": region_similarity, "F": contour_accuracy}
TIMED = 60
REQUIRES = released.OPENCV | {"skimage": "scikit-image"}
NETWORKS = {"OSVOS": "semi-supervised/osvos", "RVOS": "unsupervised/rvos"}
SIZES = ((480, 854), (101, 60), (7, 300), (1, 40), (40, 1), (1, 1), (2, 2))
TINY_SIZES = ((11, 6), (1, 4), (1, 1))


def annotated_pairs(checkout: Path, davis: Path) -> Iterator[Pair]:
    """Yield the annotation of one object and the mask of OSVOS, for every second frame."""
    for sequence in sorted((davis / "Annotations/480p").iterdir()):
        for path in sorted(sequence.iterdir())[::2]:
            found = checkout / "results" / NETWORKS["OSVOS"] / sequence.name / path.name
            if found.is_file():
                yield read_mask(path) > 0, read_mask(found) > 0


def object_pairs(checkout: Path) -> Iterator[Pair]:
    """Yield masks of the same object of the same frame by two networks, for every eighth frame."""
    folders = [checkout / "results" / place for place in NETWORKS.values()]
    for sequence in sorted(folders[0].iterdir()):
        for path in sorted(sequence.iterdir())[::8]:
            one, two = read_mask(path), read_mask(folders[1] / sequence.name / path.name)
            for label in range(1, int(one.max()) + 2):  # The last label belongs to neither mask or only to that of RVOS.
                yield one == label, two == label


def synthetic_pairs(sizes: tuple[tuple[int, int], ...]) -> Iterator[Pair]:
    """Yield all pairs of nearly empty masks, full ones and noise, in several sizes."""
    random = np.random.default_rng(0)
    for height, width in sizes:
        masks = [np.zeros((height, width), bool), np.ones((height, width), bool)]
        for row, column in itertools.product((0, height // 2, height - 1), (0, width // 2, width - 1)):
            masks.append(np.zeros((height, width), bool))
            masks[-1][row, column] = True
        for line in (np.s_[0], np.s_[-1], np.s_[:, 0], np.s_[:, -1]):
            masks.append(np.zeros((height, width), bool))
            masks[-1][line] = True
        masks += [random.random((height, width)) < share for share in (0.001, 0.5)]
        yield from itertools.product(masks, repeat=2) if height < 480 else zip(masks, masks[3:] + masks[:3], strict=True)


def compare_metrics(pairs: list[Pair], official: dict[str, Callable]) -> dict[str, float]:
    """Return the largest difference of J and of F, and the numbers of special masks."""
    sizes = [int(mask.sum()) for pair in pairs for mask in pair]
    row: dict[str, float] = {"pairs": len(pairs), "empty_masks": sizes.count(0), "one_pixel_masks": sizes.count(1)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # The official J divides by zero before it returns 1.
        for name, metric in METRICS.items():
            scores = [(metric(*pair), float(official[name](*pair)) if official else math.nan) for pair in pairs]
            if official:
                row[name] = max(abs(one - other) for one, other in scores)
    return row


def real_series(checkout: Path) -> list[np.ndarray]:
    """Return the J of the objects of every third sequence, between the masks of two networks, frame by frame."""
    folders = [checkout / "results" / place for place in NETWORKS.values()]
    series = []
    for sequence in sorted(folders[0].iterdir())[::3]:
        masks = [[read_mask(folder / sequence.name / path.name) for path in sorted(sequence.iterdir())] for folder in folders]
        for label in range(1, int(masks[0][0].max()) + 1):
            series.append(np.array([region_similarity(one == label, two == label) for one, two in zip(*masks, strict=True)]))
    return series


def synthetic_series() -> list[np.ndarray]:
    """Return random values of 1 to 255 frames, which the official code counts in 8 bits, with and without NaN."""
    random = np.random.default_rng(1)
    series = []
    for length in range(1, 256):
        series.append(random.random(length))
        series.append(np.where(random.random(length) < 0.3, np.nan, random.random(length)))
    return series


def compare_statistics(series: list[np.ndarray], official: Callable) -> float:
    """Return the largest difference of mean, recall and decay."""
    differences = []
    for values in series:
        found, expected = np.array(sequence_statistics(values)), np.array(official(values), float)
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        differences.append(np.nanmax(abs(found - expected)))
    return float(max(differences))


def measure_times(pairs: list[Pair], official: dict[str, Callable], rounds: int) -> dict[str, dict[str, float]]:
    """Return milliseconds per mask, as medians over rounds in which both run in turn."""

    def score(metric: Callable) -> None:
        for pair in pairs:
            metric(*pair)

    found = {}
    for name, metric in METRICS.items():
        runs = []
        for _ in range(rounds):
            sides = (metric, official[name])
            runs.append([1e3 * seconds_of(functools.partial(score, side)) / len(pairs) for side in sides])
        ratios = [other / one for one, other in runs]
        found[name] = {
            "dinoeval": statistics.median(one for one, _ in runs),
            "official": statistics.median(other for _, other in runs),
            "speedup": statistics.median(ratios),
            "smallest_speedup": min(ratios),
        }
    return found


def import_official(checkout: Path) -> tuple[dict[str, Callable], Callable]:
    """Return J, F and the statistics of the official evaluation."""
    sys.path.insert(0, str(checkout))
    from davis2017.metrics import db_eval_boundary, db_eval_iou
    from davis2017.utils import db_statistics

    return {"J": db_eval_iou, "F": db_eval_boundary}, db_statistics


def main() -> None:
    options = Options(__file__, "parity_segmentation", __doc__)
    options.add_input("davis2017", "a checkout of davisvideochallenge/davis2017-evaluation")
    options.add_input("davis", "a folder with Annotations/480p")
    options.add_argument("--rounds", type=int, default=7, help="rounds of timing (default: 7)")
    args = options.parse()
    source = "davisvideochallenge/davis2017-evaluation"
    reason = released.why_left_out(args.davis2017, requires=REQUIRES, name="DAVIS2017", source=source)
    pairs = {"synthetic": list(synthetic_pairs(TINY_SIZES if args.tiny else SIZES))}
    record: dict[str, Any] = {}
    if reason:
        record["largest_differences"] = {kind: compare_metrics(some, {}) for kind, some in pairs.items()}
        write_record(args, COMMAND, record, [reason])
        return
    official, official_statistics = import_official(args.davis2017)
    series, random = [], synthetic_series()
    if not args.tiny:
        real = list(annotated_pairs(args.davis2017, args.davis))
        pairs = {"annotations_osvos": real, "osvos_rvos": list(object_pairs(args.davis2017)), **pairs}
        series = real_series(args.davis2017)
    record["largest_differences"] = {kind: compare_metrics(some, official) for kind, some in pairs.items()}
    largest = compare_statistics(series + random, official_statistics)
    record["statistics"] = {"real_series": len(series), "synthetic_series": len(random), "largest_difference": largest}
    timed = pairs.get("annotations_osvos", pairs["synthetic"])
    timed = timed[:: math.ceil(len(timed) / TIMED)]
    record |= {
        "milliseconds_per_mask": measure_times(timed, official, 1 if args.tiny else args.rounds),
        "timed_masks": len(timed),
        "size": list(timed[0][0].shape),
        "rounds": args.rounds,
        "opencv": opencv_version(),
        "load_average": load_average(),
    }
    write_record(args, COMMAND, record)


def opencv_version() -> dict[str, Any]:
    """Return the version of OpenCV and its number of threads."""
    import cv2

    return {"version": importlib.metadata.version("opencv-python-headless"), "threads": cv2.getNumThreads()}


if __name__ == "__main__":
    main()
