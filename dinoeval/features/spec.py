"""Specs and cache keys: everything that determines the features of an image set."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import Transform
from dinoeval.features.readout import Readout
from dinoeval.models.backbone import Backbone

EXTRACTION_VERSION = 1
"""Part of every key. It is raised when the same spec would give other numbers."""


def feature_spec(backbone: Backbone, images: ImageSet, readout: Readout, transform: Transform) -> dict[str, Any]:
    """Describe everything that determines features.

    Labels are left out, because features do not depend on them.

    Args:
        backbone: The network.
        images: The image set.
        readout: How tokens become vectors.
        transform: How images are prepared.

    Returns:
        A mapping that JSON can represent; `key_of` turns it into a cache key.
    """
    return {
        "extraction": EXTRACTION_VERSION,
        "weights": backbone.digest,
        "network": dataclasses.asdict(backbone.config),
        "precision": backbone.precision,
        "readout": readout.id,
        "transform": transform.id,
        "image": images.rule.id,
        "images": dataclasses.replace(images, labels=None, classes=()).fingerprint(),
        "stamp": images.stamp,
    }


def key_of(spec: Mapping[str, Any]) -> str:
    """Hash a spec to the name of a cache entry or a run.

    Args:
        spec: A mapping that JSON can represent.

    Returns:
        32 hexadecimal digits.

    Examples:
        >>> key_of({"readout": "cls", "precision": "fp32"}) == key_of({"precision": "fp32", "readout": "cls"})
        True
    """
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:32]
