"""Session: the backbone, the cache and the way data are read; the one thing a protocol is handed."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dinoeval import distributed
from dinoeval.environment import describe_machine
from dinoeval.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from dinoeval.data.images import ImageSet
    from dinoeval.data.transforms import CenterCrop, Transform
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.extract import Features
    from dinoeval.features.readout import Readout
    from dinoeval.models.backbone import Backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """What every protocol needs: which network, and how images are read."""

    arch: str | None = None
    """Architecture, such as vit_s8, vit_ti4_32, resnet50, xcit_small_12_p8 or timm/<name>; by default the one the weights name, or the
    bundled demonstration."""
    weights: str | None = None
    """A file, a name that `dinoeval models` lists, or `random`; by default the released weights of --arch."""
    key: Literal["teacher", "student"] = "teacher"
    """Which network of a full checkpoint."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Only fp32 is compared with published numbers."""
    transform: str = "auto"
    """auto (a timm network's own, else the paper's), dino (the paper's), or dino:RESIZE/CROP as in dino:256/224."""
    bad_images: Literal["error", "skip"] = "error"
    """What to do about images that cannot be read."""
    batch_size: int | None = None
    """Images a forward pass; by default as many as are fast."""
    workers: int | None = None
    """Processes that decode images; by default one a core, none for small sets."""
    cache: str | None = None
    """Folder of the feature cache; by default $DINOEVAL_CACHE, or one of the user's cache."""

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"batch size must be 1 or more: {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"workers must be 0 or more: {self.workers}")


class Session:
    """A loaded backbone and what it is used with. Opening one loads the weights."""

    def __init__(self, config: SessionConfig, backbone: Backbone | None = None) -> None:
        from dinoeval.data.transforms import parse_transform
        from dinoeval.features.cache import FeatureCache
        from dinoeval.models.backbone import load

        self.config = config
        self.backbone: Backbone = backbone or load(
            config.arch, weights=config.weights, key=config.key, device=config.device, precision=config.precision
        )
        self.transform: CenterCrop = parse_transform(config.transform, self.backbone.config.image_size, self.backbone.config.preprocessing)
        self.cache: FeatureCache = FeatureCache(config.cache)

    def features(
        self, images: ImageSet, readout: Readout, rows: np.ndarray | None = None, *, transform: Transform | None = None
    ) -> Features:
        """The features of `images`, or of some `rows` of them, from the cache or made now, by the session's transform or another.

        A part is taken from the whole where that is in the cache; otherwise only the part is made.
        """
        from dinoeval.features.extract import extract, is_cached

        transform = transform or self.transform
        if rows is not None:
            cached = distributed.rank() == 0 and is_cached(self.backbone, images, readout, transform, self.cache)
            if not distributed.broadcast(cached):
                images, rows = images.subset(rows), None
        return extract(
            self.backbone,
            images,
            readout,
            transform,
            self.cache,
            rows,
            bad_images=self.config.bad_images,
            batch_size=self.config.batch_size,
            workers=self.config.workers,
        )

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the session's transform, for protocols that resize in their own way; refuses --transform dino:R/C."""
        if self.config.transform not in ("auto", "dino"):
            raise ConfigError(f"this protocol resizes in its own way: leave out --transform {self.config.transform}, use --image-size")
        return self.transform.mean, self.transform.std

    def describe_backbone(self) -> dict[str, Any]:
        """The part of a Result that tells which network was scored."""
        backbone, source = self.backbone, self.backbone.provenance
        return {
            "arch": backbone.arch,
            "weights": source.name,
            "layout": source.layout,
            "key": source.key,
            "random": source.random,
            "digest": backbone.digest,
            "precision": backbone.precision,
            "device": str(backbone.device),
        }

    @functools.cached_property
    def machine(self) -> dict[str, str]:
        return describe_machine()


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """One half of a data set of which no features were kept: its images, and those of them that could not be read."""

    images: ImageSet
    bad: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.images)


def describe_data(name: str, **halves: Features | SplitRecord) -> dict[str, Any]:
    """The part of a Result that tells which images were used."""
    return {
        "name": str(Path(name)),
        **{
            half: {
                "split": features.images.split,
                "fingerprint": features.images.fingerprint(),
                "images": len(features),
                "classes": len(features.images.classes),
                "bad_images": [bad["path"] for bad in features.bad],
            }
            for half, features in halves.items()
        },
    }
