"""Open a file of DINO weights, whatever its container and layout, into the state dict of a backbone-only release.

Layouts: backbone only; full checkpoints of the released code or of ours (`student` and `teacher`, `module.` and
`backbone.` in any nesting); files from before June 2021 (no `backbone.`, head named `projection_head`); timm's; Hugging
Face's ViTModel. Containers: .pth (zip or the older pickle) and safetensors. Files are data: nothing in them is executed.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinoeval.errors import CheckpointError, some

# What wrappers prepend: DDP, the multi-crop wrapper, torch.compile, Hugging Face's task models.
_PREFIXES = ("module.", "backbone.", "_orig_mod.", "vit.", "model.")
# Not part of a backbone, ignored by name: heads of any kind, Hugging Face's pooler and mask token.
_IGNORED = re.compile(r"(head|head_dist|projection_head|fc|classifier|pooler|lm_head|decoder)\..*|embeddings\.mask_token|fc_norm\..*")
_CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema")

# Harmless names that DINO's own checkpoints refer to: the argparse.Namespace of the options, and NumPy scalars in the
# optimizer's groups (the schedules are NumPy arrays), under the module paths of NumPy 1 and 2.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_ALLOWED: list[Any] = [
    argparse.Namespace, np.dtype, codecs.encode,
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]  # fmt: skip

_HUGGING_FACE = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layernorm": "norm",
    "encoder.layer": "blocks",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read from a file: float32 tensors under the released backbone's keys, and how they were found."""

    state: dict[str, Tensor]
    layout: str
    """In words, such as `full checkpoint, key teacher, prefix backbone.`."""
    key: str | None
    """`teacher`, `student`, or None where the file holds one network only."""
    arch: str | None = None
    """The architecture the file itself names; only files written by dinoeval do."""


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and float32 values: equal for the same weights in any container. 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().float().contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def open_checkpoint(path: str | Path, key: str = "teacher") -> Checkpoint:
    """Read the backbone of `path`; `key` chooses the network of a full checkpoint.

    Raises CheckpointError with the reason where the file is missing, truncated, not a checkpoint, would run code, or
    holds no network under `key`.
    """
    path = Path(path).expanduser()
    content, container, arch = _read(path)
    state, used = _choose(content, key, path)
    state, prefix = _strip(state)
    ignored = sorted({name.split(".")[0] for name in state if _IGNORED.fullmatch(name)})
    state = {name: tensor for name, tensor in state.items() if not _IGNORED.fullmatch(name)}
    words = [container, "full checkpoint" if used else "one network"]
    if any(name.startswith(("embeddings.", "encoder.layer.")) for name in state):
        state = _from_hugging_face(state, path)
        words.append("Hugging Face names")
    words += [f"key {used}"] if used else []
    words += [f"prefix {prefix}"] if prefix else []
    words += [f"ignored {', '.join(ignored)}"] if ignored else []
    return Checkpoint({name: tensor.float() for name, tensor in state.items()}, ", ".join(words), used, arch)


def save_backbone(path: Path, state: Mapping[str, Tensor], *, arch: str, dtype: torch.dtype = torch.float32, **notes: str) -> None:
    """Write a backbone as safetensors with its architecture and digest in the header; whole or not at all."""
    tensors = {name: tensor.detach().to(dtype).contiguous().cpu().clone() for name, tensor in state.items()}
    aside = path.with_name(f"{path.name}.partial")
    try:
        save_file(tensors, aside, {"format": "pt", "arch": arch, "tensor_digest": tensor_digest(tensors), **notes})
        aside.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path} could not be written: {error}") from error
    finally:
        aside.unlink(missing_ok=True)


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, arch: str, source: str) -> None:
    """Compare names and shapes with those of the network; raises CheckpointError that shows the difference."""
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(expected[name].shape)} in the network"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"missing in the file ({len(missing)} of {len(expected)}): {some(missing)}")
    if unexpected:
        parts.append(f"unknown to the network ({len(unexpected)}): {some(unexpected)}")
    if shapes:
        parts.append(f"wrong shape ({len(shapes)}): {some(shapes, 2)}")
    if parts:
        hint = describe(state)
        looks = f" The file looks like {hint}." if hint and (shapes or missing) and not unexpected else ""
        raise CheckpointError(f"{source} does not fit {arch}; {'; '.join(parts)}.{looks}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} holds NaN or infinite values in {some(broken)}: features from it would mean nothing")


