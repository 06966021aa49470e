"""DINO's vision transformer, with the state-dict keys, the position interpolation and the numerics of the released code.

N images, H x W pixels, h x w patches, T = 1 + h*w tokens, D dims, A heads, d = D / A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.models.architectures import VitConfig

LAYER_NORM_EPS = 1e-6  # as in the factories; the class default of the released code, 1e-5, is never used
POSITION_OFFSET = 0.1  # added to the target grid before the scale factor is formed (released code since 13 May 2021)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for whole samples.

    Kept branches are divided by the probability to keep them.

    Args:
        rate: Probability to drop, in [0, 1).
    """

    shard: tuple[int, int, int] | None = None
    """Rank, number of processes and images per process, if training is distributed. All processes then draw the numbers of
    all samples and use those of their own, so that the number of processes does not matter."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Drop the branch of some samples in training mode.

        Args:
            branch: (N, T, D).

        Returns:
            (N, T, D); `branch` itself in eval mode.
        """
        if self.rate == 0.0 or not self.training:
            return branch
        keep = 1.0 - self.rate
        # The released code draws rand and floors, so the same seed drops the same samples.
        draws = self._draw(branch)
        mask = (keep + draws).floor_()
        return branch.div(keep) * mask

    def _draw(self, branch: Tensor) -> Tensor:
        """Return a random number per sample, (N, 1, 1)."""
        if self.shard is None:
            return torch.rand((branch.shape[0], 1, 1), dtype=branch.dtype, device=branch.device)
        rank, processes, images = self.shard
        draws = torch.rand((branch.shape[0] * processes, 1, 1), dtype=branch.dtype, device=branch.device)
        return draws.unflatten(0, (-1, processes, images))[:, rank].flatten(0, 1)  # samples are views of images, view by view


class Attention(nn.Module):
    """Multi-head self-attention.

    Args:
        dim: D.
        num_heads: A.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (N, T, D) -> (N, A, T, d)

    def project(self, x: Tensor, queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values.

        Args:
            x: Tokens, (N, T, D).
            queries: Number of tokens, from the first, that get a query; by default all.

        Returns:
            q (N, A, queries, d), k (N, A, T, d) and v (N, A, T, d).
        """
        if queries is None:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            dim = x.shape[-1]
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, :queries], weight[:dim], bias[:dim])
            k, v = F.linear(x, weight[dim:], bias[dim:]).chunk(2, dim=-1)
        return self._split(q), self._split(k), self._split(v)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Let tokens attend to all tokens.

        Args:
            x: Tokens, (N, T, D).
            queries: Number of tokens, from the first, that attend; by default all.

        Returns:
            (N, queries, D).
        """
        x = x.to(self.qkv.weight.dtype)
        q, k, v = self.project(x, queries)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with the exact (erf) form of GELU between them.

    Args:
        dim: D.
        hidden_dim: Width of the hidden layer.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers.

        Args:
            x: Tokens, (N, T, D).

        Returns:
            (N, T, D).
        """
        return self.fc2(F.gelu(self.fc1(x.to(self.fc1.weight.dtype))))


