"""The rows of an index on disk: one FAISS flat inner-product file, read through memory maps that are soon let go.

N rows of D dims, each of length 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dinoeval.features.partial import index_header

_BLOCK_BYTES = 64 << 20


class VectorFile:
    """N x D float32 on disk. What was opened stays readable when the file is replaced or deleted."""

    def __init__(self, path: Path, num_rows: int, dim: int) -> None:
        self.num_rows, self.dim = num_rows, dim
        self._file = path.open("rb")
        self._header_bytes = path.stat().st_size - 4 * num_rows * dim

    def __len__(self) -> int:
        return self.num_rows

    def _map(self) -> np.ndarray:
        # A fresh map each time: dropping it gives its pages back, so that rows beyond memory stream through.
        return np.memmap(self._file, np.float32, "r", offset=self._header_bytes, shape=(self.num_rows, self.dim))

    def take(self, numbers: np.ndarray | slice) -> np.ndarray:
        """The rows of these numbers, in memory, (n, D); numbers may have any shape, which then stands before D."""
        return np.array(self._map()[numbers])

    def blocks(self, numbers: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Yield all rows, or those of these numbers, in order, in blocks (n, D) of bounded size."""
        count, step = len(self) if numbers is None else len(numbers), max(1, _BLOCK_BYTES // (4 * self.dim))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            yield self._map()[part] if numbers is None else self.take(numbers[part])


def write_vectors(path: Path, blocks: Iterable[np.ndarray], num_rows: int, dim: int) -> None:
    """Write blocks of normalised rows, num_rows x dim in all, to a file that FAISS reads, too."""
    written = 0
    with path.open("wb") as file:
        file.write(index_header(num_rows, dim))
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
    assert written == num_rows


def sample(count: int, wanted: int) -> np.ndarray:
    """Choose row numbers below `count`, ascending; always the same for the same counts."""
    return np.sort(np.random.default_rng(0).choice(count, min(count, wanted), replace=False))
