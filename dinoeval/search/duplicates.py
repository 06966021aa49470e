"""Groups of duplicates: images with nearly the same features. N vectors of length 1."""

from __future__ import annotations

import dataclasses

import numpy as np

from dinoeval.search.vectors import VectorFile

_ROUNDING = 1e-6  # of a float32 cosine: that of equal vectors may be slightly below 1
_BLOCK = 2048  # vectors per block; the cosines of a pair of blocks take 16 MB
_PENDING = 1 << 20  # links collected before components are merged


@dataclasses.dataclass(frozen=True)
class DuplicateGroup:
    """Two or more images, linked by cosines that reach the threshold."""

    paths: list[str]
    """Paths of the images."""
    rows: np.ndarray
    """Rows of the images in the index, (n,) int64."""
    cosines: np.ndarray
    """Cosine of each image with its nearest other image, (n,) float32."""
    lowest: float
    """Lowest cosine of any two images of the group."""
    is_chain: bool
    """Whether `lowest` is below the threshold: some images are linked only through others."""
    identical_to: list[str | None]
    """For each image, the first other path of the group whose file has the same bytes, if the image is not the first itself."""
    links: list[list[str]]
    """For each image, other paths of the same file, which are no duplicates."""


def link_duplicates(vectors: VectorFile, threshold: float, rows: np.ndarray | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Find the connected components of the pairs whose cosine reaches a threshold.

    The comparison is exact: N * N / 2 products, in blocks of bounded memory. A cosine that is below the threshold only by
    float32 rounding counts.

    Args:
        vectors: The N vectors.
        threshold: Smallest cosine of a pair.
        rows: Rows of the vectors to compare, (n,) int64, ascending; all by default.

    Returns:
        Rows of each component of two or more images, ascending; the components with the most similar pairs come first.
        And the largest cosine of each image with another one, (N,) float32; -inf if it is below the threshold.
    """
    threshold -= _ROUNDING
    rows = np.arange(len(vectors)) if rows is None else rows
    count = len(rows)
    labels, best = np.arange(count), np.full(count, -np.inf, np.float32)
    pending: list[np.ndarray] = []
    for first in range(0, count, _BLOCK):
        left = vectors.take(rows[first : first + _BLOCK])
        for second in range(first, count, _BLOCK):
            cosines = left @ vectors.take(rows[second : second + _BLOCK]).T
            if first == second:
                np.fill_diagonal(cosines, -np.inf)
            if cosines.max() < threshold:
                continue
            for start, largest in ((first, cosines.max(1)), (second, cosines.max(0))):
                part = best[start : start + _BLOCK]
                np.maximum(part, largest, out=part, where=largest >= threshold)
            one, other = np.nonzero(cosines >= threshold)
            one, other = labels[first + one], labels[second + other]
            pending.append(np.unique((one * count + other)[one != other]))
            if sum(map(len, pending)) > _PENDING:
                labels, pending = _merge_labels(labels, pending), []
    labels = _merge_labels(labels, pending)
    order = np.argsort(labels, kind="stable")
    components = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    groups = sorted((places for places in components if len(places) > 1), key=lambda places: (-best[places].max(), places[0]))
    largest = np.full(len(vectors), -np.inf, np.float32)
    largest[rows] = best
    return [rows[places] for places in groups], largest


def lowest_cosine(vectors: VectorFile, rows: np.ndarray) -> float:
    """Find the lowest cosine of any two images of a group.

    Args:
        vectors: The N vectors.
        rows: Rows of the group, (n,) int64.

    Returns:
        The cosine.
    """
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    return min(float((vectors.take(one) @ vectors.take(other).T).min()) for one in blocks for other in blocks)


def is_chain(lowest: float, threshold: float) -> bool:
    """Decide whether a group holds two images that are not duplicates themselves.

    Args:
        lowest: Lowest cosine of any two images of the group.
        threshold: Smallest cosine of a pair.

    Returns:
        Whether the cosine is below the threshold, by more than float32 rounding.
    """
    return lowest < threshold - _ROUNDING


def _merge_labels(labels: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    """Give linked labels one label; a link is written as label * N + other label."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    one, other = np.divmod(np.unique(np.concatenate([np.empty(0, np.int64), *links])), len(labels))
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(len(labels), len(labels)))
    return connected_components(graph, directed=False)[1][labels]
