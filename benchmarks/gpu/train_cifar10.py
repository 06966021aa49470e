"""Train vit_ti4_32 with DINO on CIFAR-10 on one GPU, which holds all images.

    python benchmarks/gpu/train_cifar10.py --data cifar10 --out run
    python benchmarks/gpu/train_cifar10.py --tiny --out run          # seconds on a CPU, synthetic images

`cifar10` has train/<class>/*.jpg and test/<class>/*.jpg. Crops are made in batches on the GPU, transformer blocks are compiled,
and forward and backward pass are one CUDA graph. On a CPU the same steps run without compilation.

To resume an interrupted run, rerun the command. The folder `--out` gets checkpoint.pth, log.txt, teacher.safetensors,
student.safetensors and record.json, which has the settings and the k-NN curve.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from device_augment import DeviceMultiCrop, render
from device_trainer import DeviceTrainer, compile_blocks, use_fastest_attention
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import ImageSet, from_pixels
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import normalize_images
from dinoeval.errors import DataError
from dinoeval.files import write_whole
from dinoeval.models.checkpoints import save_backbone
from dinoeval.models.vit import VisionTransformer
from dinoeval.testing import TINY_ARCH, tiny_images
from dinoeval.training.checkpointing import RunFolder
from dinoeval.training.loading import derive_seed, find_error, raise_error
from dinoeval.training.pretrain.objectives import GLOBAL_VIEWS
from dinoeval.training.pretrain.recipe import Recipe

ARCH = "vit_ti4_32"
RECIPE = Recipe(
    epochs=96,
    batch_size=256,
    lr=0.0015,
    min_lr=1e-5,
    warmup_epochs=6,
    clip_grad=0.0,
    drop_path=0.0,
    out_dim=4096,
    momentum_teacher=0.99,
    global_crop=32,
    local_crop=16,
    local_scale=(0.2, 0.5),
    blur_radius=(0.1, 0.6),
)
TINY_RECIPE = dataclasses.replace(RECIPE, epochs=2, batch_size=8, warmup_epochs=1, out_dim=32, hidden_dim=16, local_crops=2)
NEIGHBORS, TEMPERATURE = 20, 0.07  # of the k-NN classifier
STEPS_PER_AUGMENTATION = 8  # Crops of so many steps are made at once.
Split = tuple[Tensor, Tensor]
"""Images (N, 3, H, W) uint8 and labels (N,) int64, on the device."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The settings of a run."""

    arch: str
    """Architecture of the backbones."""
    recipe: Recipe
    """All values of the training."""
    seed: int
    """Random seed of weights, order and augmentation."""
    device: torch.device
    """Where the images are and the networks run."""
    save_every: int
    """Epochs between checkpoints."""
    out: Path
    """Folder of the run."""

    @property
    def fast(self) -> bool:
        """Whether code is compiled and steps are recorded."""
        return self.device.type == "cuda"

    def identity(self, images: ImageSet) -> dict[str, Any]:
        """Return what two runs must share for one to resume the other.

        Args:
            images: The training images.

        Returns:
            JSON values.
        """
        recipe = json.loads(json.dumps(dataclasses.asdict(self.recipe)))
        return {"arch": self.arch, "seed": self.seed, "precision": "bf16", "images": images.fingerprint(), "recipe": recipe}


def synthetic_splits() -> tuple[ImageSet, ImageSet]:
    """Return 24 training and 8 test images of 32 x 32 pixels in two classes."""

    def make(split: str, count: int, seed: int) -> ImageSet:
        pixels = np.stack([np.asarray(image) for image in tiny_images(count, (32, 32), seed)])
        return from_pixels("synthetic", split, pixels, np.arange(count) % 2, ["a", "b"])

    return make("train", 24, 0), make("test", 8, 1)


def load_split(images: ImageSet, device: torch.device, workers: int) -> Split:
    """Decode a set of images of one size to the device.

    Args:
        images: The labeled image set.
        device: Where the tensors are stored.
        workers: Processes that decode.

    Returns:
        Images and labels.
    """
    loader = DataLoader(ImageDataset(images, _to_pixels), batch_size=1000, collate_fn=_collate, num_workers=workers)
    assert images.labels is not None
    return torch.cat([raise_error(batch) for batch in loader]).to(device), torch.from_numpy(images.labels).to(device)


