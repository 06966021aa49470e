"""The vectors of an index on disk: a FAISS flat inner-product file, read through short-lived memory maps.

N vectors of length 1 with D dimensions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from dinoeval.features.partial import index_header

_BLOCK_BYTES = 64 << 20


class VectorFile:
    """An (N, D) float32 matrix on disk.

    An open file stays readable when its path is replaced or deleted.

    Args:
        path: File written by `write_vectors`.
        num_rows: Number of vectors N.
        dim: Number of dimensions D.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ...     path = Path(folder) / "vectors"
        ...     write_vectors(path, [np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])], num_rows=2, dim=2)
        ...     VectorFile(path, 2, 2).take(np.array([1])).tolist()
        [[0.0, 1.0]]
    """

    def __init__(self, path: Path, num_rows: int, dim: int) -> None:
        self.num_rows, self.dim = num_rows, dim
        self._file = path.open("rb")
        weakref.finalize(self, self._file.close)
        self._header_bytes = path.stat().st_size - 4 * num_rows * dim

    def __len__(self) -> int:
        return self.num_rows

    def _map(self) -> np.ndarray:
        # A new map for each access releases its pages when it is dropped, so that files larger than memory can be read.
        return np.memmap(self._file, np.float32, "r", offset=self._header_bytes, shape=(self.num_rows, self.dim))

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """Read vectors into memory.

        Args:
            rows: Row numbers of any shape, or a slice.

        Returns:
            Vectors, (*rows.shape, D) float32.
        """
        return np.array(self._map()[rows])

    def blocks(self, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Iterate over vectors in blocks of bounded size.

        Args:
            rows: Row numbers, (n,) int; all by default.

        Yields:
            Vectors in order, (b, D) float32.
        """
        count, step = len(self) if rows is None else len(rows), max(1, _BLOCK_BYTES // (4 * self.dim))
        for start in range(0, count, step):
            part = slice(start, min(start + step, count))
            yield self._map()[part] if rows is None else self.take(rows[part])


def write_vectors(path: Path, blocks: Iterable[np.ndarray], num_rows: int, dim: int) -> None:
    """Write normalized vectors to a file that FAISS can also read.

    Args:
        path: File to write.
        blocks: Vectors in blocks (b, D) float.
        num_rows: Number of all vectors N.
        dim: Number of dimensions D.
    """
    written = 0
    with path.open("wb") as file:
        file.write(index_header(num_rows, dim))
        for block in blocks:
            file.write(np.ascontiguousarray(block, "<f4").data)
            written += len(block)
    assert written == num_rows


def is_vector_file(path: Path, num_rows: int, dim: int) -> bool:
    """Return whether a file has the size and the header of a file of vectors.

    Args:
        path: An existing file.
        num_rows: Number of vectors.
        dim: Number of dimensions.
    """
    if path.stat().st_size < 4 * num_rows * dim:  # before a header of this dimension is made
        return False
    header = index_header(num_rows, dim)
    with path.open("rb") as file:
        return path.stat().st_size == len(header) + 4 * num_rows * dim and file.read(len(header)) == header


def sample(count: int, size: int) -> np.ndarray:
    """Draw row numbers without replacement, always the same for the same arguments.

    Args:
        count: Number of rows to draw from.
        size: Largest number of rows to draw.

    Returns:
        Row numbers, (min(count, size),) int64, ascending.
    """
    return np.sort(np.random.default_rng(0).choice(count, min(count, size), replace=False))
