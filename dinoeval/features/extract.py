"""Run a backbone over an image set and keep what a readout says of it in the feature cache.

Rows are made in chunks of fixed bounds, so that a resumed run or another number of processes multiplies the same batches
and ends with the same bits. A chunk is one forward pass; where pictures keep sizes of their own it is larger, and one pass
for the pictures of each size in it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import Transform, normalize_images
from dinoeval.errors import BadImage, ConfigError, DataError, join_names
from dinoeval.features.cache import FeatureCache, key_of
from dinoeval.features.entry import Entry
from dinoeval.features.partial import Partial
from dinoeval.features.readout import Readout
from dinoeval.models.backbone import Backbone

EXTRACTION_VERSION = 1  # part of every key; raised when the same recipe would give other numbers
BadImages = Literal["error", "skip"]
_BLOCK_BYTES = 64 << 20
_PASSES = 4  # a chunk of pictures of several sizes holds as many as this many forward passes take
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Features:
    """The rows of one image set under one readout, memory-mapped from the cache."""

    entry: Entry
    images: ImageSet
    """The images that have a row here, in order: those that did not decode are left out."""
    rows: np.ndarray
    """(N,) int64, which row of the entry belongs to each image."""
    bad: list[dict[str, Any]]
    """The images asked for that did not decode: `row`, `path`, `reason`."""
    cached: bool
    """Whether the rows were there already, so that no forward pass ran."""
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, rows: np.ndarray) -> Features:
        """Keep the images that are among `rows` of the set that was extracted; those that could not be read are not here."""
        kept = np.flatnonzero(np.isin(self.rows, rows))
        bad = [one for one in self.bad if one["row"] in set(rows.tolist())]
        return dataclasses.replace(self, images=self.images.subset(kept), rows=self.rows[kept], bad=bad)

    def numpy(self) -> np.ndarray:
        """All rows in memory, (N, *row_shape) float32."""
        rows = np.empty((len(self), *self.entry.row_shape), np.float32)
        start = 0
        for block in self.blocks():
            rows[start : start + len(block)] = block.reshape(len(block), *self.entry.row_shape)
            start += len(block)
        return rows

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Some rows in memory, (n, D) float32."""
        with self.entry.open() as file:
            return np.array(self.entry.matrix(file)[self.rows[positions]])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the rows in order in blocks (n, D) of bounded size, letting go of each block's pages after it."""
        dim = int(np.prod(self.entry.row_shape))
        step = max(1, _BLOCK_BYTES // (4 * dim))
        with self.entry.open() as file:  # held open, so that a `cache prune` meanwhile does no harm
            for start in range(0, len(self), step):
                rows = self.rows[start : start + step]
                # A fresh map a block: dropping it gives its pages back, so a bank larger than memory streams through.
                matrix = self.entry.matrix(file)
                yield np.array(matrix[rows[0] : rows[-1] + 1] if _consecutive(rows) else matrix[rows])


def _consecutive(rows: np.ndarray) -> bool:
    return int(rows[-1] - rows[0]) == len(rows) - 1


def feature_spec(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform) -> dict[str, Any]:
    """Everything that decides what the rows are; its hash is the entry's name. Labels are left out: rows do not know them."""
    return {
        "extraction": EXTRACTION_VERSION,
        "weights": backbone.digest,
        "network": dataclasses.asdict(backbone.config),
        "precision": backbone.precision,
        "readout": readout.id,
        "transform": transform.id,
        "images": dataclasses.replace(images, labels=None, classes=()).fingerprint(),
        "stamp": images.stamp,
    }


def is_cached(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform, cache: FeatureCache) -> bool:
    """Whether the features are there already, so that `extract` runs no forward pass."""
    return cache.find(key_of(feature_spec(backbone, images, readout, transform)), report=False) is not None


def extract(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: Transform,
    cache: FeatureCache,
    rows: np.ndarray | None = None,
    *,
    bad_images: BadImages = "error",
    batch_size: int | None = None,
    workers: int | None = None,
) -> Features:
    """Return the features of `images`, or of some `rows` of them, from the cache, making all of them first where they are not there.

    Under torchrun every process makes its share. Raises DataError where an image does not decode and `bad_images` is
    `error`: the others' rows are kept, so that a second run with `skip` has nothing to do.
    """
    began = time.monotonic()
    backbone.check_unchanged()
    backbone.check_offers(readout.layers, readout.patches)
    recipe = feature_spec(backbone, images, readout, transform)
    key = key_of(recipe)
    leader = distributed.rank() == 0
    pixels = _Pixels(images, transform, _least_side(backbone, transform))
    entry = distributed.broadcast(_whole(cache, key, pixels) if leader else None)
    cached = entry is not None
    if entry is None:
        shape, chunk_rows = _shape_of(backbone, readout, transform), _chunk_rows(backbone, transform, batch_size)
        entry = _make(backbone, pixels, readout, cache, key, recipe, shape, chunk_rows, workers)
    rows = np.arange(len(images)) if rows is None else rows
    asked = set(rows.tolist())
    bad_rows = [bad for bad in entry.bad if bad["row"] in asked]
    rows = _without(images, rows, bad_rows, bad_images, "; what was computed is kept")
    images = images.subset(rows) if len(rows) < len(images) else images
    return Features(entry, images, rows, bad_rows, cached, time.monotonic() - began)


def _shape_of(backbone: Backbone, readout: Readout, transform: Transform) -> tuple[int, ...]:
    """The shape of a row. Raises ConfigError where images are smaller than a patch."""
    grid = backbone.grid(transform.side, transform.side)
    if backbone.patch_size and min(grid) < 1:
        raise ConfigError(f"images of {transform.side} pixels are smaller than a patch of {backbone.patch_size}")
    shape = readout.row_shape(backbone.dim, grid)
    assert transform.one_size or shape == readout.row_shape(backbone.dim, (1, 1)), "a map of patches needs images of one size"
    return shape


def _chunk_rows(backbone: Backbone, transform: Transform, batch_size: int | None) -> int:
    return (batch_size or backbone.fast_batch(transform.side)) * (1 if transform.one_size else _PASSES)


def _without(images: ImageSet, rows: np.ndarray, bad: list[dict[str, Any]], bad_images: BadImages, kept: str = "") -> np.ndarray:
    """The rows that are left without the bad ones; raises DataError where `bad_images` is `error`, or none is left."""
    if bad and bad_images == "error":
        named = "; ".join(f"{one['path']} ({one['reason']})" for one in bad)
        raise DataError(
            f"{len(bad)} of {len(rows)} images of {images.name} ({images.split}) cannot be read: {named}. "
            f"Mend or remove them, or say --bad-images skip{kept}."
        )
    if not bad:
        return rows
    _log.warning("%d of %d images of %s (%s) cannot be read and are left out: %s", len(bad), len(rows), images.name,
                 images.split, join_names([f"{one['path']} ({one['reason']})" for one in bad], 1_000_000))  # fmt: skip
    rows = np.setdiff1d(rows, [one["row"] for one in bad])
    if not len(rows):
        raise DataError(f"no image of {images.name} ({images.split}) can be read")
    return rows


def _whole(cache: FeatureCache, key: str, pixels: _Pixels, report: bool = True) -> Entry | None:
    """The entry, unless it is absent, damaged, or lacks images that can be read by now."""
    entry = cache.find(key, report)
    for bad in entry.bad if entry else ():
        try:
            pixels(bad["row"])
        except BadImage:
            continue
        _log.info("%s could not be read before and can be now: the features are computed again", bad["path"])
        return None
    return entry


def _make(
    backbone: Backbone,
    pixels: _Pixels,
    readout: Readout,
    cache: FeatureCache,
    key: str,
    recipe: dict[str, Any],
    shape: tuple[int, ...],
    chunk_rows: int,
    workers: int | None,
) -> Entry:
    """Make a missing entry, together with the other processes of this run."""
    leader = distributed.rank() == 0
    with cache.locked(key) if leader else contextlib.nullcontext():
        # Another run may have made it while this one waited for the lock.
        entry = distributed.broadcast(_whole(cache, key, pixels, report=False) if leader else None)
        if entry is not None:
            return entry
        if leader:
            cache.begin(key, recipe=recipe, num_rows=len(pixels.images), row_shape=shape, chunk_rows=chunk_rows)
        distributed.barrier()
        partial = Partial(cache.root / f"{key}.partial")
        _fill(partial, backbone, pixels, readout, workers)
        distributed.barrier()
        if leader:
            about = {"arch": backbone.arch, "weights": backbone.provenance.name}
            about |= {"data": pixels.images.name, "split": pixels.images.split}
            entry = partial.finish({**about, "device": str(backbone.device)})
        entry = distributed.broadcast(entry)
        assert entry is not None
        return entry


def _fill(partial: Partial, backbone: Backbone, pixels: _Pixels, readout: Readout, workers: int | None) -> None:
    """Make this process's share of the chunks that are not done."""
    images, transform = pixels.images, pixels.transform
    todo = partial.todo()
    mine = [todo[number] for number in distributed.shard(len(todo))]
    distributed.barrier()  # everyone has read the journal before anyone writes to it
    done = len(images) - sum(len(partial.rows_of(chunk)) for chunk in todo)
    if done:
        _log.info("%s (%s): %d of %d rows were made by an earlier run", images.name, images.split, done, len(images))
    loader = DataLoader(
        _Chunks(pixels, partial.chunk_rows),
        sampler=mine,
        batch_size=None,
        num_workers=distributed.num_workers(workers, len(mine), images.small),
        pin_memory=backbone.device.type == "cuda",
    )
    total = sum(len(partial.rows_of(chunk)) for chunk in mine)
    most = partial.chunk_rows // (1 if transform.one_size else _PASSES)  # of the plan: this run's batch size may be another
    warned = False
    label = f"{images.split} images"
    with tqdm(total=total, desc=label, unit="img", disable=None if distributed.rank() == 0 else True, leave=False) as bar:
        for chunk, groups, bad in loader:
            span = partial.rows_of(chunk)
            if bad and not warned:
                warned = True
                _log.warning("%s cannot be read (%s); going on, to find and name all such images", bad[0]["path"], bad[0]["reason"])
            rows = np.zeros((len(span), partial.dim), np.float32)
            for places, batch in _passes(groups, most):
                rows[places] = _forward(backbone, batch, readout, transform).reshape(len(places), -1)
            _refuse_nan(rows, [images.paths[row] for row in span], backbone)
            partial.write(chunk, rows, bad)
            bar.update(len(span))


def _least_side(backbone: Backbone, transform: Transform) -> int:
    """The shortest side in pixels that holds a patch at the smallest scale."""
    return math.ceil((backbone.patch_size or 1) / min(transform.scales))


def _passes(decoded: _Decoded | DataError, most: int) -> Iterator[tuple[list[int], Tensor]]:
    """Cut the pictures of each size into batches of at most `most`, with their places in the chunk."""
    if isinstance(decoded, DataError):
        raise decoded
    pixels, groups = decoded
    begin = 0
    for places, shape in groups:
        end = begin + len(places) * math.prod(shape)
        batch, begin = pixels[begin:end].view(len(places), *shape), end
        for start in range(0, len(places), most):
            yield places[start : start + most], batch[start : start + most]


def _forward(backbone: Backbone, batch: Tensor, readout: Readout, transform: Transform) -> np.ndarray:
    """uint8 images (n, 3, H, W) -> (n, *row_shape) float32; of several scales the mean of their rows, divided by its length."""
    images = normalize_images(batch.to(backbone.device, non_blocking=True), transform.mean, transform.std)
    rows = [readout(backbone(_scaled(images, scale), layers=readout.layers, patches=readout.patches)) for scale in transform.scales]
    if len(rows) == 1:
        return rows[0].cpu().numpy()
    # The released multi_scale divides by the length of the whole batch, which is the same for its batches of one.
    mean = torch.stack(rows).sum(0) / len(rows)
    return (mean / mean.norm(dim=1, keepdim=True)).cpu().numpy()


def _scaled(images: Tensor, scale: float) -> Tensor:
    """Resample normalised images without antialiasing, as multi_scale of the released utils.py does."""
    if scale == 1:
        return images
    return torch.nn.functional.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)


