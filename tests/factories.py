"""Weights, checkpoints and image folders for tests and benchmarks."""

from __future__ import annotations

import torch

from dinoeval.testing import TINY_ARCH as TINY
from dinoeval.testing import tiny_image_folder as class_folders
from dinoeval.testing import tiny_images as synthetic_images
from dinoeval.testing import tiny_state as synthetic_state

__all__ = ["TINY", "class_folders", "hugging_face_state", "synthetic_images", "synthetic_state"]


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
