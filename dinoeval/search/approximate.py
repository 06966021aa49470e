"""Approximate indexes of FAISS: IVF, HNSW and product quantization.

The recall of an approximate index is measured by comparison with exact search for a sample of its vectors. The search
effort is the smallest that finds 97% of their ten nearest neighbors.

Q queries, N vectors, K neighbors, D dimensions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from dinoeval.errors import ConfigError, DataError
from dinoeval.maths.neighbors import load_faiss, nearest
from dinoeval.search.vectors import VectorFile, sample

ApproximateKind = Literal["ivf", "hnsw", "pq"]
IndexKind = Literal["exact", "ivf", "hnsw", "pq"]
RECALL_AT = 10
TARGET_RECALL = 0.97  # for indexed images, so that images outside the index, which did not shape it, reach about 0.95
_TUNING_QUERIES = 1000
_HNSW_LINKS, _HNSW_EF_CONSTRUCTION = 32, 80
_POINTS_PER_LIST, _MIN_POINTS_PER_LIST = 64, 39  # k-means training vectors per centroid; FAISS warns below 39
_PQ_CENTROIDS, _PQ_BITS = 256, 8
_KMEANS_ITERATIONS = 10
_TIE = 1e-6
_RERANK_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class ApproximateIndex:
    """An approximate index over vectors, with its search effort."""

    kind: ApproximateKind
    """Type of the index."""
    faiss_index: Any
    """The FAISS index."""
    vectors: VectorFile
    """The N vectors."""
    effort: int
    """Search effort: `nprobe` (ivf, pq) or `efSearch` (hnsw)."""
    rerank: int = 1
    """Candidates per neighbor that are reranked by their exact cosine (pq)."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Search for the k nearest vectors.

        Args:
            queries: Normalized vectors, (Q, D) float32.
            k: Number of neighbors.

        Returns:
            Cosines, (Q, k) float32, in descending order, and rows, (Q, k) int64; row -1 if fewer are found.
        """
        match self.kind:
            case "ivf" | "pq":
                self.faiss_index.nprobe = self.effort
            case "hnsw":
                self.faiss_index.hnsw.efSearch = self.effort
            case _:
                assert_never(self.kind)
        if self.kind != "pq":
            return self.faiss_index.search(queries, k)
        _, candidates = self.faiss_index.search(queries, min(len(self.vectors), k * self.rerank))
        step = max(1, _RERANK_BYTES // (4 * candidates.shape[1] * self.vectors.dim))
        starts = range(0, len(queries), step)
        parts = [self._rerank(queries[start : start + step], candidates[start : start + step], k) for start in starts]
        return np.concatenate([cosines for cosines, _ in parts]), np.concatenate([rows for _, rows in parts])

    def _rerank(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best k of the candidates (Q, c) by their exact cosines, because the cosines of the codes are inexact."""
        cosines = np.einsum("qd,qcd->qc", queries, self.vectors.take(np.maximum(candidates, 0)))
        cosines[candidates < 0] = -np.inf
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(candidates, order, 1)

    def parameters(self) -> dict[str, int]:
        """Return the parameters of the index and of its search.

        Returns:
            Values, by the names that FAISS uses.
        """
        match self.kind:
            case "ivf":
                return {"nlist": self.faiss_index.nlist, "nprobe": self.effort}
            case "pq":
                code_bytes = self.faiss_index.pq.M
                return {"nlist": self.faiss_index.nlist, "nprobe": self.effort, "code_bytes": code_bytes, "rerank": self.rerank}
            case "hnsw":
                return {"M": _HNSW_LINKS, "efConstruction": _HNSW_EF_CONSTRUCTION, "efSearch": self.effort}
            case _:
                assert_never(self.kind)


def train_index(kind: ApproximateKind, vectors: VectorFile) -> Any:
    """Train an index on a sample of the vectors, and add all of them.

    Args:
        kind: Type of the index.
        vectors: The N vectors.

    Returns:
        The FAISS index.

    Raises:
        ConfigError: If there are too few vectors for this type.
    """
    index = _create_untrained(kind, len(vectors), vectors.dim)
    if not index.is_trained:
        size = max(index.nlist * _POINTS_PER_LIST, _PQ_CENTROIDS * _POINTS_PER_LIST if kind == "pq" else 0)
        index.train(vectors.take(sample(len(vectors), size)))
    add_vectors(index, vectors.blocks())
    return index


