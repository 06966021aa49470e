"""The loss: cross-entropy between what the teacher says of one view and the student of another. B images, K prototypes, V views."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GLOBAL_VIEWS = 2


@dataclasses.dataclass(frozen=True)
class Loss:
    value: Tensor
    """Mean over the pairs of views and the batch; nats. ln K at collapse."""
    teacher_entropy: float
    """Of the sharpened targets. Near 0 or near ln K, training has collapsed."""
    kl: float
    """From the targets to the student's output; value = teacher_entropy + kl."""


class DinoLoss(nn.Module):
    """Centre and sharpen the teacher, compare with every other view of the student, then move the centre.

    The centre is SUBTRACTED (the paper's text says added; its pseudocode and the released code subtract) and is moved
    after the loss is formed, so a step uses the centre of the step before. Pairs are averaged (the paper's Eq. 3 sums).
    """

    center: Tensor

    def __init__(self, out_dim: int, *, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Loss:
        """Logits of the student (V*B, K), view by view with the global ones first, and of the teacher (2*B, K)."""
        batch = len(teacher) // GLOBAL_VIEWS
        log_student = F.log_softmax(student.float() / self.student_temp, dim=-1).split(batch)
        log_target = F.log_softmax((teacher.detach().float() - self.center) / teacher_temp, dim=-1)
        targets = log_target.exp().split(batch)
        pairs = [
            torch.sum(-target * log_view, dim=-1).mean()
            for t, target in enumerate(targets)
            for v, log_view in enumerate(log_student)
            if v != t
        ]
        value = torch.stack(pairs).mean()
        entropy = -(log_target.exp() * log_target).sum(-1).mean().item()
        self._move_center(teacher.detach().float())
        return Loss(value, entropy, value.item() - entropy)

    def _move_center(self, teacher: Tensor) -> None:
        self.center = self.center * self.center_momentum + teacher.mean(0, keepdim=True) * (1 - self.center_momentum)
