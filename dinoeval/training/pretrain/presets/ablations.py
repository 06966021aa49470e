"""Presets of the ablations: Tables 7, 8, 9, 13, 14 and 15, Figures 5, 6 and 7, appendices C, D and E."""

from __future__ import annotations

from typing import Any

from dinoeval.training.pretrain.presets.bases import (
    BYOL,
    DINO_100,
    DINO_100_GLOBAL,
    DINO_300,
    DINO_300_GLOBAL,
    MOCO,
    SINKHORN_CHOICES,
    SWAV,
)
from dinoeval.training.pretrain.presets.preset import Preset
from dinoeval.training.pretrain.presets.released import RESNET50, VIT_B8, VIT_B16, VIT_S8

_CROPS = ("10 local crops; the row may have 6",)
_PREDICTOR = ("predictor 256-2048-256 with GELU before the normalization",)
_SHARPENING = ("no sharpening is a temperature of 0.1, that of the student", "10 local crops; the figure may have none")
_RESNET_PARTS = {"head_activation": "relu", "head_batch_norm": True, "drop_path": 0.0, "clip_grad": 0.0}
_NO_SHARPENING = {"warmup_teacher_temp": 0.1, "teacher_temp": 0.1, "warmup_teacher_temp_epochs": 0}


def _scores(knn: float, linear: float) -> dict[str, float]:
    return {"knn": knn, "linear": linear}


_TABLE7 = (
    Preset(id="table7-row1", base=DINO_300, published=_scores(72.8, 76.1)),
    Preset(id="table7-row2", base=DINO_300, changes={"teacher": "copy"}, published=_scores(0.1, 0.1)),
    Preset(
        id="table7-row3",
        base=DINO_300,
        changes={"target": "sinkhorn"},
        published=_scores(72.2, 76.0),
        own_choices=_CROPS + SINKHORN_CHOICES,
    ),
    Preset(id="table7-row4", base=DINO_300_GLOBAL, published=_scores(67.9, 72.5)),
    Preset(
        id="table7-row5",
        base=DINO_300,
        changes={"objective": "mse"},
        published=_scores(52.6, 62.4),
        own_choices=(*_CROPS, "the center is subtracted before outputs are normalized"),
    ),
    Preset(
        id="table7-row6", base=DINO_300, changes={"predictor_dim": 2048}, published=_scores(71.8, 75.6), own_choices=_CROPS + _PREDICTOR
    ),
    Preset(id="table7-row7", base=BYOL, published=_scores(66.6, 71.4)),
    Preset(id="table7-row8", base=MOCO, published=_scores(62.0, 71.6)),
    Preset(id="table7-row9", base=SWAV, published=_scores(64.7, 71.8)),
)
_ROW1, _ROW2, _ROW3, _ROW4, _ROW5, _ROW6, _ROW7, _ROW8, _ROW9 = _TABLE7
_TABLE13 = (
    Preset(id="table13-vits-moco", base=_ROW8, published=_ROW8.published),
    Preset(id="table13-vits-byol", base=_ROW7, published=_ROW7.published),
    Preset(id="table13-vits-swav", base=_ROW9, published=_ROW9.published),
    Preset(id="table13-vits-dino", base=_ROW1, published=_ROW1.published),
    Preset(
        id="table13-rn50-dino",
        base=RESNET50,
        changes={"epochs": 300},
        published=_scores(65.6, 74.5),
        own_choices=("all values but the epochs, which are those of the released ResNet-50",),
    ),
    Preset(
        id="table13-rn50-moco",
        base=MOCO,
        own_arch="resnet50",
        changes={
            "batch_size": 256,
            "optimizer": "sgd",
            "lr": 0.03,
            "min_lr": 0.0,
            "warmup_epochs": 0,
            "weight_decay": 1e-4,
            "weight_decay_end": 1e-4,
            "student_temp": 0.2,
            "momentum_teacher": 0.999,
            "momentum_teacher_end": 0.999,
            **_RESNET_PARTS,
        },
        published=_scores(62.9, 71.1),
        own_choices=("the values of facebookresearch/moco, with the head of three layers of the paper",),
    ),
    Preset(
        id="table13-rn50-byol",
        base=BYOL,
        own_arch="resnet50",
        changes={
            "batch_size": 4096,
            "optimizer": "lars",
            "lr": 0.3,
            "min_lr": 0.0,
            "weight_decay": 1e-6,
            "weight_decay_end": 1e-6,
            "momentum_teacher": 0.99,
            "head_layers": 2,
            "hidden_dim": 4096,
            **_RESNET_PARTS,
        },
        published=_scores(65.4, 72.7),
        own_choices=("the values of BYOL's own code",),
    ),
    Preset(
        id="table13-rn50-swav",
        base=SWAV,
        own_arch="resnet50",
        changes={
            "batch_size": 4096,
            "optimizer": "lars",
            "lr": 0.3,
            "min_lr": 0.0048,
            "weight_decay": 1e-6,
            "weight_decay_end": 1e-6,
            "warmup_teacher_temp": 0.05,
            "teacher_temp": 0.05,
            "warmup_teacher_temp_epochs": 0,
            "out_dim": 3000,
            "head_layers": 2,
            "bottleneck_dim": 128,
            "norm_last_layer": True,
            "global_scale": (0.14, 1.0),
            "local_scale": (0.05, 0.14),
            **_RESNET_PARTS,
        },
        published=_scores(65.4, 74.1),
        own_choices=("the values of facebookresearch/swav with LARS instead of LARC, and augmentation and loss of DINO",),
    ),
)


