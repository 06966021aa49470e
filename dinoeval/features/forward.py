"""Compute features: decode images, batch images of equal size, run the backbone, apply the readout.

Images are processed in chunks with fixed bounds. So a resumed run, or another number of processes, computes the same
batches and gives the same bits. A chunk is one forward pass. If images keep their sizes, a chunk is larger, with one or
more passes for the images of each size. N images of H x W pixels, D dims.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from dinoeval.data.dataset import ImageDataset, Unreadable
from dinoeval.data.images import ImageSet
from dinoeval.data.remarks import remarks_of
from dinoeval.data.transforms import Transform, normalize_images
from dinoeval.errors import BadImage, ConfigError, DataError, join_names
from dinoeval.features.readout import Readout
from dinoeval.models.backbone import Backbone

BadImages = Literal["error", "skip"]
_PASSES = 4  # A chunk of images of several sizes is as large as this many batches.
_log = logging.getLogger(__name__)


class DecodedChunk(NamedTuple):
    """The decoded images of a chunk.

    They share one tensor, because each tensor costs a worker process a file descriptor.
    """

    pixels: Tensor
    """uint8, flattened, images of equal size next to each other."""
    groups: list[tuple[list[int], tuple[int, ...]]]
    """For each size, the positions of its images in the chunk, and their shape (3, H, W)."""
    unreadable: list[Unreadable]
    """The images of the chunk that cannot be used."""
    error: DataError | None
    """An error that ends the extraction, such as a failing disk."""
    remarks: dict[str, list[int]]
    """Rows of images by remark."""

    def batches(self, limit: int) -> Iterator[tuple[list[int], Tensor]]:
        """Yield batches of images of equal size.

        Args:
            limit: Maximum number of images per batch.

        Yields:
            Positions in the chunk, and uint8 images (n, 3, H, W).

        Raises:
            DataError: The error of the chunk, if it has one.
        """
        if self.error:
            raise self.error
        begin = 0
        for positions, shape in self.groups:
            end = begin + len(positions) * math.prod(shape)
            images = self.pixels[begin:end].view(len(positions), *shape)
            begin = end
            for start in range(0, len(positions), limit):
                yield positions[start : start + limit], images[start : start + limit]


@dataclasses.dataclass(frozen=True)
class Extractor:
    """The computation of the features of an image set, without the cache."""

    backbone: Backbone
    """The network."""
    images: ImageSet
    """The image set."""
    readout: Readout
    """How tokens become vectors."""
    transform: Transform
    """How images are prepared."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of the feature of one image.

        Raises:
            ConfigError: If images are smaller than a patch.
        """
        grid = self.backbone.grid(self.transform.side, self.transform.side)
        if self.backbone.patch_size and min(grid) < 1:
            raise ConfigError(f"images of {self.transform.side} pixels are smaller than a patch of {self.backbone.patch_size}")
        shape = self.readout.feature_shape(self.backbone.dim, grid)
        fixed = self.transform.one_size or shape == self.readout.feature_shape(self.backbone.dim, (1, 1))
        assert fixed, "a map of patches needs images of one size"
        return shape

    @property
    def passes_per_chunk(self) -> int:
        """Number of full batches in a chunk."""
        return 1 if self.transform.one_size else _PASSES

    @property
    def dataset(self) -> ImageDataset:
        """The images as uint8 tensors with their remarks, or what is wrong with them."""
        smallest = math.ceil((self.backbone.patch_size or 1) / min(self.transform.scales))
        return ImageDataset(self.images, _MinimumSize(self.transform, smallest))

    def chunk_rows(self, batch_size: int | None) -> int:
        """Return the number of images per chunk.

        Args:
            batch_size: Images per forward pass; by default as many as are fast on the device.

        Returns:
            Number of images.
        """
        return (batch_size or self.backbone.fast_batch(self.transform.side)) * self.passes_per_chunk

    def decode(self, chunks: Sequence[range], workers: int = 0) -> Iterator[DecodedChunk]:
        """Decode and transform images, chunk by chunk.

        Args:
            chunks: The rows of each chunk.
            workers: Number of worker processes; 0 decodes in this process.

        Returns:
            The chunks in order.
        """
        loader = DataLoader(
            self.dataset,
            batch_sampler=chunks,  # type: ignore[arg-type]
            collate_fn=_collate,
            num_workers=workers,
            pin_memory=self.backbone.device.type == "cuda",
        )
        return iter(loader)

    def compute(self, chunk: DecodedChunk, count: int, batch_size: int) -> np.ndarray:
        """Compute the features of a chunk.

        Args:
            chunk: The decoded images.
            count: Number of images of the chunk, with unreadable ones.
            batch_size: Maximum number of images per forward pass.

        Returns:
            (count, D) float32; zeros for unreadable images.

        Raises:
            DataError: If reading the images failed.
        """
        features = np.zeros((count, math.prod(self.feature_shape)), np.float32)
        for positions, images in chunk.batches(batch_size):
            features[positions] = self._forward(images).reshape(len(positions), -1)
        return features

    def _forward(self, batch: Tensor) -> np.ndarray:
        """Map uint8 images (n, 3, H, W) to (n, *feature_shape) float32; several scales are averaged and L2-normalized."""
        transform, readout = self.transform, self.readout
        images = normalize_images(batch.to(self.backbone.device, non_blocking=True), transform.mean, transform.std)
        features = [
            readout(self.backbone(_rescale(images, scale), layers=readout.layers, patches=readout.patches)) for scale in transform.scales
        ]
        if len(features) == 1:
            return features[0].cpu().numpy()
        # The released multi_scale divides by the norm of the whole batch; its batches have one image, so this is the same.
        mean = torch.stack(features).sum(0) / len(features)
        return (mean / mean.norm(dim=1, keepdim=True)).cpu().numpy()


def _rescale(images: Tensor, scale: float) -> Tensor:
    """Resample normalized images without antialiasing, as multi_scale of the released utils.py does."""
    if scale == 1:
        return images
    return torch.nn.functional.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


@dataclasses.dataclass(frozen=True)
class _MinimumSize:
    """A transform that rejects images too small for a patch at the smallest scale. Worker processes need to pickle it."""

    transform: Transform
    smallest: int  # pixels

    def __call__(self, image: Image.Image, row: int) -> _Prepared:
        pixels = self.transform(image)
        height, width = pixels.shape[1:]
        if not self.transform.one_size and min(height, width) < self.smallest:
            raise BadImage(f"{width} x {height} pixels after resizing; each side must be at least {self.smallest}")
        return _Prepared(pixels, row, remarks_of(image))


class _Prepared(NamedTuple):
    """An image of a chunk."""

    pixels: Tensor  # uint8, (3, H, W)
    row: int
    remarks: list[str]


def _collate(items: list[_Prepared | Unreadable | DataError]) -> DecodedChunk:
    error = next((item for item in items if isinstance(item, DataError)), None)
    unreadable = [item for item in items if isinstance(item, Unreadable)]
    by_size: dict[torch.Size, list[int]] = {}
    remarks: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        if isinstance(item, _Prepared):
            by_size.setdefault(item.pixels.shape, []).append(position)
            for remark in item.remarks:
                remarks.setdefault(remark, []).append(item.row)
    pixels = [items[position].pixels.flatten() for positions in by_size.values() for position in positions]  # type: ignore[union-attr]
    groups = [(positions, tuple(shape)) for shape, positions in by_size.items()]
    return DecodedChunk(torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8), groups, unreadable, error, remarks)


def drop_unreadable(images: ImageSet, rows: np.ndarray, bad: list[dict[str, Any]], bad_images: BadImages, advice: str = "") -> np.ndarray:
    """Remove the rows of unreadable images.

    Args:
        images: The image set.
        rows: (n,) int64, rows of `images`.
        bad: The unreadable ones among them: `row`, `path`, `reason`.
        bad_images: `error` or `skip`.
        advice: End of the error message.

    Returns:
        The other rows, in order.

    Raises:
        DataError: If there are unreadable images and `bad_images` is `error`, or if no image is left.
    """
    if not bad:
        return rows
    names = [f"{image['path']} ({image['reason']})" for image in bad]
    summary = f"{len(bad)} of {len(rows)} images of {images.name} ({images.split}) cannot be read"
    if bad_images == "error":
        raise DataError(f"{summary}: {'; '.join(names)}. Fix or remove them, or pass --bad-images skip{advice}.")
    _log.warning("%s and are skipped: %s", summary, join_names(names, len(names)))
    rows = np.setdiff1d(rows, [image["row"] for image in bad])
    if not len(rows):
        raise DataError(f"none of the images of {images.name} ({images.split}) can be read")
    return rows


def forward(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform, *, batch_size: int | None = None) -> np.ndarray:
    """Compute the features of images without the cache.

    Args:
        backbone: The network.
        images: The image set.
        readout: How tokens become vectors.
        transform: How images are prepared.
        batch_size: Images per forward pass; by default as many as are fast on the device.

    Returns:
        (N, *feature_shape) float32, bit for bit equal to the features of `extract`.

    Raises:
        ConfigError: If the network does not offer the readout or the image size.
        DataError: If an image cannot be read, or features are not finite.

    Examples:
        >>> import dinoeval
        >>> from PIL import Image
        >>> from dinoeval.data.images import in_memory
        >>> from dinoeval.data.transforms import CenterCrop
        >>> from dinoeval.features.readout import parse_readout
        >>> images = in_memory([Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))])
        >>> forward(dinoeval.load(device="cpu"), images, parse_readout("patches"), CenterCrop(16, 16)).shape
        (2, 2, 2, 96)
    """
    return forward_readable(backbone, images, readout, transform, batch_size=batch_size)[0]


def forward_readable(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: Transform,
    *,
    bad_images: BadImages = "error",
    batch_size: int | None = None,
) -> tuple[np.ndarray, ImageSet, dict[str, list[str]]]:
    """Compute the features of the readable images without the cache.

    Args:
        backbone: The network.
        images: The image set.
        readout: How tokens become vectors.
        transform: How images are prepared.
        bad_images: `error`, or `skip` to leave unreadable images out.
        batch_size: Images per forward pass; by default as many as are fast on the device.

    Returns:
        The features, (N, *feature_shape) float32, the N images that can be read, and names of images by remark.

    Raises:
        ConfigError: If the network does not offer the readout or the image size.
        DataError: If an image cannot be read and `bad_images` is `error`, or features are not finite.
    """
    backbone.check_offers(readout.layers, readout.patches)
    extractor = Extractor(backbone, images, readout, transform)
    features = np.zeros((len(images), *extractor.feature_shape), np.float32)
    chunk_rows = extractor.chunk_rows(batch_size)
    chunks = [range(start, min(start + chunk_rows, len(images))) for start in range(0, len(images), chunk_rows)]
    bad: list[dict[str, Any]] = []
    remarks: dict[str, list[str]] = {}
    for span, chunk in zip(chunks, extractor.decode(chunks), strict=True):
        bad += [dataclasses.asdict(image) for image in chunk.unreadable]
        for remark, of_chunk in chunk.remarks.items():
            remarks.setdefault(remark, []).extend(images.paths[row] for row in of_chunk)
        computed = extractor.compute(chunk, len(span), chunk_rows // extractor.passes_per_chunk)
        features[span.start : span.stop] = computed.reshape(len(span), *extractor.feature_shape)
    kept = drop_unreadable(images, np.arange(len(images)), bad, bad_images)
    backbone.check_finite(torch.from_numpy(features), images.paths)
    return (features, images, remarks) if len(kept) == len(images) else (features[kept], images.subset(kept), remarks)
