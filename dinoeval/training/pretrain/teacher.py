"""Student and teacher: one backbone and head each, and how the second follows the first."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dinoeval.models.architectures import VitConfig
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.pretrain.head import DinoHead
from dinoeval.training.pretrain.presets import Recipe


class MultiCrop(nn.Module):
    """A backbone and a head. Neighbouring crops of one size pass the backbone as one batch, all crops the head as one."""

    def __init__(self, backbone: VisionTransformer, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """V crops, each (B, 3, s, s) of its own size s -> logits (V*B, K) in the order of the crops."""
        groups = (list(group) for _, group in itertools.groupby(crops, key=lambda crop: crop.shape[-1]))
        return self.head(torch.cat([self.backbone(torch.cat(group)) for group in groups]))


def build_pair(config: VitConfig, recipe: Recipe) -> tuple[MultiCrop, MultiCrop]:
    """A student and a teacher of equal weights. Only the student has stochastic depth; the teacher takes no gradient."""

    def build(drop_path: float) -> MultiCrop:
        head = DinoHead(config.dim, recipe.out_dim, hidden_dim=recipe.hidden_dim, norm_last_layer=recipe.norm_last_layer)
        return MultiCrop(VisionTransformer(config, drop_path=drop_path), head)

    student, teacher = build(recipe.drop_path), build(0.0)
    teacher.load_state_dict(student.state_dict())
    return student, teacher.requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher, head and prototype lengths included: m * teacher + (1 - m) * student."""
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.mul_(momentum).add_((1 - momentum) * fast)


def parameter_groups(student: nn.Module) -> list[dict]:
    """Two groups: decayed, and not. Biases and vectors are not; [CLS], positions and prototype lengths ARE, as released."""
    decayed, plain = [], []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


@torch.no_grad()
def clip_grad_per_tensor(student: nn.Module, limit: float) -> None:
    """Scale down each parameter tensor's gradient, by itself, to norm `limit`; not the global norm."""
    for parameter in student.parameters():
        if parameter.grad is not None:
            factor = limit / (parameter.grad.norm(2) + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
