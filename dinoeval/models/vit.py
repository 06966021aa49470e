"""DINO's vision transformer, with the state-dict keys, the position interpolation and the numerics of the released code.

N images, H x W pixels, h x w patches, T = 1 + h*w tokens, D dims, A heads, d = D / A.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.errors import ConfigError, unknown

LAYER_NORM_EPS = 1e-6  # the factories' value; the released class default of 1e-5 is never used
POSITION_OFFSET = 0.1  # added to the target grid before the scale factor is formed (released code since 13 May 2021)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitConfig:
    """Describe a network completely: two equal configs and equal tensors give equal features."""

    patch_size: int = 16
    image_size: int = 224
    """The square size, in pixels, at which the position table is stored."""
    dim: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0

    @property
    def grid(self) -> int:
        """Side of the stored position table, in patches; pixels past the last whole patch are dropped."""
        return self.image_size // self.patch_size

    @property
    def readouts(self) -> tuple[str, ...]:
        return ("cls", "lastN", "clsavg", "gem", "patches")

    @property
    def preprocessing(self) -> None:
        """The paper's."""


# Table 1 of the paper; `xs` is ours, small enough to train on a laptop's processor.
_SIZES = {
    "xs": {"dim": 96, "depth": 4, "num_heads": 3},
    "ti": {"dim": 192, "depth": 12, "num_heads": 3},
    "s": {"dim": 384, "depth": 12, "num_heads": 6},
    "b": {"dim": 768, "depth": 12, "num_heads": 12},
}
NAMED_ARCHITECTURES = ("vit_ti16", "vit_s16", "vit_s8", "vit_s5", "vit_b16", "vit_b8", "vit_xs8_16")
_ARCHITECTURE = re.compile(r"vit_(xs|ti|s|b)([1-9]\d*)(?:_([1-9]\d*))?(?:_h([1-9]\d*))?")


def parse_architecture(name: str) -> VitConfig:
    """Turn `vit_<size><patch>[_<image size>][_h<heads>]` into a config: `vit_s16`, `vit_ti4_32`, `vit_s16_h12`.

    Sizes are xs, ti, s, b. Raises ConfigError with a suggestion where the name does not parse or makes no network.
    """
    match = _ARCHITECTURE.fullmatch(name)
    if match is None:
        grammar = "Any patch, image and head size goes, as in vit_ti4_32 (32-pixel images) or vit_s16_h12 (12 heads)."
        raise ConfigError(f"{unknown('architecture', name, NAMED_ARCHITECTURES)} {grammar}")
    size, patch, image, heads = match.groups()
    config = VitConfig(patch_size=int(patch), **_SIZES[size])
    if image:
        config = dataclasses.replace(config, image_size=int(image))
    if heads:
        config = dataclasses.replace(config, num_heads=int(heads))
    if config.dim % config.num_heads:
        raise ConfigError(f"architecture '{name}': {config.num_heads} heads do not divide {config.dim} dims")
    if config.grid < 1:
        raise ConfigError(f"architecture '{name}': a patch of {patch} is larger than an image of {config.image_size}")
    return config


class DropPath(nn.Module):
    """Drop a residual branch for whole samples; kept branches are divided by the chance of being kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        # The released code draws rand and floors, so the same seed drops the same samples.
        mask = (keep + torch.rand((branch.shape[0], 1, 1), dtype=branch.dtype, device=branch.device)).floor_()
        return branch.div(keep) * mask


class Attention(nn.Module):
    """Attend with all heads; only the first `queries` tokens ask, all tokens answer."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, T, D) -> (N, A, T, d)

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens (N, T, D) to q (N, A, queries, d), k and v (N, A, T, d)."""
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            dim = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, :queries], weight[:dim], bias[:dim])
            k, v = F.linear(x, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        return self._split(q), self._split(k), self._split(v)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        x = x.to(self.qkv.weight.dtype)
        q, k, v = self.project(x, queries)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))  # the exact erf form


class Block(nn.Module):
    """A pre-norm block. The residual stream keeps its own precision; branches run in that of their weights."""

    def __init__(self, config: VitConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(config.dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Return the first `queries` tokens (all by default) after the block: (N, T, D) -> (N, queries, D)."""
        x = x[:, :queries] + self.drop_path(self.attn(self.norm1(x), queries))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The patch convolution, computed as a matrix product: CUDA runs float32 convolutions in TF32 unless told not to."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        side = self.proj.kernel_size[0]
        rows, columns = (length // side for length in images.shape[-2:])
        whole = images[..., : rows * side, : columns * side].unflatten(3, (columns, side)).unflatten(2, (rows, side))
        patches = whole.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, h*w, 3*side*side)
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)  # (N, h*w, D)


class VisionTransformer(nn.Module):
    """The network of the released code; its state dict holds the keys of a backbone-only file and no others."""

    def __init__(self, config: VitConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.dim))
        rates = [drop_path * index / max(1, config.depth - 1) for index in range(config.depth)]  # 0 first, the full rate last
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)  # the patch convolution keeps PyTorch's default, as released

    def position_table(self, height: int, width: int) -> Tensor:
        """Give the position embeddings (1, T, D) for an image of height x width pixels.

        The stored table is used unchanged only for square images with as many patches as it has. Otherwise the grid is
        resampled by the scale FACTOR (cells + 0.1) / side, bicubic, not antialiased; the [CLS] entry never is. Resizing
        to a size instead of by a factor samples other points and is not equal. Source: vision_transformer.py.
        """
        side, patch = self.config.grid, self.config.patch_size
        rows, columns = height // patch, width // patch
        if rows * columns == side * side and height == width:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
        device = grid.device
        if device.type == "mps":  # bicubic resampling is missing or wrong there
            grid = grid.cpu()
        factors = ((rows + POSITION_OFFSET) / math.sqrt(side * side), (columns + POSITION_OFFSET) / math.sqrt(side * side))
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic").to(device)
        assert grid.shape[-2:] == (rows, columns)
        return torch.cat((self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches.to(self.cls_token.dtype)), dim=1)
        return tokens + self.position_table(*images.shape[-2:])  # (N, T, D)

    def forward(self, images: Tensor) -> Tensor:
        """Return the final-norm [CLS] token: images (N, 3, H, W) -> (N, D).

        In the last block only [CLS] asks and only [CLS] passes the MLP: nothing else is read, a twelfth less work.
        """
        x = self._embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, queries=1))[:, 0]

    def tokens(self, images: Tensor, layers: int = 1) -> list[Tensor]:
        """Return the last `layers` block outputs, earliest first, each (N, T, D) through the one final norm."""
        x = self._embed(images)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - layers:
                outputs.append(self.norm(x))
        return outputs

    def last_attention(self, images: Tensor, queries: Sequence[int] | None = None) -> Tensor:
        """Return the softmax attention of the last block, (N, A, T, T), or its rows of chosen tokens, (N, A, Q, T); rows sum to 1."""
        x = self._embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        last: Block = self.blocks[-1]  # type: ignore[assignment]
        normed = last.norm1(x)
        q, k, _ = last.attn.project(normed.to(last.attn.qkv.weight.dtype))
        if queries is not None:
            q = q[:, :, list(queries)]  # (N, A, Q, d)
        logits = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
        return logits.float().softmax(dim=-1)


def init_linear(module: nn.Module) -> None:
    """Draw linear weights from a normal of std 0.02 cut at -2 and 2 (100 sigma), as released; biases become 0."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
