"""Areas of features: weights, and each readout of each network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import dinoeval
from dinoeval.models.checkpoints import save_backbone, tensor_digest
from dinoeval.models.download import local_path, sha256_of
from dinoeval.models.zoo import get_weights
from regression_areas.inputs import SMALL, TINY, image_folder, image_modes, make_images, network, random_state
from regression_areas.recording import Recorder

READOUTS = ("cls", "last2", "clsavg", "gem", "gem3", "patches")
VIT, XCIT = "timm/vit_tiny_patch16_224", "timm/xcit_nano_12_p16_224"


def checkpoints(record: Recorder, folder: Path) -> None:
    """Digests of the bundled weights, of a full checkpoint, and of random weights."""
    bundled = dinoeval.load(device="cpu")
    sha256 = sha256_of(local_path(get_weights("vit_digits")))
    record.add_all("bundled", {"digest": bundled.digest, "arch": bundled.arch, "sha256": sha256})
    record.add_state("bundled", bundled.network.state_dict())
    state, other = random_state(TINY), random_state(TINY, seed=1)
    record.add("drawn/digest", tensor_digest(state))
    full = {"student": {f"module.backbone.{key}": value for key, value in other.items()}}
    full["teacher"] = {f"backbone.{key}": value for key, value in state.items()}
    torch.save(full, folder / "full.pth")
    for name, key in (("full", "teacher"), ("full/student", "student")):
        record.add(f"{name}/digest", dinoeval.load(TINY, weights=folder / "full.pth", key=key, device="cpu").digest)
    save_backbone(folder / "ours.safetensors", state, arch=TINY)
    record.add("ours/digest", dinoeval.load(weights=folder / "ours.safetensors", device="cpu").digest)
    for arch in (TINY, SMALL, "vit_ti16", VIT, XCIT, "resnet50"):
        loaded = dinoeval.load(arch, weights="random", device="cpu")
        sizes = (loaded.dim, loaded.depth, loaded.patch_size or 0, loaded.config.image_size, *loaded.grid(250, 333), loaded.fast_batch(224))
        record.add_all(f"random/{arch.replace('/', ':')}", {"digest": loaded.digest, "sizes": sizes})


def embedding(record: Recorder, folder: Path) -> None:
    """Features by network, readout, precision and transform, of files and of images in memory."""
    embed, photos = dinoeval.embed, image_folder(folder / "photos", 5, (70, 52), seed=11)
    networks = {
        "bundled": lambda precision: dinoeval.load(device="cpu", precision=precision),
        "random": lambda precision: dinoeval.load(SMALL, weights="random", device="cpu", precision=precision),
        "drawn": lambda precision: network(folder, "vit_xs16", precision),
    }
    for name, load in networks.items():
        for precision in ("fp32", "bf16"):
            backbone = load(precision)
            record.add_all(f"{name}/{precision}", {readout: embed(backbone, photos, readout=readout) for readout in READOUTS})
    backbone = networks["drawn"]("fp32")
    for transform in ("dino:96/80", "dino:256/224", "dino:40/40", "dino:50/37"):
        for readout in ("cls", "clsavg"):
            record.add(f"transform/{transform}/{readout}", embed(backbone, photos, readout=readout, transform=transform))
    mixed = make_images(3, (33, 61), seed=12) + make_images(2, (50, 50), seed=13)
    record.add("in_memory/cls", embed(backbone, mixed))
    record.add("in_memory/one", embed(backbone, mixed[0], readout="last4"))
    record.add("in_memory/with_a_path", embed(backbone, [mixed[0], photos / "0003.png"]))
    listed = [photos / "0002.png", photos / "0000.png"]
    record.add("listed/cached", embed(backbone, listed, transform="dino:64/64"))
    record.add("listed/not_cached", embed(backbone, listed, transform="dino:64/64", cache=False))
    record.add("modes", embed(backbone, image_modes(folder / "modes"), transform="dino:32/32"))
    record.add("fp16", embed(networks["drawn"]("fp16"), photos, readout="clsavg"))
    record.add("student", embed(network(folder, "vit_xs16_h6", seed=2), mixed, readout="last3"))
    record.add("many", embed(network(folder), image_folder(folder / "many", 430, (9, 8), seed=14)))  # several forward passes
    batch = torch.from_numpy(np.random.default_rng(15).standard_normal((2, 3, 52, 71), dtype=np.float32))
    tokens = backbone(batch, layers=3)
    record.add_all("tokens", {"cls": tokens.cls, "patches": tokens.patches, "cls_alone": backbone(batch, patches=False).cls})
    record.add_all("tokens/layers", {str(number): layer for number, layer in enumerate(tokens.layers)})
    record.add_all("attention", {"all": backbone.attention(batch), "some": backbone.attention(batch, (0, 5, 12))})


def libraries(record: Recorder, folder: Path) -> None:
    """Features and attention of networks of timm and torchvision with random weights."""
    two = make_images(2, (60, 44), seed=16)
    for arch, transform in {"resnet50": "dino:64/64", VIT: "auto", XCIT: "dino:80/80"}.items():
        for precision in ("fp32", "bf16"):
            backbone = dinoeval.load(arch, weights="random", device="cpu", precision=precision)
            for readout in READOUTS:
                if {"last2": "lastN", "gem3": "gem"}.get(readout, readout) in backbone.config.readouts:
                    features = dinoeval.embed(backbone, two, readout=readout, transform=transform)
                    record.add(f"{arch.replace('/', ':')}/{precision}/{readout}", features)
    backbone = dinoeval.load(VIT, weights="random", device="cpu")
    batch = torch.from_numpy(np.random.default_rng(17).standard_normal((1, 3, 50, 66), dtype=np.float32))
    record.add("timm:vit_tiny_patch16_224/attention", backbone.attention(batch))
    record.add("timm:vit_tiny_patch16_224/other_size", dinoeval.embed(backbone, two, readout="last2", transform="dino:96/96"))
