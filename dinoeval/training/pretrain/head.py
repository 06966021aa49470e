"""The projection head, with the state-dict keys of released checkpoints. B images, D dims, K prototypes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.models.vit import init_linear

BOTTLENECK = 256  # dims of the normalized output (DINOHead in vision_transformer.py)


class Prototypes(nn.Module):
    """A linear layer without bias, as directions `weight_v` times lengths `weight_g`.

    Released checkpoints use these names, those of PyTorch's old weight_norm. Unlike that one, this module can be copied.

    Args:
        out_dim: Number of prototypes, K.
        trainable_length: Whether `weight_g` is trained; if not, all lengths stay 1.
    """

    def __init__(self, out_dim: int, trainable_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=trainable_length)
        # nn.Linear's own uniform draw: the released head makes this layer after it has initialized its weights.
        self.weight_v = nn.Parameter(nn.Linear(BOTTLENECK, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply features by the prototypes.

        Args:
            x: Normalized features, (B, 256).

        Returns:
            Logits, (B, K).
        """
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DinoHead(nn.Module):
    """Three linear layers with GELU, L2 normalization, then the prototypes.

    Args:
        in_dim: Width of the backbone, D.
        out_dim: Number of prototypes, K.
        hidden_dim: Width of the two hidden layers.
        norm_last_layer: Whether the prototypes keep length 1, so that logits are cosines.
    """

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
        """Project backbone features to logits.

        Args:
            x: Features, (B, D).

        Returns:
            Logits, (B, K).
        """
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
