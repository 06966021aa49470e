"""Multi-crop augmentation, in the released order and with its probabilities (DataAugmentationDINO in main_dino.py)."""

from __future__ import annotations

import random

import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import ColorJitter, RandomApply, RandomGrayscale, RandomHorizontalFlip, RandomResizedCrop
from torchvision.transforms.functional import InterpolationMode

from dinoeval.data.images import ImageSet
from dinoeval.errors import BadImage, DataError
from dinoeval.training.pretrain.presets import Recipe


class MultiCropAugmentation:
    """PIL image -> list of uint8 crops: two global ones, then the local ones."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        bicubic = InterpolationMode.BICUBIC
        self.global_crop = RandomResizedCrop(recipe.global_crop, scale=recipe.global_scale, interpolation=bicubic)
        self.local_crop = RandomResizedCrop(recipe.local_crop, scale=recipe.local_scale, interpolation=bicubic)
        self.flip = RandomHorizontalFlip(0.5)
        self.jitter = RandomApply([ColorJitter(0.4, 0.4, 0.2, 0.1)], p=recipe.jitter)
        self.grey = RandomGrayscale(0.2)

    def __call__(self, image: Image.Image) -> list[Tensor]:
        crops = [
            self._view(self.global_crop(image), blur=1.0, solarize=0.0),
            self._view(self.global_crop(image), blur=0.1, solarize=0.2 if self.recipe.solarize else 0.0),
        ]
        return crops + [self._view(self.local_crop(image), blur=0.5, solarize=0.0) for _ in range(self.recipe.local_crops)]

    def _view(self, crop: Image.Image, blur: float, solarize: float) -> Tensor:
        if self.recipe.flip:
            crop = self.flip(crop)
        crop = self.grey(self.jitter(crop))
        if random.random() <= blur:
            crop = crop.filter(ImageFilter.GaussianBlur(random.uniform(*self.recipe.blur_radius)))
        if random.random() < solarize:
            crop = ImageOps.solarize(crop)
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1)


class Crops(Dataset):
    """The crops of an image set. What is drawn for a picture depends on seed, epoch and row alone.

    So neither the number of workers nor a resumed run changes the pictures (the released code leaves Python's generator,
    which draws blur and solarisation, without a seed).
    """

    def __init__(self, images: ImageSet, augmentation: MultiCropAugmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> list[Tensor] | DataError:
        """The crops, or what is wrong with the picture: as a value, for PyTorch would wrap a worker's exception in its traceback."""
        try:
            image = self.images.open(row)
        except (BadImage, DataError) as fault:
            return DataError(f"{self.images.paths[row]} cannot be read: {fault}. Put it right, and the same command goes on.")
        seed = int(np.random.SeedSequence((self.seed, self.epoch, row)).generate_state(1)[0])
        random.seed(seed)
        # Drawn on a fork where this is the main process, whose generator stochastic depth uses.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # this one only, not the GPU's
            return self.augmentation(image)


def collate(samples: list[list[Tensor] | DataError]) -> list[Tensor] | DataError:
    """Stack the crops of a batch view by view, V of (B, 3, s, s); one picture that cannot be read stands for the batch."""
    views = []
    for sample in samples:
        if isinstance(sample, DataError):
            return sample
        views.append(sample)
    return [torch.stack(view) for view in zip(*views, strict=True)]
