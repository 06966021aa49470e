"""Exact nearest neighbours by FAISS, and the weighted vote of the paper's k-NN classifier.

Q queries, B bank rows, K neighbours, D dims, C classes.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

_NORM_EPS = 1e-12  # torch.nn.functional.normalize
_QUERIES = 4096  # searched at a time
_VOTE_BYTES = 64 << 20


@functools.cache
def faiss() -> ModuleType:
    """Import FAISS, once, in one place, with the matrix kernels this processor deserves.

    The OpenBLAS inside faiss-cpu's wheels does not know newer processors and falls back to kernels of 2004 ("Prescott"):
    a search then takes several times as long. It reads OPENBLAS_CORETYPE once, while it is loaded.
    """
    kernels = None if "OPENBLAS_CORETYPE" in os.environ else _kernels()
    if kernels:
        os.environ["OPENBLAS_CORETYPE"] = kernels
    try:
        import faiss as module
    finally:
        if kernels:
            del os.environ["OPENBLAS_CORETYPE"]
    return module


def _kernels() -> str | None:
    """The best OpenBLAS kernels that an x86 Linux processor can run, or None to leave the choice to OpenBLAS."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split()
    except (OSError, StopIteration):
        return None
    if {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"} <= set(flags):
        return "SKYLAKEX"
    return "HASWELL" if {"avx2", "fma"} <= set(flags) else None


def l2_normalize(rows: np.ndarray) -> np.ndarray:
    """Divide each row (N, D) by its length, as a new contiguous float32 array."""
    rows = np.array(rows, np.float32, order="C")
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    rows /= np.maximum(lengths, _NORM_EPS)[:, None]
    return rows


def nearest(queries: np.ndarray, bank: Iterable[np.ndarray], k: int, *, unit: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Find the k bank rows of largest cosine for each query.

    `queries` (Q, D); `bank` yields blocks (b, D) of it in order, so that it need never be in memory whole. Neither needs
    to be normalised; `unit` says that the bank's rows are of length 1, which saves most of the time that few queries take.
    Returns cosines (Q, k) float32 in descending order and bank rows (Q, k) int64; equal cosines come in ascending order of
    row. The bank must hold at least k rows.
    """
    queries = l2_normalize(queries)
    cosines = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    library = faiss()
    blas_from = library.cvar.distance_compute_blas_threshold
    # FAISS multiplies fewer than 20 queries by another kernel, whose last digits differ: one kernel for any number.
    library.cvar.distance_compute_blas_threshold = 1
    start = 0
    try:
        for block in bank:
            if len(block) == 0:
                continue
            block = block if unit else l2_normalize(block)
            for first in range(0, len(queries), _QUERIES):
                some = slice(first, first + _QUERIES)
                found = _search(queries[some], block, k)
                cosines[some], rows[some] = _merge((cosines[some], rows[some]), (found[0], found[1] + start), k)
            start += len(block)
    finally:
        library.cvar.distance_compute_blas_threshold = blas_from
    if start < k:
        raise ValueError(f"a bank of {start} rows has no {k} neighbours")
    return cosines, rows


def _search(queries: np.ndarray, block: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best k rows of one block, (Q, min(k, b)); of equal cosines those of the smaller rows, in that order.

    FAISS keeps any of the rows that are equal at its cut. So one row more is asked for; where it equals the k-th, the
    query is asked again for twice as many, until the last row found is a worse one or all are found.
    """
    library = faiss()
    asked = min(k + 1, len(block))
    cosines, rows = library.knn(queries, block, asked, metric=library.METRIC_INNER_PRODUCT)
    keep = min(k, len(block))
    for query in np.flatnonzero((cosines[:, 1:] == cosines[:, :-1]).any(1)):
        best, found = cosines[query : query + 1], rows[query : query + 1]
        more = asked
        while more < len(block) and best[0, keep - 1] == best[0, -1]:
            more = min(2 * more, len(block))
            best, found = library.knn(queries[query : query + 1], block, more, metric=library.METRIC_INNER_PRODUCT)
        order = np.lexsort((found[0], -best[0]))[:asked]
        cosines[query], rows[query] = best[0, order], found[0, order]
    return cosines[:, :keep], rows[:, :keep]


def _merge(earlier: tuple[np.ndarray, np.ndarray], later: tuple[np.ndarray, np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the best k of two descending lists a query; of equals the earlier rows come first, as the sort is stable."""
    cosines, rows = np.concatenate((earlier[0], later[0]), 1), np.concatenate((earlier[1], later[1]), 1)
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)


def vote(cosines: np.ndarray, labels: np.ndarray, *, ks: Sequence[int], temperature: float, num_classes: int, ranks: int = 5) -> np.ndarray:
    """Let neighbours vote with weight exp(cosine / temperature) and rank the classes, for every k at once.

    `cosines` and `labels` (Q, K), nearest first, K >= max(ks). Returns predictions (len(ks), Q, ranks) int64: the classes
    of largest summed weight; of equal sums the smaller class; -1 where fewer classes than `ranks` got a vote.
    """
    predictions = np.full((len(ks), len(cosines), ranks), -1, np.int64)
    step = max(1, _VOTE_BYTES // (8 * num_classes))
    for start in range(0, len(cosines), step):
        part = cosines[start : start + step].astype(np.float64)
        # Divided by each query's largest weight, which changes no ranking, lest small temperatures overflow; a vote that
        # underflows stays a vote.
        weights = np.maximum(np.exp((part - part.max(1, keepdims=True)) / temperature), np.finfo(np.float64).tiny)
        voters = labels[start : start + step]
        scores = np.zeros((len(weights), num_classes))
        cells = np.arange(len(weights))[:, None] * num_classes + voters
        counted = 0
        for position in np.argsort(ks):  # each larger k adds its own neighbours to the sums of the smaller one
            k = ks[position]
            added = slice(counted, k)
            scores += np.bincount(cells[:, added].ravel(), weights[:, added].ravel(), scores.size).reshape(scores.shape)
            counted = k
            predictions[position, start : start + step] = _rank(scores, ranks)
    return predictions


def _rank(scores: np.ndarray, ranks: int) -> np.ndarray:
    """The classes of the largest positive scores, (Q, C) -> (Q, ranks); argmax takes the first of equals."""
    scores = scores.copy()
    lines = np.arange(len(scores))
    ranked = np.full((len(scores), ranks), -1, np.int64)
    for place in range(min(ranks, scores.shape[1])):
        best = scores.argmax(1)
        ranked[:, place] = np.where(scores[lines, best] > 0, best, -1)
        scores[lines, best] = 0
    return ranked


def multilabel_scores(cosines: np.ndarray, marks: np.ndarray, rows: np.ndarray, *, ks: Sequence[int], temperature: float) -> np.ndarray:
    """Score every class where images may be of several: the weight of the neighbours that have it over the weight of all.

    `cosines` and `rows` (Q, K), nearest first, K >= max(ks); `marks` (B, C) of the bank: 1 present, 0 absent, -1 difficult.
    A neighbour that is difficult for a class has no say in it. Returns scores (len(ks), Q, C) from 0 to 1; 0 where no
    neighbour has a say.
    """
    scores = np.zeros((len(ks), len(cosines), marks.shape[1]))
    step = max(1, _VOTE_BYTES // (8 * marks.shape[1] * cosines.shape[1]))
    for start in range(0, len(cosines), step):
        some = slice(start, start + step)
        part = cosines[some].astype(np.float64)
        weights = np.maximum(np.exp((part - part.max(1, keepdims=True)) / temperature), np.finfo(np.float64).tiny)
        voters = marks[rows[some]]  # (q, K, C)
        for position, k in enumerate(ks):
            weight = weights[:, None, :k]
            having, known = ((weight @ mask[:, :k].astype(np.float64))[:, 0] for mask in (voters == 1, voters >= 0))
            np.divide(having, known, out=scores[position, some], where=known > 0)
    return scores
