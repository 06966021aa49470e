"""Figures of attention, patch features and classes. Each function returns the data of a figure, which can be drawn and saved.

maps = dinoeval.figures.attention(backbone, "dog.jpg")        # maps.maps (heads, h, w), maps.masks, maps.image
dinoeval.figures.save(maps.figure(), "dog.pdf")               # PNG, PDF or SVG, by the extension
dinoeval.figures.pca(backbone, "photos/").figure()
dinoeval.figures.tsne(features, names).figure()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_MODULES = {
    "AttentionMaps": "attention_maps",
    "AttentionVideo": "video",
    "ClassMap": "class_map",
    "FeatureMaps": "feature_maps",
    "PcaConfig": "feature_maps",
    "TsneConfig": "class_map",
    "attention": "attention_maps",
    "attention_video": "video",
    "class_means": "class_map",
    "pca": "feature_maps",
    "save": "style",
    "tsne": "class_map",
}
__all__ = [
    "AttentionMaps",
    "AttentionVideo",
    "ClassMap",
    "FeatureMaps",
    "PcaConfig",
    "TsneConfig",
    "attention",
    "attention_video",
    "class_means",
    "pca",
    "save",
    "tsne",
]

if TYPE_CHECKING:
    from dinoeval.figures.attention_maps import AttentionMaps, attention
    from dinoeval.figures.class_map import ClassMap, TsneConfig, class_means, tsne
    from dinoeval.figures.feature_maps import FeatureMaps, PcaConfig, pca
    from dinoeval.figures.style import save
    from dinoeval.figures.video import AttentionVideo, attention_video


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dinoeval.figures' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
