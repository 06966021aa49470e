"""The areas of the regression record: each function computes numbers through dinoeval and enters them in a book."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regression_areas.classification import CannotRun, knn, linear, logistic, logistic_cyanure
from regression_areas.commands import commands, results
from regression_areas.constants import constants, math, solvers
from regression_areas.data import datasets, inputs, subsets, transforms
from regression_areas.drawings import drawings
from regression_areas.features import checkpoints, embedding, libraries
from regression_areas.instances import copydays, davis, propagate, retrieval, segment
from regression_areas.pictures import figures, search
from regression_areas.processes import processes
from regression_areas.recording import Book
from regression_areas.training import augmentation, finetune, pretraining

Area = Callable[[Book, Path], None]
AREAS: dict[str, Area] = {
    area.__name__: area
    for area in (
        inputs, constants, math, solvers, subsets, transforms, datasets, checkpoints, embedding, libraries, knn, logistic,
        logistic_cyanure, linear, retrieval, copydays, davis, propagate, segment, augmentation, pretraining, finetune, figures, search,
        drawings, results, commands, processes,
    )
}  # fmt: skip
TINY = ("inputs", "math", "solvers", "subsets", "transforms", "checkpoints", "logistic", "segment")

__all__ = ["AREAS", "TINY", "CannotRun"]
