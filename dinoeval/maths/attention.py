"""Masks from the attention of a ViT.

A heads, h x w tokens, "..." any leading dimensions.
"""

from __future__ import annotations

from torch import Tensor


def mass_masks(attention: Tensor, mass: float) -> Tensor:
    """Keep the tokens with the largest attention that together hold `mass` of it.

    Each map is first divided by its sum, so that attention to [CLS] does not count. A token is kept if the running
    sum in ascending order, including the token, exceeds 1 - mass. Source: visualize_attention.py.

    Args:
        attention: Attention to the patch tokens, (..., h, w) float, not negative.
        mass: Share of the attention to keep, between 0 and 1.

    Returns:
        Masks, (..., h, w) bool.

    Examples:
        The two largest of four tokens hold 0.7 of the attention:

        >>> import torch
        >>> mass_masks(torch.tensor([[[0.4, 0.1], [0.2, 0.3]]]), 0.6).tolist()
        [[[True, False], [False, True]]]
    """
    flat = attention.flatten(-2)
    values, order = (flat / flat.sum(-1, keepdim=True)).sort(-1)
    kept = values.cumsum(-1) > 1 - mass
    return kept.gather(-1, order.argsort(-1)).unflatten(-1, attention.shape[-2:])
