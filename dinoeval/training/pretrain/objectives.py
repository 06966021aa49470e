"""The DINO loss: cross-entropy between the teacher's output for one view and the student's for another.

B images, K prototypes, V views.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GLOBAL_VIEWS = 2


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a batch, and what shows whether training collapses."""

    value: Tensor
    """Mean over the pairs of views and the batch, in nats. It is ln K at collapse."""
    teacher_entropy: float
    """Entropy of the sharpened targets, in nats. Near 0 or near ln K, training has collapsed."""
    kl: float
    """Divergence from the targets to the student's output: value = teacher_entropy + kl."""


class DinoLoss(nn.Module):
    """Cross-entropy between the teacher's targets and the student's other views.

    The targets are centered and sharpened. The center is SUBTRACTED (the text of the paper adds it; its pseudocode and the
    released code subtract it). It is updated after the loss is computed, so a step uses the center of the step before.
    Pairs are averaged (Eq. 3 sums them).
    Source: DINOLoss in main_dino.py.

    Args:
        out_dim: Number of prototypes, K.
        student_temp: Temperature of the student's softmax.
        center_momentum: Momentum of the center's moving average.
    """

    center: Tensor  # (1, K)

    def __init__(self, out_dim: int, *, student_temp: float = 0.1, center_momentum: float = 0.9) -> None:
        super().__init__()
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Loss:
        """Compute the loss of a batch and update the center.

        Args:
            student: Logits of all views, (V*B, K), view by view with the global ones first.
            teacher: Logits of the global views, (2*B, K), in the same order; no gradient flows to them.
            teacher_temp: Temperature of the teacher's softmax.

        Returns:
            The loss.

        Examples:
            >>> DinoLoss(4)(torch.zeros(6, 4), torch.zeros(4, 4), 0.04).value  # ln 4: both outputs are uniform
            tensor(1.3863)
        """
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
        self._update_center(teacher.detach().float())
        return Loss(value, entropy, value.item() - entropy)

    def _update_center(self, teacher: Tensor) -> None:
        self.center = self.center * self.center_momentum + teacher.mean(0, keepdim=True) * (1 - self.center_momentum)
