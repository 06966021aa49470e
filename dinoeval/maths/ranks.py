"""Ranks of the positives in a list of images, and the average precision of the instance-level benchmarks.

Q queries, N database images, P positives, B images per block. Ranks start at 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np


def rank_by_similarity(similarities: np.ndarray) -> np.ndarray:
    """Sort the database images of each query by similarity.

    Args:
        similarities: Similarities of queries and database images, (Q, N) float.

    Returns:
        Database indices, (Q, N) int64, most similar first. Ties go to the lower index.

    Examples:
        >>> rank_by_similarity(np.array([[0.5, 0.9, 0.5, 0.9]])).tolist()
        [[1, 3, 0, 2]]
    """
    return np.argsort(-similarities, axis=1, kind="stable")


def count_closer_distractors(queries: np.ndarray, similarities: np.ndarray, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Count the distractors that are more similar to a query than a database image.

    Args:
        queries: Normalized vectors, (Q, D) float32.
        similarities: Cosines of queries and database images, (Q, N) float32.
        blocks: Normalized vectors of the distractors, in blocks (B, D) float32. No block is kept in memory.

    Returns:
        Counts, (Q, N) int64. A distractor that is as similar as a database image is not counted.

    Examples:
        >>> count_closer_distractors(np.array([[1.0, 0.0]]), np.array([[0.9, 0.1]]), [np.array([[0.6, 0.8], [0.0, 1.0]])]).tolist()
        [[0, 1]]
    """
    order = np.argsort(similarities, axis=1, kind="stable")  # ascending
    ascending = np.take_along_axis(similarities, order, 1)
    counts = np.zeros((len(queries), similarities.shape[1] + 1), np.int64)  # [q, i]: distractors above exactly i images
    for block in blocks:
        cosines = queries @ block.T  # (Q, B)
        for query in range(len(queries)):
            images_below = np.searchsorted(ascending[query], cosines[query], side="left")
            counts[query] += np.bincount(images_below, minlength=counts.shape[1])
    closer = counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # distractors above more than i images are closer than the i-th
    result = np.empty_like(closer)
    np.put_along_axis(result, order, closer, 1)
    return result


def positive_ranks(
    order: np.ndarray,
    positives: Collection[int] | np.ndarray,
    junk: Collection[int] | np.ndarray = (),
    closer_distractors: np.ndarray | None = None,
) -> np.ndarray:
    """Find the ranks of the positives of one query, without counting junk.

    Args:
        order: Database indices, most similar first, (N,) int64: a row of `rank_by_similarity`.
        positives: Database indices of the positives. Those that are not in `order` have no rank.
        junk: Database indices of images that are removed from the list.
        closer_distractors: Number of closer distractors of each database image, (N,) int64: a row of
            `count_closer_distractors`.

    Returns:
        Ranks, (P,) int64, ascending.

    Examples:
        Image 4 is junk, so image 1 has rank 0, and image 2 has rank 2:

        >>> positive_ranks(np.array([4, 1, 3, 2, 0]), positives=[1, 2], junk=[4]).tolist()
        [0, 2]
    """
    is_junk = np.isin(order, np.asarray(junk, np.int64))
    ranks = np.arange(len(order)) - (np.cumsum(is_junk) - is_junk)
    if closer_distractors is not None:
        ranks = ranks + closer_distractors[order]
    return ranks[np.isin(order, np.asarray(positives, np.int64))]


def trapezoid_precision(ranks: np.ndarray, positives: int) -> float:
    """Compute average precision with the trapezoidal rule.

    This is the rule of the Oxford, Holidays and Copydays evaluations. The j-th positive, at rank r, adds the mean of the
    precision before it, j / r, and with it, (j + 1) / (r + 1). One positive at rank 1 scores 0.25, half of the stepwise area.

    Args:
        ranks: Ranks of the positives that were found, (P,) int, ascending.
        positives: Number of all positives. Those without a rank add nothing.

    Returns:
        Average precision, a fraction.

    Examples:
        >>> trapezoid_precision(np.array([1]), 1)
        0.25
    """
    hits = np.arange(len(ranks))
    before = np.where(ranks > 0, hits / np.maximum(ranks, 1), 1.0)
    return float((before + (hits + 1) / (ranks + 1)).sum() / (2 * positives))


def precision_at(ranks: np.ndarray, k: int) -> float:
    """Compute precision at k.

    Following compute_map of revisitop, k is reduced to the rank of the last positive plus one, so that a query with few
    positives can reach 1.

    Args:
        ranks: Ranks of the positives, (P,) int, ascending.
        k: Number of first images.

    Returns:
        Share of positives among these images, a fraction.
    """
    if not len(ranks):
        return 0.0
    cutoff = min(int(ranks.max()) + 1, k)
    return int((ranks < cutoff).sum()) / cutoff


def score_ranks(ranks: Sequence[np.ndarray], positives: Sequence[int], ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Score every query by average precision and precision at k.

    Args:
        ranks: Ranks of the positives of each query, Q times (P,) int, ascending.
        positives: Number of all positives of each query, Q values.
        ks: Values of k.

    Returns:
        Average precision, (Q,) float64, and precision at each k, (Q, len(ks)) float64; NaN for a query without positives.

    Examples:
        >>> average_precision, precision = score_ranks([np.array([0, 3]), np.array([], int)], [2, 0], ks=[1, 2])
        >>> average_precision.round(4).tolist(), precision.tolist()
        ([0.7083, nan], [[1.0, 0.5], [nan, nan]])
    """
    scores = np.full((len(ranks), 1 + len(ks)), np.nan)
    for query, (query_ranks, count) in enumerate(zip(ranks, positives, strict=True)):
        if count:
            scores[query] = [trapezoid_precision(query_ranks, count), *(precision_at(query_ranks, k) for k in ks)]
    return scores[:, 0], scores[:, 1:]
