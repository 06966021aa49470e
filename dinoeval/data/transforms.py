"""From a PIL image to the network's input. A transform has a name with a version, which every Result records.

The paper's: resize the short side to 256 with PIL's bicubic filter, crop the central 224 x 224, scale to [0, 1],
normalise with ImageNet's mean and deviation (eval_knn.py).
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoeval.errors import BadImage, ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
VERSION = 1
_MOST_PIXELS = 178_956_970  # where Pillow, too, refuses a picture


@dataclasses.dataclass(frozen=True)
class CentralCrop:
    """Resize the short side to `resize` pixels (PIL, bicubic, antialiased), then cut the central `crop` x `crop`.

    Written `dino:256/224`.
    """

    resize: int = 256
    crop: int = 224

    @property
    def id(self) -> str:
        return f"dino@{VERSION}:{self.resize}/{self.crop}"

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL RGB image -> uint8 tensor (3, crop, crop). Raises BadImage where the resized whole would be beyond all measure."""
        width, height = image.size
        # torchvision's rule: the long side is cut down to a whole number, never rounded.
        if width <= height:
            new_width, new_height = self.resize, int(self.resize * height / width)
        else:
            new_width, new_height = int(self.resize * width / height), self.resize
        # torchvision's CenterCrop rounds half to even.
        left, top = round((new_width - self.crop) / 2.0), round((new_height - self.crop) / 2.0)
        if new_width * new_height > _MOST_PIXELS:
            raise BadImage(f"{width} x {height} pixels would be resized to {new_width} x {new_height}")
        # Whole image first, then the crop: PIL can resample the cropped box alone, but its pixels are not the same.
        resized = image.resize((new_width, new_height), Image.Resampling.BICUBIC)
        pixels = resized.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


PAPER = CentralCrop()


def normalise(batch: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> float32: divide by 255, subtract the mean, divide by the deviation, as torchvision does."""
    mean = torch.tensor(MEAN, device=batch.device).view(3, 1, 1)
    std = torch.tensor(STD, device=batch.device).view(3, 1, 1)
    return batch.float().div_(255).sub_(mean).div_(std)


def parse_transform(name: str, image_size: int) -> CentralCrop:
    """Turn `auto` or `dino:RESIZE/CROP` into a transform; `image_size` is that of the network's position table.

    `auto` is the paper's for networks of 224-pixel images. Other sizes keep the whole short side: small pictures would
    be enlarged only to lose an eighth of their border.
    """
    if name == "auto":
        return PAPER if image_size == 224 else CentralCrop(image_size, image_size)
    match = re.fullmatch(r"dino(?:@1)?:([1-9]\d*)/([1-9]\d*)", name)
    if match is None:
        raise ConfigError(f"no transform '{name}'. Known: auto, and dino:RESIZE/CROP such as dino:256/224 (the paper's)")
    transform = CentralCrop(int(match[1]), int(match[2]))
    if transform.crop > transform.resize:
        raise ConfigError(f"transform '{name}' cuts {transform.crop} pixels out of {transform.resize}")
    return transform
