"""Build any network by the name of its architecture: DINO's own ViT, or a torchvision or timm model."""

from __future__ import annotations

from torch import Tensor, nn

from dinoeval.errors import ConfigError
from dinoeval.models import external
from dinoeval.models.architectures import VitConfig, parse_architecture
from dinoeval.models.external import ExternalConfig
from dinoeval.models.vit import VisionTransformer

Config = VitConfig | ExternalConfig


def build_network(arch: str, *, drop_path: float = 0.0) -> nn.Module:
    """Build an untrained network by name.

    Args:
        arch: `vit_s16`, `resnet50`, `xcit_small_12_p8`, `timm/NAME` and so on.
        drop_path: Rate of stochastic depth in training.

    Returns:
        A module that maps images (N, 3, H, W) to the [CLS] token or the pooled feature, (N, D). Its attribute
        `config` describes it.

    Raises:
        ConfigError: If there is no such architecture. The message suggests similar names.

    Examples:
        >>> import torch
        >>> network = build_network("vit_xs4_16")
        >>> network(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 96])
    """
    if external.is_external(arch):
        return external.build(arch, drop_path=drop_path)
    try:
        return VisionTransformer(parse_architecture(arch), drop_path=drop_path)
    except ConfigError as error:
        raise ConfigError(f"{error} Also available: {', '.join(external.RELEASED)}, and timm/NAME for any timm model.") from error


def is_architecture(name: object) -> bool:
    """Return whether a value is the name of an architecture.

    Args:
        name: Any value, such as what a file states about itself.

    Returns:
        True if `build_network` builds it; False for names of places that timm would load from.

    Examples:
        >>> is_architecture("vit_s16"), is_architecture("timm/hf-hub:user/model"), is_architecture(5)
        (True, False, False)
    """
    if not isinstance(name, str):
        return False
    if external.is_external(name):
        return external.is_known(name)
    try:
        parse_architecture(name)
    except ConfigError:
        return False
    return True


def readouts_of(arch: str) -> tuple[str, ...]:
    """Return the readouts of a released architecture without building it.

    Args:
        arch: An architecture with released weights.

    Returns:
        Names of readouts; `lastN` stands for any number.

    Examples:
        >>> readouts_of("resnet50"), readouts_of("vit_s16")
        (('cls',), ('cls', 'lastN', 'clsavg', 'gem', 'patches'))
    """
    return external.RELEASED[arch] if arch in external.RELEASED else parse_architecture(arch).readouts


def same_architecture(one: str, other: str) -> bool:
    """Return whether two names denote one architecture, as vit_s16 and vit_s16_224 do.

    Args:
        one: Name of an architecture.
        other: Name of an architecture.

    Returns:
        True if the networks are the same except for their weights.

    Raises:
        ConfigError: If there is no such architecture.
    """
    if external.is_external(one) or external.is_external(other):
        return one == other
    return parse_architecture(one) == parse_architecture(other)


def read_tokens(network: nn.Module, images: Tensor, layers: int) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Compute the tokens of a batch.

    Args:
        network: A network from `build_network` that has patch tokens.
        images: Normalized images, (N, 3, H, W).
        layers: Number of last blocks to return.

    Returns:
        [CLS] (N, D), the patch tokens (N, h, w, D), and the last blocks, earliest first, each (N, 1 + h*w, D). The
        blocks are empty if the network does not offer `lastN`.
    """
    if not isinstance(network, VisionTransformer):
        return external.tokens(network, images, layers)
    outputs = tuple(network.tokens(images, layers))
    grid = [side // network.config.patch_size for side in images.shape[-2:]]
    return outputs[-1][:, 0], outputs[-1][:, 1:].unflatten(1, grid), outputs
