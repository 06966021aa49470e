"""The projection head, with the state-dict keys of released checkpoints. B images, D dims, K outputs."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.models.vit import init_linear
from dinoeval.training.pretrain.recipe import Recipe


class Prototypes(nn.Module):
    """A linear layer without bias, as directions `weight_v` times lengths `weight_g`.

    Released checkpoints use these names, those of PyTorch's old weight_norm. Unlike that one, this module can be copied.

    Args:
        in_dim: Width of its input.
        out_dim: Number of prototypes, K.
        trainable_length: Whether `weight_g` is trained; if not, all lengths stay 1.
    """

    def __init__(self, in_dim: int, out_dim: int, trainable_length: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=trainable_length)
        # nn.Linear's own uniform draw: the released head makes this layer after it has initialized its weights.
        self.weight_v = nn.Parameter(nn.Linear(in_dim, out_dim, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Multiply features by the prototypes.

        Args:
            x: Normalized features, (B, in_dim).

        Returns:
            Logits, (B, K).
        """
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


def _mlp(widths: list[int], recipe: Recipe, *, hidden_last: bool, last_bias: bool = True) -> nn.Sequential:
    """Make linear layers. All but the last are followed by batch normalization and activation; with `hidden_last` it is too."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(itertools.pairwise(widths), 1):
        hidden = hidden_last or number < len(widths) - 1
        layers.append(nn.Linear(before, after, bias=hidden or last_bias))
        if hidden:
            layers += [nn.BatchNorm1d(after)] if recipe.head_batch_norm else []
            layers.append(nn.GELU() if recipe.head_activation == "gelu" else nn.ReLU())
    return nn.Sequential(*layers).apply(init_linear)


class ProjectionHead(nn.Module):
    """Linear layers, then by recipe: a predictor, L2 normalization, and the prototypes.

    The default is DINOHead in vision_transformer.py. Without a bottleneck there is neither normalization nor weight
    normalization, and the last linear layer has a bias; appendix C does not state the latter. The predictor precedes the
    normalization. Its last layer has no bias if the head has batch normalization, as in BYOL's networks.py.

    Args:
        in_dim: Width of the backbone, D.
        recipe: Its options of head and predictor are used.
        predictor: Whether this head has the predictor of the recipe; that of the teacher has not.
    """

    def __init__(self, in_dim: int, recipe: Recipe, *, predictor: bool = False) -> None:
        super().__init__()
        hidden = [in_dim] + [recipe.hidden_dim] * (recipe.head_layers - 1)
        self.bottleneck_dim, self.predictor, self.last_layer = recipe.bottleneck_dim, None, None
        if not recipe.bottleneck_dim:
            self.mlp = _mlp(hidden, recipe, hidden_last=True)
            self.last_layer = nn.Linear(hidden[-1], recipe.out_dim).apply(init_linear)
            return
        self.mlp = _mlp([*hidden, recipe.bottleneck_dim], recipe, hidden_last=False)
        if recipe.out_dim:
            self.last_layer = Prototypes(recipe.bottleneck_dim, recipe.out_dim, trainable_length=not recipe.norm_last_layer)
        if predictor and recipe.predictor_dim:
            widths = [recipe.bottleneck_dim, recipe.predictor_dim, recipe.bottleneck_dim]
            self.predictor = _mlp(widths, recipe, hidden_last=False, last_bias=not recipe.head_batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Project backbone features.

        Args:
            x: Features, (B, D).

        Returns:
            (B, K): logits of the prototypes, or without prototypes the normalized output.
        """
        x = self.mlp(x)
        if self.predictor is not None:
            x = self.predictor(x)
        if self.bottleneck_dim:
            x = F.normalize(x, dim=-1)
        return x if self.last_layer is None else self.last_layer(x)
