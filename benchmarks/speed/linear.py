"""The linear probe: the cost of a sweep compared with one learning rate, and the saving by cached features.

    python benchmarks/speed/linear.py DATA [--rounds 3]

DATA is a folder with train/ and test/ class folders. In turn in one process, one epoch on 192 images with augmentation, with
features of ViT-S/16 (random weights, last4: 1,536 dims): one learning rate, 13 rates, and 13 rates with two readouts, with the
classes of DATA; one and 13 rates with 1,000 random classes, whose heads are as large as those of ImageNet; and 100 epochs on
cached features.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs
import torch
from measurement import Options, in_turn, medians, seconds_of, write_record

import dinoeval
from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import parse_transform
from dinoeval.features.readout import parse_readout
from dinoeval.protocols.linear import Config
from dinoeval.testing import TINY_ARCH, tiny_image_folder
from dinoeval.training.probe.sources import Augmented, AugmentedSettings, Cached
from dinoeval.training.probe.sweep import Head, Sweep, SweepSettings

COMMAND = "python benchmarks/speed/linear.py DATA"
RATES = Config().lrs
SEVERAL = f"{len(RATES)} rates"


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem."""

    arch: str = "vit_s16"
    images: int = 192
    batch: int = 64
    cached_epochs: int = 100
    workers: int = 2


TINY = Sizes(TINY_ARCH, 12, 6, 2, 0)


class InMemory:
    """Features in memory, in place of those in the cache."""

    def __init__(self, features: np.ndarray) -> None:
        self.take = features.__getitem__


class Problem:
    """Epochs of linear heads on the same images."""

    def __init__(self, sizes: Sizes, images: ImageSet, weights: Path) -> None:
        self.sizes, self.images = sizes, images
        self.backbone = dinoeval.load(sizes.arch, weights=weights, device="cpu")
        self.dims = {"last4": 4 * self.backbone.dim, "cls": self.backbone.dim}
        random = np.random.default_rng(0)
        self.labels = {len(images.classes): images.labels, 1000: random.integers(0, 1000, sizes.images)}
        features = random.standard_normal((sizes.images, self.dims["last4"]), dtype=np.float32)
        self.cached = Cached({"last4": InMemory(features)}, np.arange(sizes.images))

    def augmented(self, *readouts: str) -> Augmented:
        """Return features of augmented images."""
        settings = AugmentedSettings(workers=self.sizes.workers)
        transform = parse_transform("auto", self.backbone.config.image_size)
        return Augmented(self.backbone, self.images, [parse_readout(name) for name in readouts], transform, settings)

    def train(self, source, readouts: tuple[str, ...], rates: tuple[float, ...], classes: int, epochs: int = 1) -> None:
        """Train a head for each readout and learning rate."""
        labels = self.labels[classes]
        heads = [Head(readout=readout, lr=lr, weight_decay=0.0) for readout in readouts for lr in rates]
        settings = SweepSettings(epochs=epochs, batch_size=self.sizes.batch, device=torch.device("cpu"))
        sweep = Sweep(heads, self.dims, labels, classes, settings)
        for _ in range(epochs):
            steps = sweep.steps(np.arange(len(labels)))
            for features, positions in source.batches(sweep.epoch, steps):
                sweep.learn(features, labels[positions])
            sweep.close_epoch({}, len(steps))

    def ways(self) -> dict[str, Callable[[], None]]:
        """Return everything that is timed, by name."""
        found: dict[str, Callable[[], None]] = {}
        for classes in self.labels:
            for name, rates in (("1 rate", RATES[:1]), (SEVERAL, RATES)):
                found[f"{classes} classes, {name}"] = lambda r=rates, c=classes: self.train(self.augmented("last4"), ("last4",), r, c)
        classes, epochs = len(self.images.classes), self.sizes.cached_epochs
        found[f"{SEVERAL}, 2 readouts"] = lambda: self.train(self.augmented("last4", "cls"), ("last4", "cls"), RATES, classes)
        found[f"cached, {epochs} epochs, {SEVERAL}"] = lambda: self.train(self.cached, ("last4",), RATES, classes, epochs)
        return found


def measure(problem: Problem, rounds: int) -> dict[str, Any]:
    """Time everything in turn, after a round that warms up."""
    sizes, classes = problem.sizes, [f"{count} classes" for count in problem.labels]
    ways = problem.ways()
    for run in ways.values():
        run()
    times = in_turn({name: functools.partial(seconds_of, run) for name, run in ways.items()}, rounds)
    typical = medians(times)
    cached_epoch = typical[f"cached, {sizes.cached_epochs} epochs, {SEVERAL}"] / sizes.cached_epochs
    pixels = problem.backbone.config.image_size
    return {
        "problem": f"{sizes.arch}, {sizes.images} images of {pixels} pixels per epoch, batch {sizes.batch}",
        "median_seconds": typical,
        "seconds": times,
        "sweep_over_1_rate": {name: typical[f"{name}, {SEVERAL}"] / typical[f"{name}, 1 rate"] for name in classes},
        "sweep_with_2_readouts_over_1_rate": typical[f"{SEVERAL}, 2 readouts"] / typical[f"{classes[0]}, 1 rate"],
        "augmented_epoch_over_cached_epoch": typical[f"{classes[0]}, {SEVERAL}"] / cached_epoch,
    }


def main() -> None:
    options = Options(__file__, "speed_linear", __doc__)
    options.add_input("data", "a folder with train/ and test/ class folders")
    options.add_argument("--rounds", type=int, default=3, help="timed rounds (default: 3)")
    args = options.parse()
    sizes = TINY if args.tiny else Sizes()
    with tempfile.TemporaryDirectory() as folder:
        data = tiny_image_folder(Path(folder) / "data") if args.tiny else args.data
        train, _ = open_splits(str(data))
        images = train.subset(np.linspace(0, len(train) - 1, sizes.images).astype(int))
        weights = inputs.save_weights(Path(folder) / "weights.safetensors", sizes.arch, spread=0.03)
        record = measure(Problem(sizes, images, weights), 1 if args.tiny else args.rounds)
    write_record(args, COMMAND, record)


if __name__ == "__main__":
    main()
