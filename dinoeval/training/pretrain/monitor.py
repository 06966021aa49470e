"""Signs of collapse in the means of an epoch (section 5.3 of the paper, Figure 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dinoeval.training.pretrain.recipe import Recipe

# In healthy runs on digits, whose outputs are almost uniform for many epochs, KL stays above 0.01. In collapsed runs it is
# below 0.0005.
_SMALL_KL = 0.001  # nats
_ENDS = 0.001  # distance of the entropy from 0 and from ln K, as a fraction of ln K
_SMALL_SPREAD = 0.01


def find_collapse(means: Mapping[str, float], recipe: Recipe) -> str | None:
    """Decide whether training has collapsed.

    Args:
        means: Means over an epoch of `Loss.numbers`. The first epoch is never called collapsed, because before
            training all images give nearly the same output.
        recipe: The recipe of the run.

    Returns:
        What happened and its usual cause, or None.

    Examples:
        >>> find_collapse({"teacher_entropy": 6.238, "kl": 0.0001}, Recipe(out_dim=512))
        'the output of the teacher is uniform (entropy 6.24 of ln K = 6.24): reduce --teacher-temp'
        >>> find_collapse({"teacher_entropy": 6.219, "kl": 0.0135}, Recipe(out_dim=512))
    """
    if "teacher_spread" in means:
        if means["teacher_spread"] < _SMALL_SPREAD:
            return f"the outputs of the teacher are equal for all images (spread {means['teacher_spread']:.2g}): {_advice(recipe)}"
        return None
    entropy, uniform = means["teacher_entropy"], math.log(recipe.out_dim)
    if means["kl"] >= _SMALL_KL or recipe.target == "hard":
        return None
    if entropy > (1 - _ENDS) * uniform:
        return f"the output of the teacher is uniform (entropy {entropy:.2f} of ln K = {uniform:.2f}): reduce --teacher-temp"
    if entropy < _ENDS * uniform:
        return f"one prototype always wins (entropy {entropy:.2g} of ln K = {uniform:.2f}): {_advice(recipe)}"
    return None


def _advice(recipe: Recipe) -> str:
    if recipe.objective == "infonce":
        return "increase --queue-size, or reduce --student-temp"
    if recipe.target == "none":
        return "pass --target center" if recipe.predictor_dim or recipe.objective == "ce" else "add --predictor-dim"
    return "reduce --center-momentum, or increase --teacher-temp"
