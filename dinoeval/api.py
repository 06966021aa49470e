"""What a notebook calls: extract features, run a protocol. N images, h x w patches, D dims."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoeval import protocols
from dinoeval.coercion import coerce, make_config
from dinoeval.data.loading import ImageRule
from dinoeval.data.opening import open_images, open_mixed
from dinoeval.data.remarks import log_remarks
from dinoeval.data.transforms import parse_transform
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import extract
from dinoeval.features.forward import forward_readable
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.guard import entry_point
from dinoeval.models.backbone import Backbone
from dinoeval.models.loading import as_backbone, split_source
from dinoeval.results import Result
from dinoeval.session import Session, SessionConfig

Images = str | Path | Image.Image | Iterable[str | Path | Image.Image]
"""A folder, a file, a PIL image, or any iterable of files and PIL images."""


@entry_point
def embed(
    backbone: Backbone | str | Path,
    images: Images,
    *,
    readout: str | Readout = "cls",
    transform: str = "auto",
    exif_transpose: bool = False,
    cache: bool = True,
) -> np.ndarray:
    """Return the features of images, not normalized.

    Args:
        backbone: A backbone from `dinoeval.load`, or what it takes first: a name or a file.
        images: A folder (searched recursively), a path, a PIL image, or any iterable of paths and PIL images.
        readout: `cls` (D dims), `lastN` such as `last4` (4 * D), `clsavg` (2 * D), `gem` (2 * D) or `patches` (a map).
        transform: `auto` (the transform of a timm model, else the one of the paper), `dino`, or `dino:RESIZE/CROP`.
        exif_transpose: Whether to rotate images by their EXIF orientation. A warning is logged if images have one.
        cache: Whether features of files are read from and written to the feature cache; PIL images are never cached.

    Returns:
        Features, (N, D) float32, or (N, h, w, D) for `patches`. The order is that of `images`; a folder is sorted by relative path, as
        `sorted(path.relative_to(folder).as_posix() ...)` sorts it.

    Raises:
        DataError: If an image cannot be read.
        ConfigError: If the readout or the transform is unknown, or if the backbone does not offer the readout.

    Examples:
        >>> from dinoeval.testing import tiny_backbone, tiny_images
        >>> backbone = tiny_backbone()
        >>> embed(backbone, tiny_images(3)).shape
        (3, 96)
        >>> embed(backbone, tiny_images(3), readout="patches").shape
        (3, 4, 4, 96)
    """
    readout = readout if isinstance(readout, Readout) else parse_readout(coerce(readout, str, "readout"))
    transform = coerce(transform, str, "transform")
    exif_transpose, cache = coerce(exif_transpose, bool, "exif_transpose"), coerce(cache, bool, "cache")
    items = None if isinstance(images, (str, Path)) else list(images) if isinstance(images, Iterable) else [images]
    opened = (open_images(images) if items is None else open_mixed(items)).with_rule(ImageRule(exif_transpose))  # type: ignore[arg-type]
    backbone = as_backbone(backbone)
    parsed = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    if not cache or any(isinstance(item, Image.Image) for item in items or ()):
        features, _, remarks = forward_readable(backbone, opened, readout, parsed)
    else:
        extracted = extract(backbone, opened, readout, parsed, FeatureCache())
        features, remarks = extracted.numpy(), extracted.remarks
    log_remarks(remarks, exif_transpose)
    return features


@entry_point
def evaluate(
    protocol: str, backbone: Backbone | str | Path, *, session: SessionConfig | Mapping[str, Any] | None = None, **config: object
) -> Result:
    """Run a protocol by name, as `dinoeval PROTOCOL` does.

    Args:
        protocol: Name of a protocol, built in or from another package.
        backbone: A backbone from `dinoeval.load`, or what it takes first: a name or a file. Then its key, device and precision
            are those of `session`.
        session: How images are read, a SessionConfig or a dict of its options. Its options that choose a network are otherwise
            unused.
        **config: Fields of the protocol's Config. Numbers may have any numeric type; paths may be text or Path.

    Returns:
        The Result: metrics in percent, and everything needed to repeat them.

    Raises:
        ConfigError: If the protocol or an option is unknown, or if an option is out of range.
        DataError: If the data cannot be used.

    Examples:
        >>> import tempfile
        >>> from dinoeval.testing import tiny_backbone, tiny_image_folder
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     session = SessionConfig(cache=folder + "/cache")
        ...     result = evaluate("knn", tiny_backbone(), session=session, data=str(tiny_image_folder(folder + "/images")), k=(5,))
        >>> sorted(result.metrics)
        ['top1@5', 'top5@5']
    """
    module = protocols.get_protocol(coerce(protocol, str, "protocol"))
    options = make_config(module.Config, config, protocol)
    settings = SessionConfig.of(session)
    if isinstance(backbone, Backbone):
        return module.run(options, Session(settings, backbone))
    arch, weights = split_source(backbone)
    return module.run(options, Session(dataclasses.replace(settings, arch=arch, weights=weights)))
