"""Preprocessing from a PIL image to the network input. A Result records the versioned id of its transform.

- CenterCrop, of the paper: resize the short side to 256 pixels (PIL, bicubic) and crop the central 224 x 224. Then scale to
  [0, 1] and normalize with the mean and standard deviation of ImageNet (eval_knn.py).
- RandomResizedCrop: random resized crop and horizontal flip, for training linear heads (eval_linear.py).
- Thumbnail: keep the aspect ratio, for retrieval (eval_image_retrieval.py).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from PIL import Image

from dinoeval.errors import BadImage, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
"""Mean of the red, green and blue channel of ImageNet, in [0, 1]."""
STD = (0.229, 0.224, 0.225)
"""Standard deviation of the red, green and blue channel of ImageNet, in [0, 1]."""
MULTISCALE = (1.0, 2**-0.5, 0.5)
"""Scales of multi-scale retrieval (multi_scale in utils.py)."""
VERSION = 1
"""Version of the transforms in their ids."""
MAX_PIXELS = 178_956_970
"""Largest number of pixels of a resized image."""


@dataclasses.dataclass(frozen=True)
class CenterCrop:
    """The transform that resizes the short side and crops the center.

    Resizing is antialiased. With the filter and the statistics of the paper its id is `dino@1:256/224`; others appear in the id.
    """

    resize: int = 256
    """Pixels of the short side."""
    crop: int = 224
    """Side of the square crop in pixels."""
    interpolation: str = "bicubic"
    """Name of a PIL filter."""
    mean: tuple[float, ...] = MEAN
    """Channel means."""
    std: tuple[float, ...] = STD
    """Channel standard deviations."""
    squash: bool = False
    """Resize both sides to `resize`, without keeping the aspect ratio."""
    scales: ClassVar[tuple[float, ...]] = (1.0,)
    """Scales at which features are computed."""
    one_size: ClassVar[bool] = True
    """Whether all results have the same size."""

    @property
    def side(self) -> int:
        """Longest side of the result in pixels."""
        return self.crop

    @property
    def id(self) -> str:
        """Name of the transform with all its settings, part of the cache key."""
        if dataclasses.replace(self, resize=256, crop=224) == DINO_TRANSFORM:
            return f"dino@{VERSION}:{self.resize}/{self.crop}"
        filter_ = f"{self.interpolation}:{_format_statistics(self.mean, self.std)}"
        return f"own@{VERSION}:{self.resize}/{self.crop}:{filter_}{':squash' * self.squash}"

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image.

        Args:
            image: An RGB image.

        Returns:
            Pixels, (3, crop, crop) uint8.

        Raises:
            BadImage: If the image is so long and thin that the resized image would exceed MAX_PIXELS.
        """
        width, height = image.size
        # As in torchvision, the long side is rounded down.
        if self.squash:
            new_width, new_height = self.resize, self.resize
        elif width <= height:
            new_width, new_height = self.resize, int(self.resize * height / width)
        else:
            new_width, new_height = int(self.resize * width / height), self.resize
        # As in CenterCrop of torchvision, halves are rounded to even.
        left, top = round((new_width - self.crop) / 2.0), round((new_height - self.crop) / 2.0)
        if new_width * new_height > MAX_PIXELS:
            raise BadImage(f"{width} x {height} pixels would be resized to {new_width} x {new_height}")
        # The whole image is resized before the crop: PIL can resample the cropped box alone, but gives other pixels.
        resized = image.resize((new_width, new_height), Image.Resampling[self.interpolation.upper()])
        return _to_tensor(crop_box(resized, (left, top, left + self.crop, top + self.crop)))


DINO_TRANSFORM = CenterCrop()
"""The transform of the paper."""


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """The transform that shrinks images to fit in a square, keeping the aspect ratio.

    Smaller images keep their size. It is `thumbnail` of PIL with the Lanczos filter. Its reducing gap of 2 averages
    blocks of pixels first if an image is at least four times too large. Results have different sizes.
    """

    side: int = 224
    """Side of the square in pixels."""
    scales: tuple[float, ...] = (1.0,)
    """Scales at which features are computed."""
    mean: tuple[float, ...] = MEAN
    """Channel means."""
    std: tuple[float, ...] = STD
    """Channel standard deviations."""
    one_size: ClassVar[bool] = False
    """Whether all results have the same size."""

    @property
    def id(self) -> str:
        """Name of the transform with all its settings, part of the cache key."""
        scales = "" if self.scales == (1.0,) else ":x" + "+".join(f"{scale:.4g}" for scale in self.scales)
        statistics = "" if (self.mean, self.std) == (MEAN, STD) else f":{_format_statistics(self.mean, self.std)}"
        return f"thumbnail@{VERSION}:{self.side}{scales}{statistics}"

    def __call__(self, image: Image.Image) -> Tensor:
        """Transform an image.

        Args:
            image: An RGB image.

        Returns:
            Pixels, (3, H, W) uint8, H and W at most `side`.
        """
        small = image.copy()
        small.thumbnail((self.side, self.side), Image.Resampling.LANCZOS, reducing_gap=2.0)
        return _to_tensor(small)


