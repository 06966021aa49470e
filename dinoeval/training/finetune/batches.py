"""Batches for supervised training as in DeiT: repeated augmentation, RandAugment, erasing, mixup and cutmix.

Random draws depend only on the seed, the epoch and the image (or the step). So neither the number of workers, nor the
number of processes, nor an interruption changes a batch.

B images of one process, s pixels of their side, C classes.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import RandAugment
from timm.data.mixup import Mixup
from timm.data.transforms import RandomResizedCropAndInterpolation
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torch.utils.data import Sampler
from torchvision.transforms import Compose

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop
from dinoeval.errors import ConfigError, DataError
from dinoeval.training.finetune.recipes import FinetuneRecipe
from dinoeval.training.loading import derive_seed, find_error, random_resized_crop, seeded

Item = tuple[int, int, int]  # epoch, row, which repeat of it
_MIXING = 1  # separates the seeds of mixing from those of images


def assign_mixup_groups(batch_size: int, group_size: int, rank: int, world_size: int) -> list[tuple[int, np.ndarray]]:
    """Assign the positions of a batch to groups whose images share one mixing ratio.

    Positions are assigned in turn, as DeiT assigns images to its GPUs, so the repeats of an image are in different
    groups. Mixing pairs the first image of a group with the last, and so on; both images of a pair are in the same process.

    Args:
        batch_size: Images per step, over all processes; a multiple of 2 * world_size.
        group_size: Images of a group. The groups are larger if that is needed to make them equal and even.
        rank: Number of this process.
        world_size: Number of processes.

    Returns:
        This process's part: for each of its groups, the group's number and the positions in the batch, int64.

    Raises:
        ConfigError: If the batch cannot be divided into pairs for every process.

    Examples:
        >>> [(group, positions.tolist()) for group, positions in assign_mixup_groups(8, 4, rank=0, world_size=1)]
        [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7])]
    """
    if batch_size % (2 * world_size):
        multiple = f"{2 * world_size} (2 for each of {world_size} processes)" if world_size > 1 else "2"
        raise ConfigError(f"--train-batch-size must be a multiple of {multiple} because images are mixed in pairs, got {batch_size}")
    pairs = batch_size // 2
    groups = next(count for count in range(max(1, batch_size // group_size), 0, -1) if pairs % count == 0)
    size, shard = batch_size // groups, pairs // world_size
    parts = []
    for group in range(groups):
        positions = np.arange(group, batch_size, groups)
        first, last = (min(max(bound - group * size // 2, 0), size // 2) for bound in (rank * shard, (rank + 1) * shard))
        if first < last:
            parts.append((group, np.concatenate((positions[first:last], positions[size - last : size - first]))))
    return parts


class RepeatedOrder(Sampler):
    """The items of each step of an epoch, in a new order every epoch.

    Each image occurs `repeats` times in a row. An epoch has as many items as the dataset has images, so it contains one of
    every `repeats` images (RASampler of DeiT).

    Args:
        count: Number of training images.
        recipe: Its batch size and number of repeats are used.
        positions: This process's positions in a batch, int64.
        seed: Random seed of the orders.
    """

    def __init__(self, count: int, recipe: FinetuneRecipe, positions: np.ndarray, seed: int) -> None:
        self.count, self.repeats, self.batch_size = count, recipe.repeats, recipe.train_batch_size
        self.positions, self.seed, self.epoch = positions, seed, 0

    def __len__(self) -> int:
        """Number of steps per epoch."""
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        """Yield the items of each step of the epoch `self.epoch`."""
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(len(self)):
            rows, repeats = np.divmod(step * self.batch_size + self.positions, self.repeats)
            yield [(self.epoch, int(row), int(repeat)) for row, repeat in zip(order[rows], repeats, strict=True)]


def build_augmentation(recipe: FinetuneRecipe, transform: CenterCrop) -> Compose:
    """Build timm's training transform with the options of DeiT's main.py.

    Color jitter is off: with RandAugment, timm omitted it in DeiT's runs.

    Args:
        recipe: Its augmentation options are used.
        transform: The transform of the evaluation; size, filter, mean and standard deviation are the same.

    Returns:
        A callable from an RGB image to a normalized float32 tensor (3, s, s).
    """
    augmentation = create_transform(
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
    assert isinstance(augmentation, Compose)
    augmentation.transforms[0] = _RandomCrop(augmentation.transforms[0])
    for operation in (operation for part in augmentation.transforms if isinstance(part, RandAugment) for operation in part.ops):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = _posterize
    return augmentation


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """Keep the highest bits; 0 bits give black, as in the DeiT runs. timm 1.0.31 requests 0 bits, which Pillow 13 rejects."""
    return ImageOps.posterize(image, bits) if bits else Image.new(image.mode, image.size)


@dataclasses.dataclass(frozen=True)
class _RandomCrop:
    """The random crop of timm, of images of any size."""

    crop: RandomResizedCropAndInterpolation

    def __call__(self, image: Image.Image) -> Image.Image:
        return random_resized_crop(self.crop, image)


@dataclasses.dataclass(frozen=True)
class _SeededAugmentation:
    """Transform of an ImageDataset: (normalized float32 image (3, s, s), label)."""

    augmentation: Compose
    labels: np.ndarray
    seed: int

    def __call__(self, image: Image.Image, item: Item) -> tuple[Tensor, int]:
        epoch, row, repeat = item
        with seeded(derive_seed(self.seed, epoch, row, repeat)):
            augmented: Any = self.augmentation(image)
        return augmented, int(self.labels[row])


@dataclasses.dataclass(frozen=True)
class _Cropped:
    """Transform of an ImageDataset: (uint8 image (3, s, s), row)."""

    transform: CenterCrop

    def __call__(self, image: Image.Image, row: int) -> tuple[Tensor, int]:
        return self.transform(image), row


def augmented_images(images: ImageSet, recipe: FinetuneRecipe, transform: CenterCrop, seed: int) -> ImageDataset:
    """Make the dataset of training images.

    Args:
        images: Labeled images.
        recipe: Its augmentation options are used.
        transform: The transform of the evaluation.
        seed: Random seed of the augmentation.

    Returns:
        A dataset that maps an item (epoch, row, repeat) to a normalized float32 image (3, s, s) and its label.
    """
    assert images.labels is not None
    augmentation = _SeededAugmentation(build_augmentation(recipe, transform), images.labels, seed)
    return ImageDataset(images, augmentation, row_of=operator.itemgetter(1))


def cropped_images(images: ImageSet, transform: CenterCrop) -> ImageDataset:
    """Make the dataset of evaluation images.

    Args:
        images: Images.
        transform: The transform of the evaluation.

    Returns:
        A dataset that maps a row to a uint8 image (3, s, s) and the row.
    """
    return ImageDataset(images, _Cropped(transform))


def collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor] | DataError:
    """Stack the items of a batch.

    Args:
        samples: Images (3, s, s) with a number each.

    Returns:
        Images (B, 3, s, s) and numbers (B,) int64, or an error that names the images that cannot be read.
    """
    if error := find_error(samples):
        return error
    images, numbers = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(numbers)


class Mixing:
    """Mixup or cutmix, and label smoothing.

    Args:
        recipe: Its mixing options are used.
        classes: Number of classes, C.
        parts: What `assign_mixup_groups` returned for this process.
        seed: Random seed of the mixing.
    """

    def __init__(self, recipe: FinetuneRecipe, classes: int, parts: list[tuple[int, np.ndarray]], seed: int) -> None:
        self.parts, self.seed = parts, seed
        self.mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=recipe.smoothing, num_classes=classes)
        self.mixup.mixup_enabled = recipe.mixup > 0 or recipe.cutmix > 0

    def __call__(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Mix the images of a step in place.

        Args:
            images: Normalized images, (B, 3, s, s), in the order of `parts`.
            labels: Class indices, (B,) int64.
            epoch: Number of the epoch, from 0.
            step: Number of the step in the epoch, from 0.

        Returns:
            The images and their class probabilities, (B, C).
        """
        targets, start = [], 0
        for group, positions in self.parts:
            part = slice(start, start + len(positions))
            with seeded(derive_seed(self.seed, epoch, step, group, _MIXING)):
                targets.append(self.mixup(images[part], labels[part])[1])
            start += len(positions)
        return images, torch.cat(targets)
