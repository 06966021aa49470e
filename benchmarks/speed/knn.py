"""The k-NN sweep over k = 10, 20, 100, 200: 400,000 x 384 bank rows, 5,000 queries, 1,000 classes, on this CPU.

    python benchmarks/speed/knn.py CHECKOUT [--rounds 3]

Side by side, each in processes of its own and in turn: dinoeval from a memory-mapped cache entry; the released
knn_classifier once a k (with --use_cuda false, its documented way out of memory); scikit-learn's brute-force neighbours,
which users pick where there is no GPU. Also the multiply-add limit, from this machine's own matrix product. Peak memory is
what a process adds to what it held after its imports. Writes benchmarks/results/speed_knn.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
KEY = "0" * 32
ROWS, DIM, QUERIES, CLASSES, KS = 400_000, 384, 5_000, 1_000, (10, 20, 100, 200)


def make(folder: Path) -> None:
    """Noisy classes: about half of the queries come out right, so that a wrong vote shows."""
    random = np.random.default_rng(0)
    centres = random.standard_normal((CLASSES, DIM), dtype=np.float32)
    for name, count in (("train", ROWS), ("test", QUERIES)):
        labels = random.integers(0, CLASSES, count)
        np.save(folder / f"{name}_labels.npy", labels)
        np.save(folder / f"{name}.npy", centres[labels] * 0.35 + random.standard_normal((count, DIM), dtype=np.float32))


def peak_megabytes() -> float:
    """The largest resident size so far. Not ru_maxrss, which a process inherits from the one that started it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ours(folder: Path, _checkout: Path) -> dict:
    from dinoeval.data.images import in_memory  # the imports of the command, so that they are in the baseline
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.features import Features
    from dinoeval.maths.neighbors import load_faiss, nearest, vote

    load_faiss()
    entry = FeatureCache(folder / "cache").find(KEY)
    assert entry is not None
    bank = Features(entry, in_memory([]), np.arange(ROWS), True, 0.0)
    queries, labels, truth = np.load(folder / "test.npy"), np.load(folder / "train_labels.npy"), np.load(folder / "test_labels.npy")
    before, began = peak_megabytes(), time.monotonic()
    cosines, rows = nearest(queries, bank.blocks(), max(KS))
    searched = time.monotonic() - began
    predictions = vote(cosines, labels[rows], ks=KS, temperature=0.07, num_classes=CLASSES)
    seconds = time.monotonic() - began
    hits = predictions == truth[:, None]
    return {"seconds": seconds, "search": searched, "peak MB added": peak_megabytes() - before, "peak MB in all": peak_megabytes(),
            **{f"top1@{k}": 100 * float(hits[n, :, 0].mean()) for n, k in enumerate(KS)},
            **{f"top5@{k}": 100 * float(hits[n].any(1).mean()) for n, k in enumerate(KS)}}  # fmt: skip


def theirs(folder: Path, checkout: Path) -> dict:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import released
    import torch

    released.use(checkout)
    import eval_knn

    train, test = (torch.nn.functional.normalize(torch.from_numpy(np.load(folder / f"{name}.npy")), dim=1) for name in ("train", "test"))
    train_labels, test_labels = (torch.from_numpy(np.load(folder / f"{name}_labels.npy")) for name in ("train", "test"))
    before, began, scores = peak_megabytes(), time.monotonic(), {}
    for k in KS:
        scores[f"top1@{k}"], scores[f"top5@{k}"] = eval_knn.knn_classifier(train, train_labels, test, test_labels, k, 0.07)
    return {"seconds": time.monotonic() - began, "peak MB added": peak_megabytes() - before, **scores}


def sklearn(folder: Path, _checkout: Path) -> dict:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    train, test = (normalize(np.load(folder / f"{name}.npy")) for name in ("train", "test"))
    labels, truth = (np.load(folder / f"{name}_labels.npy") for name in ("train", "test"))
    began, scores = time.monotonic(), {}
    for k in KS:  # Euclidean order of unit vectors is that of the cosine; the weights are the paper's
        model = KNeighborsClassifier(k, algorithm="brute", weights=lambda d: np.exp((1 - d**2 / 2) / 0.07)).fit(train, labels)
        scores[f"top1@{k}"] = 100 * float((model.predict(test) == truth).mean())
    return {"seconds": time.monotonic() - began, **scores}


def limit() -> float:
    """Seconds that the multiplications of one search take at the best rate of this machine's matrix product."""
    import torch

    a, b = torch.randn(4096, 4096), torch.randn(4096, 4096)
    times = []
    for _ in range(6):
        began = time.monotonic()
        torch.mm(a, b)
        times.append(time.monotonic() - began)
    return min(times) * (ROWS * QUERIES * DIM) / 4096**3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=["ours", "theirs", "sklearn"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(globals()[args.one](args.folder, args.checkout)))
        return
    from dinoeval.environment import describe_machine
    from dinoeval.features.cache import FeatureCache

    runs: dict[str, list[dict]] = {"ours": [], "theirs": [], "sklearn": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        cache = FeatureCache(folder / "cache")
        with cache.locked(KEY):
            partial = cache.begin(KEY, spec={}, num_rows=ROWS, feature_shape=(DIM,), chunk_rows=10_000)
            rows = np.load(folder / "train.npy", mmap_mode="r")
            for chunk in range(partial.num_chunks):
                partial.write(chunk, np.array(rows[chunk * 10_000 : (chunk + 1) * 10_000]), [])
            partial.finish({})
        for number in range(args.rounds):
            for one in runs:
                if one == "sklearn" and number:
                    continue  # minutes long; once is enough for its order of size
                command = [sys.executable, __file__, str(args.checkout), "--one", one, "--folder", str(folder)]
                runs[one].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))
                print(number, one, runs[one][-1], flush=True)
    medians = {one: statistics.median(run["seconds"] for run in results) for one, results in runs.items()}
    least = limit()
    facts = {
        "what": f"{ROWS} x {DIM} bank, {QUERIES} queries, k = {KS}", "median seconds": medians,
        "ratio theirs / ours": medians["theirs"] / medians["ours"], "ratio sklearn / ours": medians["sklearn"] / medians["ours"],
        "multiply-add limit, seconds": least, "ours over the limit": medians["ours"] / least, "bank MB": ROWS * DIM * 4 / 2**20,
        "equal predictions": {m: [runs[one][0].get(m) for one in runs] for m in runs["ours"][0] if m.startswith("top")},
        "runs": runs, "machine": describe_machine(), "command": "python benchmarks/speed/knn.py CHECKOUT",
    }  # fmt: skip
    (ROOT / "benchmarks/results/speed_knn.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key not in ("runs", "machine")}, indent=1))


if __name__ == "__main__":
    main()
