"""Scores of a ranked list of images: where the right ones stand, and the average precision of the instance-level benchmarks.

Q queries, N database rows, P positives, B rows of a block. Ranks start at 0.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np


def order_of(similarities: np.ndarray) -> np.ndarray:
    """Database rows of each query (Q, N) by descending similarity (Q, N); of equal ones the earlier row comes first."""
    return np.argsort(-similarities, axis=1, kind="stable")


def count_closer_distractors(queries: np.ndarray, similarities: np.ndarray, blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Count, for each query and database row, the distractors that are more similar to the query, (Q, N) int64.

    `queries` (Q, D), `similarities` (Q, N) to the database, `blocks` (B, D) of distractors: all normalised. Nothing of a
    block is kept. A distractor as similar as a database row comes after it.
    """
    order = np.argsort(similarities, axis=1, kind="stable")  # ascending
    rising = np.take_along_axis(similarities, order, 1)
    counts = np.zeros((len(queries), similarities.shape[1] + 1), np.int64)  # [q, i]: distractors above exactly i database rows
    for block in blocks:
        found = queries @ block.T  # (Q, B)
        for query in range(len(queries)):
            above = np.searchsorted(rising[query], found[query], side="left")
            counts[query] += np.bincount(above, minlength=counts.shape[1])
    ahead = counts[:, ::-1].cumsum(1)[:, ::-1][:, 1:]  # those above more than i rows are ahead of the i-th
    found = np.empty_like(ahead)
    np.put_along_axis(found, order, ahead, 1)
    return found


def positive_ranks(
    order: np.ndarray, positives: Collection[int] | np.ndarray, junk: Collection[int] | np.ndarray = (), strangers: np.ndarray | None = None
) -> np.ndarray:
    """Ranks (P,) of the positives in one query's list, ascending, as if the junk were not in it.

    `order` (N,) is the query's row of `order_of`, `strangers` (N,) its row of `closer_strangers`. Positives that are not
    in the list have no rank.
    """
    is_junk = np.isin(order, np.asarray(junk, np.int64))
    places = np.arange(len(order)) - (np.cumsum(is_junk) - is_junk)
    if strangers is not None:
        places = places + strangers[order]
    return places[np.isin(order, np.asarray(positives, np.int64))]


def trapezoid_precision(ranks: np.ndarray, positives: int) -> float:
    """Average precision of ascending ranks (P,) of `positives` right images, by trapezoids under precision over recall.

    As in the Oxford, Holidays and Copydays evaluations: the j-th right image, at rank r, adds the mean of the precisions
    before it, j / r, and with it, (j + 1) / (r + 1). A single one at rank 1 scores 0.25, half of what the stepwise area
    would give. Right images without a rank add nothing. A fraction.
    """
    hits = np.arange(len(ranks))
    before = np.where(ranks > 0, hits / np.maximum(ranks, 1), 1.0)
    return float((before + (hits + 1) / (ranks + 1)).sum() / (2 * positives))


def precision_at(ranks: np.ndarray, k: int) -> float:
    """The share of right images among the first k; or among those down to the last right one where that comes earlier.

    The benchmark's rule (compute_map of revisitop): a query is not held to k images where there are fewer to find.
    """
    if not len(ranks):
        return 0.0
    deep = min(int(ranks.max()) + 1, k)
    return int((ranks < deep).sum()) / deep


def score_ranks(ranks: Sequence[np.ndarray], positives: Sequence[int], ks: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Average precision (Q,) and precision at each k (Q, ks) of every query; NaN for a query without positives."""
    scores = np.full((len(ranks), 1 + len(ks)), np.nan)
    for query, (places, count) in enumerate(zip(ranks, positives, strict=True)):
        if count:
            scores[query] = [trapezoid_precision(places, count), *(precision_at(places, k) for k in ks)]
    return scores[:, 0], scores[:, 1:]
