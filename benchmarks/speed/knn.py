"""The k-NN sweep over k = 10, 20, 100, 200 of 5,000 queries among 400,000 x 384 features of 1,000 classes, on this CPU.

    python benchmarks/speed/knn.py CHECKOUT [--rounds 3]

In turn, each in a new process: dinoeval from a memory-mapped cache entry; knn_classifier of CHECKOUT, a checkout of
facebookresearch/dino, once per k on the CPU (--use_cuda false, which its documentation recommends if GPU memory is short); and
the brute-force neighbors of scikit-learn, once per k. The record also holds the time of the MACs alone, from the fastest
matrix product on this machine. Peak memory is what a process adds to its memory after its imports.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import released
from measurement import Options, in_turn, medians, memory_kib, run_worker, seconds_of, write_record

COMMAND = "python benchmarks/speed/knn.py CHECKOUT"
SPEC = {"benchmark": "speed/knn"}
"""What the cache entry is named by."""
TEMPERATURE = 0.07


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem."""

    features: int = 400_000
    dim: int = 384
    queries: int = 5_000
    classes: int = 1_000
    chunk: int = 10_000
    """Rows per chunk of the cache entry."""
    ks: tuple[int, ...] = (10, 20, 100, 200)
    matrix: int = 4096
    """Side of the matrices whose product gives the rate of MACs."""


TINY = Sizes(2_000, 16, 200, 20, 1_000, matrix=256)


def write_inputs(folder: Path, sizes: Sizes) -> None:
    """Write noisy classes: about half of the queries are classified correctly, so that a wrong vote is visible."""
    random = np.random.default_rng(0)
    centers = random.standard_normal((sizes.classes, sizes.dim), dtype=np.float32)
    for name, count in (("train", sizes.features), ("test", sizes.queries)):
        labels = random.integers(0, sizes.classes, count)
        np.save(folder / f"{name}_labels.npy", labels)
        np.save(folder / f"{name}.npy", centers[labels] * 0.35 + random.standard_normal((count, sizes.dim), dtype=np.float32))


def write_cache_entry(folder: Path, sizes: Sizes) -> None:
    """Write the training features as an entry of a feature cache."""
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.spec import key_of

    cache, key = FeatureCache(folder / "cache"), key_of(SPEC)
    features = np.load(folder / "train.npy", mmap_mode="r")
    with cache.locked(key):
        partial = cache.begin(key, spec=SPEC, num_rows=sizes.features, feature_shape=(sizes.dim,), chunk_rows=sizes.chunk)
        for chunk in range(partial.num_chunks):
            partial.write(chunk, np.array(features[chunk * sizes.chunk : (chunk + 1) * sizes.chunk]), [])
        partial.finish({})


def run_with_dinoeval(folder: Path, sizes: Sizes, _checkout: Path | None) -> dict[str, float]:
    """Search the cache entry and vote for all k at once."""
    from dinoeval.data.images import in_memory
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.features import Features
    from dinoeval.features.spec import key_of
    from dinoeval.maths.neighbors import load_faiss, nearest, vote

    load_faiss()  # It is imported here, so that the memory before the search contains it.
    entry = FeatureCache(folder / "cache").find(key_of(SPEC))
    assert entry is not None
    features = Features(entry, in_memory([]), np.arange(sizes.features), [], True, 0.0)
    queries, train_labels, labels = (np.load(folder / f"{name}.npy") for name in ("test", "train_labels", "test_labels"))
    before, started = memory_kib("VmHWM"), time.monotonic()
    cosines, neighbors = nearest(queries, features.blocks(), max(sizes.ks))
    searched = time.monotonic() - started
    predictions = vote(cosines, train_labels[neighbors], ks=sizes.ks, temperature=TEMPERATURE, num_classes=sizes.classes)
    seconds = time.monotonic() - started
    hits = predictions == labels[:, None]
    peak = memory_kib("VmHWM")
    return {
        "seconds": seconds,
        "search_seconds": searched,
        "added_peak_mb": (peak - before) / 1024,
        "peak_mb": peak / 1024,
        **{f"top1@{k}": 100 * float(hits[number, :, 0].mean()) for number, k in enumerate(sizes.ks)},
        **{f"top5@{k}": 100 * float(hits[number].any(1).mean()) for number, k in enumerate(sizes.ks)},
    }


