"""Values that change from step to step, as whole tables. n steps an epoch."""

from __future__ import annotations

import numpy as np


def cosine(base: float, final: float, epochs: int, steps: int, warmup_epochs: int = 0) -> np.ndarray:
    """(epochs * steps,): a linear warm-up from 0, then half a cosine from `base` towards `final`.

    As released: the warm-up includes both 0 and the peak, so the peak comes twice, and `final` is never quite reached.
    """
    warmup = np.linspace(0, base, warmup_epochs * steps)
    rest = np.arange(epochs * steps - len(warmup))
    return np.concatenate((warmup, final + 0.5 * (base - final) * (1 + np.cos(np.pi * rest / max(1, len(rest))))))


def teacher_temperature(start: float, end: float, warmup_epochs: int, epochs: int) -> np.ndarray:
    """(epochs,): linear, both ends included, then constant. It moves by the epoch, not by the step."""
    return np.concatenate((np.linspace(start, end, warmup_epochs), np.full(epochs - warmup_epochs, end)))
