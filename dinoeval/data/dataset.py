"""The PyTorch dataset that decodes and transforms the images of a set, in worker processes or in the main process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from dinoeval.data.images import ImageSet
from dinoeval.errors import BadImage, DataError


@dataclasses.dataclass(frozen=True)
class Unreadable:
    """An image that could not be decoded or used."""

    row: int
    """Number of the image in its set."""
    path: str
    """Name of the image in its set."""
    reason: str
    """Why it cannot be used."""

    def __str__(self) -> str:
        return f"{self.path} ({self.reason})"


class ImageDataset(Dataset):
    """The images of a set, decoded and transformed.

    An image that cannot be used is returned as a value, `Unreadable` or `DataError`. PyTorch would wrap an exception of a
    worker process in the traceback of that process.

    Args:
        images: The image set.
        transform: Called with the decoded RGB image and the item; returns what the dataset returns.
        row_of: Returns the row of an item in `images`. Items are rows by default; samplers that need more, such as an
            epoch or a repeat, use tuples.

    Examples:
        >>> from dinoeval.data.images import in_memory
        >>> images = in_memory([Image.new("L", (4, 2)), Image.new("L", (8, 8))])
        >>> [size for size in map(ImageDataset(images, lambda image, row: image.size).__getitem__, range(2))]
        [(4, 2), (8, 8)]
    """

    def __init__(self, images: ImageSet, transform: Callable[[Image.Image, Any], Any], row_of: Callable[[Any], int] = int) -> None:
        self.images, self.transform, self.row_of = images, transform, row_of

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Any) -> Any:
        row = self.row_of(item)
        try:
            return self.transform(self.images.open(row), item)
        except BadImage as error:
            return Unreadable(row, self.images.paths[row], str(error))
        except DataError as error:
            return error
