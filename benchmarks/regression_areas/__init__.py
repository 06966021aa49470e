"""The areas of the regression record: each function computes values by dinoeval and passes them to a recorder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from regression_areas.classification import knn, linear, logistic, logistic_cyanure
from regression_areas.commands import commands, results
from regression_areas.data import inputs, subsets, transforms
from regression_areas.features import checkpoints, embedding, libraries
from regression_areas.figures import figures, search
from regression_areas.instances import copydays, davis, propagate, retrieval, segment
from regression_areas.maths import constants, math, solvers
from regression_areas.processes import processes
from regression_areas.recording import Recorder
from regression_areas.training import augmentation, finetune, pretraining

_BASICS = (inputs, constants, math, solvers, subsets, transforms, checkpoints, embedding, libraries)
_CLASSIFICATION = (knn, logistic, logistic_cyanure, linear, finetune)
_OTHERS = (retrieval, copydays, davis, propagate, segment, augmentation, pretraining, figures, search, results, commands, processes)
AREAS: dict[str, Callable[[Recorder, Path], None]] = {area.__name__: area for area in (*_BASICS, *_CLASSIFICATION, *_OTHERS)}
TINY = ("inputs", "math", "solvers", "subsets", "transforms", "checkpoints", "logistic", "segment")
