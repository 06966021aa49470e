"""What a notebook calls: embed pictures, run a protocol."""

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
from dinoeval.features.extract import extract, forward
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.models.backbone import Backbone
from dinoeval.results import Result
from dinoeval.session import Session, SessionConfig

Pictures = str | Path | Image.Image | Iterable[str | Path | Image.Image]


def embed(
    backbone: Backbone, images: Pictures, *, readout: str | Readout = "cls", transform: str = "auto", cache: bool = True
) -> np.ndarray:
    """Return the features of pictures as (N, D) float32, in the order given (a folder: sorted by name).

    `images` is a folder, a path, a PIL image, or any iterable of paths or of PIL images. `readout` is `cls` (D dims),
    `last4` (4*D), `clsavg` (2*D), `gem` (2*D), or `patches`, which gives (N, h, w, D). Files go through the feature
    cache unless `cache` is false. Raw features: normalise them before comparing by cosine.
    """
    readout = parse_readout(readout) if isinstance(readout, str) else readout
    chosen = parse_transform(transform, backbone.config.image_size, backbone.config.preprocessing)
    if isinstance(images, Image.Image):
        images = [images]
    if not isinstance(images, (str, Path)):
        images = list(images)
        if strangers := [type(image).__name__ for image in images if not isinstance(image, (str, Path, Image.Image))]:
            raise DataError(f"embed takes paths and PIL images, not {strangers[0]}; PIL.Image.fromarray makes one of an array")
        if any(isinstance(image, Image.Image) for image in images):
            pictures = [image if isinstance(image, Image.Image) else _open(image) for image in images]
            return forward(backbone, in_memory(pictures), readout, chosen)
    opened = open_images(images)  # type: ignore[arg-type]
    if not cache:
        return forward(backbone, opened, readout, chosen)
    return extract(backbone, opened, readout, chosen, FeatureCache()).numpy()


def _open(path: str | Path) -> Image.Image:
    try:
        return open_images(path).open(0)
    except BadImage as fault:
        raise DataError(f"{path} cannot be read: {fault}") from fault


def evaluate(protocol: str, backbone: Backbone, *, session: SessionConfig | None = None, **config: object) -> Result:
    """Run a protocol by name, as `dinoeval PROTOCOL` does: `evaluate("knn", backbone, data="digits", k=(20,))`.

    `config` holds the fields of the protocol's Config, `session` how images are read; the backbone is the one given.
    """
    module = protocols.get_protocol(protocol)
    for name in config:
        if name not in (fields := [field.name for field in dataclasses.fields(module.Config)]):
            raise ConfigError(unknown(f"option of {protocol}", name, fields))
    return module.run(module.Config(**config), Session(session or SessionConfig(), backbone))