def _linear(row: int, base: Preset, linear: float, **more: Any) -> Preset:
    return Preset(id=f"table14-row{row}", base=base, published={"linear": linear}, **more)


_TABLE14 = (
    _linear(1, _ROW1, 76.1),
    _linear(2, _ROW5, 62.4),
    _linear(3, _ROW6, 75.6),
    _linear(4, _ROW4, 72.5),
    _linear(5, MOCO, 71.4, note="Tables 7 and 13 and appendix E print 71.6."),
    _linear(6, MOCO, 73.4, changes={"local_crops": 6, "global_scale": (0.25, 1.0)}),
    _linear(7, BYOL, 71.4),
    _linear(8, BYOL, 0.1, changes={"predictor_dim": 0}),
    _linear(9, DINO_300_GLOBAL, 52.6, changes={"objective": "mse"}, own_choices=("no local crops, as in row 4",)),
    _linear(10, BYOL, 64.8, changes={"local_crops": 6, "global_scale": (0.25, 1.0)}),
)
_TABLE15 = (
    Preset(id="table15-row1", base=_ROW1, published={"linear": 76.1}),
    Preset(
        id="table15-row2",
        base=DINO_300,
        changes={"target": "softmax_batch"},
        published={"linear": 75.8},
        own_choices=(*_CROPS, "the temperatures of the teacher, over both views together"),
    ),
    Preset(id="table15-row3", base=_ROW3, published={"linear": 76.0}),
    Preset(id="table15-row4", base=_ROW2, published={"linear": 0.1}),
    Preset(
        id="table15-row5",
        base=DINO_300,
        changes={"teacher": "copy", "target": "softmax_batch", "local_crops": 6},
        published={"linear": 72.2},
        own_choices=("6 local crops, as in row 6", "the temperatures of the teacher, over both views together"),
    ),
    Preset(id="table15-row6", base=_ROW9, published={"linear": 71.8}),
)
_COST = {0: (15.3, 9.3), 2: (17.0, 10.5), 6: (20.3, 12.9), 10: (24.2, 15.4)}  # hours for 100 epochs, GiB per GPU
_TABLE8 = tuple(
    Preset(
        id=f"table8-{crops}local-{epochs}ep",
        base=DINO_300,
        changes={"epochs": epochs, **({"local_crops": crops} if crops else {"local_crops": 0, "global_scale": (0.14, 1.0)})},
        published={"linear": linear, "hours on 16 GPUs": round(_COST[crops][0] * epochs / 100, 1), "GiB per GPU": _COST[crops][1]},
    )
    for epochs, scores in ((100, (67.8, 71.5, 73.8, 74.6)), (300, (72.5, 74.5, 75.9, 76.1)))
    for crops, linear in zip(_COST, scores, strict=True)
)
_TABLE9 = (
    *(
        Preset(id=f"table9-bs{size}", base=DINO_100_GLOBAL, changes={"batch_size": size}, published={"knn": knn})
        for size, knn in ((128, 57.9), (256, 59.1), (512, 59.6), (1024, 59.9))
    ),
    Preset(id="table9-bs8", base=DINO_100_GLOBAL, changes={"batch_size": 8, "epochs": 50}, published={"knn": 35.2}),
)
_FIGURE5 = (
    Preset(id="figure5-s16", base=DINO_300, published={"knn": 72.8}),
    Preset(id="figure5-s8", base=VIT_S8, changes={"epochs": 300}),
    Preset(id="figure5-s5", base=DINO_300, own_arch="vit_s5", own_choices=("all values, which are those of ViT-S/16",)),
    Preset(id="figure5-b16", base=VIT_B16, changes={"epochs": 300}, published={"knn": 75.1}),
    Preset(id="figure5-b8", base=VIT_B8),
)
_FIGURE6 = (
    *(
        Preset(id=f"figure6-{name}", base=DINO_300, changes={"teacher": name.replace("-", "_")}, published={"knn": knn})
        for name, knn in (("copy", 0.1), ("previous-step", 0.1), ("previous-epoch", 66.6))
    ),
    Preset(id="figure6-momentum", base=DINO_300, published={"knn": 72.8}),
    Preset(id="figure6-left", base=DINO_300, note="The figure shows k-NN of teacher and student by epoch."),
    Preset(id="appD-rn50", base=RESNET50, note="The figure shows k-NN of teacher and student by epoch."),
)
_FIGURE7 = (
    Preset(id="figure7-both", base=DINO_300, own_choices=_SHARPENING[1:]),
    Preset(id="figure7-no-centering", base=DINO_300, changes={"target": "none"}, own_choices=_SHARPENING[1:]),
    Preset(id="figure7-no-sharpening", base=DINO_300, changes=_NO_SHARPENING, own_choices=_SHARPENING),
    Preset(id="figure7-neither", base=DINO_300, changes={"target": "none", **_NO_SHARPENING}, own_choices=_SHARPENING),
)


