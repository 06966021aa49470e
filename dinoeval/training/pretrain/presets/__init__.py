"""Named recipes: every training of the paper, its bases, and recipes for little data."""

from __future__ import annotations

import difflib

from dinoeval.errors import ConfigError, unknown
from dinoeval.training.pretrain.presets import ablations, bases, released
from dinoeval.training.pretrain.presets.bases import SMALL
from dinoeval.training.pretrain.presets.preset import Preset
from dinoeval.training.pretrain.recipe import Recipe

__all__ = ["BASES", "PAPER", "PRESETS", "Preset", "get_preset", "get_recipe"]

PAPER = {preset.id: preset for preset in (*ablations.PRESETS, *released.PRESETS)}
"""The trainings of the paper and of the released README."""
BASES = {preset.id: preset for preset in bases.BASES}
"""What the trainings of the paper change, and trainings on little data."""
PRESETS = BASES | PAPER
"""All presets by name."""


def get_preset(name: str, base: str | None = None) -> Preset:
    """Look up a preset.

    Args:
        name: A key of `PRESETS`.
        base: `digits` or `cifar10`, to apply its difference to a training that two cores can do.

    Returns:
        The preset.

    Raises:
        ConfigError: If no preset or no base has this name.

    Examples:
        >>> get_preset("table7-row3").recipe.target, get_preset("table7-row3").published["knn"]
        ('sinkhorn', 72.2)
        >>> get_preset("table7-row3", base="digits").arch
        'vit_xs8_16'
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        similar = f" Similar: {', '.join(close)}." if close else ""
        raise ConfigError(f"unknown preset '{name}'.{similar} `dinoeval train --list-presets` lists all {len(PRESETS)}.")
    if base is None:
        return PRESETS[name]
    if base not in SMALL:
        raise ConfigError(unknown("base", base, SMALL))
    return PRESETS[name].on(SMALL[base])


def get_recipe(name: str) -> Recipe:
    """Look up the recipe of a preset.

    Args:
        name: A key of `PRESETS`.

    Returns:
        The recipe.

    Raises:
        ConfigError: If no preset has this name.

    Examples:
        >>> get_recipe("boosted").teacher_temp
        0.07
    """
    return get_preset(name).recipe