def _to_pixels(image: Image.Image, _row: int) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _collate(samples: list[Tensor]) -> Tensor | DataError:
    return find_error(samples) or torch.stack(samples)


def crops_of_epoch(images: Tensor, augment: DeviceMultiCrop, trainer: DeviceTrainer, epoch: int, seed: int) -> Iterator[list[Tensor]]:
    """Yield the crops of each step. They depend on seed and epoch only.

    Args:
        images: Training images, (N, 3, H, W) uint8.
        augment: The augmentation.
        trainer: Its number of steps and batch size B are used.
        epoch: Number of the epoch, from 0.
        seed: Random seed of the run.

    Yields:
        V normalized views, each (B, 3, s, s).
    """
    batch = trainer.recipe.batch_size
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(seed, epoch))).to(images.device)
    generator = torch.Generator(images.device).manual_seed(derive_seed(seed, epoch, 1))
    for start in range(0, trainer.steps, STEPS_PER_AUGMENTATION):
        # The last group is as large as the others, so that compiled code is used again; its surplus crops are not used.
        rows = torch.arange(start * batch, (start + STEPS_PER_AUGMENTATION) * batch, device=order.device) % len(order)
        crops = augment(images[order[rows]], generator)
        for step in range(min(STEPS_PER_AUGMENTATION, trainer.steps - start)):
            yield [crop[step * batch : (step + 1) * batch] for crop in crops]


def train_epoch(trainer: DeviceTrainer, images: Tensor, augment: DeviceMultiCrop, epoch: int, seed: int) -> tuple[float, float]:
    """Train for one epoch.

    Args:
        trainer: The trainer.
        images: Training images, (N, 3, H, W) uint8.
        augment: The augmentation.
        epoch: Number of the epoch, from 0.
        seed: Random seed of the run.

    Returns:
        Mean loss and mean teacher entropy, in nats.
    """
    sums = torch.zeros(2, device=images.device)
    for step, crops in enumerate(crops_of_epoch(images, augment, trainer, epoch, seed)):
        sums += trainer.advance(crops, epoch * trainer.steps + step)
    loss, entropy = (sums / trainer.steps).tolist()
    return loss, entropy


@torch.no_grad()
def knn_eval(backbone: VisionTransformer, train: Split, test: Split, batch: int) -> float:
    """Compute the k-NN top-1 on the test images, with features in bf16 arithmetic.

    Args:
        backbone: The network, without stochastic depth.
        train: Training images and labels.
        test: Test images and labels.
        batch: Images per forward pass; that of the teacher needs no further compilation.

    Returns:
        Percent of the test images.
    """

    def features(images: Tensor) -> Tensor:
        blocks = []
        for part in images.split(batch):
            padded = F.pad(part, (0, 0, 0, 0, 0, 0, 0, batch - len(part)))
            with torch.autocast(images.device.type, torch.bfloat16):
                blocks.append(F.normalize(backbone(normalize_images(padded)).float(), dim=1)[: len(part)])
        return torch.cat(blocks)

    return knn_top1(features(train[0]), train[1], features(test[0]), test[1])


def knn_top1(bank: Tensor, bank_labels: Tensor, queries: Tensor, labels: Tensor) -> float:
    """Classify by the weighted vote of the nearest neighbors, k = 20 and temperature 0.07.

    Args:
        bank: L2-normalized features, (N, D).
        bank_labels: (N,) int64.
        queries: L2-normalized features, (Q, D).
        labels: (Q,) int64.

    Returns:
        Percent of the queries that get their label.
    """
    correct, classes = 0, int(bank_labels.max()) + 1
    for start in range(0, len(queries), 2000):
        cosines, neighbors = (queries[start : start + 2000] @ bank.T).topk(min(NEIGHBORS, len(bank)), dim=1)
        votes = torch.zeros(len(cosines), classes, device=bank.device)
        votes.scatter_add_(1, bank_labels[neighbors], (cosines / TEMPERATURE).exp())
        correct += int((votes.argmax(1) == labels[start : start + 2000]).sum())
    return 100 * correct / len(queries)


