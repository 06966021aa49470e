"""Student and teacher: a backbone and a head each, and the moving average that updates the teacher.

B images, K prototypes, V views (crops of one image).
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from dinoeval.models.architectures import VitConfig
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.pretrain.head import DinoHead
from dinoeval.training.pretrain.presets import Recipe


class MultiCrop(nn.Module):
    """A backbone and a head that take crops of several sizes.

    Adjacent crops of one size are one batch for the backbone; all crops are one batch for the head (MultiCropWrapper in
    utils.py).

    Args:
        backbone: Maps images (N, 3, s, s) to features (N, D).
        head: Maps features (N, D) to logits (N, K).
    """

    def __init__(self, backbone: VisionTransformer, head: DinoHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Compute the logits of all crops.

        Args:
            crops: V normalized crops, each (B, 3, s, s) with its own size s in pixels.

        Returns:
            Logits, (V*B, K), in the order of the crops.
        """
        groups = (list(group) for _, group in itertools.groupby(crops, key=lambda crop: crop.shape[-1]))
        return self.head(torch.cat([self.backbone(torch.cat(group)) for group in groups]))


def build_pair(config: VitConfig, recipe: Recipe) -> tuple[MultiCrop, MultiCrop]:
    """Build a student and a teacher with equal weights.

    Args:
        config: Architecture of the backbones.
        recipe: Its head options and stochastic depth are used.

    Returns:
        The student, which has stochastic depth, and the teacher, which has none and takes no gradient.
    """

    def build(drop_path: float) -> MultiCrop:
        head = DinoHead(config.dim, recipe.out_dim, hidden_dim=recipe.hidden_dim, norm_last_layer=recipe.norm_last_layer)
        return MultiCrop(VisionTransformer(config, drop_path=drop_path), head)

    student, teacher = build(recipe.drop_path), build(0.0)
    teacher.load_state_dict(student.state_dict())
    return student, teacher.requires_grad_(False)


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher towards the student, in place.

    This includes the head and the prototype lengths, but not the buffers.

    Args:
        teacher: Module that becomes momentum * teacher + (1 - momentum) * student.
        student: Module with the same parameters in the same order.
        momentum: Between 0 and 1.
    """
    for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
        slow.mul_(momentum).add_((1 - momentum) * fast)


def parameter_groups(student: nn.Module) -> list[dict]:
    """Split the trainable parameters by weight decay.

    Biases and vectors are not decayed. [CLS], positions and prototype lengths are decayed, as in the released code
    (get_params_groups in utils.py).

    Args:
        student: The network to optimize.

    Returns:
        Two groups for an optimizer: with weight decay, and with a weight decay of 0.
    """
    decayed, plain = [], []
    for name, parameter in student.named_parameters():
        if parameter.requires_grad:
            (plain if name.endswith(".bias") or parameter.ndim == 1 else decayed).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


@torch.no_grad()
def clip_grad_per_tensor(student: nn.Module, limit: float) -> None:
    """Scale each gradient tensor down to a norm, in place.

    Each tensor is clipped by itself; `torch.nn.utils.clip_grad_norm_` uses the global norm (clip_gradients in utils.py).

    Args:
        student: The network whose gradients are clipped.
        limit: Largest L2 norm of one tensor's gradient.
    """
    for parameter in student.parameters():
        if parameter.grad is not None:
            factor = limit / (parameter.grad.norm(2) + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)
