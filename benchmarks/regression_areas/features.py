"""Areas of features: weights in every layout, and each readout of each network."""

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
HUGGING_FACE_NAMES = {
    "blocks.": "encoder.layer.",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
}


def checkpoints(record: Recorder, folder: Path) -> None:
    """Digests of weights in each layout, and of random weights."""

    def digest(arch: str | None, weights: Path, **options: str) -> str:
        return dinoeval.load(arch, weights=weights, device="cpu", **options).digest

    bundled = dinoeval.load(device="cpu")
    sha256 = sha256_of(local_path(get_weights("vit_digits")))
    record.add_all("bundled", {"digest": bundled.digest, "arch": bundled.arch, "sha256": sha256})
    record.add_state("bundled", bundled.network.state_dict())
    state, other = random_state(TINY), random_state(TINY, seed=1)
    record.add("drawn/digest", tensor_digest(state))
    teacher = {f"backbone.{key}": value for key, value in state.items()}
    layouts = {
        "plain": state,
        "full": {
            "student": {f"module.backbone.{key}": value for key, value in other.items()},
            "teacher": {**teacher, "head.mlp.0.weight": torch.zeros(2, 2)},
            "epoch": 3,
        },
        "state_dict": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "hugging_face": _hugging_face(state),
        "half": {key: value.bfloat16() for key, value in state.items()},
    }
    for name, content in layouts.items():
        torch.save(content, folder / f"{name}.pth")
        record.add(f"{name}/digest", digest(TINY, folder / f"{name}.pth"))
    record.add("full/student/digest", digest(TINY, folder / "full.pth", key="student"))
    save_backbone(folder / "ours.safetensors", state, arch=TINY)
    record.add("ours/digest", digest(None, folder / "ours.safetensors"))
    for arch in (TINY, SMALL, "vit_ti16", VIT, XCIT, "resnet50"):
        loaded = dinoeval.load(arch, weights="random", device="cpu")
        sizes = (loaded.dim, loaded.depth, loaded.patch_size or 0, loaded.config.image_size, *loaded.grid(250, 333), loaded.fast_batch(224))
        record.add_all(f"random/{arch.replace('/', ':')}", {"digest": loaded.digest, "sizes": sizes})
        if arch == XCIT:
            torch.save(loaded.network.state_dict(), folder / "xcit.pth")
    record.add("xcit/digest", digest(XCIT, folder / "xcit.pth"))


def _hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same weights under the names of a ViTModel of transformers."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece
            continue
        for ours, theirs in HUGGING_FACE_NAMES.items():
            name = name.replace(ours, theirs)
        renamed["layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return renamed


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