def run_with_released(folder: Path, sizes: Sizes, checkout: Path | None) -> dict[str, float]:
    """Run the released classifier once per k."""
    import torch

    assert checkout
    released.use(checkout)
    import eval_knn

    train, test = (torch.nn.functional.normalize(torch.from_numpy(np.load(folder / f"{name}.npy")), dim=1) for name in ("train", "test"))
    train_labels, test_labels = (torch.from_numpy(np.load(folder / f"{name}_labels.npy")) for name in ("train", "test"))
    scores: dict[str, float] = {}
    before, started = memory_kib("VmHWM"), time.monotonic()
    for k in sizes.ks:
        scores[f"top1@{k}"], scores[f"top5@{k}"] = eval_knn.knn_classifier(train, train_labels, test, test_labels, k, TEMPERATURE)
    seconds = time.monotonic() - started
    return {"seconds": seconds, "added_peak_mb": (memory_kib("VmHWM") - before) / 1024, **scores}


def run_with_sklearn(folder: Path, sizes: Sizes, _checkout: Path | None) -> dict[str, float]:
    """Run scikit-learn once per k. Unit vectors have the same order by distance as by cosine; the votes are weighted as in DINO."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    train, test = (normalize(np.load(folder / f"{name}.npy")) for name in ("train", "test"))
    train_labels, labels = (np.load(folder / f"{name}_labels.npy") for name in ("train", "test"))
    scores, started = {}, time.monotonic()
    for k in sizes.ks:
        model = KNeighborsClassifier(k, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / TEMPERATURE)).fit(train, train_labels)
        scores[f"top1@{k}"] = 100 * float((model.predict(test) == labels).mean())
    return {"seconds": time.monotonic() - started, **scores}


WAYS: dict[str, Callable[[Path, Sizes, Path | None], dict[str, float]]] = {
    "dinoeval": run_with_dinoeval,
    "released": run_with_released,
    "sklearn": run_with_sklearn,
}


def mac_limit(sizes: Sizes) -> float:
    """Return the seconds of the MACs of one search at the rate of the fastest matrix product on this machine."""
    import torch

    a, b = torch.randn(sizes.matrix, sizes.matrix), torch.randn(sizes.matrix, sizes.matrix)
    fastest = min(seconds_of(lambda: torch.mm(a, b)) for _ in range(6))
    return fastest * (sizes.features * sizes.queries * sizes.dim) / sizes.matrix**3


def measure(args: argparse.Namespace, sizes: Sizes, names: list[str], folder: Path) -> dict[str, Any]:
    """Run every way in turn; scikit-learn runs once, because it takes minutes."""
    write_inputs(folder, sizes)
    write_cache_entry(folder, sizes)
    ways = {name: functools.partial(run_worker, __file__, args, name, folder, args.checkout or "") for name in names}
    runs = in_turn(ways, args.rounds, once=["sklearn"])
    seconds = medians({name: [run["seconds"] for run in found] for name, found in runs.items()})
    limit = mac_limit(sizes)
    metrics = [name for name in runs["dinoeval"][0] if name.startswith("top")]
    return {
        "problem": f"{sizes.features} x {sizes.dim} features, {sizes.queries} queries, k = {sizes.ks}",
        "seconds": seconds,
        "speedup": {name: value / seconds["dinoeval"] for name, value in seconds.items() if name != "dinoeval"},
        "mac_limit_seconds": limit,
        "dinoeval_over_mac_limit": seconds["dinoeval"] / limit,
        "features_mb": sizes.features * sizes.dim * 4 / 2**20,
        "scores": {metric: {name: found[0].get(metric) for name, found in runs.items()} for metric in metrics},
        "runs": runs,
    }


def main() -> None:
    options = Options(__file__, "speed_knn", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_argument("--rounds", type=int, default=3, help="runs of each program (default: 3)")
    args = options.parse()
    sizes = TINY if args.tiny else Sizes()
    if args.worker:
        name, folder, *checkout = args.worker
        options.answer(WAYS[name](Path(folder), sizes, Path(checkout[0]) if checkout else None))
    reason = released.why_left_out(args.checkout)
    args.rounds = 1 if args.tiny else args.rounds
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, sizes, [name for name in WAYS if name != "released" or not reason], Path(folder))
    write_record(args, COMMAND, record, [reason])


if __name__ == "__main__":
    main()
