"""What all training loops share in reading images: seeded random draws, and unreadable images.

Random draws depend only on numbers such as seed, epoch and row. So neither the number of worker processes nor an
interruption changes a batch.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.functional import resize

from dinoeval.data.dataset import Unreadable
from dinoeval.data.transforms import crop_box
from dinoeval.errors import DataError, join_names

T = TypeVar("T")


def derive_seed(*numbers: int) -> int:
    """Derive one seed from several numbers.

    Args:
        numbers: At least 0 each, such as seed, epoch and row.

    Returns:
        An integer below 2**32. Other numbers, or another order, give an unrelated seed; a trailing 0 changes nothing.

    Examples:
        >>> derive_seed(0, 1, 2) == derive_seed(0, 1, 2), derive_seed(0, 1, 2) == derive_seed(0, 2, 1)
        (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and PyTorch inside a `with` block.

    Their states are restored afterwards. Without worker processes, an augmentation runs in the main process and would
    otherwise change the draws of stochastic depth and of the calling program.

    Args:
        seed: At least 0 and below 2**32.

    Returns:
        A context manager.

    Examples:
        >>> with seeded(3):
        ...     first = (random.random(), np.random.rand(), torch.rand(1).item())
        >>> with seeded(3):
        ...     first == (random.random(), np.random.rand(), torch.rand(1).item())
        True
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed the GPU's generator
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def random_resized_crop(crop: Any, image: Image.Image) -> Image.Image:
    """Apply a random crop of torchvision or timm to an image of any size.

    The transforms themselves obey `PIL.Image.MAX_IMAGE_PIXELS`, which belongs to the calling program and whose default rejects
    large crops.

    Args:
        crop: A `RandomResizedCrop` of torchvision or a `RandomResizedCropAndInterpolation` of timm.
        image: An RGB image.

    Returns:
        The pixels that `crop(image)` returns. The generators draw the same numbers.
    """
    top, left, height, width = crop.get_params(image, crop.scale, crop.ratio)
    part: Any = crop_box(image, (left, top, left + width, top + height))
    return resize(part, crop.size, crop.interpolation)  # type: ignore[return-value]


def find_error(samples: Iterable[Any]) -> DataError | None:
    """Find the images of a batch that cannot be used.

    Args:
        samples: Items of an `ImageDataset`.

    Returns:
        An error that names the unreadable images, the first other error, or None if all images are good. It is
        returned, not raised, because PyTorch would wrap an exception of a worker process in that worker's traceback.
    """
    samples = list(samples)
    if errors := [sample for sample in samples if isinstance(sample, DataError)]:
        return errors[0]
    if names := sorted({str(sample) for sample in samples if isinstance(sample, Unreadable)}):
        return DataError(f"cannot read {join_names(names)}: training does not skip images. Fix or remove them, then rerun the command.")
    return None


def raise_error(batch: T | DataError) -> T:
    """Return a batch, or raise the error that stands in its place.

    Args:
        batch: What a collate function returned.

    Returns:
        The batch.

    Raises:
        DataError: If the batch is an error.
    """
    if isinstance(batch, DataError):
        raise batch
    return batch
