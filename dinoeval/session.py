"""Session: the backbone, the feature cache and how images are read; everything that a protocol gets in addition to its options."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dinoeval import distributed
from dinoeval.environment import describe_machine
from dinoeval.errors import ConfigError
from dinoeval.models.zoo import identify
from dinoeval.results import Result, Scores

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

    def __post_init__(self) -> None:
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {self.batch_size}")
        if self.workers is not None and self.workers < 0:
            raise ConfigError(f"--workers must be at least 0, got {self.workers}")


class Session:
    """A loaded backbone with the cache, the transform and the rule for images that it is used with.

    Args:
        config: The options. Without `backbone`, its weights are loaded.
        backbone: A backbone that is loaded already; `arch`, `weights`, `key`, `ema`, `device` and `precision` of `config` are then unused.

    Raises:
        DinoevalError: If the weights or the options cannot be used.
    """

    def __init__(self, config: SessionConfig, backbone: Backbone | None = None) -> None:
        from dinoeval.data.loading import ImageRule
        from dinoeval.data.transforms import parse_transform
        from dinoeval.features.cache import FeatureCache
        from dinoeval.models.loading import load

        self.config = config
        self.backbone: Backbone = backbone or load(
            config.arch, weights=config.weights, key=config.key, ema=config.ema, device=config.device, precision=config.precision
        )
        self.transform: CenterCrop = parse_transform(config.transform, self.backbone.config.image_size, self.backbone.config.preprocessing)
        self.cache: FeatureCache = FeatureCache(config.cache)
        self.rule: ImageRule = ImageRule(config.exif_transpose)

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
        return RunRecord(self, protocol, version, config)

    def describe_backbone(self) -> dict[str, Any]:
        """Return the metadata of the scored network, as a Result contains it."""
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


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """The images of one split without cached features, and those of them that could not be read."""

    images: ImageSet
    bad: list[dict[str, Any]]
    remarks: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    """Names of images by remark."""

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass
class RunRecord:
    """The record of a protocol run, from which `result` assembles the Result.

    Examples:
        A protocol's `run` in outline:

            record = session.record("texture", VERSION, config)
            with record.stage("open"):
                train, val = open_splits(data)
            record.use_data(data, train=train_features, val=val_features)
            return record.result(Scores(metrics={"top1": 97.3}, standard_errors={}))
    """

    session: Session
    protocol: str
    version: int
    config: Any
    data_name: str = ""
    splits: dict[str, Features | SplitRecord] = dataclasses.field(default_factory=dict)
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options whose value was determined during the run; they replace those of `config` in the Result."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    transform: str | None = None
    """Id of the transform that was used, if it is not the session's."""
    started: float = dataclasses.field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of a block of code.

        Args:
            name: Name of the stage. Times of blocks with the same name are added up.

        Yields:
            Nothing.
        """
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def use_data(self, name: str, /, **splits: Features | SplitRecord) -> None:
        """Note the dataset and the splits that the scores are about.

        Args:
            name: What the user called the dataset.
            **splits: By name, such as `train` and `val`.
        """
        self.data_name = name
        self.splits |= splits

    def result(self, scores: Scores, *, backbone: Mapping[str, Any] | None = None) -> Result:
        """Assemble the Result.

        Args:
            scores: What was measured.
            backbone: Metadata in place of the session's backbone, for scores that no network of the session made.

        Returns:
            The Result of the run.
        """
        from dinoeval.data.remarks import describe_remarks, merge_remarks

        self.seconds["total"] = time.monotonic() - self.started
        remarks = merge_remarks(split.remarks for split in self.splits.values())
        data = {"data": self.data_name} if self.data_name else {}
        return Result(
            **{field.name: getattr(scores, field.name) for field in dataclasses.fields(Scores)},
            protocol=self.protocol,
            version=self.version,
            config={name: _plain(value) for name, value in {**dataclasses.asdict(self.config), **data, **self.resolved}.items()},
            backbone=dict(backbone) if backbone is not None else self.session.describe_backbone(),
            data={
                "name": str(Path(self.data_name)) if self.data_name else "",
                **{name: _describe_split(split) for name, split in self.splits.items()},
            },
            transform=self.transform or self.session.transform.id,
            machine=describe_machine(),
            seconds=dict(self.seconds),
            details=self.details,
            notes=[*self.notes, *describe_remarks(remarks, self.session.config.exif_transpose)],
            image_rule=self.session.rule.id,
        )


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON can hold it: a path and an enum as text, a set as a sorted list."""
    match value:
        case Path():
            return str(value)
        case enum.Enum():
            return value.name
        case set() | frozenset():
            return sorted(value)
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
        case _:
            return value


def _describe_split(split: Features | SplitRecord) -> dict[str, Any]:
    return {
        "split": split.images.split,
        "fingerprint": split.images.fingerprint(),
        "images": len(split),
        "classes": len(split.images.classes),
        "bad_images": [bad["path"] for bad in split.bad],
    }
