"""k-NN of the released code and of dinoeval, each by its own command line, on the same weights and images.

    python benchmarks/parity_knn.py CHECKOUT DATA [--limit N]

DATA holds train/ and test/ (or val/) class folders, such as CIFAR-10's. The network is ViT-Ti/56 with made-up weights: the
released command line knows no smaller network, and large patches keep the comparison short. top-5 is compared on the
queries with at least five labels among their neighbours; for the others the released one depends on how a sort orders
zeros. Where a query's outcome differs, it is named, with the answers of both rules on the very same features (those that
the released code dumped), the gap between the cosines of its last neighbour and the first that is none, and that between
the sums of its fifth and its sixth class: so one sees whether the features' last digits or the rules decide it.
Writes benchmarks/results/parity_knn.json.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402

from dinoeval.maths.neighbors import nearest, vote  # noqa: E402

KS, TEMPERATURE = (10, 20, 100, 200), 0.07


def link(data: Path, target: Path, limit: int | None) -> None:
    """The layout the released code wants, train/ and val/; with at most `limit` images a class."""
    for split, source in (("train", data / "train"), ("val", next(p for p in (data / "val", data / "test") if p.is_dir()))):
        for folder in sorted(source.iterdir()):
            (target / split / folder.name).mkdir(parents=True)
            for image in sorted(folder.iterdir())[:limit]:
                (target / split / folder.name / image.name).symlink_to(image)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, help="images a class of each half")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        link(args.data.resolve(), work / "data", args.limit)
        torch.save({"teacher": {f"backbone.{name}": t for name, t in synthetic_state("vit_ti56").items()}}, work / "weights.pth")
        began = time.monotonic()
        command = [sys.executable, "-m", "dinoeval", "knn", "--arch", "vit_ti56", "--weights", str(work / "weights.pth"),
                   "--data", str(work / "data"), "--cache", str(work / "cache"), "--json", str(work / "result.json")]  # fmt: skip
        subprocess.run(command, check=True)
        ours_seconds = time.monotonic() - began
        ours = json.loads((work / "result.json").read_text())
        began = time.monotonic()
        command = [sys.executable, str(ROOT / "benchmarks/released.py"), str(args.checkout), "--arch", "vit_tiny", "--patch_size", "56",
                   "--pretrained_weights", str(work / "weights.pth"), "--data_path", str(work / "data"), "--use_cuda", "false",
                   "--num_workers", "2", "--dump_features", str(work)]  # fmt: skip
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        released_seconds = time.monotonic() - began
        theirs = {}
        for k, top1, top5 in re.findall(r"(\d+)-NN classifier result: Top1: ([\d.]+), Top5: ([\d.]+)", said):
            theirs |= {f"top1@{k}": float(top1), f"top5@{k}": float(top5)}
        rows = compare(args.checkout, work, ours, theirs)
    counts = {half: ours["data"][half]["images"] for half in ("train", "val")}
    facts = {"images": counts, "ours seconds": round(ours_seconds), "released seconds": round(released_seconds), "rows": rows,
             "command": "python benchmarks/parity_knn.py CHECKOUT DATA", "machine": ours["machine"]}  # fmt: skip
    (ROOT / "benchmarks/results/parity_knn.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


def compare(checkout: Path, work: Path, ours: dict, theirs: dict) -> list[dict]:
    released.use(checkout)
    import eval_knn

    names = ("trainfeat", "testfeat", "trainlabels", "testlabels")
    train, test, train_labels, test_labels = (torch.load(work / f"{name}.pth") for name in names)
    cosines, neighbours = nearest(test.numpy(), [train.numpy()], max(KS) + 1)
    labels, truth = train_labels.numpy()[neighbours], test_labels.numpy()
    predictions = vote(cosines, labels, ks=KS, temperature=TEMPERATURE, num_classes=int(truth.max()) + 1)

    def released_top5(queries: np.ndarray, k: int) -> float:
        """Hits among the queries; fewer than 100 are tiled, because the released code cannot take them."""
        tiled = np.repeat(queries, 1 if len(queries) >= 100 else 100)
        percent = eval_knn.knn_classifier(train, train_labels, test[tiled], test_labels[tiled], k, TEMPERATURE)[1]
        return percent * len(queries) / 100

    def disputed(queries: np.ndarray, hits: np.ndarray, k: int) -> list[int]:
        """The queries whose released outcome is not `hits`, found by halving."""
        if round(released_top5(queries, k)) == hits[queries].sum():
            return []
        if len(queries) == 1:
            return [int(queries[0])]
        middle = len(queries) // 2
        return disputed(queries[:middle], hits, k) + disputed(queries[middle:], hits, k)

    rows = []
    for position, k in enumerate(KS):
        full = np.array([len(set(row[:k])) >= 5 for row in labels])
        row = {
            "k": k,
            **{f"{metric} ours": ours["metrics"][f"{metric}@{k}"] for metric in ("top1", "top5")},
            **{f"{metric} released": theirs[f"{metric}@{k}"] for metric in ("top1", "top5")},
            "queries with five labels": int(full.sum()),
        }
        if full.sum() >= 100:  # fewer make the released chunks empty
            row["top5 of these, ours"] = 100 * float(np.array(ours["samples"][f"top5@{k}"])[full].mean())
            row["top5 of these, released"] = 100 * released_top5(np.flatnonzero(full), k) / int(full.sum())
            hits = np.array(ours["samples"][f"top5@{k}"])
            row["queries that differ"] = [
                {
                    "query": ours["samples"]["path"][query],
                    "ours": int(hits[query]),
                    "ours on the released features": int(truth[query] in predictions[position, query]),
                    "released": round(released_top5(np.array([query]), k)),
                    "gap between the cosines of the last neighbour and the next": float(cosines[query, k - 1] - cosines[query, k]),
                    "relative gap between the sums of the fifth and the sixth class": gap(cosines[query, :k], labels[query, :k]),
                }
                for query in disputed(np.flatnonzero(full), hits, k)
            ]
        rows.append(row)
    return rows


def gap(cosines: np.ndarray, labels: np.ndarray) -> float:
    sums = np.sort(np.bincount(labels, np.exp(cosines.astype(np.float64) / TEMPERATURE), minlength=6))[::-1]
    return float((sums[4] - sums[5]) / sums[4])


if __name__ == "__main__":
    main()
