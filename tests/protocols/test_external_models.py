"""Every classification protocol scores timm and torchvision models."""

from __future__ import annotations

import importlib.util

import pytest
from paper_results import reasons

import dinoeval
from dinoeval.session import SessionConfig

OPTIONS = {
    "knn": {"k": (3,)},
    "logistic": {"solver": "cyanure" if importlib.util.find_spec("cyanure") else "sklearn"},
    "linear": {"lrs": (0.1,), "epochs": 1},
    "finetune": {"preset": "short", "epochs": 1, "warmup_epochs": 0, "train_batch_size": 12, "drop_path": 0.0},
}


CASES = [(arch, protocol) for arch in ("timm/test_vit", "timm/resnet10t", "timm/deit_tiny_patch16_224", "resnet50") for protocol in OPTIONS]


@pytest.mark.parametrize(
    ("arch", "protocol"),
    [pytest.param(*case, marks=[pytest.mark.slow] if case == ("resnet50", "finetune") else []) for case in CASES],
)
def test_protocol_scores_external_model(arch, protocol, image_folder, tmp_path):
    backbone = dinoeval.load(arch, weights="random", device="cpu")
    options = {"out": str(tmp_path / "run")} if protocol in ("linear", "finetune") else {}
    result = dinoeval.evaluate(
        protocol, backbone, session=SessionConfig(transform="dino:32/32"), data=str(image_folder), **OPTIONS[protocol], **options
    )
    assert all(0 <= value <= 100 for value in result.metrics.values())
    assert result.backbone["arch"] == arch
    assert reasons(result)