def describe(state: Mapping[str, Tensor]) -> str | None:
    """Say in words which network these tensors would fit, as far as shapes tell."""
    try:
        dim, _, patch, _ = state["patch_embed.proj.weight"].shape
        entries = state["pos_embed"].shape[1]
    except (KeyError, ValueError):
        return None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return f"a network of {dim} dims, {depth} blocks, patch {patch} and {entries} positions"


def _read(path: Path) -> tuple[Any, str, str | None]:
    """Return the content, the container in words, and the architecture named in the header."""
    if not path.exists():
        raise CheckpointError(f"no file {path}. Give a path to weights, or a name from `dinoeval models`.")
    if path.is_dir():
        inside = [name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without model.safetensors or pytorch_model.bin. Name the file of weights.")
        return _read(path / inside[0])
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty: a download that never began?")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download fetched an error or a login page")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it came from")
    if head[8:9] == b"{" and path.suffix not in (".pth", ".pt", ".bin", ".ckpt", ".tar"):
        return _read_safetensors(path)
    return _read_torch(path, zipped=head.startswith(b"PK"))


def _read_safetensors(path: Path) -> tuple[Any, str, str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            return {name: file.get_tensor(name) for name in file.keys()}, "safetensors", notes.get("arch")  # noqa: SIM118
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error


def _read_torch(path: Path, zipped: bool) -> tuple[Any, str, str | None]:
    try:
        with torch.serialization.safe_globals(_ALLOWED):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|of ([\w.]+) was not", str(error))
        if refused:
            name = next(group for group in refused.groups() if group)
            raise CheckpointError(
                f"{path} was not opened: it refers to {name}, and opening it could run code. A checkpoint of plain "
                "tensors can be made of it where you trust it: save its state dict alone, or as safetensors."
            ) from error
        raise CheckpointError(f"{path} is truncated or no checkpoint: {_first_line(error)}") from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, IndexError, AttributeError, TypeError, ImportError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint: {_first_line(error)}") from error
    return content, "PyTorch zip file" if zipped else "PyTorch pickle file", None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _choose(content: Any, key: str, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Go down to the one mapping of names to tensors that was asked for."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    networks = [name for name, value in content.items() if isinstance(name, str) and _is_state(value)]
    if {"student", "teacher"} & set(networks):
        if key not in networks:
            raise CheckpointError(f"{path} holds no '{key}': its networks are {', '.join(networks)}. Choose one with --key.")
        content, used = content[key], key
    else:
        used = None
        for name in _CONTAINER_KEYS:
            if name in networks:
                return _choose(content[name], key, path)
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        keys = some(map(str, content)) or "nothing"
        raise CheckpointError(f"{path} holds no tensors under a name this program knows; its keys: {keys}")
    return state, used


def _strip(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Take wrappers' prefixes off every name, in whatever order they nest, and say which."""
    seen: dict[str, None] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while prefix := next((p for p in _PREFIXES if short.startswith(p)), None):
            short, seen[prefix] = short[len(prefix) :], None
        if short in plain:
            raise CheckpointError(f"two tensors are both named {short} once prefixes are taken off (one of them is {name})")
        plain[short] = tensor
    return plain, "".join(seen)


def _from_hugging_face(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename, and join query, key and value into one matrix."""
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        split = re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)", name)
        if split:
            parts.setdefault(f"blocks.{split[1]}.attn.qkv.{split[3]}", {})[split[2]] = tensor
            continue
        for theirs, ours in _HUGGING_FACE.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(theirs)}(?=\.|$)", ours, name)
        renamed[name] = tensor
    for name, qkv in parts.items():
        lacking = {"query", "key", "value"} - qkv.keys()
        if lacking:
            raise CheckpointError(f"{path} lacks {', '.join(sorted(lacking))} of {name}")
        renamed[name] = torch.cat([qkv["query"], qkv["key"], qkv["value"]])
    return renamed
