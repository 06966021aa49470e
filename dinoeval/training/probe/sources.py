"""Features of training images for linear probes: computed from random crops in every epoch, or read from the cache.

b images of a step that one process takes, D dims, H and W pixels.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinoeval import distributed
from dinoeval.data.dataset import ImageDataset, Unreadable
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop, RandomResizedCrop, normalize_images
from dinoeval.data.workers import BatchLoader
from dinoeval.errors import DataError
from dinoeval.features.readout import Readout
from dinoeval.models.backbone import Backbone
from dinoeval.training.loading import derive_seed, raise_error

_log = logging.getLogger(__name__)

FeatureBatch = tuple[dict[str, Tensor], np.ndarray]  # features (b, D) by readout, and the rows of their images (b,)


class FeatureSource(Protocol):
    """Where the features of training images come from."""

    @property
    def bad(self) -> Mapping[int, dict[str, Any]]:
        """The images that could not be read so far, by row."""
        ...

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[FeatureBatch]:
        """Yield the features of each step.

        Args:
            epoch: Number of the epoch, from 0.
            steps: The rows of the training set that each step takes.

        Yields:
            Features, (b, D) float32 by readout, and the rows that could be read, (b,), in the order of the step.
        """
        ...


class StoredFeatures(Protocol):
    """Features that are stored, such as `features.extract.Features`."""

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Return the features at some positions.

        Args:
            positions: (b,) int64.

        Returns:
            (b, D) float32.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Cached:
    """Stored features of center crops: the same in every epoch."""

    features: Mapping[str, StoredFeatures]
    """Features by readout."""
    rows: np.ndarray
    """The row of the training set that each feature belongs to, ascending."""
    bad: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """The images that could not be read, by row."""

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[FeatureBatch]:
        """Yield the features of each step; see `FeatureSource`.

        Args:
            epoch: Not used.
            steps: The rows of each step.

        Yields:
            Features by readout, and the rows of the step.
        """
        for step in steps:
            positions = np.searchsorted(self.rows, step)
            yield {name: torch.from_numpy(features.take(positions)) for name, features in self.features.items()}, step


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentedSettings:
    """How random crops are read and passed through the backbone."""

    seed: int = 0
    """Random seed of the crops."""
    bad_images: Literal["error", "skip"] = "error"
    """Whether unreadable images are an error, or are skipped and reported."""
    batch_size: int | None = None
    """Images per forward pass (default: chosen for the device)."""
    workers: int | None = None
    """Data-loading processes (default: one per core; 0 for small datasets)."""


class Augmented:
    """Features of random crops, computed again in every epoch.

    One forward pass gives the features of all readouts.

    Args:
        backbone: The frozen backbone.
        images: Training images.
        readouts: The features to compute.
        transform: The transform of the evaluation; crops have its size, mean and standard deviation.
        settings: Seed, batches and unreadable images.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: ImageSet,
        readouts: Sequence[Readout],
        transform: CenterCrop,
        settings: AugmentedSettings | None = None,
    ) -> None:
        self.backbone, self.images, self.readouts, self.transform = backbone, images, readouts, transform
        self.settings = settings or AugmentedSettings()
        self.batch_size = self.settings.batch_size or backbone.fast_batch(transform.crop)
        self.bad: dict[int, dict[str, Any]] = {}

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[FeatureBatch]:
        """Yield the features of each step; see `FeatureSource`.

        Args:
            epoch: Number of the epoch, from 0.
            steps: The rows of each step.

        Yields:
            Features by readout, and the rows that could be read.

        Raises:
            DataError: If an image cannot be read, unless bad images are skipped, or its features are NaN or infinite.
        """
        # A step is split into forward passes; a step without rows still takes one.
        parts = [
            (number, rows[first : first + self.batch_size])
            for number, rows in enumerate(steps)
            for first in range(0, max(1, len(rows)), self.batch_size)
        ]
        crop = RandomResizedCrop(self.transform.crop)
        loader = BatchLoader(
            ImageDataset(self.images, _SeededCrop(crop, self.settings.seed, epoch)),
            _Collate(crop.crop),
            workers=distributed.num_workers(self.settings.workers, len(parts), self.images.small),
            device=self.backbone.device,
            batch_sampler=[rows.tolist() for _, rows in parts],
        )
        gathered: list[FeatureBatch] = []
        for index, ((number, _), batch) in enumerate(zip(parts, loader, strict=True)):
            crops, rows, unreadable = raise_error(batch)
            self._record(unreadable)
            features = self.features(crops)
            for vectors in features.values():
                self.backbone.check_finite(vectors, [self.images.paths[row] for row in rows])
            gathered.append((features, rows))
            if index + 1 == len(parts) or parts[index + 1][0] != number:
                yield concatenate(gathered)
                gathered = []

    def features(self, crops: Tensor) -> dict[str, Tensor]:
        """Compute the features of crops.

        Args:
            crops: uint8 (b, 3, H, W).

        Returns:
            Features, (b, D) float32 by readout.
        """
        if not len(crops):
            widths = {readout.id: readout.feature_shape(self.backbone.dim, (0, 0))[0] for readout in self.readouts}
            return {name: torch.empty(0, width, device=self.backbone.device) for name, width in widths.items()}
        images = normalize_images(crops.to(self.backbone.device, non_blocking=True), self.transform.mean, self.transform.std)
        layers, patches = max(readout.layers for readout in self.readouts), any(readout.patches for readout in self.readouts)
        tokens = self.backbone(images, layers=layers, patches=patches)
        return {readout.id: readout(tokens) for readout in self.readouts}

    def _record(self, unreadable: Iterable[Unreadable]) -> None:
        for image in unreadable:
            if self.settings.bad_images != "skip":
                raise DataError(f"cannot read {image}: fix or remove the image, or pass --bad-images skip; rerun the command to resume")
            if image.row not in self.bad:
                _log.warning("skipping %s, which cannot be read (%s)", image.path, image.reason)
                self.bad[image.row] = dataclasses.asdict(image)


def concatenate(parts: Sequence[FeatureBatch]) -> FeatureBatch:
    """Concatenate feature batches in order.

    Args:
        parts: At least one batch; all have the same readouts.

    Returns:
        One batch.
    """
    names = parts[0][0]
    return {name: torch.cat([features[name] for features, _ in parts]) for name in names}, np.concatenate([rows for _, rows in parts])


@dataclasses.dataclass(frozen=True)
class _SeededCrop:
    """Transform of an ImageDataset: (random crop, row). The crop depends only on seed, epoch and row."""

    crop: RandomResizedCrop
    seed: int
    epoch: int

    def __call__(self, image: Image.Image, row: int) -> tuple[Tensor, int]:
        return self.crop(image, derive_seed(self.seed, self.epoch, row)), row


@dataclasses.dataclass(frozen=True)
class _Collate:
    """Stack the crops that could be read: (uint8 crops (b, 3, size, size), rows (b,), unreadable images)."""

    size: int

    def __call__(self, samples: list[Any]) -> tuple[Tensor, np.ndarray, list[Unreadable]] | DataError:
        if error := next((sample for sample in samples if isinstance(sample, DataError)), None):
            return error
        unreadable = [sample for sample in samples if isinstance(sample, Unreadable)]
        good = [sample for sample in samples if not isinstance(sample, Unreadable)]
        crops = torch.stack([crop for crop, _ in good]) if good else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8)
        return crops, np.array([row for _, row in good], np.int64), unreadable
