"""Readouts: how the Tokens of an image become one vector. N images, h x w patches, D dims.

Each has an `id`, its name in cache keys and on the command line; `layers`, the number of last blocks that it reads; and
`patches`, whether it reads patch tokens. Called with Tokens, it returns (N, *feature_shape(D, (h, w))) float32.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, ClassVar

from dinoeval.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.models.backbone import Tokens


@dataclasses.dataclass(frozen=True)
class Cls:
    """The [CLS] token of the last block, (N, D): k-NN, logistic regression, retrieval."""

    id: ClassVar[str] = "cls"
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = False

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one feature, (D,)."""
        return (dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return features (N, D)."""
        return tokens.cls


@dataclasses.dataclass(frozen=True)
class LastCls:
    """The [CLS] tokens of the last n blocks, concatenated, earliest first, (N, n*D): linear probe of ViT-S."""

    n: int = 4
    """Number of blocks."""
    patches: ClassVar[bool] = False

    @property
    def id(self) -> str:
        """Name, such as `last4`."""
        return f"last{self.n}"

    @property
    def layers(self) -> int:
        """Number of last blocks that it reads."""
        return self.n

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one feature, (n*D,)."""
        return (self.n * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return features (N, n*D)."""
        import torch

        layers = tokens.layers or (tokens.cls[:, None],)
        return torch.cat([layer[:, 0] for layer in layers[-self.n :]], dim=1)


@dataclasses.dataclass(frozen=True)
class ClsAvg:
    """[CLS] and the mean patch token INTERLEAVED, (N, 2*D): entry 2j is [CLS] j, entry 2j + 1 is mean j.

    The released linear heads of ViT-B expect this order (eval_linear.py since 23 Sep 2021), not a concatenation.
    """

    id: ClassVar[str] = "clsavg"
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = True

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one feature, (2*D,)."""
        return (2 * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return features (N, 2*D)."""
        import torch

        assert tokens.patches is not None
        return torch.stack((tokens.cls, tokens.patches.mean(dim=(1, 2))), dim=-1).flatten(1)


@dataclasses.dataclass(frozen=True)
class ClsGem:
    """[CLS], then the generalized mean of the patch tokens, (N, 2*D): copy detection.

    Patch tokens are clamped at 1e-6 first, so that negative values vanish (eval_copy_detection.py).
    """

    p: float = 4.0
    """Power of the mean, positive."""
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = True

    @property
    def id(self) -> str:
        """Name, such as `gem4`."""
        return f"gem{int(self.p) if self.p == int(self.p) else repr(self.p)}"

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one feature, (2*D,)."""
        return (2 * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return features (N, 2*D)."""
        import torch

        assert tokens.patches is not None
        pooled = tokens.patches.clamp(min=1e-6).pow(self.p).mean(dim=(1, 2)).pow(1.0 / self.p)
        return torch.cat((tokens.cls, pooled), dim=1)


@dataclasses.dataclass(frozen=True)
class Patches:
    """The patch tokens of the last block as a map, (N, h, w, D)."""

    id: ClassVar[str] = "patches"
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = True

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of one feature, (h, w, D)."""
        return (*grid, dim)

    def __call__(self, tokens: Tokens) -> Tensor:
        """Return features (N, h, w, D)."""
        assert tokens.patches is not None
        return tokens.patches


Readout = Cls | LastCls | ClsAvg | ClsGem | Patches


def parse_readout(name: str) -> Readout:
    """Parse the name of a readout.

    Args:
        name: `cls`, `lastN` such as `last4`, `clsavg`, `gem` (power 4) or `gem3` (power 3), or `patches`.

    Returns:
        The readout.

    Raises:
        ConfigError: If there is no such readout.

    Examples:
        >>> parse_readout("last4")
        LastCls(n=4)
        >>> parse_readout("gem").feature_shape(384, (14, 14))
        (768,)
    """
    for plain in (Cls(), ClsAvg(), Patches()):
        if name == plain.id:
            return plain
    if match := re.fullmatch(r"last([1-9]\d*)", name):
        return LastCls(int(match[1]))
    if match := re.fullmatch(r"gem(\d*\.?\d+)?", name):
        power = float(match[1] or 4)
        if power > 0:
            return ClsGem(power)
    raise ConfigError(f"unknown readout '{name}'. Available: cls, lastN such as last4, clsavg, gem (power 4) or gem3 (power 3), patches.")
