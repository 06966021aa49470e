"""Student and teacher: a backbone and a head each. B images, K outputs, V views (crops of one image)."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dinoeval.models.build import build_network
from dinoeval.training.pretrain.head import ProjectionHead
from dinoeval.training.pretrain.recipe import Recipe


class MultiCrop(nn.Module):
    """A backbone and a head that take crops of several sizes.

    Adjacent crops of one size are one batch for the backbone; all crops are one batch for the head (MultiCropWrapper in
    utils.py).

    Args:
        backbone: Maps images (N, 3, s, s) to features (N, D).
        head: Maps features (N, D) to outputs (N, K).
    """

    def __init__(self, backbone: nn.Module, head: ProjectionHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Compute the outputs for all crops.

        Args:
            crops: V normalized crops, each (B, 3, s, s) with its own size s in pixels.

        Returns:
            (V*B, K), in the order of the crops.
        """
        groups = (list(group) for _, group in itertools.groupby(crops, key=lambda crop: crop.shape[-1]))
        return self.head(torch.cat([self.backbone(torch.cat(group)) for group in groups]))


def build_pair(arch: str, recipe: Recipe) -> tuple[MultiCrop, MultiCrop]:
    """Build a student and a teacher with equal weights.

    Args:
        arch: Architecture of the backbones: `vit_s16`, `resnet50`, `xcit_small_12_p16`, `timm/NAME` and so on.
        recipe: Its head options and stochastic depth are used.

    Returns:
        The student, which has stochastic depth and the predictor; and the teacher, which has neither and takes no gradient.

    Raises:
        ConfigError: If there is no such architecture, or it has no stochastic depth but the recipe has.
    """

    with torch.random.fork_rng(devices=[]):
        dim: int = build_network(arch).config.dim  # type: ignore[union-attr, assignment]

    def build(*, is_student: bool) -> MultiCrop:
        head = ProjectionHead(dim, recipe, predictor=is_student)  # Made first: another order would give a seed other weights.
        return MultiCrop(build_network(arch, drop_path=recipe.drop_path if is_student else 0.0), head)

    student, teacher = build(is_student=True), build(is_student=False)
    shared = teacher.state_dict().keys()
    teacher.load_state_dict({name: tensor for name, tensor in student.state_dict().items() if name in shared})
    return student, teacher.requires_grad_(False)