def forward(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform, *, batch_size: int | None = None) -> np.ndarray:
    """The features of images, (N, *row_shape) float32, without the cache. Raises DataError for a bad image."""
    return forward_readable(backbone, images, readout, transform, batch_size=batch_size)[0]


def forward_readable(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: Transform,
    *,
    bad_images: BadImages = "error",
    batch_size: int | None = None,
) -> tuple[np.ndarray, ImageSet]:
    """The features of the images that decode, (N, *row_shape) float32, and these images; nothing is kept in the cache.

    The batches, and so the bits, are those of `extract`, as are the errors.
    """
    backbone.check_offers(readout.layers, readout.patches)
    rows = np.zeros((len(images), *_shape_of(backbone, readout, transform)), np.float32)
    chunk_rows, faults = _chunk_rows(backbone, transform, batch_size), []
    chunks = _Chunks(_Pixels(images, transform, _least_side(backbone, transform)), chunk_rows)
    for chunk, groups, bad in DataLoader(chunks, sampler=range(-(-len(images) // chunk_rows)), batch_size=None):
        faults += bad
        for places, batch in _passes(groups, chunk_rows // (1 if transform.one_size else _PASSES)):
            rows[chunk * chunk_rows + np.array(places)] = _forward(backbone, batch, readout, transform)
    kept = _without(images, np.arange(len(images)), faults, bad_images)
    _refuse_nan(rows.reshape(len(rows), -1), images.paths, backbone)
    return (rows, images) if len(kept) == len(rows) else (rows[kept], images.subset(kept))


def _refuse_nan(rows: np.ndarray, paths: Sequence[str], backbone: Backbone) -> None:
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        first = paths[int(np.flatnonzero(~finite)[0])]
        advice = "--precision fp32 has the range that fp16 lacks" if backbone.precision == "fp16" else "its weights may be broken"
        raise DataError(f"the features of {first} by {backbone.arch} are NaN or infinite: {advice}. Nothing can be scored with them.")


@dataclasses.dataclass(frozen=True)
class _Pixels:
    """Row number -> uint8 tensor (3, H, W). Raises BadImage where the picture cannot be used."""

    images: ImageSet
    transform: Transform
    least_side: int

    def __call__(self, row: int) -> Tensor:
        pixels = self.transform(self.images.open(row))
        height, width = pixels.shape[1:]
        if not self.transform.one_size and min(height, width) < self.least_side:
            raise BadImage(f"{width} x {height} pixels once it is resized; a side of {self.least_side} is the least that can be used")
        return pixels


# The uint8 pixels of all pictures of a chunk, those of one size together, then for each size their places and its shape.
# One tensor, however many sizes: each would cost a worker process a file descriptor.
_Decoded = tuple[Tensor, list[tuple[list[int], tuple[int, ...]]]]


class _Chunks(Dataset):
    """Chunk number -> (number, the pictures that decode, what is wrong with the others).

    A DataError is returned as a value: PyTorch would wrap a worker's exception in its traceback.
    """

    def __init__(self, pixels: _Pixels, chunk_rows: int) -> None:
        self.pixels, self.chunk_rows = pixels, chunk_rows

    def __getitem__(self, chunk: int) -> tuple[int, _Decoded | DataError, list[dict[str, Any]]]:
        sizes: dict[torch.Size, tuple[list[int], list[Tensor]]] = {}
        bad, first, images = [], chunk * self.chunk_rows, self.pixels.images
        for row in range(first, min(first + self.chunk_rows, len(images))):
            try:
                picture = self.pixels(row)
            except BadImage as fault:
                bad.append({"row": row, "path": images.paths[row], "reason": str(fault)})
            except DataError as fault:
                return chunk, fault, bad
            else:
                places, pictures = sizes.setdefault(picture.shape, ([], []))
                places.append(row - first)
                pictures.append(picture)
        pixels = [picture.flatten() for _, pictures in sizes.values() for picture in pictures]
        groups = [(places, tuple(shape)) for shape, (places, _) in sizes.items()]
        return chunk, (torch.cat(pixels) if pixels else torch.empty(0, dtype=torch.uint8), groups), bad
