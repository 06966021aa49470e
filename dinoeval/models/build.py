"""Build any network by the name of its architecture: DINO's own ViT, or one of a library."""

from __future__ import annotations

from torch import Tensor, nn

from dinoeval.errors import ConfigError
from dinoeval.models import external
from dinoeval.models.external import ExternalConfig
from dinoeval.models.vit import VisionTransformer, VitConfig, parse_architecture

Config = VitConfig | ExternalConfig


def build_network(arch: str, *, drop_path: float = 0.0) -> nn.Module:
    """Build an untrained network by name: `vit_s16`, `resnet50`, `xcit_small_12_p8`, `timm/<name>`.

    Called with images (N, 3, H, W) it returns the [CLS] token or the pooled feature, (N, D); its `config` says what it is.
    Raises ConfigError, with suggestions, where nothing has that name.
    """
    if external.is_external(arch):
        return external.build(arch, drop_path=drop_path)
    try:
        return VisionTransformer(parse_architecture(arch), drop_path=drop_path)
    except ConfigError as error:
        raise ConfigError(f"{error} Besides: {', '.join(external.RELEASED)}, and timm/<name> for any network of timm.") from error


def readouts_of(arch: str) -> tuple[str, ...]:
    """The readouts of a network that was released, without building it."""
    return external.RELEASED[arch] if arch in external.RELEASED else parse_architecture(arch).readouts


def same_architecture(one: str, other: str) -> bool:
    """Whether two names mean one network, as vit_s16 and vit_s16_224 do."""
    if external.is_external(one) or external.is_external(other):
        return one == other
    return parse_architecture(one) == parse_architecture(other)


def read_tokens(network: nn.Module, images: Tensor, layers: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return [CLS] (N, D), the patch tokens (N, h, w, D) and the last blocks, earliest first, each (N, 1 + h*w, D)."""
    if not isinstance(network, VisionTransformer):
        return external.tokens(network, images, layers)
    outputs = tuple(network.tokens(images, layers))
    grid = [side // network.config.patch_size for side in images.shape[-2:]]
    return outputs[-1][:, 0], outputs[-1][:, 1:].unflatten(1, grid), outputs
