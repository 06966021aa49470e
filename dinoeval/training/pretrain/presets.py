"""Recipe: every number of a training run, with the released code's defaults; and recipes that have a name."""

from __future__ import annotations

import dataclasses

from dinoeval.errors import ConfigError, unknown


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """The defaults are those of main_dino.py at 7c446df, which are not all the paper's; see PRESETS."""

    epochs: int = 100
    batch_size: int = 64
    """Images a step. The released default is 64 on each of 8 GPUs."""
    lr: float = 0.0005
    """Peak learning rate for a batch of 256; scaled by batch / 256."""
    min_lr: float = 1e-6
    warmup_epochs: int = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_grad: float = 3.0
    """Largest norm of each parameter tensor's gradient; 0 for none. The author's ViT-S runs used 0."""
    freeze_last_layer: int = 1
    """Epochs in which the head's last layer stays as it is."""
    drop_path: float = 0.1
    """Stochastic depth of the student."""

    out_dim: int = 65536
    """Prototypes, K."""
    hidden_dim: int = 2048
    """Width of the head."""
    norm_last_layer: bool = True
    """Keep the prototypes at length 1. The released ViT-S were trained without, ViT-B with."""
    momentum_teacher: float = 0.996
    """Raised to 1 by a cosine. Small batches want more: 0.9995 for 256."""
    student_temp: float = 0.1
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.04
    """The paper says 0.07 after 30 epochs."""
    warmup_teacher_temp_epochs: int = 0
    center_momentum: float = 0.9

    global_crop: int = 224
    """Pixels."""
    local_crop: int = 96
    local_crops: int = 8
    """How many; 0 for no multi-crop."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    flip: bool = True
    """Mirror half of the crops; off for writing and digits."""
    jitter: float = 0.8
    """Chance that a crop's brightness, contrast, saturation and hue are changed."""
    solarize: bool = True
    """Invert the bright pixels of a fifth of the second global crops."""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the Gaussian blur, in pixels of the crop."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "out_dim", "hidden_dim", "global_crop", "local_crop"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more: {getattr(self, name)}")
        for name in ("clip_grad", "local_crops", "freeze_last_layer", "weight_decay", "weight_decay_end", "lr", "min_lr"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 or more: {getattr(self, name)}")
        for name in ("student_temp", "warmup_teacher_temp", "teacher_temp"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0: {getattr(self, name)}")
        for name in ("drop_path", "momentum_teacher", "center_momentum", "jitter"):
            if not 0 <= getattr(self, name) <= 1 or (name == "drop_path" and self.drop_path == 1):
                raise ConfigError(f"{name} must lie between 0 and 1: {getattr(self, name)}")
        if not 0 <= self.blur_radius[0] <= self.blur_radius[1]:
            raise ConfigError(f"blur_radius must be two lengths, small before large: {self.blur_radius}")
        for name in ("warmup_epochs", "warmup_teacher_temp_epochs"):
            if not 0 <= getattr(self, name) <= self.epochs:
                raise ConfigError(f"{name} = {getattr(self, name)} does not fit into {self.epochs} epochs")
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ConfigError(f"{name} must be two shares of the area, low before high: {low} {high}")


PRESETS = {
    "released": Recipe(),
    # README of the released code, "boosted" run, 16 GPUs of 64 images.
    "boosted": Recipe(epochs=300, batch_size=1024, teacher_temp=0.07, warmup_teacher_temp_epochs=30, norm_last_layer=False),
    # Ours, for small pictures on a processor. Two gentle views of the whole picture: a net this small, on so few images,
    # finds nothing that small local crops have in common, and its output becomes uniform.
    "cifar10": Recipe(
        epochs=20, batch_size=64, lr=0.004, warmup_epochs=2, out_dim=1024, hidden_dim=512, drop_path=0.0, clip_grad=0.0,
        weight_decay_end=0.1, momentum_teacher=0.99, global_crop=32, local_crop=16, local_crops=0, global_scale=(0.3, 1.0),
        blur_radius=(0.1, 0.6),
    ),
    "digits": Recipe(
        epochs=300, batch_size=64, lr=0.004, warmup_epochs=10, out_dim=512, hidden_dim=256, drop_path=0.0, clip_grad=0.0,
        weight_decay_end=0.04, momentum_teacher=0.99, global_crop=16, local_crop=8, local_crops=0, global_scale=(0.5, 1.0),
        blur_radius=(0.1, 0.5), flip=False, solarize=False,
    ),
}  # fmt: skip


def get_recipe(name: str) -> Recipe:
    if name not in PRESETS:
        raise ConfigError(unknown("preset", name, PRESETS))
    return PRESETS[name]
