"""`dinoeval models`."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro

from dinoeval.errors import ConfigError
from dinoeval.files import expand


def models() -> int:
    """List released weights: name, architecture, kind, published k-NN and linear top-1 on ImageNet, readouts, and where the file lies."""
    from dinoeval.models.build import readouts_of
    from dinoeval.models.download import local_path
    from dinoeval.models.zoo import FULL, ZOO
    from dinoeval.paper.rows import printed_values

    published = printed_values("knn", "top1@20"), printed_values("linear", "top1_best_on_val")
    print(f"{'name':<26}{'arch':<20}{'kind':<17}{'k-NN':>6}{'linear':>8}  {'readouts':<33}file")
    for row in ZOO.values():
        network = row.name.removesuffix(FULL).removesuffix("_linear")
        scores = [f"{values[network]:.1f}" if network in values else "-" for values in published]
        if row.kind == "linear head":
            scores[0] = "-"
        path = local_path(row)
        where = str(path) if path.exists() else f"not here: dinoeval models fetch {row.name}"
        readouts = "-" if row.kind == "linear head" else " ".join(readouts_of(row.arch))
        print(f"{row.name:<26}{row.arch:<20}{row.kind:<17}{scores[0]:>6}{scores[1]:>8}  {readouts:<33}{where}")
    print("\nBesides: any vit_<xs|ti|s|b><patch>[_<image size>][_h<heads>] with a file of yours, and timm/<name> for any network of timm.")
    return 0


def fetch(name: Annotated[str, tyro.conf.Positional], /) -> int:
    """Download weights and verify their hash.

    Args:
        name: As in `dinoeval models`.
    """
    from dinoeval.models.download import ensure_weights, sha256_of
    from dinoeval.models.zoo import get_weights

    path = ensure_weights(get_weights(name))
    print(f"{path}\nsha256 {sha256_of(path)}")
    return 0


def convert(
    source: Annotated[str, tyro.conf.Positional],
    target: Annotated[str, tyro.conf.Positional],
    /,
    arch: str | None = None,
    key: Literal["teacher", "student"] = "teacher",
) -> int:
    """Turn any checkpoint into a safetensors file of the backbone alone.

    Args:
        source: A file of weights, or a name of the zoo.
        target: F.safetensors.
        arch: Architecture, where the file does not say it.
        key: Which network of a full checkpoint.
    """
    from dinoeval.models.backbone import RANDOM, load
    from dinoeval.models.checkpoints import save_backbone

    if not target.endswith(".safetensors"):
        raise ConfigError(f"{target}: the name must end in .safetensors")
    if source == RANDOM:
        raise ConfigError("random weights are not converted: the file would not show that they are untrained")
    backbone = load(arch, weights=source, key=key, device="cpu")
    save_backbone(expand(target), backbone.network.state_dict(), arch=backbone.arch)
    print(f"{backbone.arch}, read as {backbone.provenance.layout}\ntensor digest {backbone.digest}\nwritten to {target}")
    return 0
