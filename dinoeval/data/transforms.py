"""From a PIL image to the network's input. A transform has a name with a version, which every Result records.

The paper's: resize the short side to 256 with PIL's bicubic filter, crop the central 224 x 224, scale to [0, 1],
normalise with ImageNet's mean and deviation (eval_knn.py). Training of linear heads: a random crop, mirrored half of the
time (eval_linear.py). Retrieval: pictures keep their shape (eval_image_retrieval.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoeval.errors import BadImage, ConfigError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
VERSION = 1
MOST_PIXELS = 178_956_970  # where Pillow, too, refuses a picture


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """Resize the short side to `resize` pixels (PIL, antialiased), then cut the central `crop` x `crop`.

    With the paper's filter and statistics it is written `dino:256/224`; others appear in the name.
    """

    resize: int = 256
    crop: int = 224
    interpolation: str = "bicubic"
    """A filter of PIL by its name."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    squash: bool = False
    """Resize both sides to `resize`, without regard to the aspect."""
    scales: ClassVar[tuple[float, ...]] = (1.0,)
    one_size: ClassVar[bool] = True

    @property
    def side(self) -> int:
        """The longest side of what comes out, in pixels."""
        return self.crop

    @property
    def id(self) -> str:
        if dataclasses.replace(self, resize=256, crop=224) == PAPER:
            return f"dino@{VERSION}:{self.resize}/{self.crop}"
        numbers = ["/".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        return f"own@{VERSION}:{self.resize}/{self.crop}:{self.interpolation}:{':'.join(numbers)}{':squash' * self.squash}"

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL RGB image -> uint8 tensor (3, crop, crop). Raises BadImage where the resized whole would be beyond all measure."""
        width, height = image.size
        # torchvision's rule: the long side is cut down to a whole number, never rounded.
        if self.squash:
            new_width, new_height = self.resize, self.resize
        elif width <= height:
            new_width, new_height = self.resize, int(self.resize * height / width)
        else:
            new_width, new_height = int(self.resize * width / height), self.resize
        # torchvision's CenterCrop rounds half to even.
        left, top = round((new_width - self.crop) / 2.0), round((new_height - self.crop) / 2.0)
        if new_width * new_height > MOST_PIXELS:
            raise BadImage(f"{width} x {height} pixels would be resized to {new_width} x {new_height}")
        # Whole image first, then the crop: PIL can resample the cropped box alone, but its pixels are not the same.
        resized = image.resize((new_width, new_height), Image.Resampling[self.interpolation.upper()])
        pixels = resized.crop((left, top, left + self.crop, top + self.crop))
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


PAPER = CenterCrop()
MULTISCALE = (1.0, 2**-0.5, 0.5)  # multi_scale, utils.py


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """Shrink the picture to fit in `side` x `side` pixels, its aspect kept; a smaller one stays as it is: retrieval.

    PIL's thumbnail with the Lanczos filter, whose reducing gap of 2 averages whole blocks of pixels first where a picture
    is at least four times too large. Pictures come out in sizes of their own. Where there are several `scales`, the
    network sees each picture at all of them.
    """

    side: int = 224
    scales: tuple[float, ...] = (1.0,)
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    one_size: ClassVar[bool] = False

    @property
    def id(self) -> str:
        scales = "" if self.scales == (1.0,) else ":x" + "+".join(f"{scale:.4g}" for scale in self.scales)
        if (self.mean, self.std) == (MEAN, STD):
            return f"thumbnail@{VERSION}:{self.side}{scales}"
        numbers = ["/".join(f"{value:g}" for value in values) for values in (self.mean, self.std)]
        return f"thumbnail@{VERSION}:{self.side}{scales}:{':'.join(numbers)}"

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL RGB image -> uint8 tensor (3, H, W), neither above `side`."""
        small = image.copy()
        small.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)


Transform = CenterCrop | Thumbnail


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Cut a random part of the picture, resize it to `crop` x `crop`, mirror half of them: training of linear heads.

    torchvision's RandomResizedCrop with its defaults, so BILINEAR where the paper's other transforms are bicubic
    (eval_linear.py). What is drawn depends on the seed alone.
    """

    crop: int = 224

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """PIL RGB image -> uint8 tensor (3, crop, crop)."""
        from torchvision.transforms import RandomResizedCrop

        with torch.random.fork_rng(devices=[]):  # torchvision draws from the process's generator
            torch.default_generator.manual_seed(seed)
            top, left, height, width = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])  # type: ignore[arg-type]
            mirrored = bool(torch.rand(1) < 0.5)
        part = image.crop((left, top, left + width, top + height))
        pixels = part.resize((self.crop, self.crop), Image.Resampling.BILINEAR)
        if mirrored:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def normalize_images(batch: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """uint8 (N, 3, H, W) -> float32: divide by 255, subtract the mean, divide by the deviation, as torchvision does."""
    centre = torch.tensor(mean, device=batch.device).view(3, 1, 1)
    scale = torch.tensor(std, device=batch.device).view(3, 1, 1)
    return batch.float().div_(255).sub_(centre).div_(scale)


class Preprocessing(Protocol):
    """What a network of a library says of the pictures it was trained on."""

    @property
    def resize(self) -> int: ...
    @property
    def crop(self) -> int: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def squash(self) -> bool: ...


def parse_transform(name: str, image_size: int, own: Preprocessing | None = None) -> CenterCrop:
    """Turn `auto`, `dino` or `dino:RESIZE/CROP` into a transform; `image_size` is that of the network's position table.

    `auto` is the network's `own` where it has one; else the paper's for networks of 224-pixel images. Other sizes keep the
    whole short side: small pictures would be enlarged only to lose an eighth of their border. `dino` is the paper's.
    """
    if name == "auto" and own is not None:
        return CenterCrop(own.resize, own.crop, own.interpolation, own.mean, own.std, own.squash)
    if name == "auto":
        return PAPER if image_size == 224 else CenterCrop(image_size, image_size)
    if name == "dino":
        return PAPER
    match = re.fullmatch(r"dino(?:@1)?:([1-9]\d*)/([1-9]\d*)", name)
    if match is None:
        raise ConfigError(f"no transform '{name}'. Known: auto, dino (the paper's), and dino:RESIZE/CROP such as dino:256/224")
    transform = CenterCrop(int(match[1]), int(match[2]))
    if transform.crop > transform.resize:
        raise ConfigError(f"transform '{name}' cuts {transform.crop} pixels out of {transform.resize}")
    return transform
