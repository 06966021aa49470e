"""How a pretraining run is executed, apart from its recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dinoeval.training.checks import check_fields
from dinoeval.training.precision import Precision


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How a pretraining run is executed; its training is defined by `Recipe`."""

    out: str | Path
    """Folder of the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "fp32"
    """Precision of the forward passes."""
    workers: int = 1
    """Data-loading processes; the results do not depend on it."""
    exif_transpose: bool = False
    """Rotate images by their EXIF orientation. The released code does not."""
    seed: int = 0
    """Random seed of weights, order, augmentation and stochastic depth."""
    save_minutes: float = 10
    """Minutes between checkpoints within an epoch; 0 saves after epochs only."""
    save_every: int = 20
    """Epochs between checkpoints that are kept; 0 keeps only the last one."""
    knn_every: int = 10
    """Epochs between k-NN evaluations of teacher and student, which also follow the last epoch; 0 turns them off."""

    def __post_init__(self) -> None:
        check_fields(self, ("workers", "seed", "save_minutes", "save_every", "knn_every"), lambda value: value >= 0, "at least 0")
