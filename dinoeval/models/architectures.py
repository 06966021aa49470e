"""Names of DINO's vision transformers, and the configurations that they stand for."""

from __future__ import annotations

import dataclasses
import re

from dinoeval.errors import ConfigError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Complete description of a network.

    Equal configs and equal tensors give equal features.
    """

    patch_size: int = 16
    """Side of a patch, in pixels."""
    image_size: int = 224
    """Side, in pixels, of the square images for which the position table is stored."""
    dim: int = 384
    """D, the width of tokens."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 6
    """A, the number of attention heads per block."""
    mlp_ratio: float = 4.0
    """Width of the hidden layer of an MLP, divided by D."""

    @property
    def grid(self) -> int:
        """Side of the stored position table, in whole patches."""
        return self.image_size // self.patch_size

    @property
    def readouts(self) -> tuple[str, ...]:
        """Readouts that the network offers; `lastN` stands for any number."""
        return ("cls", "lastN", "clsavg", "gem", "patches")

    @property
    def preprocessing(self) -> None:
        """None: the images are prepared as in the paper."""


# Table 1 of the paper. `xs` is an addition, small enough to train on a laptop CPU.
_SIZES = {
    "xs": {"dim": 96, "depth": 4, "num_heads": 3},
    "ti": {"dim": 192, "depth": 12, "num_heads": 3},
    "s": {"dim": 384, "depth": 12, "num_heads": 6},
    "b": {"dim": 768, "depth": 12, "num_heads": 12},
}
NAMED_ARCHITECTURES = ("vit_ti16", "vit_s16", "vit_s8", "vit_s5", "vit_b16", "vit_b8", "vit_xs8_16")
_ARCHITECTURE = re.compile(r"vit_(xs|ti|s|b)([1-9]\d{0,3})(?:_([1-9]\d{0,3}))?(?:_h([1-9]\d{0,3}))?", re.ASCII)


def parse_architecture(name: str) -> VitConfig:
    """Parse the name of a vision transformer.

    Args:
        name: `vit_<size><patch>[_<image size>][_h<heads>]`. Sizes are xs, ti, s and b. The image size is 224 pixels by
            default; the number of heads follows from the size.

    Returns:
        The configuration of the network.

    Raises:
        ConfigError: If the name does not parse, or no such network can be built. The message suggests a similar name.

    Examples:
        >>> parse_architecture("vit_s8")
        VitConfig(patch_size=8, image_size=224, dim=384, depth=12, num_heads=6, mlp_ratio=4.0)
        >>> parse_architecture("vit_ti4_32").grid
        8
        >>> parse_architecture("vit_s16_h12").num_heads
        12
    """
    match = _ARCHITECTURE.fullmatch(name)
    if match is None:
        grammar = "Other patch sizes, image sizes and numbers of heads: vit_ti4_32 (32-pixel images), vit_s16_h12 (12 heads)."
        raise ConfigError(f"{unknown('architecture', name, NAMED_ARCHITECTURES)} {grammar}")
    size, patch, image, heads = match.groups()
    config = VitConfig(patch_size=int(patch), **_SIZES[size])
    if image:
        config = dataclasses.replace(config, image_size=int(image))
    if heads:
        config = dataclasses.replace(config, num_heads=int(heads))
    if config.dim % config.num_heads:
        raise ConfigError(f"architecture '{name}': {config.dim} dims are not divisible by {config.num_heads} heads")
    if config.grid < 1:
        raise ConfigError(f"architecture '{name}': a patch of {patch} pixels is larger than an image of {config.image_size}")
    return config
