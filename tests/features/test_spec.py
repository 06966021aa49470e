"""Cache keys: a change of these values makes every cached feature useless."""

from __future__ import annotations

import dataclasses

import dinoeval
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import DINO_TRANSFORM
from dinoeval.features.readout import LastCls
from dinoeval.features.spec import feature_spec, key_of


def test_feature_spec_lists_everything_that_determines_features(tiny_weights, image_folder):
    backbone = dinoeval.load(weights=tiny_weights, device="cpu", precision="bf16")
    images = dataclasses.replace(open_images(image_folder), stamp="stamp")
    assert feature_spec(backbone, images, LastCls(4), DINO_TRANSFORM) == {
        "extraction": 1,
        "weights": backbone.digest,
        "network": {"patch_size": 4, "image_size": 16, "dim": 96, "depth": 4, "num_heads": 3, "mlp_ratio": 4.0},
        "precision": "bf16",
        "readout": "last4",
        "transform": "dino@1:256/224",
        "image": "image@1",
        "images": images.fingerprint(),
        "stamp": "stamp",
    }


def test_key_of_is_a_pinned_hash():
    assert key_of({"readout": "cls", "network": {"dim": 96, "mlp_ratio": 4.0}}) == "23945a0114f902c4df949271533c9246"


def test_network_of_an_external_model_has_pinned_fields():
    """Field names are part of every key."""
    network = dataclasses.asdict(dinoeval.load("timm/deit_tiny_patch16_224", weights="random", device="cpu").config)
    assert network == {
        "library": "timm",
        "name": "deit_tiny_patch16_224",
        "dim": 192,
        "patch_size": 16,
        "image_size": 224,
        "depth": 12,
        "readouts": ("cls", "lastN", "clsavg", "gem", "patches"),
        "preprocessing": {
            "resize": 248,
            "crop": 224,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "squash": False,
        },
    }
