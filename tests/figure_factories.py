"""Figures from hand-made arrays, without a network."""

from __future__ import annotations

import numpy as np

from dinoeval.figures import AttentionMaps, ClassMap


def synthetic_maps(heads: int) -> AttentionMaps:
    """Return random attention of some heads on 3 x 4 patches of 4 pixels, with one point."""
    values = np.random.default_rng(0).random((heads, 3, 4), np.float32)
    return AttentionMaps(
        name="x",
        image=np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8),
        maps=values,
        masks=values > 0.5,
        points=((3.0, 3.0),),
        point_patches=((0, 0),),
        point_maps=values[None],
        mass=0.6,
        patch=4,
        transform="none",
    )


def class_map(groups: int) -> ClassMap:
    """Return random points, two per group."""
    points = np.random.default_rng(0).random((2 * groups, 2), np.float32)
    names = tuple(f"class {number}" for number in range(groups))
    return ClassMap(points, ("",) * len(points), np.repeat(np.arange(groups), 2), names, 3, 1.0, 0.0)
