"""Duplicates: images whose features are nearly the same, as groups. N rows of length 1."""

from __future__ import annotations

import dataclasses

import numpy as np

from dinoeval.search.vectors import VectorFile

_ROUNDING = 1e-6  # of a cosine of rows of length 1: that of equal ones falls on both sides of 1
_BLOCK = 2048  # rows; cosines of a pair of blocks take 16 MB
_PENDING = 1 << 20


@dataclasses.dataclass(frozen=True)
class Group:
    """Two images or more, each of them nearer than the threshold to another one of the group."""

    paths: list[str]
    rows: np.ndarray
    """(n,) int64, where the images stand in the index."""
    cosines: np.ndarray
    """(n,) float32, of each image with the nearest other one."""


def linked(rows: VectorFile, threshold: float) -> tuple[list[np.ndarray], np.ndarray]:
    """Compare all rows with all others and return the connected components of the pairs whose cosine is at least `threshold`.

    Exact: N * N / 2 products in blocks of bounded memory, whatever the threshold. Returns the row numbers of each
    component of two or more, ascending, surest first; and for each row its largest cosine with another one where
    that is at least the threshold, else -inf, (N,). A cosine that is below it by float32's rounding alone counts.
    """
    threshold -= _ROUNDING
    count = len(rows)
    labels, best = np.arange(count), np.full(count, -np.inf, np.float32)
    pending: list[np.ndarray] = []
    for first in range(0, count, _BLOCK):
        left = rows.take(slice(first, first + _BLOCK))
        for second in range(first, count, _BLOCK):
            cosines = left @ rows.take(slice(second, second + _BLOCK)).T
            if first == second:
                np.fill_diagonal(cosines, -np.inf)
            if cosines.max() < threshold:
                continue
            for span, largest in ((first, cosines.max(1)), (second, cosines.max(0))):
                part = best[span : span + _BLOCK]
                np.maximum(part, largest, out=part, where=largest >= threshold)
            one, other = np.nonzero(cosines >= threshold)
            one, other = labels[first + one], labels[second + other]
            pending.append(np.unique((one * count + other)[one != other]))
            if sum(map(len, pending)) > _PENDING:
                labels, pending = _merge(labels, pending), []
    labels = _merge(labels, pending)
    order = np.argsort(labels, kind="stable")
    components = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    return sorted((rows for rows in components if len(rows) > 1), key=lambda rows: (-best[rows].max(), rows[0])), best


def _merge(labels: np.ndarray, edges: list[np.ndarray]) -> np.ndarray:
    """Give the rows whose labels are joined by edges, each written as one label * N + other label, one label."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.divmod(np.unique(np.concatenate([np.empty(0, np.int64), *edges])), len(labels))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels]
