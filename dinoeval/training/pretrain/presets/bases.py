"""Bases of the presets: the paper's DINO, its baselines, and recipes for little data.

Sources: [P] the paper; [C] facebookresearch/dino at 7c446df and its README; [I n] issue n there, answered by the authors.
"""

from __future__ import annotations

from dinoeval.training.pretrain.presets.preset import Preset

RELEASED = Preset(id="released", note="The defaults of main_dino.py on one GPU [C].")
BOOSTED = Preset(
    id="boosted",
    base=RELEASED,
    changes={"epochs": 300, "batch_size": 1024, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 30, "norm_last_layer": False},
    note='README, "boosting DINO performance": 16 GPUs with 64 images each [C].',
)

DINO_300 = Preset(
    id="dino-300ep",
    changes={
        "epochs": 300,
        "batch_size": 1024,
        "min_lr": 1e-5,
        "clip_grad": 0.0,
        "teacher_temp": 0.07,
        "warmup_teacher_temp_epochs": 30,
        "norm_last_layer": False,
        "local_crops": 10,
        "global_scale": (0.25, 1.0),
        "local_scale": (0.05, 0.25),
    },
    note="ViT-S/16 as in the ablations [P, appendix A], with the crops of the released network.",
)
DINO_100 = Preset(id="dino-100ep", base=DINO_300, changes={"epochs": 100, "local_crops": 6})
_NO_LOCAL = {"local_crops": 0, "global_scale": (0.14, 1.0)}  # [I 122]
DINO_300_GLOBAL = Preset(id="dino-300ep-0local", base=DINO_300, changes=_NO_LOCAL)
DINO_100_GLOBAL = Preset(id="dino-100ep-0local", base=DINO_300, changes={"epochs": 100, **_NO_LOCAL})

SINKHORN_CHOICES = ("3 Sinkhorn iterations over both views together, at the temperatures of the teacher",)
"""What is not published about Sinkhorn-Knopp."""
_EMBEDDING_HEAD = {"out_dim": 0, "head_activation": "relu", "head_batch_norm": True, "freeze_last_layer": 0, "target": "none"}
_AUGMENTATION = "augmentation of DINO's two global views with scale (0.14, 1)"
_HEAD = "head of three layers (2048, 2048, 256) with batch normalization and ReLU, but not after the last"
MOCO = Preset(
    id="moco-v2",
    base=DINO_300_GLOBAL,
    changes={"objective": "infonce", "weight_decay": 0.05, "weight_decay_end": 0.05, **_EMBEDDING_HEAD},
    own_choices=(_AUGMENTATION, _HEAD, "one queue for the keys of both views"),
    note="Temperature 0.1, queue of 65,536, weight decay 0.05, no clipping [I 34].",
)
BYOL = Preset(
    id="byol",
    base=DINO_300_GLOBAL,
    changes={
        "objective": "mse",
        "predictor_dim": 4096,
        "lr": 3e-4,
        "weight_decay": 0.05,
        "weight_decay_end": 0.05,
        **_EMBEDDING_HEAD,
    },
    own_choices=(_AUGMENTATION, _HEAD, "learning rate 3e-4 and weight decay 0.05, from the grid of appendix E"),
    note="Batch normalization is synchronized in all heads [P, appendix B].",
)
SWAV = Preset(
    id="swav",
    base=DINO_300,
    changes={"teacher": "copy", "target": "sinkhorn", "local_crops": 6},
    own_choices=SINKHORN_CHOICES,
)

# Not from the paper: for small images on a CPU. There are two global crops that keep most of the image. With small
# local crops, such a small network on so few images finds nothing in common between views, and its output collapses.
CIFAR10 = Preset(
    id="cifar10",
    own_arch="vit_xs4_32",
    changes={
        "epochs": 20,
        "batch_size": 64,
        "lr": 0.004,
        "warmup_epochs": 2,
        "out_dim": 1024,
        "hidden_dim": 512,
        "drop_path": 0.0,
        "clip_grad": 0.0,
        "weight_decay_end": 0.1,
        "momentum_teacher": 0.99,
        "queue_size": 4096,
        "global_crop": 32,
        "local_crop": 16,
        "local_crops": 0,
        "global_scale": (0.3, 1.0),
        "blur_radius": (0.1, 0.6),
    },
)
DIGITS = Preset(
    id="digits",
    own_arch="vit_xs8_16",
    changes={
        "epochs": 300,
        "batch_size": 64,
        "lr": 0.004,
        "warmup_epochs": 10,
        "out_dim": 512,
        "hidden_dim": 256,
        "drop_path": 0.0,
        "clip_grad": 0.0,
        "weight_decay_end": 0.04,
        "momentum_teacher": 0.99,
        "queue_size": 1024,
        "global_crop": 16,
        "local_crop": 8,
        "local_crops": 0,
        "global_scale": (0.5, 1.0),
        "blur_radius": (0.1, 0.5),
        "flip": False,
        "solarize": False,
    },
)
SMALL = {preset.id: preset for preset in (CIFAR10, DIGITS)}
"""Bases that two cores can train."""
BASES = (RELEASED, BOOSTED, DINO_300, DINO_100, DINO_300_GLOBAL, DINO_100_GLOBAL, MOCO, BYOL, SWAV, CIFAR10, DIGITS)
