"""Criterion: objective and target operation of a recipe, with the state that they keep between steps.

B images, V views (crops of one image), K outputs of the head, Q entries of the queue.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoeval.training.pretrain import objectives, targets
from dinoeval.training.pretrain.objectives import GLOBAL_VIEWS
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.targets import LOCAL, Reducer

_CENTERED = ("center", "hard")


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a batch, and what shows whether training collapses. Scalar tensors without gradients, but for `value`."""

    value: Tensor
    """Mean over the pairs of views and the batch. It is ln K at collapse if outputs are uniform."""
    watched: dict[str, Tensor]
    """For `ce`: `teacher_entropy` of the targets in nats, near 0 or near ln K at collapse. For other objectives:
    `teacher_spread`, 0 at collapse."""

    def numbers(self, processes: int = 1, add: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """Copy the values from the device, averaged over all processes.

        Args:
            processes: Number of processes.
            add: Adds the tensors of all processes.

        Returns:
            `loss` and what is watched; for `ce` also `kl`, the divergence from the targets to the student's output, so that
            the loss is the sum of `teacher_entropy` and `kl`.
        """
        names, values = ("loss", *self.watched), (self.value.detach(), *self.watched.values())
        found = dict(zip(names, (add(torch.stack(values)) / processes).tolist(), strict=True))
        if "teacher_entropy" in found:
            found["kl"] = found["loss"] - found["teacher_entropy"]
        return found


class Criterion(nn.Module):
    """The loss of a recipe.

    The center and the queue change after the loss is computed, so that a step uses those of the steps before.

    Args:
        recipe: Its objective, target operation and sizes are used.
        reducer: Combines the processes.
    """

    center: Tensor  # (1, K)
    queue: Tensor  # (Q, K)
    queue_position: Tensor  # next entry to write

    def __init__(self, recipe: Recipe, reducer: Reducer = LOCAL) -> None:
        super().__init__()
        self.recipe, self.reducer = recipe, reducer
        dim = recipe.output_dim
        if recipe.target in _CENTERED:
            self.register_buffer("center", torch.zeros(1, dim))
        if recipe.objective == "infonce":
            self.register_buffer("queue", F.normalize(torch.randn(recipe.queue_size, dim), dim=-1))
            self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Loss:
        """Compute the loss of a batch, and update center and queue.

        Args:
            student: Outputs for all views, (V*B, K), view by view with the global ones first.
            teacher: Outputs for the global views, (2*B, K), in the same order; no gradient flows to them.
            teacher_temp: Temperature of the teacher's softmax.

        Returns:
            The loss.

        Examples:
            >>> criterion = Criterion(Recipe(out_dim=4))
            >>> criterion(torch.zeros(6, 4), torch.zeros(4, 4), 0.04).value  # ln 4: both outputs are uniform
            tensor(1.3863)
        """
        student, teacher = student.float(), teacher.detach().float()
        match self.recipe.objective:
            case "ce":
                loss = self._cross_entropy(student, teacher, teacher_temp)
            case "mse":
                compared = teacher - self.center if self.recipe.target == "center" else teacher
                loss = Loss(objectives.mean_squared_error(student, compared), {"teacher_spread": targets.spread(teacher)})
            case "infonce":
                value = objectives.info_nce(student, teacher, self.queue, self.recipe.student_temp)
                loss = Loss(value, {"teacher_spread": targets.spread(teacher)})
        self.update(teacher)
        return loss

    def _cross_entropy(self, student: Tensor, teacher: Tensor, teacher_temp: float) -> Loss:
        match self.recipe.target:
            case "center":
                log_targets = targets.centered(teacher, self.center, teacher_temp)
            case "none":
                log_targets = targets.centered(teacher, torch.zeros_like(teacher[:1]), teacher_temp)
            case "softmax_batch":
                log_targets = targets.sinkhorn(teacher, teacher_temp, 1, self.reducer)
            case "sinkhorn":
                log_targets = targets.sinkhorn(teacher, teacher_temp, self.recipe.sinkhorn_iterations, self.reducer)
            case "hard":
                log_targets = None
        distributions = targets.one_hot(teacher, self.center) if log_targets is None else log_targets.exp()
        value = objectives.cross_entropy(student, distributions, self.recipe.student_temp)
        entropy = torch.zeros_like(value.detach()) if log_targets is None else targets.entropy(log_targets)
        return Loss(value, {"teacher_entropy": entropy})

    @torch.no_grad()
    def update(self, teacher: Tensor) -> None:
        """Update center and queue.

        Args:
            teacher: Outputs for the global views, (2*B, K) float32.
        """
        if self.recipe.target in _CENTERED:
            momentum = self.recipe.center_momentum
            self.center = self.center * momentum + targets.mean_of_rows(teacher, self.reducer) * (1 - momentum)
        if self.recipe.objective == "infonce":
            keys = self.reducer.gather(F.normalize(teacher, dim=-1))
            by_view = keys.unflatten(0, (-1, GLOBAL_VIEWS, len(teacher) // GLOBAL_VIEWS)).transpose(0, 1)
            keys = by_view.flatten(0, 2)[-len(self.queue) :]  # in the order of a single process
            places = (self.queue_position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
            self.queue = self.queue.index_copy(0, places, keys)  # Not in place: the backward pass needs the old one.
            self.queue_position.copy_((self.queue_position + len(keys)) % len(self.queue))
