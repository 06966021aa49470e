"""Checks of option values that the training recipes share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dinoeval.errors import ConfigError

AREA_FRACTIONS = "two area fractions, 0 < MIN <= MAX <= 1"


def check_fields(options: object, names: Iterable[str], accepts: Callable[[Any], bool], expected: str) -> None:
    """Check the values of some fields.

    Args:
        options: An object whose attributes are option values.
        names: Attributes to check.
        accepts: Returns whether a value is valid.
        expected: Description of the valid values, which follows "must be".

    Raises:
        ConfigError: If a value is invalid. The message names the field as the command-line option.

    Examples:
        >>> import types
        >>> check_fields(types.SimpleNamespace(batch_size=0), ["batch_size"], lambda value: value >= 1, "at least 1")
        Traceback (most recent call last):
        dinoeval.errors.ConfigError: --batch-size must be at least 1, got 0
    """
    for name in names:
        value = getattr(options, name)
        if not accepts(value):
            got = " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else value
            raise ConfigError(f"--{name.replace('_', '-')} must be {expected}, got {got}")


def is_area_range(value: tuple[float, float]) -> bool:
    """Return whether a pair is a range of area fractions.

    Args:
        value: (low, high).

    Returns:
        Whether 0 < low <= high <= 1.
    """
    return 0 < value[0] <= value[1] <= 1
