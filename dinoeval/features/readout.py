"""Readouts: how the Tokens of an image become one vector. N images, h x w patches, D dims.

Each has an `id`, its name in cache keys and on the command line; `layers`, how many of the last blocks it reads; and
`patches`, whether it reads patch tokens. Called with Tokens it returns (N, *row_shape(D, (h, w))).
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

    def row_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return (dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        return tokens.cls


@dataclasses.dataclass(frozen=True)
class LastCls:
    """The [CLS] tokens of the last n blocks side by side, earliest first, (N, n*D): linear probe of ViT-S."""

    n: int = 4
    patches: ClassVar[bool] = False

    @property
    def id(self) -> str:
        return f"last{self.n}"

    @property
    def layers(self) -> int:
        return self.n

    def row_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return (self.n * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        import torch

        layers = tokens.layers or (tokens.cls[:, None],)
        return torch.cat([layer[:, 0] for layer in layers[-self.n :]], dim=1)


@dataclasses.dataclass(frozen=True)
class ClsAvg:
    """[CLS] and the mean patch token INTERLEAVED, (N, 2*D): entry 2j is [CLS] j, entry 2j + 1 is mean j.

    The released ViT-B linear heads expect this order (eval_linear.py since 23 Sep 2021), not one after the other.
    """

    id: ClassVar[str] = "clsavg"
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = True

    def row_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return (2 * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
        import torch

        assert tokens.patches is not None
        return torch.stack((tokens.cls, tokens.patches.mean(dim=(1, 2))), dim=-1).flatten(1)


@dataclasses.dataclass(frozen=True)
class ClsGem:
    """[CLS], then the generalised mean of the patch tokens, (N, 2*D): copy detection.

    The mean clamps at 1e-6 first, so negative patch features vanish (eval_copy_detection.py).
    """

    p: float = 4.0
    layers: ClassVar[int] = 1
    patches: ClassVar[bool] = True

    @property
    def id(self) -> str:
        return f"gem{int(self.p) if self.p == int(self.p) else repr(self.p)}"

    def row_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return (2 * dim,)

    def __call__(self, tokens: Tokens) -> Tensor:
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

    def row_shape(self, dim: int, grid: tuple[int, int]) -> tuple[int, ...]:
        return (*grid, dim)

    def __call__(self, tokens: Tokens) -> Tensor:
        assert tokens.patches is not None
        return tokens.patches


Readout = Cls | LastCls | ClsAvg | ClsGem | Patches


def parse_readout(name: str) -> Readout:
    """Turn `cls`, `last4`, `clsavg`, `gem` (or `gem3`) or `patches` into a readout."""
    for plain in (Cls(), ClsAvg(), Patches()):
        if name == plain.id:
            return plain
    if match := re.fullmatch(r"last([1-9]\d*)", name):
        return LastCls(int(match[1]))
    if match := re.fullmatch(r"gem(\d*\.?\d+)?", name):
        power = float(match[1] or 4)
        if power > 0:
            return ClsGem(power)
    raise ConfigError(f"no readout '{name}'. Known: cls, lastN (as last4), clsavg, gem (or gem3 for another power), patches")
