"""Run a backbone over an image set and keep what a readout says of it in the feature cache.

Rows are made in chunks of fixed bounds, one forward pass each, so that a resumed run or another number of processes
multiplies the same batches and ends with the same bits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
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
from dinoeval.data.transforms import CentralCrop, normalise
from dinoeval.errors import BadImage, ConfigError, DataError, some
from dinoeval.features.cache import FeatureCache, key_of
from dinoeval.features.entry import Entry
from dinoeval.features.partial import Partial
from dinoeval.features.readout import Readout
from dinoeval.models.backbone import Backbone

EXTRACTION_VERSION = 1  # part of every key; raised when the same recipe would give other numbers
BadImages = Literal["error", "skip"]
_BLOCK_BYTES = 64 << 20
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Features:
    """The rows of one image set under one readout, memory-mapped from the cache."""

    entry: Entry
    images: ImageSet
    """The images that have a row here, in order: those that did not decode are left out."""
    rows: np.ndarray
    """(N,) int64, which row of the entry belongs to each image."""
    cached: bool
    """Whether the rows were there already, so that no forward pass ran."""
    seconds: float

    def __len__(self) -> int:
        return len(self.rows)

    def pick(self, rows: np.ndarray) -> Features:
        """Keep the images that are among `rows` of the set that was extracted; those that could not be read are not here."""
        kept = np.flatnonzero(np.isin(self.rows, rows))
        return dataclasses.replace(self, images=self.images.subset(kept), rows=self.rows[kept])

    @property
    def bad(self) -> list[dict[str, Any]]:
        return self.entry.bad

    def numpy(self) -> np.ndarray:
        """All rows in memory, (N, *row_shape) float32."""
        rows = np.empty((len(self), *self.entry.row_shape), np.float32)
        start = 0
        for block in self.blocks():
            rows[start : start + len(block)] = block.reshape(len(block), *self.entry.row_shape)
            start += len(block)
        return rows

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


def recipe_of(backbone: Backbone, images: ImageSet, readout: Readout, transform: CentralCrop) -> dict[str, Any]:
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


def is_cached(backbone: Backbone, images: ImageSet, readout: Readout, transform: CentralCrop, cache: FeatureCache) -> bool:
    """Whether the features are there already, so that `extract` runs no forward pass."""
    return cache.find(key_of(recipe_of(backbone, images, readout, transform)), report=False) is not None


def extract(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: CentralCrop,
    cache: FeatureCache,
    *,
    bad_images: BadImages = "error",
    batch_size: int | None = None,
    workers: int | None = None,
) -> Features:
    """Return the features of `images` from the cache, making them first where they are not there.

    Under torchrun every process makes its share. Raises DataError where an image does not decode and `bad_images` is
    `error`: the others' rows are kept, so that a second run with `skip` has nothing to do.
    """
    began = time.monotonic()
    backbone.check_unchanged()
    backbone.check_offers(readout.layers, readout.patches)
    recipe = recipe_of(backbone, images, readout, transform)
    key = key_of(recipe)
    leader = distributed.rank() == 0
    entry = distributed.share(_whole(cache, key, images, transform) if leader else None)
    cached = entry is not None
    if entry is None:
        grid = backbone.grid(transform.crop, transform.crop)
        shape = readout.row_shape(backbone.dim, grid)
        if backbone.patch_size and min(grid) < 1:
            raise ConfigError(f"images of {transform.crop} pixels are smaller than a patch of {backbone.patch_size}")
        chunk_rows = batch_size or backbone.fast_batch(transform.crop)
        entry = _make(backbone, images, readout, transform, cache, key, recipe, shape, chunk_rows, workers)
    if entry.bad and bad_images == "error":
        named = "; ".join(f"{bad['path']} ({bad['reason']})" for bad in entry.bad)
        raise DataError(
            f"{len(entry.bad)} of {len(images)} images of {images.name} ({images.split}) cannot be read: {named}. "
            "Mend or remove them, or say --bad-images skip; what was computed is kept."
        )
    rows = np.arange(len(images))
    if entry.bad:
        rows = np.setdiff1d(rows, [bad["row"] for bad in entry.bad])
        _log.warning("%d of %d images of %s (%s) cannot be read and are left out: %s", len(entry.bad), len(images), images.name,
                     images.split, some([f"{bad['path']} ({bad['reason']})" for bad in entry.bad], 1_000_000))  # fmt: skip
        if not len(rows):
            raise DataError(f"no image of {images.name} ({images.split}) can be read")
        images = images.subset(rows)
    return Features(entry, images, rows, cached, time.monotonic() - began)


def _whole(cache: FeatureCache, key: str, images: ImageSet, transform: CentralCrop, report: bool = True) -> Entry | None:
    """The entry, unless it is absent, damaged, or lacks images that can be read by now."""
    entry = cache.find(key, report)
    for bad in entry.bad if entry else ():
        try:
            transform(images.open(bad["row"]))
        except BadImage:
            continue
        _log.info("%s could not be read before and can be now: the features are computed again", bad["path"])
        return None
    return entry


def _make(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: CentralCrop,
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
        entry = distributed.share(_whole(cache, key, images, transform, report=False) if leader else None)
        if entry is not None:
            return entry
        if leader:
            cache.begin(key, recipe=recipe, num_rows=len(images), row_shape=shape, chunk_rows=chunk_rows)
        distributed.barrier()
        partial = Partial(cache.root / f"{key}.partial")
        _fill(partial, backbone, images, readout, transform, workers)
        distributed.barrier()
        if leader:
            about = {"arch": backbone.arch, "weights": backbone.provenance.name, "data": images.name, "split": images.split}
            entry = partial.finish({**about, "device": str(backbone.device)})
        entry = distributed.share(entry)
        assert entry is not None
        return entry


def _fill(partial: Partial, backbone: Backbone, images: ImageSet, readout: Readout, transform: CentralCrop, workers: int | None) -> None:
    """Make this process's share of the chunks that are not done."""
    todo = partial.todo()
    mine = [todo[number] for number in distributed.shard(len(todo))]
    distributed.barrier()  # everyone has read the journal before anyone writes to it
    done = len(images) - sum(len(partial.rows_of(chunk)) for chunk in todo)
    if done:
        _log.info("%s (%s): %d of %d rows were made by an earlier run", images.name, images.split, done, len(images))
    loader = DataLoader(
        _Chunks(images, transform, partial.chunk_rows),
        sampler=mine,
        batch_size=None,
        num_workers=distributed.decoders(workers, len(mine), images.small),
        pin_memory=backbone.device.type == "cuda",
    )
    total = sum(len(partial.rows_of(chunk)) for chunk in mine)
    warned = False
    label = f"{images.split} images"
    with tqdm(total=total, desc=label, unit="img", disable=None if distributed.rank() == 0 else True, leave=False) as bar:
        for chunk, batch, bad in loader:
            span = partial.rows_of(chunk)
            if bad and not warned:
                warned = True
                _log.warning("%s cannot be read (%s); going on, to find and name all such images", bad[0]["path"], bad[0]["reason"])
            rows = np.zeros((len(span), partial.dim), np.float32)
            good = np.setdiff1d(np.arange(len(span)), [one["row"] - span.start for one in bad])
            if len(good) or isinstance(batch, DataError):
                rows[good] = _forward(backbone, batch, readout, transform).reshape(len(good), -1)
                _refuse_nan(rows, [images.paths[row] for row in span], backbone)
            partial.write(chunk, rows, bad)
            bar.update(len(span))


