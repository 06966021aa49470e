"""Things that tests and benchmarks make for themselves: weights, checkpoints in every layout, folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinoeval.models.vit import VisionTransformer, VitConfig, parse_architecture

TINY = "vit_xs4_16"  # 17 tokens of 96 dims: the smallest network worth running


def synthetic_state(config: VitConfig | str, seed: int = 0, spread: float = 0.05) -> dict[str, torch.Tensor]:
    """Weights drawn from NumPy's generator, the same on every machine, with the keys of a released backbone.

    `spread` is the deviation of matrices; larger than training's, so that attention is far from uniform and a wrong
    detail moves the output.
    """
    config = parse_architecture(config) if isinstance(config, str) else config
    random = np.random.default_rng(seed)
    state = {}
    for name, tensor in sorted(VisionTransformer(config).state_dict().items()):
        values = random.standard_normal(tuple(tensor.shape), dtype=np.float32) * spread
        if name.endswith(("norm1.weight", "norm2.weight", "norm.weight")):
            values += 1
        state[name] = torch.from_numpy(values)
    return state


def synthetic_images(count: int, size: tuple[int, int] = (20, 24), seed: int = 0) -> list[Image.Image]:
    """Coloured gradients with noise; picture i is the same whatever `count` is."""
    pictures = []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        across = np.linspace(0, 1, size[0])[None, :, None] * random.uniform(0, 160, 3)
        down = np.linspace(0, 1, size[1])[:, None, None] * random.uniform(0, 80, 3)
        pictures.append(Image.fromarray((across + down + random.uniform(0, 15, (size[1], size[0], 3))).astype(np.uint8)))
    return pictures


def class_folders(root: Path, *, classes: int = 3, train: int = 8, val: int = 3, val_name: str = "val", extension: str = "png") -> Path:
    """`root/train/<class>/N.png` and `root/val/<class>/N.png`; a class's pictures share a tint."""
    for split, count in (("train", train), (val_name, val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(synthetic_images(count, seed=1 + label + 100 * (split == "train"))):
                tint = np.zeros(3)
                tint[label % 3] = 80
                pixels = np.clip(np.asarray(picture, np.float32) * 0.5 + tint, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{extension}")
    return root


def hugging_face_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights under the names of facebook/dino-vits16 and its like."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece
            continue
        for ours, theirs in (
            ("blocks.", "encoder.layer."),
            ("attn.proj", "attention.output.dense"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("cls_token", "embeddings.cls_token"),
        ):
            name = name.replace(ours, theirs)
        renamed["layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return renamed
