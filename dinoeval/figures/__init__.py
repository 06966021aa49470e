"""Pictures of what a network knows: attention, patch features, classes. Each comes as data that can be drawn.

maps = dinoeval.figures.attention(backbone, "dog.jpg")        # maps.maps (heads, h, w), maps.masks, maps.image
dinoeval.figures.save(maps.figure(), "dog.pdf")               # PNG, PDF or SVG by its ending
dinoeval.figures.pca(backbone, "photos/").figure()
dinoeval.figures.tsne(rows, names).figure()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

_WHERE = {
    "attention": "attention_maps",
    "AttentionMaps": "attention_maps",
    "attention_video": "video",
    "AttentionVideo": "video",
    "pca": "feature_maps",
    "FeatureMaps": "feature_maps",
    "class_means": "class_map",
    "tsne": "class_map",
    "ClassMap": "class_map",
    "save": "style",
}
__all__ = [
    "AttentionMaps", "AttentionVideo", "ClassMap", "FeatureMaps", "attention", "attention_video", "class_means", "pca", "save", "tsne"
]  # fmt: skip

if TYPE_CHECKING:
    from dinoeval.figures.attention_maps import AttentionMaps, attention
    from dinoeval.figures.class_map import ClassMap, class_means, tsne
    from dinoeval.figures.feature_maps import FeatureMaps, pca
    from dinoeval.figures.style import save
    from dinoeval.figures.video import AttentionVideo, attention_video


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'dinoeval.figures' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
