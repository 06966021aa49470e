"""DINO steps on a GPU that do not wait for the GPU, and their recording as a CUDA graph.

Networks, head, parameter groups, schedules and checkpoints are those of `Trainer`. The loss has the same value in fewer
operations. Logged values stay on the GPU until the epoch ends.

B images, K prototypes, V views (crops of one image), s pixels of a view's side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoeval.models.vit import Block
from dinoeval.training.precision import Precision
from dinoeval.training.pretrain.objectives import GLOBAL_VIEWS
from dinoeval.training.pretrain.optimizers import parameter_groups
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer

_WARMUP_CALLS = 3  # calls before a recording, as the documentation of CUDA graphs recommends


def compile_blocks() -> None:
    """Compile the forward pass of all transformer blocks of this process."""
    torch._dynamo.config.recompile_limit = 64
    Block.forward = torch.compile(Block.forward, dynamic=False)  # type: ignore[method-assign]


def use_fastest_attention() -> None:
    """Use the memory-efficient attention kernel.

    With 65 and 17 tokens per image it takes half the time of the flash kernel on an H200.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_flash_sdp(False)


def cross_entropy(student: Tensor, teacher: Tensor, center: Tensor, teacher_temp: Tensor, student_temp: float) -> tuple[Tensor, Tensor]:
    """Compute the value of `Criterion` in one pass.

    The targets of both global views are added before they meet a local view of the student.

    Args:
        student: Logits of all views, (V*B, K), view by view with the global ones first.
        teacher: Logits of the global views, (2*B, K), in the same order.
        center: Center of the teacher's output, (1, K).
        teacher_temp: Temperature of the teacher's softmax, a scalar tensor.
        student_temp: Temperature of the student's softmax.

    Returns:
        The loss and the entropy of the targets in nats, scalar tensors.
    """
    batch = len(teacher) // GLOBAL_VIEWS
    log_student = F.log_softmax(student.float() / student_temp, dim=-1).unflatten(0, (-1, batch))  # (V, B, K)
    log_target = F.log_softmax((teacher.float() - center) / teacher_temp, dim=-1)
    entropy = -(log_target.exp() * log_target).sum(-1).mean()
    target = log_target.exp().unflatten(0, (GLOBAL_VIEWS, batch))
    views = len(log_student)
    of_globals = (target.flip(0) * log_student[:GLOBAL_VIEWS]).sum()
    of_locals = (target.sum(0) * log_student[GLOBAL_VIEWS:]).sum()
    return -(of_globals + of_locals) / (batch * GLOBAL_VIEWS * (views - 1)), entropy


class DeviceTrainer(Trainer):
    """A `Trainer` with `advance`, a step that does not wait for the device.

    Args:
        arch: Architecture of the backbones.
        recipe: All values of the run, without gradient clipping, whose norms a step would wait for.
        steps: Steps per epoch.
        device: Where the networks run.
        precision: fp32 or bf16; the scaled loss of fp16 is not supported.
        compiled: Whether the loss is compiled.
    """

    def __init__(
        self, arch: str, recipe: Recipe, steps: int, device: torch.device, precision: Precision = "bf16", *, compiled: bool = False
    ) -> None:
        assert precision != "fp16"
        assert not recipe.clip_grad
        super().__init__(arch, recipe, steps, device, precision)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), fused=device.type == "cuda")
        self.temperatures = torch.tensor(self.temperature, dtype=torch.float32, device=device)
        self.teacher_temp = self.temperatures[0].clone()
        self.cross_entropy = torch.compile(cross_entropy, dynamic=False) if compiled else cross_entropy
        self.fast: list[Tensor] = list(self.student.parameters())
        self.slow: list[Tensor] = list(self.teacher.parameters())
        self.graph: torch.cuda.CUDAGraph | None = None

    def advance(self, crops: list[Tensor], iteration: int) -> Tensor:
        """Take one optimizer step.

        Args:
            crops: V normalized crops, each (B, 3, s, s) with its own size s; the two global ones first.
            iteration: Number of the step since the start of the run, from 0.

        Returns:
            Loss and teacher entropy before the step in nats, (2,), on the device.
        """
        epoch = iteration // self.steps
        decayed, plain = self.optimizer.param_groups
        decayed["lr"] = plain["lr"] = float(self.lr[iteration])
        decayed["weight_decay"] = float(self.weight_decay[iteration])
        self.teacher_temp.copy_(self.temperatures[epoch])
        if self.graph is None:
            losses = self._gradients(crops)
        else:
            for recorded, crop in zip(self.inputs, crops, strict=True):
                recorded.copy_(crop)
            self.graph.replay()
            losses = self.losses
            for parameter, gradient in zip(self.fast, self.gradients, strict=True):
                parameter.grad = gradient
        if epoch < self.recipe.freeze_last_layer:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.slow, self.fast, 1 - float(self.momentum[iteration]))  # type: ignore[attr-defined]
        return losses

    def record(self, crops: list[Tensor]) -> None:
        """Record forward and backward pass as a CUDA graph, which one call starts. Nothing that is trained changes.

        Args:
            crops: Crops with the sizes of all later steps.
        """
        center = self.loss.center.clone()
        self.inputs = [crop.clone() for crop in crops]
        _warm_up(lambda: self._gradients(self.inputs))
        self._clear_gradients()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.losses = self._gradients(self.inputs)
        self.gradients = [parameter.grad for parameter in self.fast]
        self.loss.center.copy_(center)
        self.graph = graph

    def _gradients(self, crops: list[Tensor]) -> Tensor:
        """Compute losses (2,) and gradients, and update the center."""
        self._clear_gradients()
        with self.precision.autocast():
            with torch.no_grad():
                target = self.teacher(crops[:GLOBAL_VIEWS])
            output = self.student(crops)
        value, entropy = self.cross_entropy(output, target, self.loss.center, self.teacher_temp, self.recipe.student_temp)
        value.backward()
        center = self.loss.center
        self.loss.update(target.float())
        self.loss.center = center.copy_(self.loss.center)  # In place, because a graph reads and writes fixed addresses.
        return torch.stack((value.detach(), entropy))

    def _clear_gradients(self) -> None:
        for parameter in self.fast:
            parameter.grad = None


def _warm_up(function: Callable[[], object]) -> None:
    """Call a function on another stream, which a recording requires."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP_CALLS):
            function()
    torch.cuda.current_stream().wait_stream(stream)
