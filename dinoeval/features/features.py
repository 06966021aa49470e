"""Features: the vectors of one image set, memory-mapped from the cache. N images, D dims."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from dinoeval.data.images import ImageSet
from dinoeval.display import short_repr
from dinoeval.features.entry import Entry

_BLOCK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Features:
    """The features of one image set under one readout, memory-mapped from the cache."""

    entry: Entry
    """The cache entry that stores them; it may contain more images."""
    images: ImageSet
    """The N images in order, without the unreadable ones."""
    rows: np.ndarray
    """(N,) int64, the row of each image in the entry."""
    bad: list[dict[str, Any]]
    """The unreadable images: `row`, `path`, `reason`."""
    cached: bool
    """Whether the entry was complete before, so that no forward pass ran."""
    seconds: float
    """Wall-clock time of the extraction."""

    __repr__ = short_repr

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def remarks(self) -> dict[str, list[str]]:
        """Names of images by remark."""
        named = {remark: np.isin(self.rows, rows) for remark, rows in self.entry.remarks.items()}
        return {remark: [self.images.paths[place] for place in np.flatnonzero(found)] for remark, found in named.items() if found.any()}

    def pick(self, rows: np.ndarray) -> Features:
        """Select images by their rows in the entry.

        Unreadable images stay left out.

        Args:
            rows: (n,) int64, rows of the entry, in any order.

        Returns:
            The features of these images, in the order of this object.
        """
        kept = np.flatnonzero(np.isin(self.rows, rows))
        bad = [image for image in self.bad if image["row"] in set(rows.tolist())]
        return dataclasses.replace(self, images=self.images.subset(kept), rows=self.rows[kept], bad=bad)

    def numpy(self) -> np.ndarray:
        """Read all features into memory.

        Returns:
            (N, *feature_shape) float32.
        """
        features = np.empty((len(self), *self.entry.feature_shape), np.float32)
        start = 0
        for block in self.blocks():
            features[start : start + len(block)] = block.reshape(len(block), *self.entry.feature_shape)
            start += len(block)
        return features

    def take(self, positions: np.ndarray) -> np.ndarray:
        """Read the features of some images into memory.

        Args:
            positions: (n,) int64, positions in `images`.

        Returns:
            (n, D) float32.
        """
        with self.entry.open() as file:
            return np.array(self.entry.matrix(file)[self.rows[positions]])

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the features in order, in blocks that fit into memory.

        Yields:
            (n, D) float32, at most 64 MiB each.
        """
        dim = int(np.prod(self.entry.feature_shape))
        step = max(1, _BLOCK_BYTES // (4 * dim))
        with self.entry.open() as file:  # An open file stays readable if `cache prune` deletes the entry meanwhile.
            for start in range(0, len(self), step):
                rows = self.rows[start : start + step]
                # One map per block: dropping it releases its pages, so that features larger than memory can be streamed.
                matrix = self.entry.matrix(file)
                yield np.array(matrix[rows[0] : rows[-1] + 1] if _consecutive(rows) else matrix[rows])


def _consecutive(rows: np.ndarray) -> bool:
    return int(rows[-1] - rows[0]) == len(rows) - 1
