"""Schedules as tables: one value per step, or per epoch."""

from __future__ import annotations

import numpy as np


def cosine(base: float, final: float, epochs: int, steps: int, warmup_epochs: int = 0) -> np.ndarray:
    """Make a table of a linear warm-up followed by half a cosine.

    As in the released code, the warm-up includes both 0 and the peak. So the peak occurs twice, and the last value is
    slightly above `final` (cosine_scheduler in utils.py).

    Args:
        base: Value after the warm-up.
        final: Value that the cosine approaches.
        epochs: Number of epochs.
        steps: Steps per epoch.
        warmup_epochs: Epochs of the warm-up from 0, at most `epochs`.

    Returns:
        One value per step, (epochs * steps,) float64.

    Examples:
        >>> cosine(1.0, 0.0, epochs=3, steps=2, warmup_epochs=1).tolist()
        [0.0, 1.0, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627]
    """
    warmup = np.linspace(0, base, warmup_epochs * steps)
    remainder = np.arange(epochs * steps - len(warmup))
    return np.concatenate((warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * remainder / max(1, len(remainder))))))


def teacher_temperature(start: float, end: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """Make a table of the teacher's temperature.

    As in the released code, it changes per epoch and not per step.

    Args:
        start: First temperature.
        end: Temperature at the end of the warm-up and afterwards.
        warmup_epochs: Epochs of the linear warm-up, both ends included.
        epochs: Number of epochs.

    Returns:
        One value per epoch, (epochs,) float64.
    """
    return np.concatenate((np.linspace(start, end, warmup_epochs), np.full(epochs - warmup_epochs, end)))