Transform = CenterCrop | Thumbnail


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
    """The augmentation of linear heads: random resized crop and horizontal flip.

    It equals RandomResizedCrop of torchvision with its defaults, followed by RandomHorizontalFlip. The filter is therefore
    bilinear, unlike in the other transforms of the paper (eval_linear.py).
    """

    crop: int = 224
    """Side of the result in pixels."""

    def __call__(self, image: Image.Image, seed: int) -> Tensor:
        """Augment an image.

        Args:
            image: An RGB image.
            seed: Random seed of the crop and the flip. The random state of the process does not change.

        Returns:
            Pixels, (3, crop, crop) uint8.
        """
        import torch
        from torchvision import transforms

        with torch.random.fork_rng(devices=[]):  # torchvision uses the generator of the process.
            torch.default_generator.manual_seed(seed)
            top, left, height, width = transforms.RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])  # type: ignore[arg-type]
            flip = bool(torch.rand(1) < 0.5)
        part = crop_box(image, (left, top, left + width, top + height))
        pixels = part.resize((self.crop, self.crop), Image.Resampling.BILINEAR)
        if flip:
            pixels = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _to_tensor(pixels)


def crop_box(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Crop an image as `Image.crop` does.

    `Image.crop` itself obeys `PIL.Image.MAX_IMAGE_PIXELS`, which belongs to the calling program.

    Args:
        image: An image.
        box: Left, top, right and bottom in pixels. Pixels outside the image are black.

    Returns:
        The part.

    Examples:
        >>> crop_box(Image.new("RGB", (4, 4), "white"), (3, 0, 5, 1)).tobytes().hex()
        'ffffff000000'
    """
    left, top, right, bottom = box
    return image.transform((right - left, bottom - top), Image.Transform.EXTENT, box, Image.Resampling.NEAREST)


def normalize_images(batch: Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Scale pixels to [0, 1] and normalize each channel, as torchvision does.

    Args:
        batch: Pixels, (N, 3, H, W) uint8 or float from 0 to 255.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.

    Returns:
        (N, 3, H, W) float32.

    Examples:
        >>> import torch
        >>> normalize_images(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), std=(1, 1, 1)).flatten().tolist()
        [-0.48500001430511475, -0.4560000002384186, -0.4059999883174896]
    """
    import torch

    center = torch.tensor(mean, device=batch.device).view(3, 1, 1)
    scale = torch.tensor(std, device=batch.device).view(3, 1, 1)
    return batch.float().div_(255).sub_(center).div_(scale)


class Preprocessing(Protocol):
    """The preprocessing that a torchvision or timm model was trained with."""

    @property
    def resize(self) -> int:
        """Pixels of the short side."""
        ...

    @property
    def crop(self) -> int:
        """Side of the square crop in pixels."""
        ...

    @property
    def interpolation(self) -> str:
        """Name of a PIL filter."""
        ...

    @property
    def mean(self) -> tuple[float, ...]:
        """Channel means."""
        ...

    @property
    def std(self) -> tuple[float, ...]:
        """Channel standard deviations."""
        ...

    @property
    def squash(self) -> bool:
        """Whether to resize without keeping the aspect ratio."""
        ...


def parse_transform(name: str, image_size: int, own: Preprocessing | None = None) -> CenterCrop:
    """Parse the value of --transform.

    Args:
        name: `auto`, `dino`, or `dino:RESIZE/CROP` in pixels. `dino` is the transform of the paper. `auto` is `own` if the
            network has one, and `dino` for networks of 224-pixel images. For networks of other image sizes it resizes the
            short side to `image_size`, because enlarging small images only to crop their borders loses information.
        image_size: Image size of the position embeddings of the network, in pixels.
        own: Preprocessing of a torchvision or timm model.

    Returns:
        The transform.

    Raises:
        ConfigError: If the name is unknown, or the crop is larger than the resized image.

    Examples:
        >>> parse_transform("auto", 224).id, parse_transform("auto", 32).id
        ('dino@1:256/224', 'dino@1:32/32')
    """
    if name == "auto" and own is not None:
        return CenterCrop(own.resize, own.crop, own.interpolation, own.mean, own.std, own.squash)
    if name == "auto":
        return DINO_TRANSFORM if image_size == 224 else CenterCrop(image_size, image_size)
    if name == "dino":
        return DINO_TRANSFORM
    match = re.fullmatch(r"dino(?:@1)?:([1-9]\d*)/([1-9]\d*)", name)
    if match is None:
        raise ConfigError(f"unknown --transform '{name}'. Available: auto, dino (of the paper), and dino:RESIZE/CROP such as dino:256/224")
    transform = CenterCrop(int(match[1]), int(match[2]))
    if transform.crop > transform.resize:
        raise ConfigError(f"--transform '{name}' crops {transform.crop} pixels from {transform.resize}: CROP must be at most RESIZE")
    return transform


def _to_tensor(image: Image.Image) -> Tensor:
    import torch  # imported with the first image, so that help texts do not wait for it

    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _format_statistics(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    return ":".join("/".join(f"{value:g}" for value in values) for values in (mean, std))
