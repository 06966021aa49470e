"""k-NN of the released code and of dinoeval by their command lines, on the same weights and images.

    python benchmarks/parity_knn.py CHECKOUT DATA [--limit N]

CHECKOUT is a checkout of facebookresearch/dino, DATA a folder with train/ and test/ (or val/) class folders, such as those of
CIFAR-10. The network is ViT-Ti/56 with random weights: the released command line supports no smaller network, and large
patches keep the comparison short.

top-5 is compared on the queries with at least five classes among their neighbors. For other queries the released top-5
depends on the order in which a sort leaves zeros. If the outcome of a query differs, the record holds the answers of both
rules on the features that the released code computed, the gap between the cosines of the last neighbor and the next image,
and the relative gap between the votes of the fifth and the sixth class. They show whether the last digits of the features
or the rules decide the outcome.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import released
import torch
from measurement import Options, run_dinoeval, write_record

from dinoeval.maths.neighbors import nearest, vote
from dinoeval.testing import tiny_image_folder, tiny_state

COMMAND = "python benchmarks/parity_knn.py CHECKOUT DATA"
KS, TEMPERATURE = (10, 20, 100, 200), 0.07
NETWORK = ["--arch", "vit_tiny", "--patch_size", "56"]


def run_released(checkout: Path, work: Path) -> dict[str, float]:
    """Run eval_knn.py, which also writes its features to `work`."""
    paths = ["--pretrained_weights", work / "weights.pth", "--data_path", work / "data", "--dump_features", work]
    output = released.run_script(checkout, "eval_knn.py", *NETWORK, *paths, "--use_cuda", "false", "--num_workers", "2")
    metrics = {}
    for k, top1, top5 in re.findall(r"(\d+)-NN classifier result: Top1: ([\d.]+), Top5: ([\d.]+)", output):
        metrics |= {f"top1@{k}": float(top1), f"top5@{k}": float(top5)}
    return metrics


class Comparison:
    """The votes of both rules on the features that the released code wrote. Q queries, K neighbors."""

    def __init__(self, checkout: Path, work: Path) -> None:
        released.use(checkout)
        import eval_knn

        names = ("trainfeat", "testfeat", "trainlabels", "testlabels")
        self.classify: Callable = eval_knn.knn_classifier
        self.train, self.test, self.train_labels, self.test_labels = (torch.load(work / f"{name}.pth") for name in names)
        self.cosines, neighbors = nearest(self.test.numpy(), [self.train.numpy()], max(KS) + 1)
        self.neighbor_labels = self.train_labels.numpy()[neighbors]  # (Q, K)
        self.labels = self.test_labels.numpy()
        num_classes = int(self.labels.max()) + 1
        self.predictions = vote(self.cosines, self.neighbor_labels, ks=KS, temperature=TEMPERATURE, num_classes=num_classes)

    def released_hits(self, queries: np.ndarray, k: int) -> float:
        """Count the top-5 hits of the released rule; queries are repeated, because it requires at least 100."""
        tiled = np.repeat(queries, 1 if len(queries) >= 100 else 100)
        percent = self.classify(self.train, self.train_labels, self.test[tiled], self.test_labels[tiled], k, TEMPERATURE)[1]
        return percent * len(queries) / 100

    def differing(self, queries: np.ndarray, hits: np.ndarray, k: int) -> list[int]:
        """Find the queries whose released outcome differs from `hits`, by bisection."""
        if round(self.released_hits(queries, k)) == hits[queries].sum():
            return []
        if len(queries) == 1:
            return [int(queries[0])]
        middle = len(queries) // 2
        return self.differing(queries[:middle], hits, k) + self.differing(queries[middle:], hits, k)

    def top5(self, samples: dict[str, list], k: int) -> dict[str, Any]:
        """Compare top-5 on the queries with five classes among their neighbors."""
        complete = np.array([len(set(row[:k])) >= 5 for row in self.neighbor_labels])
        row: dict[str, Any] = {"queries_with_5_classes": int(complete.sum())}
        if complete.sum() < 100:  # The released code divides the queries into 100 chunks.
            return row
        hits, queries = np.array(samples[f"top5@{k}"]), np.flatnonzero(complete)
        percent = {"dinoeval": 100 * float(hits[complete].mean()), "released": 100 * self.released_hits(queries, k) / len(queries)}
        differing = [
            {"query": samples["path"][query], "dinoeval": int(hits[query]), **self.explain(query, k)}
            for query in self.differing(queries, hits, k)
        ]
        return row | {"top5_with_5_classes": percent, "differing_queries": differing}

    def explain(self, query: int, k: int) -> dict[str, Any]:
        """Describe a query whose outcome differs."""
        cosines, labels = self.cosines[query], self.neighbor_labels[query, :k]
        hit = int(self.labels[query] in self.predictions[KS.index(k), query])
        return {
            "released": round(self.released_hits(np.array([query]), k)),
            "dinoeval_on_released_features": hit,
            "cosine_gap_after_last_neighbor": float(cosines[k - 1] - cosines[k]),
            "relative_gap_of_fifth_and_sixth_class": vote_gap(cosines[:k], labels),
        }


def vote_gap(cosines: np.ndarray, labels: np.ndarray) -> float:
    """Return the gap between the votes of the fifth and the sixth class, relative to the fifth."""
    sums = np.sort(np.bincount(labels, np.exp(cosines.astype(np.float64) / TEMPERATURE), minlength=6))[::-1]
    return float((sums[4] - sums[5]) / sums[4])


def main() -> None:
    options = Options(__file__, "parity_knn", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("data", "a folder with train/ and test/ class folders")
    options.add_argument("--limit", type=int, help="images per class of each split (default: all)")
    args = options.parse()
    reason = released.why_left_out(args.checkout)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.tiny:
            tiny_image_folder(work / "data", classes=6, train=40, val=20)
        else:
            inputs.link_class_folders(args.data.resolve(), work / "data", train=args.limit, val=args.limit)
        inputs.save_full_checkpoint(work / "weights.pth", tiny_state("vit_ti56"), prefix="backbone.")
        seconds, started = {}, time.monotonic()
        words = ["--arch", "vit_ti56", "--weights", work / "weights.pth", "--data", work / "data", "--cache", work / "cache"]
        result = run_dinoeval("knn", *words, "--k", *KS)
        seconds["dinoeval"] = round(time.monotonic() - started)
        metrics, comparison = {}, None
        if not reason:
            started = time.monotonic()
            metrics = run_released(args.checkout, work)
            seconds["released"] = round(time.monotonic() - started)
            comparison = Comparison(args.checkout, work)
        rows = []
        for k in KS:
            sides = {"dinoeval": result["metrics"]} | ({"released": metrics} if metrics else {})
            row = {"k": k, **{name: {side: values[f"{name}@{k}"] for side, values in sides.items()} for name in ("top1", "top5")}}
            rows.append(row | (comparison.top5(result["samples"], k) if comparison else {}))
    images = {split: result["data"][split]["images"] for split in ("train", "val")}
    write_record(args, COMMAND, {"images": images, "seconds": seconds, "rows": rows}, [reason])


if __name__ == "__main__":
    main()
