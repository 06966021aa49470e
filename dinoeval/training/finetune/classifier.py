"""The network that is fine-tuned: a trainable copy of a backbone and a linear head. N images, s pixels of their side."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from dinoeval.errors import ConfigError
from dinoeval.models.backbone import Backbone
from dinoeval.models.build import build_network
from dinoeval.models.checkpoints import tensor_digest
from dinoeval.models.loading import load
from dinoeval.models.vit import init_linear

_log = logging.getLogger(__name__)


class Classifier(nn.Module):
    """A backbone and a linear head.

    Args:
        backbone: Maps images to features of `dim` values.
        dim: Width of the backbone.
        classes: Number of classes.
        head_scale: Factor on the initial weights of the head.
    """

    def __init__(self, backbone: nn.Module, dim: int, classes: int, head_scale: float) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(dim, classes)
        init_linear(self.head)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: Normalized images, (N, 3, s, s).

        Returns:
            Logits, (N, classes).
        """
        return self.head(self.backbone(images))


def trainable_copy(backbone: Backbone, drop_path: float) -> nn.Module:
    """Copy a backbone's network for training in float32.

    Args:
        backbone: The frozen backbone; it does not change. If its weights were rounded to a lower precision, its file is
            read again.
        drop_path: Rate of stochastic depth in the last block.

    Returns:
        A network whose parameters all take gradients.

    Raises:
        ConfigError: If the float32 weights cannot be read again.
    """
    network = build_network(backbone.arch, drop_path=drop_path)
    source = backbone
    if tensor_digest(backbone.network.state_dict()) != backbone.digest:
        _log.info("reading the float32 weights again: training starts from those")
        key = "student" if backbone.provenance.key == "student" else "teacher"
        source = load(backbone.arch, weights=backbone.provenance.name, key=key, ema=backbone.provenance.ema, device="cpu")
        if source.digest != backbone.digest:
            raise ConfigError(
                f"{backbone.provenance.name} does not contain the float32 weights of {backbone!r}: load the backbone with precision fp32"
            )
    network.load_state_dict(source.network.state_dict())
    return network.requires_grad_(True)
