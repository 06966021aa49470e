"""Presets of the networks that were released or published as a whole: Tables 2 and 3, README.

The args.txt files of the released networks are not available. Several public projects quote them, and independent copies
agree where a note does not say otherwise. [V] are the configurations of facebookresearch/vissl at 09270ed.
"""

from __future__ import annotations

from dinoeval.training.pretrain.presets.bases import BOOSTED, BYOL, DINO_300, MOCO, RELEASED, SWAV
from dinoeval.training.pretrain.presets.preset import Preset

_FP16 = "The published run used fp16: pass --precision fp16."
_RESNET_CROPS = {"global_scale": (0.14, 1.0), "local_scale": (0.05, 0.14), "drop_path": 0.0}
VIT_S16 = Preset(id="table2-vits16", base=DINO_300, changes={"epochs": 800}, published={"knn": 74.5, "linear": 77.0})
VIT_S8 = Preset(
    id="table2-vits8",
    base=DINO_300,
    own_arch="vit_s8",
    changes={"epochs": 800, "min_lr": 1e-6, "clip_grad": 3.0, "global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4)},
    published={"knn": 78.3, "linear": 79.7},
    own_choices=("end of the learning rate, clipping and crop scales, of which there is one copy only",),
)
VIT_B16 = Preset(
    id="table2-vitb16",
    base=DINO_300,
    own_arch="vit_b16",
    changes={
        "epochs": 400,
        "lr": 7.5e-4,
        "min_lr": 2e-6,
        "clip_grad": 0.3,
        "freeze_last_layer": 3,
        "norm_last_layer": True,
        "warmup_teacher_temp_epochs": 50,
    },
    published={"knn": 76.1, "linear": 78.2},
)
VIT_B8 = Preset(
    id="table2-vitb8",
    base=VIT_B16,
    own_arch="vit_b8",
    changes={"epochs": 300, "batch_size": 1056, "lr": 5e-4, "clip_grad": 3.0, "warmup_teacher_temp": 0.03},
    published={"knn": 77.4, "linear": 80.1},
    note="176 GPUs with 6 images each.",
)
RESNET50 = Preset(
    id="table2-rn50",
    base=DINO_300,
    own_arch="resnet50",
    changes={
        "epochs": 800,
        "batch_size": 4080,
        "optimizer": "lars",
        "lr": 0.3,
        "min_lr": 0.0048,
        "weight_decay": 1e-6,
        "weight_decay_end": 1e-6,
        "norm_last_layer": True,
        "warmup_teacher_temp_epochs": 50,
        "out_dim": 60_000,
        "head_layers": 2,
        "hidden_dim": 4096,
        "head_batch_norm": True,
        "local_crops": 6,
        **_RESNET_CROPS,
    },
    published={"knn": 67.5, "linear": 75.3},
    own_choices=("weight normalization of the prototypes: the released head has none [I 189]",),
    note="80 GPUs with 51 images each [I 133].",
)
XCIT_S16 = Preset(
    id="readme-xcit-s12-p16",
    base=DINO_300,
    own_arch="xcit_small_12_p16",
    changes={
        "lr": 2.5e-4,
        "min_lr": 4e-5,
        "drop_path": 0.05,
        "local_crops": 8,
        "global_scale": (0.3, 1.0),
        "local_scale": (0.05, 0.3),
    },
    published={"knn": 76.0, "linear": 77.8},
    note=f"From [V], where the warm-up starts at the end rate. {_FP16}",
)
XCIT_M16 = Preset(
    id="readme-xcit-m24-p16",
    base=XCIT_S16,
    own_arch="xcit_medium_24_p16",
    changes={"min_lr": 1e-5, "drop_path": 0.15},
    published={"knn": 76.4, "linear": 78.8},
    note=f"From [V], where the warm-up starts at the end rate. {_FP16}",
)
_PATCH_8 = ("all values, which are those of the network with patches of 16 pixels",)
VANILLA = Preset(
    id="readme-vanilla", base=RELEASED, changes={"batch_size": 512}, published={"knn": 69.3, "linear": 74.0}, note=f"8 GPUs. {_FP16}"
)
README_BOOSTED = Preset(
    id="readme-boosted",
    base=BOOSTED,
    published={"knn": 73.3, "linear": 76.0},
    note=f"16 GPUs. {_FP16}",
)
PRESETS = (
    VIT_S16,
    VIT_S8,
    VIT_B16,
    VIT_B8,
    RESNET50,
    Preset(id="table2-vits16-moco", base=MOCO, changes={"epochs": 800}, published={"knn": 64.4, "linear": 72.7}),
    Preset(id="table2-vits16-swav", base=SWAV, changes={"epochs": 800}, published={"knn": 66.3, "linear": 73.5}),
    Preset(id="table2-vits16-byol", base=BYOL, published={"knn": 66.6, "linear": 71.4}, note="More epochs lower its scores [P]."),
    Preset(
        id="table3-gldv2",
        base=README_BOOSTED,
        published={
            "ROxford medium mAP": 51.5,
            "ROxford hard mAP": 24.3,
            "RParis medium mAP": 75.3,
            "RParis hard mAP": 51.6,
        },
        note="Trained on Google Landmarks v2 from scratch [I 156].",
    ),
    VANILLA,
    README_BOOSTED,
    Preset(
        id="readme-rn50",
        base=VANILLA,
        own_arch="resnet50",
        changes={"optimizer": "sgd", "lr": 0.03, "weight_decay": 1e-4, "weight_decay_end": 1e-4, **_RESNET_CROPS},
        note=f"8 GPUs. {_FP16}",
    ),
    XCIT_S16,
    Preset(
        id="readme-xcit-s12-p8",
        base=XCIT_S16,
        own_arch="xcit_small_12_p8",
        published={"knn": 77.1, "linear": 79.2},
        own_choices=_PATCH_8,
    ),
    XCIT_M16,
    Preset(
        id="readme-xcit-m24-p8",
        base=XCIT_M16,
        own_arch="xcit_medium_24_p8",
        published={"knn": 77.9, "linear": 80.3},
        own_choices=_PATCH_8,
    ),
)
