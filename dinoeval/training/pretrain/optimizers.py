"""Optimizers, their parameter groups, and gradient clipping, as in the released code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dinoeval.training.pretrain.recipe import Optimizer as OptimizerName

MOMENTUM = 0.9  # of SGD and LARS (main_dino.py, utils.py)
_TRUST = 0.001  # eta of LARS in utils.py


def build_optimizer(name: OptimizerName, student: nn.Module) -> Optimizer:
    """Build an optimizer. Learning rate and weight decay are set before every step.

    Args:
        name: `adamw`, `sgd` or `lars`.
        student: The network to optimize.

    Returns:
        The optimizer of two parameter groups.
    """
    groups = parameter_groups(student)
    match name:
        case "adamw":
            return torch.optim.AdamW(groups)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM)
        case "lars":
            return Lars(groups)


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


class Lars(Optimizer):
    """LARS as in the released code (LARS in utils.py).

    The gradient of a matrix, with weight decay, is scaled to 0.001 of the norm of its weights; vectors are updated by plain
    momentum. timm's Lars divides by other norms and does not scale where the weight decay is 0.

    Args:
        groups: Parameter groups.
        lr: Learning rate.
        weight_decay: Weight decay of matrices.
    """

    def __init__(self, groups: Any, lr: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step.

        Args:
            closure: Not supported.
        """
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                update = parameter.grad
                if parameter.ndim != 1:
                    update = update.add(parameter, alpha=group["weight_decay"])
                    length, size = parameter.norm(), update.norm()
                    trust = torch.where((length > 0) & (size > 0), _TRUST * length / size, torch.ones_like(length))
                    update = update * trust
                state = self.state[parameter]
                if "mu" not in state:
                    state["mu"] = torch.zeros_like(parameter)
                state["mu"].mul_(MOMENTUM).add_(update)
                parameter.add_(state["mu"], alpha=-group["lr"])


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
