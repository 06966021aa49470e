"""What a notebook calls: extract features, run a protocol. N images, h x w patches, D dims."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval import protocols
from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import parse_transform
from dinoeval.errors import BadImage, ConfigError, DataError, unknown
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import extract
from dinoeval.features.forward import forward
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.models.backbone import Backbone
from dinoeval.results import Result
from dinoeval.session import Session, SessionConfig

Images = str | Path | Image.Image | Iterable[str | Path | Image.Image]
"""A folder, a file, a PIL image, or any iterable of files and PIL images."""


def embed(backbone: Backbone, images: Images, *, readout: str | Readout = "cls", transform: str = "auto", cache: bool = True) -> np.ndarray:
    """Return the features of images, not normalized.

    Args:
        backbone: A backbone from `dinoeval.load`.
        images: A folder (searched recursively), a path, a PIL image, or any iterable of paths and PIL images.
        readout: `cls` (D dims), `lastN` such as `last4` (4 * D), `clsavg` (2 * D), `gem` (2 * D) or `patches` (a map).
        transform: `auto` (the transform of a timm model, else the one of the paper), `dino`, or `dino:RESIZE/CROP`.
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
    readout = parse_readout(readout) if isinstance(readout, str) else readout
    parsed = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, (str, Path)):
        images = list(images)
        for image in images:
            if not isinstance(image, (str, Path, Image.Image)):
                raise DataError(f"images must be paths or PIL images, got {type(image).__name__}: convert arrays with PIL.Image.fromarray")
        if any(isinstance(image, Image.Image) for image in images):
            decoded = [image if isinstance(image, Image.Image) else _open(image) for image in images]
            return forward(backbone, in_memory(decoded), readout, parsed)
    opened = open_images(images)  # type: ignore[arg-type]
    if not cache:
        return forward(backbone, opened, readout, parsed)
    return extract(backbone, opened, readout, parsed, FeatureCache()).numpy()


def _open(path: str | Path) -> Image.Image:
    try:
        return open_images(path).open(0)
    except BadImage as error:
        raise DataError(f"{path} cannot be read: {error}") from error


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
