"""Session: the backbone, the feature cache and how images are read; everything that a protocol gets in addition to its options."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from dinoeval import distributed
from dinoeval.coercion import coerce_fields, make_config
from dinoeval.errors import ConfigError
from dinoeval.guard import entry_point
from dinoeval.models.zoo import identify
from dinoeval.run_record import RunRecord

if TYPE_CHECKING:
    import numpy as np

    from dinoeval.data.images import ImageSet
    from dinoeval.data.loading import ImageRule
    from dinoeval.data.transforms import CenterCrop, Transform
    from dinoeval.features.cache import FeatureCache
    from dinoeval.features.features import Features
    from dinoeval.features.readout import Readout
    from dinoeval.models.backbone import Backbone


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """Options that all protocols share: which network, and how images are read."""

    arch: str | None = None
    """Architecture, such as vit_s8, vit_ti4_32, resnet50, xcit_small_12_p8 or timm/NAME (default: the one that the weights name, or
    the bundled demonstration)."""
    weights: str | None = None
    """File, model name from `dinoeval models`, or `random` (default: the released weights of --arch)."""
    key: Literal["teacher", "student"] = "teacher"
    """Network to load from a full checkpoint."""
    ema: bool | None = None
    """Load the moving average of the weights, or the raw weights, of a file that contains both. Required for such a file."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Forward-pass precision. Published scores are shown only for fp32."""
    exif_transpose: bool = False
    """Rotate images by their EXIF orientation. The released code does not, and neither do published scores."""
    transform: str = "auto"
    """dino (the transform of the paper), dino:RESIZE/CROP in pixels such as dino:256/224, or auto (for timm models their own
    preprocessing, else dino)."""
    bad_images: Literal["error", "skip"] = "error"
    """Handling of unreadable images. error: stop and list them. skip: leave them out and report them."""
    batch_size: int | None = None
    """Images per forward pass (default: chosen for the device)."""
    workers: int | None = None
    """Data-loading processes (default: one per core; 0 for small datasets)."""
    cache: str | None = None
    """Feature cache (default: $DINOEVAL_CACHE, else the user cache directory)."""

    @classmethod
    def of(cls, session: SessionConfig | Mapping[str, Any] | None) -> SessionConfig:
        """Accept the options as an object, as a dict, or None for the defaults.

        Args:
            session: The options.

        Returns:
            The options.

        Raises:
            ConfigError: If it is something else, or an option is unknown or has a wrong type.

        Examples:
            >>> SessionConfig.of({"workers": 4.0}).workers
            4
        """
        if isinstance(session, cls):
            return session
        if session is not None and not isinstance(session, Mapping):
            raise ConfigError(f"session must be a SessionConfig or a dict of its options, got {session!r:.60}")
        return make_config(cls, session or {}, "session")

    def __post_init__(self) -> None:
        coerce_fields(self)
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers must be at least 0, got {self.workers}")


class Session:
    """A backbone with the cache, the transform and the rule for images that it is used with.

    Args:
        config: The options. Without `backbone`, its weights are loaded when they are needed first, so that a protocol can
            check its data before.
        backbone: A backbone that is loaded already; `arch`, `weights`, `key`, `ema`, `device` and `precision` of `config` are then unused.

    Raises:
        DinoevalError: If an option cannot be used, or `backbone` was changed after it was loaded.
    """

    def __init__(self, config: SessionConfig, backbone: Backbone | None = None) -> None:
        from dinoeval.data.loading import ImageRule
        from dinoeval.data.transforms import parse_transform
        from dinoeval.features.cache import FeatureCache
        from dinoeval.models.loading import resolve_names

        self.config = config
        self._given = backbone
        parse_transform(config.transform, 224)
        if backbone is None:
            resolve_names(config.arch, config.weights)
        else:
            backbone.check_unchanged()
        self.cache: FeatureCache = FeatureCache(config.cache)
        self.rule: ImageRule = ImageRule(config.exif_transpose)

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The backbone, loaded on first use.

        Raises:
            DinoevalError: If the weights cannot be used.
        """
        from dinoeval.models.loading import load

        config = self.config
        return self._given or load(
            config.arch, weights=config.weights, key=config.key, ema=config.ema, device=config.device, precision=config.precision
        )

    @functools.cached_property
    def transform(self) -> CenterCrop:
        """The transform of the images."""
        from dinoeval.data.transforms import parse_transform

        return parse_transform(self.config.transform, self.backbone.config.image_size, self.backbone.config.preprocessing)

    @entry_point
    def features(
        self, images: ImageSet, readout: Readout, rows: np.ndarray | None = None, *, transform: Transform | None = None
    ) -> Features:
        """Return the features of images, from the cache or extracted now.

        Args:
            images: The image set. It is decoded by the rule of the session.
            readout: How tokens become vectors.
            rows: Row numbers (n,) of a part of the images; by default all. A part is taken from the features of the
                whole set if those are cached; otherwise only the part is extracted.
            transform: Transform to use instead of that of the session.

        Returns:
            Features of the images that can be read, in order.

        Raises:
            DataError: If an image cannot be read and --bad-images is `error`.
        """
        from dinoeval.features.extract import ExtractOptions, extract, is_cached

        distributed.join()
        transform, images = transform or self.transform, images.with_rule(self.rule)
        if rows is not None:
            cached = distributed.rank() == 0 and is_cached(self.backbone, images, readout, transform, self.cache)
            if not distributed.broadcast(cached):
                images, rows = images.subset(rows), None
        options = ExtractOptions(bad_images=self.config.bad_images, batch_size=self.config.batch_size, workers=self.config.workers)
        return extract(self.backbone, images, readout, transform, self.cache, rows, options)

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the mean and standard deviation of the session's transform.

        Protocols that resize in their own way use it.

        Returns:
            Mean and standard deviation per channel.

        Raises:
            ConfigError: If --transform names a resize and a crop, which such a protocol does not use.
        """
        if self.config.transform not in ("auto", "dino"):
            raise ConfigError(f"--transform {self.config.transform} does not apply: this protocol resizes with --image-size")
        return self.transform.mean, self.transform.std

    def record(self, protocol: str, version: int, config: Any) -> RunRecord:
        """Start the record of a run, from which its Result is made.

        Args:
            protocol: Name of the protocol.
            version: Its VERSION.
            config: Its Config, a dataclass.

        Returns:
            A record; its total time is measured from this call.
        """
        distributed.join()
        return RunRecord(self, protocol, version, config)

    def describe_backbone(self) -> dict[str, Any]:
        """Return the metadata of the scored network, as a Result contains it.

        Raises:
            ConfigError: If the network was changed during the run.
        """
        self.backbone.check_unchanged()
        backbone, source = self.backbone, self.backbone.provenance
        return {
            "arch": backbone.arch,
            "network": identify(source.name, backbone.digest),
            "weights": source.name,
            "layout": source.layout,
            "key": source.key,
            "random": source.random,
            "digest": backbone.digest,
            "precision": backbone.precision,
            "device": str(backbone.device),
        }
