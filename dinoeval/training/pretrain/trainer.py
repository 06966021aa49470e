"""One iteration of pretraining in the released order of operations (train_one_epoch in main_dino.py).

B images, V views (crops of one image), s pixels of a crop's side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dinoeval import distributed
from dinoeval.errors import DinoevalError
from dinoeval.models.vit import DropPath
from dinoeval.training.parallel import gather_rows, in_parallel, max_over_processes, sum_over_processes, synchronize_batch_norm
from dinoeval.training.precision import MixedPrecision, Precision
from dinoeval.training.pretrain import schedules
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.networks import build_pair
from dinoeval.training.pretrain.objectives import GLOBAL_VIEWS
from dinoeval.training.pretrain.optimizers import build_optimizer, clip_grad_per_tensor
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.targets import Reducer
from dinoeval.training.pretrain.teachers import Moment, update_teacher


class Trainer:
    """Student, teacher, loss, optimizer and schedules of one run.

    Under torchrun each process takes its shard of every batch. The losses and weights are those of a single process with the
    whole batch, but for rounding, and for stochastic depth in models of timm.

    Args:
        arch: Architecture of the backbones, such as vit_s16.
        recipe: All values of the run.
        steps: Steps per epoch.
        device: Where the networks run.
        precision: Precision of the forward passes.

    Examples:
        >>> recipe = Recipe(epochs=1, batch_size=2, warmup_epochs=0, out_dim=8, hidden_dim=8, global_crop=16, local_crops=0)
        >>> trainer = Trainer("vit_xs4_16", recipe, steps=1, device=torch.device("cpu"))
        >>> sorted(trainer.step([torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)], iteration=0))
        ['kl', 'loss', 'teacher_entropy']
    """

    def __init__(self, arch: str, recipe: Recipe, steps: int, device: torch.device, precision: Precision = "fp32") -> None:
        self.recipe, self.device, self.steps = recipe, device, steps
        student, teacher = build_pair(arch, recipe)
        synchronize_batch_norm(student)
        synchronize_batch_norm(teacher)
        self.student, self.teacher = student.to(device).train(), teacher.to(device).train()
        if (world := distributed.world_size()) > 1:
            for module in student.modules():
                if isinstance(module, DropPath):
                    module.shard = distributed.rank(), world, recipe.batch_size // world
        self.parallel = in_parallel(self.student, device)
        self.loss = Criterion(recipe, Reducer(sum_over_processes, max_over_processes, gather_rows)).to(device)
        self.optimizer = build_optimizer(recipe.optimizer, self.student)
        self.precision = MixedPrecision(device, precision)
        peak = recipe.lr * recipe.batch_size / 256
        self.lr = schedules.cosine(peak, recipe.min_lr, recipe.epochs, steps, recipe.warmup_epochs)
        self.weight_decay = schedules.cosine(recipe.weight_decay, recipe.weight_decay_end, recipe.epochs, steps)
        self.momentum = schedules.cosine(recipe.momentum_teacher, recipe.momentum_teacher_end, recipe.epochs, steps)
        self.temperature = schedules.teacher_temperature(
            recipe.warmup_teacher_temp, recipe.teacher_temp, recipe.warmup_teacher_temp_epochs, recipe.epochs
        )

    def step(self, crops: list[Tensor], iteration: int) -> dict[str, float]:
        """Take one optimizer step.

        Args:
            crops: V normalized crops of the images of this process, each (B, 3, s, s) with its own size s; the two global ones
                first.
            iteration: Number of the step since the start of the run, from 0.

        Returns:
            `Loss.numbers` before the step.

        Raises:
            DinoevalError: If the loss is NaN or infinite.
        """
        epoch, scaler = iteration // self.steps, self.precision.scaler
        decayed, plain = self.optimizer.param_groups
        decayed["lr"] = plain["lr"] = float(self.lr[iteration])
        decayed["weight_decay"] = float(self.weight_decay[iteration])
        with self.precision.autocast():
            with torch.no_grad():
                target = self.teacher(crops[:GLOBAL_VIEWS])
            output = self.parallel(crops)
        loss = self.loss(output, target, float(self.temperature[epoch]))
        numbers = loss.numbers(distributed.world_size(), sum_over_processes)
        if not math.isfinite(numbers["loss"]):
            raise DinoevalError(
                f"training diverged: the loss became {numbers['loss']} in epoch {epoch}. Reduce --lr, set --clip-grad, "
                "or pass --precision fp32."
            )
        self.optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss.value).backward()
        scaler.unscale_(self.optimizer)
        if self.recipe.clip_grad:
            clip_grad_per_tensor(self.student, self.recipe.clip_grad)
        if epoch < self.recipe.freeze_last_layer:
            assert self.student.head.last_layer is not None
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None  # With a gradient of zero, AdamW would still decay the weights.
        self._update_teacher("before_update", iteration)
        scaler.step(self.optimizer)
        scaler.update()
        self._update_teacher("after_update", iteration)
        if (iteration + 1) % self.steps == 0:
            self._update_teacher("after_epoch", iteration)
        return numbers

    def _update_teacher(self, moment: Moment, iteration: int) -> None:
        update_teacher(self.recipe.teacher, moment, self.teacher, self.student, float(self.momentum[iteration]))

    def state(self, epochs: int) -> dict[str, Any]:
        """Collect a full checkpoint in the released layout.

        Args:
            epochs: Number of finished epochs.

        Returns:
            Tensors and numbers. The keys of the student begin with DDP's `module.`, those of the teacher do not.
        """
        scaler = self.precision.scaler
        return {
            "student": {f"module.{name}": tensor for name, tensor in self.student.state_dict().items()},
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epochs,
            "dino_loss": self.loss.state_dict(),
            **({"fp16_scaler": scaler.state_dict()} if scaler.is_enabled() else {}),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load a full checkpoint.

        Args:
            state: What `state` returned.
        """
        self.student.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state["student"].items()})
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["dino_loss"])
        if "fp16_scaler" in state:
            self.precision.scaler.load_state_dict(state["fp16_scaler"])
