"""Weights, checkpoints and image folders for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dinoeval.models.architectures import VitConfig, parse_architecture
from dinoeval.models.vit import VisionTransformer

TINY = "vit_xs4_16"
"""The smallest useful architecture: 17 tokens of 96 dimensions for images of 16 pixels."""


def synthetic_state(config: VitConfig | str, seed: int = 0, spread: float = 0.05) -> dict[str, torch.Tensor]:
    """Make random weights that are equal on every machine, with the keys of a released backbone.

    Args:
        config: The architecture or its name.
        seed: Random seed.
        spread: Standard deviation of all weights. The default is larger than at the start of training, so that attention
            is not uniform and errors change the output.

    Returns:
        The state dict, float32.
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
    """Make color gradients with noise.

    Args:
        count: Number of images. Image i does not depend on it.
        size: Width and height in pixels.
        seed: Random seed.

    Returns:
        RGB images.
    """
    images = []
    for number in range(count):
        random = np.random.default_rng((seed, number))
        across = np.linspace(0, 1, size[0])[None, :, None] * random.uniform(0, 160, 3)
        down = np.linspace(0, 1, size[1])[:, None, None] * random.uniform(0, 80, 3)
        images.append(Image.fromarray((across + down + random.uniform(0, 15, (size[1], size[0], 3))).astype(np.uint8)))
    return images


def class_folders(root: Path, *, classes: int = 3, train: int = 8, val: int = 3, val_name: str = "val", extension: str = "png") -> Path:
    """Write `root/train/classC/N.png` and `root/val/classC/N.png`; images of a class share a tint.

    Args:
        root: Folder to create.
        classes: Number of classes.
        train: Training images per class.
        val: Validation images per class.
        val_name: Name of the validation folder.
        extension: Image format.

    Returns:
        `root`.
    """
    for split, count in (("train", train), (val_name, val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number, image in enumerate(synthetic_images(count, seed=1 + label + 100 * (split == "train"))):
                tint = np.zeros(3)
                tint[label % 3] = 80
                pixels = np.clip(np.asarray(image, np.float32) * 0.5 + tint, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.{extension}")
    return root


def hugging_face_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename weights as in facebook/dino-vits16 and the other models on Hugging Face."""
    renamed = {}
    for name, tensor in state.items():
        if ".attn.qkv." in name:
            block, kind = name.split(".")[1], name.rsplit(".", 1)[1]
            for part, piece in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[f"encoder.layer.{block}.attention.attention.{part}.{kind}"] = piece
            continue
        for old, new in (
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
            name = name.replace(old, new)
        renamed["layernorm." + name.removeprefix("norm.") if name.startswith("norm.") else name] = tensor
    return renamed
