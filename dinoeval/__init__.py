"""dinoeval: features of DINO vision transformers, and the evaluation protocols of the paper.

In a notebook: `backbone = dinoeval.load("vit_s8")`, `dinoeval.embed(backbone, "photos/")`,
`dinoeval.evaluate("knn", backbone, data="cifar10")`, `dinoeval.search.build("photos/", "photos.index", backbone)`.
Everything is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_DEFINED_IN = {
    "load": "dinoeval.models.loading",
    "Backbone": "dinoeval.models.backbone",
    "Tokens": "dinoeval.models.backbone",
    "embed": "dinoeval.api",
    "evaluate": "dinoeval.api",
    "Features": "dinoeval.features.features",
    "Result": "dinoeval.results",
    "DinoevalError": "dinoeval.errors",
}
_SUBPACKAGES = ("figures", "search")
__all__ = ["Backbone", "DinoevalError", "Features", "Result", "Tokens", "__version__", "embed", "evaluate", "figures", "load", "search"]

if TYPE_CHECKING:
    from dinoeval import figures, search
    from dinoeval.api import embed, evaluate
    from dinoeval.errors import DinoevalError
    from dinoeval.features.features import Features
    from dinoeval.models.backbone import Backbone, Tokens
    from dinoeval.models.loading import load
    from dinoeval.results import Result


def __getattr__(name: str):
    if name in _DEFINED_IN:
        return getattr(importlib.import_module(_DEFINED_IN[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"dinoeval.{name}")
    raise AttributeError(f"module 'dinoeval' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