def _create_untrained(kind: ApproximateKind, count: int, dim: int) -> Any:
    faiss = load_faiss()
    if kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _HNSW_EF_CONSTRUCTION
        return index
    lists = max(1, min(round(2 * count**0.5), count // _MIN_POINTS_PER_LIST))
    quantizer = faiss.IndexFlatIP(dim)
    match kind:
        case "ivf":
            index = faiss.IndexIVFFlat(quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
        case "pq":
            if count < _PQ_CENTROIDS:
                raise ConfigError(f"--index pq needs at least {_PQ_CENTROIDS} images, got {count}: pass --index exact")
            width = next(width for width in range(min(4, dim), dim + 1) if dim % width == 0)
            index = faiss.IndexIVFPQ(quantizer, dim, lists, dim // width, _PQ_BITS, faiss.METRIC_INNER_PRODUCT)
            _set_kmeans_parameters(index.pq.cp)
        case _:
            assert_never(kind)
    _set_kmeans_parameters(index.cp)
    return index


def _set_kmeans_parameters(parameters: Any) -> None:
    parameters.niter = _KMEANS_ITERATIONS
    parameters.max_points_per_centroid, parameters.min_points_per_centroid = _POINTS_PER_LIST, 1


def add_vectors(index: Any, blocks: Iterable[np.ndarray]) -> None:
    """Add vectors to an index.

    Args:
        index: FAISS index that is not memory-mapped.
        blocks: Vectors in blocks (b, D) float32.
    """
    for block in blocks:
        index.add(np.ascontiguousarray(block))


def needs_retraining(trained_on: int, count: int) -> bool:
    """Decide whether an index has grown so much that it should be trained again.

    Args:
        trained_on: Number of vectors at the last training.
        count: Number of vectors now.

    Returns:
        Whether the number has more than doubled.
    """
    return count > 2 * trained_on


def write_index(index: Any, path: Path) -> None:
    """Write an index to a file.

    Args:
        index: FAISS index.
        path: File to write.

    Raises:
        OSError: If the file cannot be written.
    """
    try:
        load_faiss().write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def read_index(path: Path, *, mapped: bool = True) -> Any:
    """Read an index from a file.

    Args:
        path: File to read.
        mapped: Whether to memory-map the file. Vectors cannot be added to a memory-mapped index.

    Returns:
        The FAISS index.

    Raises:
        DataError: If the file cannot be read.
    """
    faiss = load_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise DataError(f"cannot read {path}: {str(error).splitlines()[0]}. Reopen the index, or rebuild it") from error


def tune(kind: ApproximateKind, index: Any, vectors: VectorFile) -> tuple[ApproximateIndex, dict[str, Any]]:
    """Choose the smallest search effort that reaches TARGET_RECALL.

    If none does, choose the effort with the highest recall.

    Args:
        kind: Type of the index.
        index: FAISS index.
        vectors: Its N vectors, a sample of which is searched. A vector does not count as its own neighbor.

    Returns:
        The index with its effort; and the measured `recall`, the number of neighbors `at`, the number of queries `sample`.
    """
    chosen = sample(len(vectors), _TUNING_QUERIES)
    queries = vectors.take(chosen)
    at = min(RECALL_AT, len(vectors) - 1)
    cosines, found = nearest(queries, vectors.blocks(), at + 1, normalized=True)
    others = found != chosen[:, None]
    others[others.all(1), -1] = False  # A vector with many copies is not among its own neighbors; drop any one of them.
    smallest = cosines[others].reshape(-1, at)[:, -1:]
    best: tuple[ApproximateIndex, float] | None = None
    for trial in _trials(kind, index, vectors):
        cosines, found = trial.search(queries, at + 1)
        hits = (cosines >= smallest - _TIE) & (found != chosen[:, None]) & (found >= 0)
        recall = float(np.minimum(hits.sum(1), at).mean() / at)
        if best is None or recall > best[1]:
            best = trial, recall
        if recall >= TARGET_RECALL:
            break
    assert best is not None
    return best[0], {"at": at, "recall": round(best[1], 4), "sample": len(chosen)}


def _trials(kind: ApproximateKind, index: Any, vectors: VectorFile) -> Iterator[ApproximateIndex]:
    """Search efforts in ascending order of cost."""
    largest = min(4096, len(vectors)) if kind == "hnsw" else index.nlist
    efforts = [2**power for power in range(4 if kind == "hnsw" else 0, 13) if 2**power < largest] + [largest]
    for rerank in (4, 16, 64) if kind == "pq" else (1,):
        for effort in efforts:
            yield ApproximateIndex(kind, index, vectors, effort, rerank)
