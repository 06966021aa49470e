"""Recipe: all values of a pretraining run. DINO, BYOL, MoCo-v2 and SwAV are combinations of the same parts.

Each part has a module: `objectives`, `targets`, `teachers`, `head`, `augment`, `optimizers`, `schedules`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from dinoeval.errors import ConfigError
from dinoeval.training.checks import AREA_FRACTIONS, check_fields, is_area_range

Objective = Literal["ce", "mse", "infonce"]
Target = Literal["center", "softmax_batch", "sinkhorn", "none", "hard"]
Teacher = Literal["ema", "copy", "previous_step", "previous_epoch"]
Optimizer = Literal["adamw", "sgd", "lars"]
_TARGETS: dict[Objective, tuple[Target, ...]] = {
    "ce": ("center", "softmax_batch", "sinkhorn", "none", "hard"),
    "mse": ("center", "none"),
    "infonce": ("none",),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pretraining recipe.

    The defaults are those of main_dino.py at 7c446df. Some of them differ from the paper; see `presets`.
    """

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step. The released default is 64 on each of 8 GPUs."""
    optimizer: Optimizer = "adamw"
    """adamw, sgd or lars; the last two with a momentum of 0.9. LARS is that of the released code."""
    lr: float = 0.0005
    """Peak learning rate for a batch of 256; scaled by batch / 256."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine; not scaled."""
    warmup_epochs: int = 10
    """Epochs in which the learning rate rises from 0 to its peak."""
    weight_decay: float = 0.04
    """Weight decay at the start."""
    weight_decay_end: float = 0.4
    """Weight decay at the end; it follows a cosine in between."""
    clip_grad: float = 3.0
    """Largest L2 norm of the gradient of each parameter tensor; 0 turns clipping off. The authors used 0 for ViT-S."""
    freeze_last_layer: int = 1
    """Epochs in which the last layer of the head is not trained."""
    drop_path: float = 0.1
    """Stochastic depth of the student: the rate of the last block."""

    objective: Objective = "ce"
    """ce: cross-entropy with the target; mse: squared distance of normalized outputs; infonce: contrast with a queue."""
    student_temp: float = 0.1
    """Softmax temperature of the student; also of infonce."""
    queue_size: int = 65536
    """Outputs of earlier images that infonce contrasts with."""

    target: Target = "center"
    """What makes a target of the teacher output: center: subtract a moving average; softmax_batch, sinkhorn: balance the
    prototypes over the batch; none; hard: the largest centered output, without a temperature."""
    center_momentum: float = 0.9
    """Momentum of the center of the teacher output."""
    sinkhorn_iterations: int = 3
    """Iterations of sinkhorn."""
    warmup_teacher_temp: float = 0.04
    """Softmax temperature of the teacher at the start."""
    teacher_temp: float = 0.04
    """Softmax temperature of the teacher after its warm-up. The paper uses 0.07 after 30 epochs."""
    warmup_teacher_temp_epochs: int = 0
    """Epochs in which the temperature of the teacher rises."""

    teacher: Teacher = "ema"
    """ema: moving average of the student; copy: the student itself; previous_step, previous_epoch: an earlier student."""
    momentum_teacher: float = 0.996
    """Momentum of ema at the start; it follows a cosine. The authors recommend 0.9995 for a batch of 256."""
    momentum_teacher_end: float = 1.0
    """Momentum of ema at the end."""

    head_layers: int = 3
    """Linear layers of the head before its prototypes; without a bottleneck, all linear layers."""
    hidden_dim: int = 2048
    """Width of the hidden layers of the head."""
    bottleneck_dim: int = 256
    """Width of the normalized output before the prototypes; 0 removes it, the normalization and the prototypes."""
    out_dim: int = 65536
    """Number of prototypes, K. 0 removes them, so that the normalized output is compared, as in BYOL and MoCo."""
    head_activation: Literal["gelu", "relu"] = "gelu"
    """Activation in the head and in the predictor."""
    head_batch_norm: bool = False
    """Batch normalization of the hidden layers of head and predictor."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1, as for the released ViT-B models. The released ViT-S models were trained without it."""
    predictor_dim: int = 0
    """Width of the hidden layer of a predictor, which only the student has; 0: no predictor."""

    global_crop: int = 224
    """Side of the global crops, in pixels."""
    local_crop: int = 96
    """Side of the local crops, in pixels."""
    local_crops: int = 8
    """Local crops per image; 0 turns multi-crop off."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop as a fraction of the image."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop as a fraction of the image."""
    flip: bool = True
    """Flip half of the crops horizontally. Turn it off for digits and text."""
    jitter: float = 0.8
    """Probability that brightness, contrast, saturation and hue of a crop are changed."""
    solarize: bool = True
    """Solarize one fifth of the second global crops."""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the radius of the Gaussian blur, in pixels of the crop."""

    def __post_init__(self) -> None:
        counts = ("epochs", "batch_size", "hidden_dim", "global_crop", "local_crop", "head_layers", "queue_size", "sinkhorn_iterations")
        check_fields(self, counts, lambda value: value >= 1, "at least 1")
        amounts = ("clip_grad", "local_crops", "freeze_last_layer", "weight_decay", "weight_decay_end", "lr", "min_lr")
        widths = ("out_dim", "bottleneck_dim", "predictor_dim")
        check_fields(self, (*amounts, *widths), lambda value: value >= 0, "at least 0")
        temperatures = ("student_temp", "warmup_teacher_temp", "teacher_temp")
        check_fields(self, temperatures, lambda value: value > 0, "above 0")
        check_fields(
            self, ("momentum_teacher", "momentum_teacher_end", "center_momentum", "jitter"), lambda value: 0 <= value <= 1, "from 0 to 1"
        )
        check_fields(self, ("drop_path",), lambda value: 0 <= value < 1, "at least 0 and below 1")
        check_fields(self, ("blur_radius",), lambda value: 0 <= value[0] <= value[1], "two radii in pixels, 0 <= MIN <= MAX")
        warmups = ("warmup_epochs", "warmup_teacher_temp_epochs")
        check_fields(self, warmups, lambda value: 0 <= value <= self.epochs, f"from 0 to --epochs {self.epochs}")
        check_fields(self, ("global_scale", "local_scale"), is_area_range, AREA_FRACTIONS)
        self._check_parts()

    def _check_parts(self) -> None:
        """Reject parts that do not work together."""
        if self.target not in _TARGETS[self.objective]:
            fitting = " or ".join(_TARGETS[self.objective])
            raise ConfigError(f"--objective {self.objective} takes --target {fitting}, got {self.target}")
        if not self.output_dim:
            raise ConfigError("the head has no output: --out-dim or --bottleneck-dim must be above 0")
        if self.objective == "ce" and not self.out_dim:
            raise ConfigError("--objective ce compares distributions over prototypes: --out-dim must be above 0")
        if self.freeze_last_layer and not self.out_dim:
            raise ConfigError("a head without prototypes has no layer to freeze: pass --freeze-last-layer 0 with --out-dim 0")
        if self.predictor_dim and not self.bottleneck_dim:
            raise ConfigError("a predictor follows the bottleneck of the head: --predictor-dim requires --bottleneck-dim above 0")

    @property
    def output_dim(self) -> int:
        """Width of the output: prototypes, or the bottleneck without them."""
        return self.out_dim or self.bottleneck_dim
