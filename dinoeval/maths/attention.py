"""What attention of a ViT looks at, as masks.

A heads, h x w tokens, "..." any leading dims.
"""

from __future__ import annotations

from torch import Tensor


def mass_masks(attention: Tensor, mass: float) -> Tensor:
    """Keep the tokens of largest attention that together hold `mass` of it: (..., h, w) -> bool (..., h, w).

    Each map is divided by its sum first, so that attention which went to [CLS] does not count. In ascending order, a
    token stays where the running sum up to and with it is above 1 - mass. Source: visualize_attention.py.
    """
    flat = attention.flatten(-2)
    values, order = (flat / flat.sum(-1, keepdim=True)).sort(-1)
    kept = values.cumsum(-1) > 1 - mass
    return kept.gather(-1, order.argsort(-1)).unflatten(-1, attention.shape[-2:])
