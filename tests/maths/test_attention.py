from __future__ import annotations

import pytest
import torch

from dinoeval.maths.attention import mass_masks


def slow_mask(attention: list[float], mass: float) -> list[bool]:
    """Drop the smallest tokens of one map as long as the dropped ones hold at most 1 - mass."""
    kept, dropped = [True] * len(attention), 0.0
    for token in sorted(range(len(attention)), key=lambda token: attention[token]):
        dropped += attention[token] / sum(attention)
        kept[token] = dropped > 1 - mass
    return kept


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.6, 0.95, 1.0])
def test_mass_masks_equal_slow_oracle(mass):
    attention = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    masks = mass_masks(attention, mass)
    expected = [slow_mask(one.flatten().tolist(), mass) for one in attention.flatten(0, 1)]
    assert masks.shape == attention.shape
    assert masks.flatten(2).flatten(0, 1).tolist() == expected


def test_mass_masks_do_not_depend_on_scale():
    attention = torch.rand(4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(mass_masks(attention / 8, 0.6), mass_masks(attention, 0.6))
