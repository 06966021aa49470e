"""Query images and their nearest neighbors. Q queries, D dimensions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_images, open_mixed
from dinoeval.errors import DataError, join_names
from dinoeval.features.forward import forward_readable
from dinoeval.features.readout import Readout
from dinoeval.search.store import resolve
from dinoeval.session import Session

QueryImages = str | Path | Image.Image | Iterable[str | Path] | Iterable[Image.Image]
_MAX_UNCACHED = 32  # queries whose features are recomputed, which is faster than a cache lookup and leaves no entry


@dataclasses.dataclass(frozen=True)
class Matches:
    """The images of an index that are nearest to one query, most similar first."""

    query: str
    """Path of the query; empty for an image without a file."""
    paths: list[str]
    """Paths of the k images."""
    rows: np.ndarray
    """Rows of the images in the index, (k,) int64."""
    cosines: np.ndarray
    """Cosines, (k,) float32."""

    def __repr__(self) -> str:
        found = [f"{path} {cosine:.4f}" for path, cosine in zip(self.paths, self.cosines.tolist(), strict=True)]
        return f"Matches({self.query!r}: {join_names(found)})"


def embed_queries(session: Session, readout: Readout, images: QueryImages) -> tuple[list[str], np.ndarray, dict[str, list[str]]]:
    """Extract the features of query images.

    Args:
        session: Backbone and transform of the index. Its `bad_images` option decides about unreadable images.
        readout: Readout of the index.
        images: A folder, a file, a CSV table or a PIL image; or several paths or PIL images.

    Returns:
        Path of each readable image, empty for PIL images; features, (Q, D) float32; and names of images by remark.

    Raises:
        DataError: If an image is missing or unreadable, or paths and PIL images are mixed.
    """
    if not isinstance(images, (str, Path)):
        items = [images] if isinstance(images, Image.Image) else list(images)
        if opened := [item for item in items if isinstance(item, Image.Image)]:
            if len(opened) < len(items):
                raise DataError("a query takes either paths or PIL images, got both")
            in_order = in_memory(opened).with_rule(session.rule)
            features, _, remarks = forward_readable(session.backbone, in_order, readout, session.transform)
            return [""] * len(opened), features, remarks
        image_set = open_mixed(items)
    else:
        image_set = open_images(images)
    image_set = image_set.with_rule(session.rule)
    if len(image_set) > _MAX_UNCACHED:
        cached = session.features(image_set, readout)
        features, image_set, remarks = cached.numpy(), cached.images, cached.remarks
    else:
        session.backbone.check_unchanged()
        config = session.config
        features, image_set, remarks = forward_readable(
            session.backbone, image_set, readout, session.transform, bad_images=config.bad_images, batch_size=config.batch_size
        )
    base = _base_folder(images) if isinstance(images, (str, Path)) else Path()
    return [str(base / path) for path in image_set.paths], features, remarks


def _base_folder(path: str | Path) -> Path:
    """Folder that the names of an image set opened from `path` are relative to."""
    full = resolve(path)
    if full.is_dir():
        return full
    return full.parent if full.suffix.lower() in (".csv", ".tsv") else Path()
