"""Exact nearest neighbors by FAISS, and the weighted vote of the k-NN classifier of the paper.

Q queries, B bank vectors, K neighbors, D dimensions, C classes.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

_log = logging.getLogger(__name__)
_NORM_EPS = 1e-12  # torch.nn.functional.normalize
_QUERIES = 4096  # queries per search
_VOTE_BYTES = 64 << 20


@functools.cache
def load_faiss() -> ModuleType:
    """Import FAISS with the fastest matrix kernels for this processor.

    The OpenBLAS in the wheels of faiss-cpu does not recognize newer processors. It falls back to kernels of 2004
    ("Prescott"), and a search is several times slower. OpenBLAS reads OPENBLAS_CORETYPE once, when it is loaded. If the
    calling program has loaded FAISS already, a warning is logged: the last digit of a cosine then depends on the place of the
    vector in the bank, so that equal vectors are not always in order of their index.

    Returns:
        The module `faiss`. The environment is left as it was.
    """
    kernels = None if "OPENBLAS_CORETYPE" in os.environ else _openblas_kernels()
    if kernels and "faiss" in sys.modules:
        _log.warning(
            "faiss was imported before dinoeval: searches are slower, and equal vectors may be in another order; import dinoeval first"
        )
    if kernels:
        os.environ["OPENBLAS_CORETYPE"] = kernels
    try:
        import faiss
    finally:
        if kernels:
            del os.environ["OPENBLAS_CORETYPE"]
    return faiss


def _openblas_kernels() -> str | None:
    """Best OpenBLAS kernels for an x86 Linux processor, or None to leave the choice to OpenBLAS."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return None
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= set(flags):
        return "SKYLAKEX"
    return "HASWELL" if {"avx2", "fma"} <= set(flags) else None


def l2_normalize(features: np.ndarray) -> np.ndarray:
    """Divide each vector by its Euclidean length.

    Args:
        features: Vectors, (N, D) float. They are not modified.

    Returns:
        A new contiguous array, (N, D) float32. Zero vectors stay zero.

    Examples:
        >>> l2_normalize(np.array([[3, 4], [0, 0]])).round(4).tolist()
        [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    features = np.array(features, np.float32, order="C")
    lengths = np.sqrt(np.einsum("nd,nd->n", features, features))
    features /= np.maximum(lengths, _NORM_EPS)[:, None]
    return features


def nearest(queries: np.ndarray, bank: Iterable[np.ndarray], k: int, *, normalized: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Find the k bank vectors with the largest cosine for each query.

    Args:
        queries: Vectors, (Q, D) float, not necessarily normalized.
        bank: Blocks (b, D) float of the B bank vectors, in order. The whole bank need not fit in memory.
        k: Number of neighbors.
        normalized: Whether the bank vectors already have length 1. This saves most of the time of a small search.

    Returns:
        Cosines, (Q, k) float32, in descending order, and bank indices, (Q, k) int64. Equal cosines are in ascending order of
        the index.

    Raises:
        ValueError: If the bank holds fewer than k vectors.

    Examples:
        >>> bank = np.array([[0, 1], [2, 0], [3, 4]], np.float32)
        >>> cosines, indices = nearest(np.array([[1, 0]]), [bank], k=2)
        >>> cosines.round(2).astype(float).round(2).tolist(), indices.tolist()
        ([[1.0, 0.6]], [[1, 2]])
    """
    queries = l2_normalize(queries)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    indices = np.full((len(queries), k), -1, np.int64)
    faiss = load_faiss()
    blas_threshold = faiss.cvar.distance_compute_blas_threshold
    # FAISS multiplies fewer than 20 queries with another kernel, whose last digits differ. Use one kernel for any number.
    faiss.cvar.distance_compute_blas_threshold = 1
    start = 0
    try:
        for block in bank:
            if len(block) == 0:
                continue
            block = block if normalized else l2_normalize(block)
            for first in range(0, len(queries), _QUERIES):
                part = slice(first, first + _QUERIES)
                block_cosines, block_indices = _search_block(queries[part], block, k)
                cosines[part], indices[part] = _merge((cosines[part], indices[part]), (block_cosines, block_indices + start), k)
            start += len(block)
    finally:
        faiss.cvar.distance_compute_blas_threshold = blas_threshold
    if start < k:
        raise ValueError(f"k = {k} exceeds the {start} vectors of the bank")
    return cosines, indices


