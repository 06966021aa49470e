"""Label propagation from frame to frame: every token takes the labels of the tokens most like it in earlier frames.

Affinities are computed in windows, tile by tile, and never as a matrix of all tokens by all tokens. Source of the rule:
eval_video_segmentation.py of facebookresearch/dino.

h x w tokens a frame, K context frames, C channels, D dims; a tile of n targets has S sources in each frame around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

RADIUS, TOP, TEMPERATURE = 12, 5, 0.1  # eval_video_segmentation.py; the paper only says that it follows Jabri et al.
_TILE = 10  # rows and columns of a tile: larger ones look at more that is out of reach, smaller ones make small products


def propagate(
    target: Tensor,
    context: Sequence[Tensor],
    maps: Sequence[Tensor],
    *,
    radius: int = RADIUS,
    top: int = TOP,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Give a frame the soft label map (C, h, w) that its context frames suggest.

    `target` (h, w, D) and `context`, K times (h, w, D), are L2-normalised tokens; `maps`, K times (C, h, w), the labels of
    the context. A token sees the tokens of every context frame that are at most `radius` rows and columns away, keeps
    the `top` with the largest cosine, and all that are equal to the last of them, and averages their labels with weights
    exp(cosine / temperature).
    """
    height, width, _ = target.shape
    result = torch.empty_like(maps[0])
    for columns, wide in _tiles(width, radius):
        # What a column of tiles may look at, made contiguous once: then its tiles need no copies.
        sources = torch.stack([frame[:, wide] for frame in context])  # (K, h, Sw, D)
        labels = torch.stack([one[:, :, wide] for one in maps]).movedim(1, -1)  # (K, h, Sw, C)
        aside = _beyond(columns, wide, radius, target.device)
        for rows, high in _tiles(height, radius):
            cosines = torch.matmul(target[rows, columns].flatten(0, 1), sources[:, high].flatten(1, 2).mT)  # (K, n, S)
            away = _beyond(rows, high, radius, target.device)[:, None, :, None] | aside[None, :, None, :]
            cosines.masked_fill_(away.flatten(2).flatten(0, 1), -torch.inf)
            soft = _average(cosines, labels[:, high].flatten(1, 2), top, temperature)  # (n, C)
            result[:, rows, columns] = soft.T.unflatten(1, (rows.stop - rows.start, -1))
    return result


def _tiles(length: int, radius: int) -> Iterator[tuple[slice, slice]]:
    """The tiles of one axis, each with the span that it sees."""
    for start in range(0, length, _TILE):
        stop = min(start + _TILE, length)
        yield slice(start, stop), slice(max(0, start - radius), min(length, stop + radius))


def _beyond(tile: slice, seen: slice, radius: int, device: torch.device) -> Tensor:
    """Along one axis, which places that are seen from a tile are out of reach of which of its targets."""
    targets, sources = (torch.arange(span.start, span.stop, device=device) for span in (tile, seen))
    return (targets[:, None] - sources).abs() > radius


def _average(cosines: Tensor, labels: Tensor, top: int, temperature: float) -> Tensor:
    """The weighted labels (n, C) of the `top` sources of each target, of cosines (K, n, S) and labels (K, S, C)."""
    frames, _, count = cosines.shape
    # Of each frame one more than can be kept; then the best of all frames. The one more shows whether there are ties.
    values, places = cosines.topk(min(top + 1, count), dim=2)  # (K, n, top + 1)
    places += count * torch.arange(frames, device=places.device)[:, None, None]
    values, places = (one.movedim(0, 1).flatten(1) for one in (values, places))
    best, order = values.topk(min(top + 1, values.shape[1]), dim=1)
    labels = labels.flatten(0, 1)
    kept = best[:, :top]
    weights = ((kept - kept[:, :1]) / temperature).exp()  # at most 1, whatever the temperature
    result = torch.einsum("nk,nkc->nc", weights / weights.sum(1, keepdim=True), labels[places.gather(1, order[:, :top])])
    tied = (best[:, top:] == best[:, top - 1 : top]).any(1).nonzero()[:, 0]  # more than `top` are to be kept
    if len(tied):
        own = cosines[:, tied].movedim(0, 1).flatten(1)  # (m, K * S)
        weights = ((own - best[tied, :1]) / temperature).exp().where(own >= best[tied, top - 1 : top], 0)
        result[tied] = weights @ labels / weights.sum(1, keepdim=True)
    return result
