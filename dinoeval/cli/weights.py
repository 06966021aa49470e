"""`dinoeval models`."""

from __future__ import annotations

from typing import Literal

from dinoeval.errors import ConfigError
from dinoeval.files import expand


def models() -> int:
    """List released weights, local paths and published scores.

    Scores are top-1 on ImageNet in percent. `dinoeval models fetch` downloads weights, `dinoeval models convert` converts them.
    """
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
        where = str(path) if path.exists() else f"not downloaded: dinoeval models fetch {row.name}"
        readouts = "-" if row.kind == "linear head" else " ".join(readouts_of(row.arch))
        print(f"{row.name:<26}{row.arch:<20}{row.kind:<17}{scores[0]:>6}{scores[1]:>8}  {readouts:<33}{where}")
    print("\nAlso: vit_<xs|ti|s|b><patch>[_<image size>][_h<heads>] with --weights FILE, and timm/NAME for any timm model.")
    return 0


def fetch(name: str, /) -> int:
    """Download weights and verify their hash.

    Args:
        name: Model name from `dinoeval models`.

    Raises:
        DinoevalError: If the name is unknown, or the file cannot be downloaded or has an unexpected hash.
    """
    from dinoeval.models.download import ensure_weights, sha256_of
    from dinoeval.models.zoo import get_weights

    path = ensure_weights(get_weights(name))
    print(f"{path}\nsha256 {sha256_of(path)}")
    return 0


def convert(
    source: str, target: str, /, *, arch: str | None = None, key: Literal["teacher", "student"] = "teacher", ema: bool | None = None
) -> int:
    """Convert a checkpoint of any layout to a safetensors file of the backbone.

    Args:
        source: Weights file, or model name from `dinoeval models`.
        target: Output file, F.safetensors.
        arch: Architecture (default: the one that the file names).
        key: Network to load from a full checkpoint.
        ema: Load the moving average of the weights, or the raw weights, of a file that contains both. Required for such a file.

    Raises:
        DinoevalError: If the checkpoint cannot be loaded or the file cannot be written.
    """
    from dinoeval.models.backbone import RANDOM
    from dinoeval.models.checkpoints import save_backbone
    from dinoeval.models.loading import load

    if not target.endswith(".safetensors"):
        raise ConfigError(f"TARGET must end in .safetensors, got {target}")
    if source == RANDOM:
        raise ConfigError("random weights cannot be converted: the file would not show that they are untrained")
    backbone = load(arch, weights=source, key=key, ema=ema, device="cpu")
    save_backbone(expand(target), backbone.network.state_dict(), arch=backbone.arch)
    print(f"{backbone.arch}, loaded as {backbone.provenance.layout}\ntensor digest {backbone.digest}\nwritten to {target}")
    return 0