def _search_block(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the best k vectors of one block, (Q, min(k, b)); equal cosines are in ascending order of the index.

    Among vectors that tie at the k-th place, FAISS returns any. So one more is requested. If it equals the k-th, the query
    is repeated for twice as many, until the last one found is worse or the block is exhausted.
    """
    faiss = load_faiss()
    requested = min(k + 1, len(block))
    cosines, indices = faiss.knn(queries, block, requested, metric=faiss.METRIC_INNER_PRODUCT)
    keep = min(k, len(block))
    for query in np.flatnonzero((cosines[:, 1:] == cosines[:, :-1]).any(1)):
        best, found = cosines[query : query + 1], indices[query : query + 1]
        more = requested
        while more < len(block) and best[0, keep - 1] == best[0, -1]:
            more = min(2 * more, len(block))
            best, found = faiss.knn(queries[query : query + 1], block, more, metric=faiss.METRIC_INNER_PRODUCT)
        order = np.lexsort((found[0], -best[0]))[:requested]
        cosines[query], indices[query] = best[0, order], found[0, order]
    return cosines[:, :keep], indices[:, :keep]


def _merge(earlier: tuple[np.ndarray, np.ndarray], later: tuple[np.ndarray, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best k of two descending lists per query; the stable sort puts the earlier of equal cosines first."""
    cosines, indices = np.concatenate((earlier[0], later[0]), 1), np.concatenate((earlier[1], later[1]), 1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(indices, order, 1)


def vote(cosines: np.ndarray, labels: np.ndarray, *, ks: Sequence[int], temperature: float, num_classes: int, ranks: int = 5) -> np.ndarray:
    """Classify queries by a weighted vote of their nearest neighbors.

    Args:
        cosines: Similarities, (Q, K) float, in descending order, K >= max(ks).
        labels: Neighbor labels, (Q, K) int, in the same order.
        ks: Numbers of neighbors to evaluate.
        temperature: Positive; a vote has weight exp(cosine / temperature).
        num_classes: Number of classes.
        ranks: Number of classes to return per query.

    Returns:
        Class indices, (len(ks), Q, ranks) int64, best first. Ties go to the lower index.
        Entries are -1 if fewer than `ranks` classes receive votes.

    Examples:
        The weights are e^9 = 8103 for class 2, and twice e^8 = 2981 for class 0:

        >>> vote(np.array([[0.9, 0.8, 0.8]]), np.array([[2, 0, 0]]), ks=[3], temperature=0.1, num_classes=3, ranks=3).tolist()
        [[[2, 0, -1]]]
    """
    predictions = np.full((len(ks), len(cosines), ranks), -1, np.int64)
    step = max(1, _VOTE_BYTES // (8 * num_classes))
    for start in range(0, len(cosines), step):
        part = slice(start, start + step)
        weights = _vote_weights(cosines[part], temperature)
        scores = np.zeros((len(weights), num_classes))
        cells = np.arange(len(weights))[:, None] * num_classes + labels[part]
        counted = 0
        for position in np.argsort(ks):  # each larger k adds its own neighbors to the sums of the smaller one
            k = ks[position]
            added = slice(counted, k)
            scores += np.bincount(cells[:, added].ravel(), weights[:, added].ravel(), scores.size).reshape(scores.shape)
            counted = k
            predictions[position, part] = _rank_classes(scores, ranks)
    return predictions


def _vote_weights(cosines: np.ndarray, temperature: float) -> np.ndarray:
    """Return weights (Q, K) float64, relative to the largest of each query, so that no temperature overflows.

    The division changes no ranking. A weight that underflows still counts as a vote.
    """
    cosines = cosines.astype(np.float64)
    return np.maximum(np.exp((cosines - cosines.max(1, keepdims=True)) / temperature), np.finfo(np.float64).tiny)


def _rank_classes(scores: np.ndarray, ranks: int) -> np.ndarray:
    """Return the classes with the largest positive scores, (Q, C) -> (Q, ranks); ties go to the lower index."""
    scores = scores.copy()
    queries = np.arange(len(scores))
    ranked = np.full((len(scores), ranks), -1, np.int64)
    for place in range(min(ranks, scores.shape[1])):
        best = scores.argmax(1)
        ranked[:, place] = np.where(scores[queries, best] > 0, best, -1)
        scores[queries, best] = 0
    return ranked


def multilabel_scores(cosines: np.ndarray, labels: np.ndarray, indices: np.ndarray, *, ks: Sequence[int], temperature: float) -> np.ndarray:
    """Score every class by its share of the weights of the nearest neighbors.

    Args:
        cosines: Similarities, (Q, K) float, in descending order, K >= max(ks).
        labels: Labels of the bank, (B, C) int: 1 present, 0 absent, -1 difficult. A neighbor that is difficult for a class is
            not counted for that class.
        indices: Bank indices of the neighbors, (Q, K) int, in the order of `cosines`.
        ks: Numbers of neighbors to evaluate.
        temperature: Positive; a neighbor has weight exp(cosine / temperature).

    Returns:
        Scores, (len(ks), Q, C) float64, from 0 to 1; 0 if no neighbor counts.

    Examples:
        Two equally near neighbors. One of two has class 0; class 1 is difficult for the other one:

        >>> multilabel_scores(np.array([[0.5, 0.5]]), np.array([[1, 1], [0, -1]]), np.array([[0, 1]]), ks=[2], temperature=0.1).tolist()
        [[[0.5, 1.0]]]
    """
    scores = np.zeros((len(ks), len(cosines), labels.shape[1]))
    step = max(1, _VOTE_BYTES // (8 * labels.shape[1] * cosines.shape[1]))
    for start in range(0, len(cosines), step):
        part = slice(start, start + step)
        weights = _vote_weights(cosines[part], temperature)
        neighbor_labels = labels[indices[part]]  # (q, K, C)
        for position, k in enumerate(ks):
            weight = weights[:, None, :k]
            present, known = ((weight @ mask[:, :k].astype(np.float64))[:, 0] for mask in (neighbor_labels == 1, neighbor_labels >= 0))
            np.divide(present, known, out=scores[position, part], where=known > 0)
    return scores
