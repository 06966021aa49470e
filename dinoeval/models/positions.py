"""Fit the position embeddings of a file to a network that has another grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dinoeval.models.vit import VisionTransformer, resample_positions

_NAME = "pos_embed"


def match_positions(state: Mapping[str, Tensor], network: Any) -> tuple[dict[str, Tensor], str]:
    """Resample position embeddings if the grid of the network is another one.

    Args:
        state: Tensors of the file, under the names of the network.
        network: A network from `build_network`.

    Returns:
        The tensors, and a description of the change; an empty text if there is none.

    Examples:
        >>> import torch
        >>> from dinoeval.models.build import build_network
        >>> network = build_network("vit_xs4_16")  # 4 x 4 patches
        >>> state, change = match_positions({"pos_embed": torch.zeros(1, 1 + 7 * 7, 96)}, network)
        >>> state["pos_embed"].shape, change
        (torch.Size([1, 17, 96]), 'positions resampled from 7 x 7 to 4 x 4')
    """
    table, expected = state.get(_NAME), network.state_dict().get(_NAME)
    if table is None or expected is None or table.ndim != 3 or expected.ndim != 3 or not table.is_floating_point():
        return dict(state), ""
    native = isinstance(network, VisionTransformer)
    grid = (
        (network.config.grid, network.config.grid)
        if native
        else getattr(getattr(network, "patch_embed", None), "grid_size", None) or (0, 0)
    )
    prefix = expected.shape[1] - math.prod(grid)
    side = math.isqrt(max(0, table.shape[1] - prefix))
    fits = prefix >= 0 and side > 0 and table.shape == (1, prefix + side * side, expected.shape[2])
    if table.shape == expected.shape or not fits or math.prod(grid) == 0:
        return dict(state), ""
    resampled = resample_positions(table, side, grid, prefix)
    return {**state, _NAME: resampled}, f"positions resampled from {side} x {side} to {grid[0]} x {grid[1]}"