def _of_100(name: str, knn: float, **changes: Any) -> Preset:
    return Preset(id=name, base=DINO_100, changes=changes, published={"knn": knn})


def _temperature(value: float, knn: float) -> Preset:
    constant = {"warmup_teacher_temp": value, "teacher_temp": value, "warmup_teacher_temp_epochs": 0}
    return _of_100(f"appD-temp-{value:g}", knn, **constant)


_APPENDIX_C = (
    _of_100("appC-bn-off", 69.7),
    _of_100("appC-bn-on", 68.6, head_batch_norm=True),
    *(_of_100(f"appC-l2-{layers}", knn, out_dim=4096, head_layers=layers - 1) for layers, knn in ((2, 62.2), (3, 68.0), (4, 69.3))),
    *(
        _of_100(f"appC-nol2-{layers}", knn, out_dim=4096, head_layers=layers, bottleneck_dim=0)
        for layers, knn in ((1, 61.6), (2, 62.9), (3, 0.1), (4, 0.1))
    ),
    *(
        _of_100(f"appC-k{count}", knn, out_dim=count)
        for count, knn in ((1024, 67.8), (4096, 69.3), (16384, 69.2), (65536, 69.7), (262144, 69.1))
    ),
    _of_100("appC-gelu", 69.7),
    _of_100("appC-relu", 68.9, head_activation="relu"),
)
_APPENDIX_D = (
    *(_of_100(f"appD-center-{m:g}", knn, center_momentum=m) for m, knn in ((0.0, 69.1), (0.9, 69.7), (0.99, 69.4), (0.999, 0.1))),
    _of_100("appD-temp-0", 43.9, target="hard"),
    *(_temperature(value, knn) for value, knn in ((0.02, 66.7), (0.04, 69.6), (0.06, 68.7), (0.08, 0.1))),
    _of_100("appD-temp-warmup", 69.7),
    *(
        Preset(id=f"appD-epochs-{epochs}", base=DINO_300, changes={"epochs": epochs}, published={"knn": knn})
        for epochs, knn in ((100, 70.9), (300, 72.8), (800, 74.5))
    ),
    *(
        Preset(id=f"appD-heads-{heads}", base=DINO_300, own_arch=f"vit_s16_h{heads}", published={"knn": knn, "images per second": speed})
        for heads, knn, speed in ((6, 72.8, 1007), (8, 73.1, 971), (12, 73.7, 927), (16, 73.8, 860))
    ),
    *(
        Preset(
            id=f"appD-jaccard-{name}",
            base=base,
            changes={"epochs": 800},
            published={"Jaccard index": jaccard},
            own_choices=("800 epochs, as in Table 2",),
        )
        for name, base, jaccard in (("dino", DINO_300, 45.9), ("moco", MOCO, 46.3), ("swav", SWAV, 46.8))
    ),
    Preset(id="appD-jaccard-no-multicrop", base=DINO_300_GLOBAL, published={"Jaccard index": 45.1}, own_choices=("300 epochs",)),
    Preset(id="appD-jaccard-byol", base=BYOL, published={"Jaccard index": 47.8}, own_choices=("300 epochs, as in Table 2",)),
)
_APPENDIX_E = (
    *(
        _of_100(f"appE-s{s:.2f}", knn, global_scale=(s, 1.0), local_scale=(0.05, s))
        for s, knn in ((0.08, 65.6), (0.16, 68.0), (0.24, 69.7), (0.32, 69.8), (0.48, 69.5))
    ),
    *(
        Preset(id=f"appE-{name}-{crops}local", base=base, changes=changes, published=_scores(*scores))
        for name, base, plain, multi in (
            ("byol", BYOL, (66.6, 71.4), (59.8, 64.8)),
            ("swav", SWAV, (60.5, 68.5), (64.7, 71.8)),
            ("moco", MOCO, (62.0, 71.6), (65.4, 73.4)),
            ("dino", DINO_300, (67.9, 72.5), (72.7, 75.9)),
        )
        for crops, scores, changes in (
            (0, plain, {"local_crops": 0, "global_scale": (0.14, 1.0)}),
            (6, multi, {"local_crops": 6, "global_scale": (0.25, 1.0)}),
        )
    ),
    Preset(
        id="appE-byol-sweep",
        base=BYOL,
        changes={"local_crops": 2, "global_scale": (0.25, 1.0), "lr": 1e-5, "weight_decay": 0.02, "weight_decay_end": 0.02},
        note="One point of a grid: --local-crops 2, 4, 6; --lr 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3; weight decay 0.02, 0.05, 0.1.",
    ),
)
PRESETS = (
    *_TABLE7,
    *_TABLE13,
    *_TABLE14,
    *_TABLE15,
    *_TABLE8,
    *_TABLE9,
    *_FIGURE5,
    *_FIGURE6,
    *_FIGURE7,
    *_APPENDIX_C,
    *_APPENDIX_D,
    *_APPENDIX_E,
)
