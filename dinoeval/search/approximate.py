"""Indexes that look at a part of the rows: IVF, HNSW, and product quantisation, by FAISS.

An approximate index knows its recall: its own images are looked up in it and in the exact one, and the effort of a
search is the smallest that finds 97 % of their ten nearest. Q queries, N rows, K neighbours, D dims.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np

from dinoeval.errors import ConfigError, DataError
from dinoeval.maths.neighbors import load_faiss, nearest
from dinoeval.search.vectors import VectorFile, sample

Kind = Literal["exact", "ivf", "hnsw", "pq"]
RECALL_AT = 10
TARGET = 0.97  # so that pictures that are not in the index, by which its lists were not drawn, have 0.95
_SAMPLE = 1000
_LINKS, _EF_CONSTRUCTION = 32, 80  # of HNSW: neighbours a node, and nodes kept in mind while it is built
_POINTS_PER_LIST, _FEWEST_POINTS_PER_LIST = 64, 39  # k-means learns from so many a centroid; FAISS warns below 39
_CODES, _CODE_BITS = 256, 8
_ROUNDS = 10  # of k-means
_TIE = 1e-6
_RERANK_BYTES = 64 << 20
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Approximate:
    """An approximate index over `rows` and how hard it looks."""

    kind: Kind
    index: Any
    rows: VectorFile
    effort: int
    """Lists that are probed (ivf, pq), or nodes that are kept in mind (hnsw)."""
    rerank: int = 1
    """For each neighbour wanted, so many candidates are compared by their true cosine (pq)."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find about the k nearest rows of normalised queries (Q, D): cosines and rows (Q, k), row -1 where there are too few."""
        match self.kind:
            case "ivf" | "pq":
                self.index.nprobe = self.effort
            case "hnsw":
                self.index.hnsw.efSearch = self.effort
            case _:
                raise AssertionError(self.kind)
        if self.kind != "pq":
            return self.index.search(queries, k)
        _, found = self.index.search(queries, min(len(self.rows), k * self.rerank))
        parts = [self._compare(queries[part], found[part], k) for part in _steps(len(queries), 4 * found.shape[1] * self.rows.dim)]
        return np.concatenate([cosines for cosines, _ in parts]), np.concatenate([rows for _, rows in parts])

    def _compare(self, queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k of candidates (Q, C) by their true cosines: codes tell rows apart only roughly."""
        cosines = np.einsum("qd,qcd->qc", queries, self.rows.take(np.maximum(candidates, 0)))
        cosines[candidates < 0] = -np.inf
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(cosines, order, 1), np.take_along_axis(candidates, order, 1)

    def parameters(self) -> dict[str, int]:
        """What the index was made with and how hard it looks, by FAISS's names."""
        match self.kind:
            case "ivf":
                return {"nlist": self.index.nlist, "nprobe": self.effort}
            case "pq":
                return {"nlist": self.index.nlist, "nprobe": self.effort, "code_bytes": self.index.pq.M, "rerank": self.rerank}
            case "hnsw":
                return {"M": _LINKS, "efConstruction": _EF_CONSTRUCTION, "efSearch": self.effort}
            case _:
                raise AssertionError(self.kind)


def _steps(count: int, bytes_each: int) -> Iterator[slice]:
    step = max(1, _RERANK_BYTES // bytes_each)
    return (slice(start, start + step) for start in range(0, count, step))


def make(kind: Kind, rows: VectorFile) -> Any:
    """Train an index on a sample of `rows`, and add them all. Raises ConfigError where they are too few for it."""
    index = _untrained(kind, len(rows), rows.dim)
    if not index.is_trained:
        wanted = max(index.nlist * _POINTS_PER_LIST, _CODES * _POINTS_PER_LIST if kind == "pq" else 0)
        index.train(rows.take(sample(len(rows), wanted)))
    extend(index, rows.blocks())
    return index


def _untrained(kind: Kind, count: int, dim: int) -> Any:
    library = load_faiss()
    if kind == "hnsw":
        index = library.IndexHNSWFlat(dim, _LINKS, library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _EF_CONSTRUCTION
        return index
    lists = max(1, min(round(2 * count**0.5), count // _FEWEST_POINTS_PER_LIST))
    coarse = library.IndexFlatIP(dim)
    match kind:
        case "ivf":
            index = library.IndexIVFFlat(coarse, dim, lists, library.METRIC_INNER_PRODUCT)
        case "pq":
            if count < _CODES:
                raise ConfigError(f"product quantisation learns {_CODES} codes, and there are only {count} images: use --index exact")
            width = next(width for width in range(min(4, dim), dim + 1) if dim % width == 0)
            index = library.IndexIVFPQ(coarse, dim, lists, dim // width, _CODE_BITS, library.METRIC_INNER_PRODUCT)
            _settle_training(index.pq.cp)
        case "exact":
            raise AssertionError("the rows themselves are the exact index")
        case _:
            assert_never(kind)
    _settle_training(index.cp)
    return index


def _settle_training(kmeans: Any) -> None:
    kmeans.niter, kmeans.max_points_per_centroid, kmeans.min_points_per_centroid = _ROUNDS, _POINTS_PER_LIST, 1


def extend(index: Any, blocks: Iterable[np.ndarray]) -> None:
    """Add rows to an index that was read without a memory map."""
    for block in blocks:
        index.add(np.ascontiguousarray(block))


def worth_training_again(trained_on: int, count: int) -> bool:
    """Whether a set has grown so much that its lists should be drawn anew."""
    return count > 2 * trained_on


def save(index: Any, path: Path) -> None:
    """Write an index; raises OSError."""
    try:
        load_faiss().write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error).splitlines()[0]) from error


def load(path: Path, *, mapped: bool = True) -> Any:
    """Read an index, memory-mapped where it is only searched."""
    library = load_faiss()
    try:
        return library.read_index(str(path), library.IO_FLAG_MMAP_IFC if mapped else 0)
    except RuntimeError as error:
        raise DataError(f"{path} cannot be read: {str(error).splitlines()[0]}. Open the index again, or build it.") from error


def tune(kind: Kind, index: Any, rows: VectorFile) -> tuple[Approximate, dict[str, Any]]:
    """Choose the least effort that reaches a recall@10 of 0.97 on a sample of the rows, or the most there is.

    Returns the tuned index, and `at`, `recall` and `sample`. A row's own place among its neighbours is not counted.
    """
    chosen = sample(len(rows), _SAMPLE)
    queries = rows.take(chosen)
    at = min(RECALL_AT, len(rows) - 1)
    cosines, found = nearest(queries, rows.blocks(), at + 1, normalized=True)
    others = found != chosen[:, None]
    others[others.all(1), -1] = False  # a row with many exact copies is not among its own nearest: any copy stands for it
    last = cosines[others].reshape(-1, at)[:, -1:]
    best: tuple[Approximate, float] | None = None
    for trial in _trials(kind, index, rows):
        cosines, found = trial.search(queries, at + 1)
        hits = (cosines >= last - _TIE) & (found != chosen[:, None]) & (found >= 0)
        recall = float(np.minimum(hits.sum(1), at).mean() / at)
        if best is None or recall > best[1]:
            best = trial, recall
        if recall >= TARGET:
            break
    assert best is not None
    return best[0], {"at": at, "recall": round(best[1], 4), "sample": len(chosen)}


def _trials(kind: Kind, index: Any, rows: VectorFile) -> Iterator[Approximate]:
    most = min(4096, len(rows)) if kind == "hnsw" else index.nlist
    efforts = [2**power for power in range(4 if kind == "hnsw" else 0, 13) if 2**power < most] + [most]
    for rerank in (4, 16, 64) if kind == "pq" else (1,):
        for effort in efforts:
            yield Approximate(kind, index, rows, effort, rerank)
