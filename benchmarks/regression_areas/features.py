"""Areas of features: weights in every layout, and what each readout of each network says of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from regression_areas.inputs import SMALL, TINY, drawn_state, flat_folder, image_modes, network, pictures
from regression_areas.recording import Book

READOUTS = ("cls", "last2", "clsavg", "gem", "gem3", "patches")


def checkpoints(book: Book, folder: Path) -> None:
    """Digests of weights in each layout, and of random ones."""
    import dinoeval
    from dinoeval.models.checkpoints import save_backbone, tensor_digest
    from dinoeval.models.download import local_path, sha256_of
    from dinoeval.models.zoo import get_weights

    bundled = dinoeval.load(device="cpu")
    book.add_all("bundled", {"digest": bundled.digest, "arch": bundled.arch})
    book.add("bundled/sha256", sha256_of(local_path(get_weights("vit_digits"))))
    book.state("bundled", bundled.network.state_dict())
    state, other = drawn_state(TINY), drawn_state(TINY, seed=1)
    book.add("drawn/digest", tensor_digest(state))
    layouts = {
        "plain": state,
        "full": {
            "student": {f"module.backbone.{key}": value for key, value in other.items()},
            "teacher": {**{f"backbone.{key}": value for key, value in state.items()}, "head.mlp.0.weight": torch.zeros(2, 2)},
            "epoch": 3,
        },
        "state_dict": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "hugging_face": _hugging_face(state),
        "half": {key: value.bfloat16() for key, value in state.items()},
    }
    for name, content in layouts.items():
        torch.save(content, folder / f"{name}.pth")
        book.add(f"{name}/digest", dinoeval.load(TINY, weights=folder / f"{name}.pth", device="cpu").digest)
    book.add("full/student/digest", dinoeval.load(TINY, weights=folder / "full.pth", key="student", device="cpu").digest)
    save_backbone(folder / "ours.safetensors", state, arch=TINY)
    book.add("ours/digest", dinoeval.load(weights=folder / "ours.safetensors", device="cpu").digest)
    for arch in (TINY, SMALL, "vit_ti16", "timm/vit_tiny_patch16_224", "timm/xcit_nano_12_p16_224", "resnet50"):
        loaded = dinoeval.load(arch, weights="random", device="cpu")
        sizes = (loaded.dim, loaded.depth, loaded.patch_size or 0, loaded.config.image_size, *loaded.grid(250, 333), loaded.fast_batch(224))
        book.add_all(f"random/{arch.replace('/', ':')}", {"digest": loaded.digest, "sizes": list(sizes)})

    xcit = "timm/xcit_nano_12_p16_224"
    torch.save(dinoeval.load(xcit, weights="random", device="cpu").network.state_dict(), folder / "xcit.pth")
    book.add("xcit/digest", dinoeval.load(xcit, weights=folder / "xcit.pth", device="cpu").digest)


def _hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names of a ViTModel of transformers."""
    names = (
        ("blocks.", "encoder.layer."), ("attn.proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"), ("norm1", "layernorm_before"), ("norm2", "layernorm_after"),
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"), ("pos_embed", "embeddings.position_embeddings"),
        ("cls_token", "embeddings.cls_token"),
    )  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece
            continue
        for ours, theirs in names:
            name = name.replace(ours, theirs)
        renamed["layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return renamed


def embedding(book: Book, folder: Path) -> None:
    """Features by each network, readout, precision and transform, of files and of pictures in memory."""
    import dinoeval

    photos = flat_folder(folder / "photos", 5, (70, 52), seed=11)
    networks = {
        "bundled": lambda precision: dinoeval.load(device="cpu", precision=precision),
        "random": lambda precision: dinoeval.load(SMALL, weights="random", device="cpu", precision=precision),
        "drawn": lambda precision: network(folder, "vit_xs16", precision),
    }
    for name, load in networks.items():
        for precision in ("fp32", "bf16"):
            backbone = load(precision)
            for readout in READOUTS:
                book.add(f"{name}/{precision}/{readout}", dinoeval.embed(backbone, photos, readout=readout))
    backbone = networks["drawn"]("fp32")
    for transform in ("dino:96/80", "dino:256/224", "dino:40/40", "dino:50/37"):
        for readout in ("cls", "clsavg"):
            book.add(f"transform/{transform}/{readout}", dinoeval.embed(backbone, photos, readout=readout, transform=transform))
    mixed = pictures(3, (33, 61), seed=12) + pictures(2, (50, 50), seed=13)
    book.add("in_memory/cls", dinoeval.embed(backbone, mixed))
    book.add("in_memory/one", dinoeval.embed(backbone, mixed[0], readout="last4"))
    book.add("in_memory/with_a_path", dinoeval.embed(backbone, [mixed[0], photos / "0003.png"]))
    listed = [photos / "0002.png", photos / "0000.png"]
    book.add("listed/cached", dinoeval.embed(backbone, listed, transform="dino:64/64"))
    book.add("listed/not_cached", dinoeval.embed(backbone, listed, transform="dino:64/64", cache=False))
    book.add("modes", dinoeval.embed(backbone, image_modes(folder / "modes"), transform="dino:32/32"))
    book.add("fp16", dinoeval.embed(networks["drawn"]("fp16"), photos, readout="clsavg"))
    book.add("student", dinoeval.embed(network(folder, "vit_xs16_h6", seed=2), mixed, readout="last3"))
    many = dinoeval.embed(network(folder), flat_folder(folder / "many", 430, (9, 8), seed=14))  # more than one forward pass
    book.add("many", many)
    batch = torch.from_numpy(np.random.default_rng(15).standard_normal((2, 3, 52, 71), dtype=np.float32))
    tokens = backbone(batch, layers=3)
    book.add_all("tokens", {"cls": tokens.cls, "patches": tokens.patches})
    book.add_all("tokens/layers", {str(number): layer for number, layer in enumerate(tokens.layers)})
    book.add("tokens/cls_alone", backbone(batch, patches=False).cls)
    book.add_all("attention", {"all": backbone.attention(batch), "some": backbone.attention(batch, (0, 5, 12))})


def libraries(book: Book, folder: Path) -> None:
    """Features and attention of networks of timm and torchvision with random weights."""
    import dinoeval

    two = pictures(2, (60, 44), seed=16)
    transforms = {"resnet50": "dino:64/64", "timm/vit_tiny_patch16_224": "auto", "timm/xcit_nano_12_p16_224": "dino:80/80"}
    for arch, transform in transforms.items():
        for precision in ("fp32", "bf16"):
            backbone = dinoeval.load(arch, weights="random", device="cpu", precision=precision)
            for readout in READOUTS:
                offered = "lastN" if readout == "last2" else "gem" if readout == "gem3" else readout
                if offered in backbone.config.readouts:
                    features = dinoeval.embed(backbone, two, readout=readout, transform=transform)
                    book.add(f"{arch.replace('/', ':')}/{precision}/{readout}", features)
    backbone = dinoeval.load("timm/vit_tiny_patch16_224", weights="random", device="cpu")
    batch = torch.from_numpy(np.random.default_rng(17).standard_normal((1, 3, 50, 66), dtype=np.float32))
    book.add("timm:vit_tiny_patch16_224/attention", backbone.attention(batch))
    book.add("timm:vit_tiny_patch16_224/other_size", dinoeval.embed(backbone, two, readout="last2", transform="dino:96/96"))
