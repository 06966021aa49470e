"""Extract features through the cache: return stored features, compute and store missing ones.

Under torchrun, every process computes a shard of the chunks. An interrupted extraction resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from typing import Any

import numpy as np
import torch

from dinoeval import distributed
from dinoeval.data.dataset import Unreadable
from dinoeval.data.images import ImageSet, require_files
from dinoeval.data.transforms import Transform
from dinoeval.errors import DataError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.entry import Entry
from dinoeval.features.features import Features
from dinoeval.features.forward import BadImages, Extractor, drop_unreadable
from dinoeval.features.partial import Partial
from dinoeval.features.readout import Readout
from dinoeval.features.spec import feature_spec, key_of
from dinoeval.guard import entry_point
from dinoeval.models.backbone import Backbone
from dinoeval.progress import Progress

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractOptions:
    """How features are extracted; the cache key does not depend on it."""

    bad_images: BadImages = "error"
    """`error`, or `skip` to leave unreadable images out and report them."""
    batch_size: int | None = None
    """Images per forward pass; by default as many as are fast on the device."""
    workers: int | None = None
    """Processes that decode images; by default one per core, and none for small sets."""


def is_cached(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform, cache: FeatureCache) -> bool:
    """Return whether features are cached, so that `extract` runs no forward pass.

    Args:
        backbone: The network.
        images: The image set.
        readout: How tokens become vectors.
        transform: How images are prepared.
        cache: The feature cache.

    Returns:
        True if there is an intact entry.
    """
    return cache.find(key_of(feature_spec(backbone, images, readout, transform)), report=False) is not None


@entry_point
def extract(
    backbone: Backbone,
    images: ImageSet,
    readout: Readout,
    transform: Transform,
    cache: FeatureCache,
    rows: np.ndarray | None = None,
    options: ExtractOptions = ExtractOptions(),
) -> Features:
    """Return the features of images from the cache.

    Features that are not cached are computed and stored first.

    Args:
        backbone: The network.
        images: The image set. Features of all its images are computed.
        readout: How tokens become vectors.
        transform: How images are prepared.
        cache: The feature cache.
        rows: (n,) int64, the rows of the images to return; by default all.
        options: How features are extracted.

    Returns:
        The features of the readable images, in order.

    Raises:
        ConfigError: If the network does not offer the readout or the image size, or was changed after it was loaded.
        DataError: If an image cannot be read and `bad_images` is `error`, or features are not finite. The features of
            the other images are stored, so that a second run with `skip` computes nothing.
        CacheError: If the cache cannot be read or written.

    Examples:
        >>> import dinoeval, tempfile
        >>> from PIL import Image
        >>> from dinoeval.data.images import in_memory
        >>> from dinoeval.data.transforms import CenterCrop
        >>> from dinoeval.features.readout import parse_readout
        >>> images = in_memory([Image.new("RGB", (40, 30)), Image.new("RGB", (30, 40))])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     features = extract(
        ...         dinoeval.load(device="cpu"), images, parse_readout("last4"), CenterCrop(16, 16), FeatureCache(folder)
        ...     )
        ...     [block.shape for block in features.blocks()]
        [(2, 384)]
    """
    started = time.monotonic()
    if options.bad_images == "error":
        require_files(images if rows is None else images.subset(rows))
    backbone.check_unchanged()
    backbone.check_offers(readout.layers, readout.patches)
    extractor = Extractor(backbone, images, readout, transform)
    spec = feature_spec(backbone, images, readout, transform)
    leader = distributed.rank() == 0
    entry = distributed.broadcast(_find_up_to_date(cache, key_of(spec), extractor) if leader else None)
    cached = entry is not None
    if entry is None:
        entry = _make_entry(extractor, cache, spec, options)
    rows = np.arange(len(images)) if rows is None else rows
    requested = set(rows.tolist())
    bad = [image for image in entry.bad if image["row"] in requested]
    rows = drop_unreadable(images, rows, bad, options.bad_images, "; the features of the others are cached")
    images = images.subset(rows) if len(rows) < len(images) else images
    return Features(entry, images, rows, bad, cached, time.monotonic() - started)


def _find_up_to_date(cache: FeatureCache, key: str, extractor: Extractor, report: bool = True) -> Entry | None:
    """Return the entry, unless it is absent, corrupted, or lacks images that have become readable."""
    entry = cache.find(key, report)
    for image in entry.bad if entry else ():
        item = extractor.dataset[image["row"]]
        if isinstance(item, DataError):
            raise item
        if not isinstance(item, Unreadable):
            _log.info("%s is readable now; extracting the features again", image["path"])
            return None
    return entry


def _make_entry(extractor: Extractor, cache: FeatureCache, spec: dict[str, Any], options: ExtractOptions) -> Entry:
    """Make a missing entry, together with the other processes of this run."""
    backbone, images = extractor.backbone, extractor.images
    key, feature_shape, chunk_rows = key_of(spec), extractor.feature_shape, extractor.chunk_rows(options.batch_size)
    leader = distributed.rank() == 0
    with cache.locked(key) if leader else contextlib.nullcontext():
        # Another run may have made the entry while this one waited for the lock.
        entry = distributed.broadcast(_find_up_to_date(cache, key, extractor, report=False) if leader else None)
        if entry is not None:
            return entry
        if leader:
            cache.begin(key, spec=spec, num_rows=len(images), feature_shape=feature_shape, chunk_rows=chunk_rows)
        distributed.barrier()
        partial = Partial(cache.partial_folder(key))
        _fill(partial, extractor, options.workers)
        distributed.barrier()
        if leader:
            about = {"arch": backbone.arch, "weights": backbone.provenance.name, "data": images.name, "split": images.split}
            entry = partial.finish({**about, "device": str(backbone.device)})
        entry = distributed.broadcast(entry)
        assert entry is not None
        return entry


def _fill(partial: Partial, extractor: Extractor, workers: int | None) -> None:
    """Compute this process's shard of the chunks that are not done."""
    images = extractor.images
    todo = partial.todo()
    mine = [todo[number] for number in distributed.shard(len(todo))]
    distributed.barrier()  # All processes read the journal before one of them writes to it.
    if done := len(images) - sum(len(partial.rows_of(chunk)) for chunk in todo):
        _log.info("%s (%s): resuming; %d of %d images are done", images.name, images.split, done, len(images))
    spans = [partial.rows_of(chunk) for chunk in mine]
    decoded = extractor.decode(spans, distributed.num_workers(workers, len(mine), images.small))
    batch_size = partial.chunk_rows // extractor.passes_per_chunk  # the batch size of the run that began the entry
    warned = False
    with Progress(f"{images.split} images", sum(map(len, spans)), "images") as progress:
        for number, span, chunk in zip(mine, spans, decoded, strict=True):
            if chunk.unreadable and not warned:
                warned = True
                _log.warning("%s cannot be read; continuing, to list all such images", chunk.unreadable[0])
            features = extractor.compute(chunk, len(span), batch_size)
            extractor.backbone.check_finite(torch.from_numpy(features), [images.paths[row] for row in span])
            partial.write(number, features, [dataclasses.asdict(image) for image in chunk.unreadable], chunk.remarks)
            progress.update(len(span))
