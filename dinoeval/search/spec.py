"""What an index and a session must have in common so that their features can be compared."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dinoeval.errors import ConfigError
from dinoeval.features.readout import parse_readout
from dinoeval.models.backbone import RANDOM, Backbone
from dinoeval.models.loading import split_source
from dinoeval.models.zoo import ZOO
from dinoeval.search.store import StoredIndex, resolve
from dinoeval.session import Session, SessionConfig


def index_spec(session: Session, readout_id: str) -> dict[str, Any]:
    """Describe how features are extracted, for the manifest.

    Args:
        session: Backbone and transform.
        readout_id: Id of the readout.

    Returns:
        Readout, transform, rule for images, precision, digest and network, which must be equal for features to be comparable;
        and the options `session` that load the backbone again.
    """
    backbone, source = session.backbone, session.backbone.provenance
    weights: str | None = source.name
    if source.name == backbone.arch:
        weights = None  # the default weights of the architecture
    elif source.name not in (RANDOM, *ZOO):
        weights = str(resolve(source.name))
    return {
        "readout": readout_id,
        "transform": session.transform.id,
        "image": session.rule.id,
        "precision": backbone.precision,
        "digest": backbone.digest,
        "network": json.loads(json.dumps(dataclasses.asdict(backbone.config))),
        "session": {
            "arch": backbone.arch,
            "weights": weights,
            "key": source.key or "teacher",
            **({"ema": source.ema} if source.ema is not None else {}),
            "precision": backbone.precision,
            "transform": session.config.transform,
            "exif_transpose": session.config.exif_transpose,
        },
    }


def complete_config(config: SessionConfig, manifest: dict[str, Any]) -> SessionConfig:
    """Fill in options that are not set from the manifest of an index.

    Args:
        config: The options.
        manifest: Manifest of the index.

    Returns:
        Options with the weights, precision and transform of the index, if `config` does not set them.
    """
    default, recorded = SessionConfig(), manifest["session"]
    names = ["precision", "transform", "exif_transpose"]
    names += ["arch", "weights", "key", "ema"] if config.arch is None and config.weights is None else []
    missing = {name: recorded[name] for name in names if name in recorded and getattr(config, name) == getattr(default, name)}
    return dataclasses.replace(config, **missing)


def make_session(config: SessionConfig, backbone: Backbone | str | Path | None, stored: StoredIndex | None) -> Session:
    """Make the session that extracts features for an index.

    Args:
        config: The options.
        backbone: A backbone; or a name or a file, which is loaded with the options; by default the weights of the options.
        stored: The existing index, if any, whose weights, precision and transform are used unless options are set.

    Returns:
        The session.

    Raises:
        ConfigError: If an option cannot be used.
    """
    loaded = backbone if isinstance(backbone, Backbone) else None
    if loaded is None and backbone is not None:
        arch, weights = split_source(backbone)
        config = dataclasses.replace(config, arch=arch, weights=weights)
    return Session(complete_config(config, stored.manifest) if stored else config, loaded)


def check_readout(stored: StoredIndex, readout: str | None) -> None:
    """Check that a requested readout is the one of an index.

    Args:
        stored: The index.
        readout: The value of --readout; None matches any.

    Raises:
        ConfigError: If it is another one.
    """
    if readout is not None and parse_readout(readout).id != (expected := stored.manifest["readout"]):
        raise ConfigError(
            f"--readout {readout} does not match the index {stored.folder}, which has readout {expected}: "
            "omit --readout, or build another index"
        )


def check_session(stored: StoredIndex, session: Session) -> None:
    """Check that the features of a session can be compared with those of an index.

    Args:
        stored: The index.
        session: Backbone and transform.

    Raises:
        ConfigError: If weights, the rule for images, precision or transform differ.
    """
    expected, found = stored.manifest, index_spec(session, stored.manifest["readout"])
    if (expected["digest"], expected["network"]) != (found["digest"], found["network"]):
        raise ConfigError(
            f"the weights do not match the index {stored.folder}: expected {_describe_weights(expected)}, "
            f"got {_describe_weights(found)}. Omit --weights and --arch, or build another index"
        )
    if (rule := expected.get("image", "an earlier rule")) != found["image"]:
        raise ConfigError(
            f"--exif-transpose does not match the index {stored.folder}: its images were read by {rule}, not by {found['image']}. "
            "Change --exif-transpose, or build another index"
        )
    for name in ("precision", "transform"):
        if expected[name] != found[name]:
            raise ConfigError(
                f"--{name} does not match the index {stored.folder}: expected {expected[name]}, got {found[name]}. "
                f"Omit --{name}, or build another index"
            )


def _describe_weights(spec: dict[str, Any]) -> str:
    return f"{spec['session']['arch']} ({spec['session']['weights'] or 'default weights'}) with digest {spec['digest']}"