def is_scored(epochs: int, last: int) -> bool:
    """Return whether k-NN is evaluated after so many epochs.

    Args:
        epochs: Number of finished epochs.
        last: Number of epochs of the run.
    """
    return epochs == last or epochs in (3, 6) or epochs % 15 == 0


def train(run: Run, identity: dict[str, Any], train_split: Split, test_split: Split) -> None:
    """Train to the last epoch, from the last checkpoint if there is one.

    Args:
        run: The settings.
        identity: What two runs must share for one to resume the other.
        train_split: Training images and labels.
        test_split: Test images and labels, for the k-NN curve only.
    """
    started, recipe, images = time.monotonic(), run.recipe, train_split[0]
    steps = len(images) // recipe.batch_size
    folder = RunFolder(run.out, identity)
    state = folder.resume(recipe.epochs)
    torch.manual_seed(run.seed)
    trainer = DeviceTrainer(run.arch, recipe, steps, run.device, compiled=run.fast)
    augment = DeviceMultiCrop(recipe, torch.compile(render, dynamic=False) if run.fast else render)
    done, history = 0, []
    if state:
        trainer.restore(state)
        done, history = state["epoch"], folder.read_log(state["epoch"])
    if run.fast:
        trainer.record(next(crops_of_epoch(images, augment, trainer, epoch=0, seed=0)))
    for epoch in range(done, recipe.epochs):
        epoch_started = time.monotonic()
        loss, entropy = train_epoch(trainer, images, augment, epoch, run.seed)
        if not math.isfinite(loss):
            raise SystemExit(f"training diverged: the loss became {loss} in epoch {epoch}")
        row = {"epoch": epoch, "train_loss": loss, "train_teacher_entropy": entropy, "train_kl": loss - entropy}
        row["images_per_second"] = steps * recipe.batch_size / (time.monotonic() - epoch_started)
        if is_scored(epoch + 1, recipe.epochs):
            for name, network in (("knn_teacher", trainer.teacher), ("knn_student", trainer.student)):
                row[name] = knn_eval(network.backbone, train_split, test_split, GLOBAL_VIEWS * recipe.batch_size)
        history.append(row)
        print(f"{time.monotonic() - started:6.1f} s", *(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
        if (epoch + 1) % run.save_every == 0 or epoch + 1 == recipe.epochs:
            folder.write_log(history)
            folder.save(trainer.state(epoch + 1))
    for name, network in (("teacher", trainer.teacher), ("student", trainer.student)):
        save_backbone(run.out / f"{name}.safetensors", network.backbone.state_dict(), arch=run.arch, dtype=torch.float16)
    record = {
        "card": torch.cuda.get_device_name() if run.fast else "CPU",
        "torch": torch.__version__,
        "seconds": time.monotonic() - started,
        "settings": identity,
        "curve": [row for row in history if "knn_teacher" in row],
    }
    write_whole(run.out / "record.json", lambda path: path.write_text(json.dumps(record, indent=1) + "\n"))


def main() -> None:
    """Parse the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train/ and test/; required without --tiny")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--epochs", type=int, help=f"length of the run (default: {RECIPE.epochs})")
    parser.add_argument("--seed", type=int, default=0, help="random seed of weights, order and augmentation (default: 0)")
    parser.add_argument("--save-every", type=int, default=15, help="epochs between checkpoints (default: 15)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode images (default: one per core)")
    parser.add_argument("--tiny", action="store_true", help="two epochs of a small network on synthetic images")
    options = parser.parse_args()
    if not options.data and not options.tiny:
        parser.error("missing --data: pass a folder, or --tiny")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arch, recipe = (TINY_ARCH, TINY_RECIPE) if options.tiny else (ARCH, RECIPE)
    recipe = dataclasses.replace(recipe, epochs=options.epochs or recipe.epochs)
    run = Run(arch, recipe, options.seed, device, options.save_every, options.out)
    sets = synthetic_splits() if options.tiny else open_splits(options.data)
    train_split, test_split = (load_split(images, device, 0 if options.tiny else options.workers) for images in sets)
    if run.fast:
        use_fastest_attention()
        compile_blocks()
    train(run, run.identity(sets[0]), train_split, test_split)


if __name__ == "__main__":
    main()
