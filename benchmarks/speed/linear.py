"""The linear probe: what a sweep costs beside one learning rate, and what cached features save.

    python benchmarks/speed/linear.py DATA [--rounds 3]

DATA holds train/ and test/ class folders. In turn, in one process: one epoch with one rate, with 13 rates, and with 13
rates and two readouts, of ViT-S/16 (made-up weights, last4: 1,536 dims) on 192 images with augmentation, classes as many as
DATA has; the same on 1,000 made-up classes, where heads are as large as ImageNet's; and 100 epochs on cached features.
Writes benchmarks/results/speed_linear.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "tests")]
from factories import synthetic_state  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.opening import open_splits  # noqa: E402
from dinoeval.data.transforms import DINO_TRANSFORM  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.features.readout import parse_readout  # noqa: E402
from dinoeval.protocols.linear import Config  # noqa: E402
from dinoeval.training.probe.sources import Augmented, AugmentedSettings, Cached  # noqa: E402
from dinoeval.training.probe.sweep import Head, Sweep, SweepSettings  # noqa: E402

IMAGES, BATCH, CACHED_EPOCHS = 192, 64, 100
RATES = Config().lrs


class InMemory:
    """Features where a run takes them from the cache."""

    def __init__(self, rows: np.ndarray) -> None:
        self.take = rows.__getitem__


def seconds(source, readouts, rates, labels: np.ndarray, classes: int, epochs: int = 1) -> float:
    heads = [Head(readout=readout, lr=lr, weight_decay=0.0) for readout in readouts for lr in rates]
    dims = {"last4": 1536, "cls": 384}
    began = time.monotonic()
    sweep = Sweep(heads, dims, labels, classes, SweepSettings(epochs=epochs, batch_size=BATCH, device=torch.device("cpu")))
    for _ in range(epochs):
        steps = sweep.steps(np.arange(len(labels)))
        for features, good in source.batches(sweep.epoch, steps):
            sweep.learn(features, labels[good])
        sweep.close_epoch({}, len(steps))
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    train, _ = open_splits(str(args.data))
    images = train.subset(np.linspace(0, len(train) - 1, IMAGES).astype(int))
    made_up = np.random.default_rng(0)
    labels = {len(train.classes): images.labels, 1000: made_up.integers(0, 1000, IMAGES)}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(synthetic_state("vit_s16", spread=0.03), Path(folder) / "weights.pth")
        backbone = dinoeval.load("vit_s16", weights=Path(folder) / "weights.pth", device="cpu")

    def augmented(*names: str) -> Augmented:
        return Augmented(backbone, images, [parse_readout(name) for name in names], DINO_TRANSFORM, AugmentedSettings(workers=2))

    cached = Cached({"last4": InMemory(made_up.standard_normal((IMAGES, 1536), dtype=np.float32))}, np.arange(IMAGES))
    runs = {}
    for classes, truth in labels.items():
        runs[f"{classes} classes, 1 rate"] = lambda t=truth, c=classes: seconds(augmented("last4"), ["last4"], RATES[:1], t, c)
        runs[f"{classes} classes, 13 rates"] = lambda t=truth, c=classes: seconds(augmented("last4"), ["last4"], RATES, t, c)
    truth = labels[len(train.classes)]
    runs["13 rates x 2 readouts"] = lambda: seconds(augmented("last4", "cls"), ["last4", "cls"], RATES, truth, len(train.classes))
    runs[f"cached, {CACHED_EPOCHS} epochs, 13 rates"] = lambda: seconds(cached, ["last4"], RATES, truth, len(train.classes), CACHED_EPOCHS)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(args.rounds + 1):  # the first one warms up
        for name, run in runs.items():
            spent = run()
            if round_:
                times[name].append(spent)
        print({name: [round(value, 2) for value in values] for name, values in times.items()}, flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    few = f"{len(train.classes)} classes"
    sweeps = {name: medians[f"{name}, 13 rates"] / medians[f"{name}, 1 rate"] for name in (few, "1000 classes")}
    cached_epoch = medians[f"cached, {CACHED_EPOCHS} epochs, 13 rates"] / CACHED_EPOCHS
    facts = {
        "what": f"ViT-S/16, {IMAGES} images of 224 pixels an epoch, batch {BATCH}", "median seconds": medians, "seconds": times,
        "13 rates / 1 rate": sweeps,
        "13 rates x 2 readouts / 1 rate": medians["13 rates x 2 readouts"] / medians[f"{few}, 1 rate"],
        "augmented epoch / cached epoch": medians[f"{few}, 13 rates"] / cached_epoch,
        "command": "python benchmarks/speed/linear.py DATA", "machine": describe_machine(),
    }  # fmt: skip
    (ROOT / "benchmarks/results/speed_linear.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({name: value for name, value in facts.items() if name != "machine"}, indent=1))


if __name__ == "__main__":
    main()
