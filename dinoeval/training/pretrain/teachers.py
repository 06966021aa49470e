"""Teachers: how the teacher follows the student (section 5.2 of the paper, Figure 6).

Parameters are paired by name, because the student may have a predictor that the teacher lacks. Buffers are not copied: the
teacher's batch normalization keeps its own averages, as in the released code.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from dinoeval.training.pretrain.recipe import Teacher

Moment = Literal["before_update", "after_update", "after_epoch"]
"""When in training: before and after the optimizer's step, and after the last step of an epoch."""
_COPIED_AT: dict[Teacher, Moment] = {"copy": "after_update", "previous_step": "before_update", "previous_epoch": "after_epoch"}


@torch.no_grad()
def update_teacher(kind: Teacher, moment: Moment, teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student, if its kind does so at this moment.

    Args:
        kind: The teacher of the recipe.
        moment: When this is called.
        teacher: Module that changes, in place.
        student: Module that has all parameters of the teacher.
        momentum: Between 0 and 1; of `ema` only.

    Examples:
        >>> student, teacher = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> update_teacher("copy", "after_update", teacher, student, 0.9)
        >>> torch.equal(teacher.weight, student.weight)
        True
    """
    if kind == "ema" and moment == "after_update":
        update_ema(teacher, student, momentum)
    elif _COPIED_AT.get(kind) == moment:
        current = dict(student.named_parameters())
        for name, parameter in teacher.named_parameters():
            parameter.copy_(current[name])


@torch.no_grad()
def update_ema(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move every parameter of the teacher towards the student, in place.

    This includes the head and the prototype lengths, but not the buffers.

    Args:
        teacher: Module that becomes momentum * teacher + (1 - momentum) * student.
        student: Module that has all parameters of the teacher, by name.
        momentum: Between 0 and 1.
    """
    fast = dict(student.named_parameters())
    for name, slow in teacher.named_parameters():
        slow.mul_(momentum).add_((1 - momentum) * fast[name])
