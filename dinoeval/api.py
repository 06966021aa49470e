"""What a notebook calls: extract features, run a protocol. N images, h x w patches, D dims."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval import protocols
from dinoeval.data.loading import ImageRule
from dinoeval.data.opening import open_images, open_mixed
from dinoeval.data.remarks import describe_remarks
from dinoeval.data.transforms import parse_transform
from dinoeval.errors import ConfigError, unknown
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import extract
from dinoeval.features.forward import forward_readable
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.models.backbone import Backbone
from dinoeval.results import Result
from dinoeval.session import Session, SessionConfig

_log = logging.getLogger(__name__)
Images = str | Path | Image.Image | Iterable[str | Path | Image.Image]
"""A folder, a file, a PIL image, or any iterable of files and PIL images."""


def embed(
    backbone: Backbone,
    images: Images,
    *,
    readout: str | Readout = "cls",
    transform: str = "auto",
    exif_transpose: bool = False,
    cache: bool = True,
) -> np.ndarray:
    """Return the features of images, not normalized.

    Args:
        backbone: A backbone from `dinoeval.load`.
        images: A folder (searched recursively), a path, a PIL image, or any iterable of paths and PIL images.
        readout: `cls` (D dims), `lastN` such as `last4` (4 * D), `clsavg` (2 * D), `gem` (2 * D) or `patches` (a map).
        transform: `auto` (the transform of a timm model, else the one of the paper), `dino`, or `dino:RESIZE/CROP`.
        exif_transpose: Whether to rotate images by their EXIF orientation. A warning is logged if images have one.
        cache: Whether features of files are read from and written to the feature cache; PIL images are never cached.

    Returns:
        Features, (N, D) float32, or (N, h, w, D) for `patches`. The order is that of `images`; a folder is sorted by name.

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
    readout = parse_readout(readout) if isinstance(readout, str) else readout
    parsed = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    if isinstance(images, Image.Image):
        images = [images]
    items = None if isinstance(images, (str, Path)) else list(images)
    opened = (open_images(images) if items is None else open_mixed(items)).with_rule(ImageRule(exif_transpose))  # type: ignore[arg-type]
    if not cache or any(isinstance(item, Image.Image) for item in items or ()):
        features, _, remarks = forward_readable(backbone, opened, readout, parsed)
    else:
        extracted = extract(backbone, opened, readout, parsed, FeatureCache())
        features, remarks = extracted.numpy(), extracted.remarks
    for note in describe_remarks(remarks, exif_transpose):
        _log.warning("%s", note)
    return features


def evaluate(protocol: str, backbone: Backbone, *, session: SessionConfig | None = None, **config: object) -> Result:
    """Run a protocol by name, as `dinoeval PROTOCOL` does.

    Args:
        protocol: Name of a protocol, built in or from another package.
        backbone: A backbone from `dinoeval.load`.
        session: How images are read. Its options that choose a network are unused.
        **config: Fields of the protocol's Config.

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
    module = protocols.get_protocol(protocol)
    fields = [field.name for field in dataclasses.fields(module.Config)]
    for name in config:
        if name not in fields:
            raise ConfigError(unknown(f"option of {protocol}", name, fields))
    return module.run(module.Config(**config), Session(session or SessionConfig(), backbone))
