"""Batches for supervised training, as DeiT makes them: repeated augmentation, RandAugment, erasing, mixup and cutmix.

What is drawn depends on the seed, the epoch and the picture (or the step) alone: neither the number of workers, nor the
number of processes, nor a stop and a resumption changes a batch.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import RandAugment
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import Compose

from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import BadImage, ConfigError, DataError, join_names
from dinoeval.training.finetune.recipes import FinetuneRecipe

Item = tuple[int, int, int]  # epoch, row, which repeat of it
_MIXING = 1  # sets the seeds of mixing apart from those of pictures


def deal(batch_size: int, together: int, rank: int, world: int) -> list[tuple[int, np.ndarray]]:
    """Deal the positions of a batch to groups that are mixed together, and return one process's part: (group, positions).

    Cards are dealt in turn, as DeiT deals to its GPUs, so the repeats of a picture come to different groups. Mixing
    pairs the first of a group with the last, and so on; pairs stay together, whichever process they come to.
    """
    if batch_size % (2 * world):
        even = f"{2 * world} (2 for each of {world} processes)" if world > 1 else "2"
        raise ConfigError(f"pictures are mixed in pairs: --train-batch-size must be a multiple of {even}, not {batch_size}")
    pairs = batch_size // 2
    groups = next(count for count in range(max(1, batch_size // together), 0, -1) if pairs % count == 0)
    size, share = batch_size // groups, pairs // world
    parts = []
    for group in range(groups):
        hand = np.arange(group, batch_size, groups)
        first, last = (min(max(bound - group * size // 2, 0), size // 2) for bound in (rank * share, (rank + 1) * share))
        if first < last:
            parts.append((group, np.concatenate((hand[first:last], hand[size - last : size - first]))))
    return parts


class RepeatedOrder(Sampler):
    """The items of each step of an epoch: a new order every epoch, each picture `repeats` times in a row.

    An epoch has as many items as the set has pictures, so it holds one in `repeats` of them: DeiT's RASampler.
    """

    def __init__(self, count: int, recipe: FinetuneRecipe, positions: np.ndarray, seed: int) -> None:
        self.count, self.repeats, self.batch_size = count, recipe.repeats, recipe.train_batch_size
        self.positions, self.seed, self.epoch = positions, seed, 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(len(self)):
            rows, repeats = np.divmod(step * self.batch_size + self.positions, self.repeats)
            yield [(self.epoch, int(row), int(repeat)) for row, repeat in zip(order[rows], repeats, strict=True)]


def augmentation(recipe: FinetuneRecipe, transform: CenterCrop) -> Compose:
    """PIL image -> normalised float32 (3, s, s): timm's training transform with the options of DeiT's main.py.

    Colour jitter is off: timm left it out of DeiT's runs, where there is RandAugment.
    """
    augment = create_transform(
        transform.crop,
        is_training=True,
        scale=recipe.crop_scale,
        interpolation=transform.interpolation,
        hflip=0.5 if recipe.flip else 0.0,
        color_jitter=None,  # type: ignore[arg-type]
        auto_augment=recipe.randaugment or None,
        mean=transform.mean,
        std=transform.std,
        re_prob=recipe.erase,
        re_mode="pixel",
    )
    assert isinstance(augment, Compose)
    for operation in (operation for part in augment.transforms if isinstance(part, RandAugment) for operation in part.ops):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return augment


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits; none leave black, as in DeiT's runs. Pillow 13 refuses 0 bits, for which timm 1.0.31 asks."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


class AugmentedImages(Dataset):
    """Item -> normalised float32 picture (3, s, s) and its label, or what is wrong with the picture, as a value."""

    def __init__(self, images: ImageSet, recipe: FinetuneRecipe, transform: CenterCrop, seed: int) -> None:
        assert images.labels is not None
        self.images, self.labels, self.seed = images, images.labels, seed
        self.augment = augmentation(recipe, transform)

    def __getitem__(self, item: Item) -> tuple[Tensor, int] | DataError:
        epoch, row, repeat = item
        try:
            image = self.images.open(row)
        except (BadImage, DataError) as fault:
            return DataError(f"{self.images.paths[row]} ({fault})")
        seed = _seed(self.seed, epoch, row, repeat)
        random.seed(seed)
        np.random.seed(seed)
        # Drawn on a fork where this is the main process, whose generator stochastic depth uses.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # this one only, not the GPU's
            picture: Any = self.augment(image)
        return picture, int(self.labels[row])


class CenterCroppedImages(Dataset):
    """Row -> uint8 picture (3, s, s) by the evaluation's transform, and its row; or what is wrong with it, as a value."""

    def __init__(self, images: ImageSet, transform: CenterCrop) -> None:
        self.images, self.transform = images, transform

    def __getitem__(self, row: int) -> tuple[Tensor, int] | DataError:
        try:
            return self.transform(self.images.open(row)), row
        except (BadImage, DataError) as fault:
            return DataError(f"{self.images.paths[row]} ({fault})")


def collate(samples: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    """Stack pictures (B, 3, s, s) and numbers (B,); pictures that cannot be read stand for the batch."""
    faults = [str(sample) for sample in samples if isinstance(sample, DataError)]
    if faults:
        return DataError(f"images that cannot be read: {join_names(sorted(set(faults)))}. Mend or remove them: training leaves none out")
    pictures, numbers = zip(*samples, strict=True)  # type: ignore[arg-type]
    return torch.stack(pictures), torch.tensor(numbers)


class Mixing:
    """Mixup or cutmix, and label smoothing: pictures (B, 3, s, s) and labels (B,) -> mixed pictures and targets (B, classes)."""

    def __init__(self, recipe: FinetuneRecipe, classes: int, parts: list[tuple[int, np.ndarray]], seed: int) -> None:
        self.parts, self.seed = parts, seed
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=classes)
        self.mixup.mixup_enabled = recipe.mixup > 0 or recipe.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix in place."""
        targets, start = [], 0
        for group, positions in self.parts:
            part = slice(start, start + len(positions))
            np.random.seed(_seed(self.seed, epoch, step, group, _MIXING))
            targets.append(self.mixup(images[part], labels[part])[1])
            start += len(positions)
        return images, torch.cat(targets)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
