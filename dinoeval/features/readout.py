"""Readouts: how the Tokens of an image become one vector or a map. N images, h x w patches, D dims."""

from __future__ import annotations

import abc
import dataclasses
import re
from typing import TYPE_CHECKING

from dinoeval.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from dinoeval.models.backbone import Tokens


class Readout(abc.ABC):
    """A way to turn Tokens into features.

    Calling it with the Tokens of N images returns their features, (N, *feature_shape(D, (h, w))) float32.
    """

    id: str
    """Name in cache keys and on the command line."""
    layers: int = 1
    """Number of last blocks that it reads."""
    patches: bool = False
    """Whether it reads patch tokens."""
    num_vectors: int = 1
    """Number of vectors of D dims that a feature consists of."""

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of the feature of one image.

        Args:
            dim: D.
            grid: (h, w).

        Returns:
            One number for a vector, three for a map.
        """
        return (self.num_vectors * dim,)

    @abc.abstractmethod
    def __call__(self, tokens: Tokens) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class Cls(Readout):
    """The [CLS] token of the last block, (N, D): k-NN, logistic regression, retrieval."""

    id = "cls"

    def __call__(self, tokens: Tokens) -> Tensor:
        return tokens.cls


@dataclasses.dataclass(frozen=True)
class LastCls(Readout):
    """The [CLS] tokens of the last n blocks, (N, n*D): linear probe of ViT-S.

    They are concatenated, earliest first.
    """

    n: int = 4
    """Number of blocks."""

    @property
    def id(self) -> str:
        """Name, such as `last4`."""
        return f"last{self.n}"

    @property
    def layers(self) -> int:
        """Number of last blocks, n."""
        return self.n

    @property
    def num_vectors(self) -> int:
        """One vector per block, n."""
        return self.n

    def __call__(self, tokens: Tokens) -> Tensor:
        import torch

        layers = tokens.layers or (tokens.cls[:, None],)
        return torch.cat([layer[:, 0] for layer in layers[-self.n :]], dim=1)


@dataclasses.dataclass(frozen=True)
class ClsAvg(Readout):
    """[CLS] and the mean patch token, INTERLEAVED, (N, 2*D): linear probe of ViT-B.

    Entry 2j is [CLS] j, entry 2j + 1 is mean j. The released linear heads of ViT-B expect this order
    (eval_linear.py since 23 Sep 2021), not a concatenation.
    """

    id = "clsavg"
    patches = True
    num_vectors = 2

    def __call__(self, tokens: Tokens) -> Tensor:
        import torch

        assert tokens.patches is not None
        return torch.stack((tokens.cls, tokens.patches.mean(dim=(1, 2))), dim=-1).flatten(1)


@dataclasses.dataclass(frozen=True)
class ClsGem(Readout):
    """[CLS], then the generalized mean of the patch tokens, (N, 2*D): copy detection.

    Patch tokens are clamped at 1e-6 first, so that negative values vanish (eval_copy_detection.py).
    """

    p: float = 4.0
    """Power of the mean, positive."""
    patches = True
    num_vectors = 2

    @property
    def id(self) -> str:
        """Name, such as `gem4`."""
        return f"gem{int(self.p) if self.p == int(self.p) else repr(self.p)}"

    def __call__(self, tokens: Tokens) -> Tensor:
        import torch

        assert tokens.patches is not None
        pooled = tokens.patches.clamp(min=1e-6).pow(self.p).mean(dim=(1, 2)).pow(1.0 / self.p)
        return torch.cat((tokens.cls, pooled), dim=1)


@dataclasses.dataclass(frozen=True)
class Patches(Readout):
    """The patch tokens of the last block as a map, (N, h, w, D)."""

    id = "patches"
    patches = True

    def feature_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of the map of one image.

        Args:
            dim: D.
            grid: (h, w).

        Returns:
            (h, w, D).
        """
        return (*grid, dim)

    def __call__(self, tokens: Tokens) -> Tensor:
        assert tokens.patches is not None
        return tokens.patches


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
