"""Recipe, all values of a pretraining run with the defaults of the released code; and named recipes."""

from __future__ import annotations

import dataclasses

from dinoeval.errors import ConfigError, unknown
from dinoeval.training.checks import AREA_FRACTIONS, check_fields, is_area_range


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A pretraining recipe.

    The defaults are those of main_dino.py at 7c446df. Some of them differ from the paper; see `PRESETS`.
    """

    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 64
    """Images per step. The released default is 64 on each of 8 GPUs."""
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

    out_dim: int = 65536
    """Number of prototypes, K."""
    hidden_dim: int = 2048
    """Width of the hidden layers of the head."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1, as for the released ViT-B models. The released ViT-S models were trained without it."""
    momentum_teacher: float = 0.996
    """Momentum of the teacher at the start; a cosine raises it to 1. The authors recommend 0.9995 for a batch of 256."""
    student_temp: float = 0.1
    """Softmax temperature of the student."""
    warmup_teacher_temp: float = 0.04
    """Softmax temperature of the teacher at the start."""
    teacher_temp: float = 0.04
    """Softmax temperature of the teacher after its warm-up. The paper uses 0.07 after 30 epochs."""
    warmup_teacher_temp_epochs: int = 0
    """Epochs in which the temperature of the teacher rises."""
    center_momentum: float = 0.9
    """Momentum of the center of the teacher output."""

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
        counts = ("epochs", "batch_size", "out_dim", "hidden_dim", "global_crop", "local_crop")
        check_fields(self, counts, lambda value: value >= 1, "at least 1")
        amounts = ("clip_grad", "local_crops", "freeze_last_layer", "weight_decay", "weight_decay_end", "lr", "min_lr")
        check_fields(self, amounts, lambda value: value >= 0, "at least 0")
        temperatures = ("student_temp", "warmup_teacher_temp", "teacher_temp")
        check_fields(self, temperatures, lambda value: value > 0, "above 0")
        check_fields(self, ("momentum_teacher", "center_momentum", "jitter"), lambda value: 0 <= value <= 1, "from 0 to 1")
        check_fields(self, ("drop_path",), lambda value: 0 <= value < 1, "at least 0 and below 1")
        check_fields(self, ("blur_radius",), lambda value: 0 <= value[0] <= value[1], "two radii in pixels, 0 <= MIN <= MAX")
        warmups = ("warmup_epochs", "warmup_teacher_temp_epochs")
        check_fields(self, warmups, lambda value: 0 <= value <= self.epochs, f"from 0 to --epochs {self.epochs}")
        check_fields(self, ("global_scale", "local_scale"), is_area_range, AREA_FRACTIONS)


PRESETS = {
    "released": Recipe(),
    # The "boosted" run in the README of the released code: 16 GPUs with 64 images each.
    "boosted": Recipe(epochs=300, batch_size=1024, teacher_temp=0.07, warmup_teacher_temp_epochs=30, norm_last_layer=False),
    # Not from the paper: for small images on a CPU. There are two global crops that keep most of the image. With small
    # local crops, such a small network on so few images finds nothing in common between views, and its output collapses.
    "cifar10": Recipe(
        epochs=20,
        batch_size=64,
        lr=0.004,
        warmup_epochs=2,
        out_dim=1024,
        hidden_dim=512,
        drop_path=0.0,
        clip_grad=0.0,
        weight_decay_end=0.1,
        momentum_teacher=0.99,
        global_crop=32,
        local_crop=16,
        local_crops=0,
        global_scale=(0.3, 1.0),
        blur_radius=(0.1, 0.6),
    ),
    "digits": Recipe(
        epochs=300,
        batch_size=64,
        lr=0.004,
        warmup_epochs=10,
        out_dim=512,
        hidden_dim=256,
        drop_path=0.0,
        clip_grad=0.0,
        weight_decay_end=0.04,
        momentum_teacher=0.99,
        global_crop=16,
        local_crop=8,
        local_crops=0,
        global_scale=(0.5, 1.0),
        blur_radius=(0.1, 0.5),
        flip=False,
        solarize=False,
    ),
}


def get_recipe(name: str) -> Recipe:
    """Look up a preset.

    Args:
        name: A key of `PRESETS`.

    Returns:
        The recipe.

    Raises:
        ConfigError: If no preset has this name.

    Examples:
        >>> get_recipe("boosted").teacher_temp
        0.07
    """
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]
