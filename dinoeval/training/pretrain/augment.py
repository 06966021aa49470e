"""Multi-crop augmentation, in the released order and with the released probabilities (DataAugmentationDINO in main_dino.py).

B images, V views (crops of one image), s pixels of a crop's side.
"""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomApply, RandomGrayscale, RandomHorizontalFlip, RandomResizedCrop
from torchvision.transforms.functional import InterpolationMode

from dinoeval.errors import DataError
from dinoeval.training.loading import derive_seed, find_error, seeded
from dinoeval.training.pretrain.recipe import Recipe


class MultiCropAugmentation:
    """Random crops of an image: two global ones, then the local ones.

    Args:
        recipe: Its crop sizes, scales and probabilities are used.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        bicubic = InterpolationMode.BICUBIC
        self.global_crop = RandomResizedCrop(recipe.global_crop, scale=recipe.global_scale, interpolation=bicubic)
        self.local_crop = RandomResizedCrop(recipe.local_crop, scale=recipe.local_scale, interpolation=bicubic)
        self.flip = RandomHorizontalFlip(0.5)
        self.jitter = RandomApply([ColorJitter(0.4, 0.4, 0.2, 0.1)], p=recipe.jitter)
        self.gray = RandomGrayscale(0.2)

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Draw the crops of an image with the generators of Python and PyTorch.

        Args:
            image: An RGB image.

        Returns:
            V crops, each uint8 (3, s, s).
        """
        crops = [
            self._view(self.global_crop(image), blur=1.0, solarize=0.0),
            self._view(self.global_crop(image), blur=0.1, solarize=0.2 if self.recipe.solarize else 0.0),
        ]
        return crops + [self._view(self.local_crop(image), blur=0.5, solarize=0.0) for _ in range(self.recipe.local_crops)]

    def _view(self, crop: Image.Image, blur: float, solarize: float) -> Tensor:
        if self.recipe.flip:
            crop = self.flip(crop)
        crop = self.gray(self.jitter(crop))
        if random.random() <= blur:
            crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(*self.recipe.blur_radius)))
        if random.random() < solarize:
            crop = ImageOps.solarize(crop)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


@dataclasses.dataclass(frozen=True)
class SeededCrops:
    """Transform of an `ImageDataset` that draws the crops of an image.

    The crops depend only on seed, epoch and row. The released code leaves Python's generator, which draws blur and
    solarization, without a seed.
    """

    augmentation: MultiCropAugmentation
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, row: int) -> list[Tensor]:
        """Draw the crops of an image.

        Args:
            image: An RGB image.
            row: Its row in the image set.

        Returns:
            V crops, each uint8 (3, s, s).
        """
        with seeded(derive_seed(self.seed, self.epoch, row)):
            return self.augmentation(image)


def collate(samples: list[list[Tensor]]) -> list[Tensor] | DataError:
    """Stack the crops of a batch, view by view.

    Args:
        samples: Crops of B images, each V of uint8 (3, s, s).

    Returns:
        V tensors (B, 3, s, s), or an error that names the images that cannot be read.
    """
    return find_error(samples) or [torch.stack(view) for view in zip(*samples, strict=True)]