class Block(nn.Module):
    """A pre-norm transformer block.

    The residual stream keeps its precision. Branches run in the precision of their weights.

    Args:
        config: Description of the network.
        drop_path: Rate of stochastic depth of this block.
    """

    def __init__(self, config: VitConfig, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(config.dim, config.num_heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(config.dim, int(config.dim * config.mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, queries: int | None = None) -> Tensor:
        """Apply attention and MLP.

        Args:
            x: Tokens, (N, T, D).
            queries: Number of tokens, from the first, to compute; by default all.

        Returns:
            (N, queries, D).
        """
        x = x[:, :queries] + self.drop_path(self.attn(self.norm1(x), queries))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    """The patch convolution, computed as a matrix product.

    CUDA runs float32 convolutions in TF32 by default, which is less precise.

    Args:
        config: Description of the network.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, kernel_size=config.patch_size, stride=config.patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Project patches. Pixels past the last whole patch are ignored.

        Args:
            images: (N, 3, H, W).

        Returns:
            Patch tokens, (N, h*w, D), row by row.
        """
        side = self.proj.kernel_size[0]
        rows, columns = (length // side for length in images.shape[-2:])
        cut = images[..., : rows * side, : columns * side].unflatten(3, (columns, side)).unflatten(2, (rows, side))
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (N, h*w, 3*side*side)
        return F.linear(patches.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)  # (N, h*w, D)


class VisionTransformer(nn.Module):
    """The network of the released code.

    Its state dict has exactly the keys of a backbone-only file.

    Args:
        config: Description of the network.
        drop_path: Rate of stochastic depth of the last block; it grows linearly from 0 in the first.
    """

    def __init__(self, config: VitConfig, *, drop_path: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.dim))
        rates = [drop_path * index / max(1, config.depth - 1) for index in range(config.depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)  # The patch convolution keeps the default initialization of PyTorch, as in the released code.

    def position_table(self, height: int, width: int) -> Tensor:
        """Compute the position embeddings for an image size.

        The stored table is used unchanged only for square images with as many patches as it has. Otherwise it is resampled.

        Args:
            height: Height of the image, in pixels.
            width: Width of the image, in pixels.

        Returns:
            Position embeddings, (1, T, D).
        """
        side, patch = self.config.grid, self.config.patch_size
        rows, columns = height // patch, width // patch
        if rows * columns == side * side and height == width:
            return self.pos_embed
        return resample_positions(self.pos_embed, side, (rows, columns))

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat((self.cls_token.expand(len(images), -1, -1), patches.to(self.cls_token.dtype)), dim=1)
        return tokens + self.position_table(*images.shape[-2:])  # (N, T, D)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the final-norm [CLS] token.

        The last block computes only [CLS], because its other outputs are not used. That saves a twelfth of the work.

        Args:
            images: (N, 3, H, W).

        Returns:
            [CLS], (N, D).
        """
        x = self._embed(images)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.norm(self.blocks[-1](x, queries=1))[:, 0]

    def tokens(self, images: Tensor, layers: int = 1) -> list[Tensor]:
        """Compute the outputs of the last blocks, each through the one final norm.

        Args:
            images: (N, 3, H, W).
            layers: Number of blocks; if it exceeds the depth, all are returned.

        Returns:
            Tokens (N, T, D) of each block, earliest first; [CLS] first, then patches row by row.
        """
        x = self._embed(images)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index >= len(self.blocks) - layers:
                outputs.append(self.norm(x))
        return outputs

    def last_attention(self, images: Tensor, queries: Sequence[int] | None = None) -> Tensor:
        """Compute the softmax attention of the last block.

        Args:
            images: (N, 3, H, W).
            queries: Q tokens; by default all T.

        Returns:
            Attention of each query to all tokens, (N, A, Q, T) float32, which sums to 1.
        """
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


def resample_positions(table: Tensor, side: int, grid: tuple[int, int], prefix: int = 1) -> Tensor:
    """Resample position embeddings to another grid, as the released code does.

    The grid is resampled by the scale FACTOR (cells + 0.1) / side, bicubic and not antialiased; the [CLS] entry never is.
    Resizing to a size instead of by a factor samples other points. Source: interpolate_pos_encoding, vision_transformer.py.

    Args:
        table: Position embeddings, (1, prefix + side**2, D).
        side: Rows, and columns, of the table.
        grid: Rows and columns of the new table.
        prefix: Number of entries that belong to no patch, such as [CLS].

    Returns:
        (1, prefix + rows * columns, D).
    """
    rows, columns = grid
    cells = table[:, prefix:].float().reshape(1, side, side, -1).permute(0, 3, 1, 2)
    device = cells.device
    if device.type == "mps":  # Bicubic resampling is missing or wrong there.
        cells = cells.cpu()
    factors = ((rows + POSITION_OFFSET) / math.sqrt(side * side), (columns + POSITION_OFFSET) / math.sqrt(side * side))
    cells = F.interpolate(cells, scale_factor=factors, mode="bicubic").to(device)
    assert cells.shape[-2:] == grid
    return torch.cat((table[:, :prefix], cells.permute(0, 2, 3, 1).reshape(1, rows * columns, -1)), dim=1)


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as in the released code.

    Other modules stay unchanged. Weights are drawn from a normal distribution of
    standard deviation 0.02, truncated at -2 and 2 (100 sigma). Biases are 0.

    Args:
        module: Any module; use `network.apply(init_linear)` for a whole network.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
