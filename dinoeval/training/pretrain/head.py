"""The projection head, with the released state-dict keys. B rows, D dims, K prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.models.vit import init_linear

BOTTLENECK = 256


class Prototypes(nn.Module):
    """A linear layer without bias whose rows are directions `weight_v` times lengths `weight_g`.

    The names are those of PyTorch's old weight_norm, which released checkpoints use, but this one can be copied.
    """

    def __init__(self, out_dim: int, trainable_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=trainable_length)
        # nn.Linear's own uniform draw: the released head makes this layer after its weights were initialised.
        self.weight_v = nn.Parameter(nn.Linear(BOTTLENECK, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DinoHead(nn.Module):
    """Three linear layers with GELU between them, L2 normalisation, then the prototypes: (B, D) -> (B, K) logits."""

    def __init__(self, in_dim: int, out_dim: int, *, hidden_dim: int = 2048, norm_last_layer: bool = True) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, hidden_dim),
            nn.GELU(),
            nn.Linear(hidden_dim, BOTTLENECK),
        )
        self.mlp.apply(init_linear)
        self.last_layer = Prototypes(out_dim, trainable_length=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