def _forward(backbone: Backbone, batch: Tensor | DataError, readout: Readout, transform: CentralCrop) -> np.ndarray:
    """uint8 images (n, 3, H, W) -> (n, *row_shape) float32."""
    if isinstance(batch, DataError):
        raise batch
    images = normalise(batch.to(backbone.device, non_blocking=True), transform.mean, transform.std)
    return readout(backbone(images, layers=readout.layers, patches=readout.patches)).cpu().numpy()


def forward(backbone: Backbone, images: ImageSet, readout: Readout, transform: CentralCrop, *, batch_size: int = 32) -> np.ndarray:
    """The features of pictures in memory, (N, *row_shape) float32, without the cache. Raises DataError for a bad image."""
    blocks = []
    for _, batch, bad in DataLoader(_Chunks(images, transform, batch_size), sampler=range(-(-len(images) // batch_size)), batch_size=None):
        if bad:
            raise DataError(f"{bad[0]['path']} cannot be read: {bad[0]['reason']}")
        blocks.append(_forward(backbone, batch, readout, transform))
    rows = np.concatenate(blocks)
    _refuse_nan(rows.reshape(len(rows), -1), images.paths, backbone)
    return rows


def _refuse_nan(rows: np.ndarray, paths: Sequence[str], backbone: Backbone) -> None:
    finite = np.isfinite(rows).all(1)
    if not finite.all():
        first = paths[int(np.flatnonzero(~finite)[0])]
        advice = "--precision fp32 has the range that fp16 lacks" if backbone.precision == "fp16" else "its weights may be broken"
        raise DataError(f"the features of {first} by {backbone.arch} are NaN or infinite: {advice}. Nothing can be scored with them.")


class _Chunks(Dataset):
    """Chunk number -> (number, uint8 images of those that decode, what is wrong with the others).

    A DataError is returned as a value: PyTorch would wrap a worker's exception in its traceback.
    """

    def __init__(self, images: ImageSet, transform: CentralCrop, chunk_rows: int) -> None:
        self.images, self.transform, self.chunk_rows = images, transform, chunk_rows

    def __getitem__(self, chunk: int) -> tuple[int, Tensor | DataError, list[dict[str, Any]]]:
        good, bad = [], []
        for row in range(chunk * self.chunk_rows, min((chunk + 1) * self.chunk_rows, len(self.images))):
            try:
                good.append(self.transform(self.images.open(row)))
            except BadImage as fault:
                bad.append({"row": row, "path": self.images.paths[row], "reason": str(fault)})
            except DataError as fault:
                return chunk, fault, bad
        size = self.transform.crop
        return chunk, torch.stack(good) if good else torch.empty(0, 3, size, size, dtype=torch.uint8), bad
