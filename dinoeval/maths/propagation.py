"""Label propagation between video frames: each token takes the labels of the most similar tokens of earlier frames.

Similarities are computed tile by tile within windows, never as a matrix of all tokens by all tokens. Source of the rule:
eval_video_segmentation.py of facebookresearch/dino.

h x w tokens per frame, K context frames, C channels, D dimensions. A tile of n target tokens has S source tokens in each
context frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_TILE = 10  # rows and columns per tile; larger tiles compute more pairs out of reach, smaller ones make small products


def propagate(
    target: Tensor,
    context: Sequence[Tensor],
    context_labels: Sequence[Tensor],
    *,
    radius: int,
    top_k: int,
    temperature: float,
) -> Tensor:
    """Predict the soft labels of a frame from its context frames.

    A target token is compared with the tokens of every context frame that are at most `radius` rows and columns away. It
    keeps the `top_k` with the largest cosine, and all others that equal the last of them. It averages their labels with
    weights exp(cosine / temperature).

    Args:
        target: L2-normalized tokens of the frame, (h, w, D) float.
        context: L2-normalized tokens of the context frames, K times (h, w, D) float.
        context_labels: Soft labels of the context frames, K times (C, h, w) float.
        radius: Radius of the search window, in tokens.
        top_k: Number of most similar tokens to average.
        temperature: Temperature of the weights, positive.

    Returns:
        Soft labels, (C, h, w) float.

    Examples:
        The second token of the context is labeled. The most similar target token is the first:

        >>> import torch
        >>> east, north = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        >>> context, target = torch.stack([east, north])[None], torch.stack([north, east])[None]
        >>> propagate(target, [context], [torch.tensor([[[0.0, 1.0]]])], radius=1, top_k=1, temperature=0.1).tolist()
        [[[1.0, 0.0]]]
    """
    height, width, _ = target.shape
    result = torch.empty_like(context_labels[0])
    for columns, column_window in _tiles(width, radius):
        # The window of a column of tiles is made contiguous once, so that its tiles need no copies.
        sources = torch.stack([frame[:, column_window] for frame in context])  # (K, h, Sw, D)
        labels = torch.stack([one[:, :, column_window] for one in context_labels]).movedim(1, -1)  # (K, h, Sw, C)
        columns_beyond = _beyond(columns, column_window, radius, target.device)
        for rows, row_window in _tiles(height, radius):
            cosines = torch.matmul(target[rows, columns].flatten(0, 1), sources[:, row_window].flatten(1, 2).mT)  # (K, n, S)
            beyond = _beyond(rows, row_window, radius, target.device)[:, None, :, None] | columns_beyond[None, :, None, :]
            cosines.masked_fill_(beyond.flatten(2).flatten(0, 1), -torch.inf)
            soft = _average_labels(cosines, labels[:, row_window].flatten(1, 2), top_k, temperature)  # (n, C)
            result[:, rows, columns] = soft.T.unflatten(1, (rows.stop - rows.start, -1))
    return result


def _tiles(length: int, radius: int) -> Iterator[tuple[slice, slice]]:
    """Tiles along one axis, each with its window."""
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        yield slice(start, stop), slice(max(0, start - radius), min(length, stop + radius))


def _beyond(tile: slice, window: slice, radius: int, device: torch.device) -> Tensor:
    """Mark the sources that are out of reach of a target along one axis, (targets, sources) bool."""
    targets, sources = (torch.arange(span.start, span.stop, device=device) for span in (tile, window))
    return (targets[:, None] - sources).abs() > radius


def _average_labels(cosines: Tensor, labels: Tensor, top_k: int, temperature: float) -> Tensor:
    """Weighted labels (n, C) of the `top_k` sources of each target, from cosines (K, n, S) and labels (K, S, C)."""
    frames, _, count = cosines.shape
    # Select from each frame, then from all frames, one more than is kept: it shows whether there are ties.
    values, places = cosines.topk(min(top_k + 1, count), dim=2)  # (K, n, top_k + 1)
    places += count * torch.arange(frames, device=places.device)[:, None, None]
    values, places = (one.movedim(0, 1).flatten(1) for one in (values, places))
    best, order = values.topk(min(top_k + 1, values.shape[1]), dim=1)
    labels = labels.flatten(0, 1)
    kept = best[:, :top_k]
    weights = ((kept - kept[:, :1]) / temperature).exp()  # relative to the largest, so that no temperature overflows
    result = torch.einsum("nk,nkc->nc", weights / weights.sum(1, keepdim=True), labels[places.gather(1, order[:, :top_k])])
    tied = (best[:, top_k:] == best[:, top_k - 1 : top_k]).any(1).nonzero()[:, 0]  # targets that keep more than `top_k`
    if len(tied):
        own = cosines[:, tied].movedim(0, 1).flatten(1)  # (m, K * S)
        weights = ((own - best[tied, :1]) / temperature).exp().where(own >= best[tied, top_k - 1 : top_k], 0)
        result[tied] = weights @ labels / weights.sum(1, keepdim=True)
    return result
