"""Exact nearest neighbors on a GPU, in two ways that need little memory.

N bank vectors, Q queries, k neighbors, D dimensions. All vectors are L2-normalized.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_QUERIES, _BLOCK = 4096, 131_072  # queries and bank vectors per product
_GROUP = 64  # bank vectors that are first represented by their largest cosine
_TEMPERATURE = 0.07


def nearest_in_blocks(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the nearest vectors by a topk over each block of the bank.

    Args:
        queries: (Q, D).
        bank: (N, D).
        k: Number of neighbors.

    Returns:
        Cosines, (Q, k), in descending order, and bank indices, (Q, k).
    """
    return _search(queries, bank, k, _top)


def nearest_in_groups(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the nearest vectors by a topk over groups of 64.

    The k largest cosines are in the k groups with the largest maxima, so only these groups are sorted.

    Args:
        queries: (Q, D).
        bank: (N, D).
        k: Number of neighbors.

    Returns:
        Cosines, (Q, k), in descending order, and bank indices, (Q, k).
    """
    return _search(queries, bank, k, _top_in_groups)


def vote(cosines: Tensor, neighbors: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Classify queries by the weighted vote of their neighbors, at temperature 0.07.

    Args:
        cosines: (Q, k).
        neighbors: Bank indices, (Q, k).
        labels: Labels of the bank, (N,) int64.
        classes: Number of classes.

    Returns:
        Labels, (Q,) int64.
    """
    votes = torch.zeros(len(cosines), classes, device=cosines.device)
    return votes.scatter_add_(1, labels[neighbors], (cosines / _TEMPERATURE).exp()).argmax(1)


def _top(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = cosines.topk(k, dim=1)
    return values, indices


def _top_in_groups(cosines: Tensor, k: int) -> tuple[Tensor, Tensor]:
    if cosines.shape[1] % _GROUP:
        cosines = F.pad(cosines, (0, -cosines.shape[1] % _GROUP), value=-torch.inf)
    grouped = cosines.unflatten(1, (-1, _GROUP))
    groups = grouped.amax(2).topk(min(k, grouped.shape[1]), dim=1).indices  # (q, k)
    inside = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP)).flatten(1)
    values, order = inside.topk(k, dim=1)
    return values, groups.gather(1, order // _GROUP) * _GROUP + order % _GROUP


def _search(queries: Tensor, bank: Tensor, k: int, top) -> tuple[Tensor, Tensor]:
    cosines, indices = [], []
    for part in queries.split(_QUERIES):
        best = []
        for start in range(0, len(bank), _BLOCK):
            values, places = top(part @ bank[start : start + _BLOCK].T, k)
            best.append((values, places + start))
        merged, order = torch.cat([values for values, _ in best], 1).topk(k, dim=1)
        cosines.append(merged)
        indices.append(torch.cat([places for _, places in best], 1).gather(1, order))
    return torch.cat(cosines), torch.cat(indices)
