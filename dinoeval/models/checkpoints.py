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
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dinoeval.errors import CheckpointError, join_names
from dinoeval.files import check_writable, expand, write_whole

# What wrappers prepend: DDP, the multi-crop wrapper, torch.compile, Hugging Face's task models.
_PREFIXES = ("module.", "backbone.", "_orig_mod.", "vit.", "model.")
# Not part of a backbone, ignored by name: heads of any kind, Hugging Face's pooler and mask token.
_IGNORED = re.compile(r"(head|head_dist|projection_head|fc|classifier|pooler|lm_head|decoder)\..*|embeddings\.mask_token|fc_norm\..*")
# BatchNorm's count of training steps: an integer, and no part of what a network computes in eval mode.
_COUNTER = "num_batches_tracked"
_CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema")

# Harmless names that DINO's own checkpoints refer to: the argparse.Namespace of the options, and NumPy scalars in the
# optimizer's groups (the schedules are NumPy arrays), under the module paths of NumPy 1 and 2.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_ALLOWED: list[Any] = [
    argparse.Namespace, np.dtype, codecs.encode,
    (_SCALAR, "numpy.core.multiarray.scalar"), (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]  # fmt: skip

_DAMAGE = (RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError, ImportError, AssertionError)

# Names of transformers' ViTModel: as its files have them, and as its 5th version has them in memory.
_SPLIT_QKV = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)")
_HUGGING_FACE = {
    "attention.o_proj": "attn.proj",
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
    "layers": "blocks",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read from a file: float32 tensors under the released backbone's keys, and how they were found."""

    state: dict[str, Tensor]
    ignored: dict[str, Tensor]
    """Tensors that by their names are a head's; some networks of timm have a part of such a name."""
    layout: str
    """In words, such as `full checkpoint, key teacher, prefix backbone.`."""
    key: str | None
    """`teacher`, `student`, or None where the file holds one network only."""
    arch: str | None = None
    """The architecture the file itself names; only files written by dinoeval do."""


def tensor_digest(state: Mapping[str, Tensor]) -> str:
    """Hash names, shapes and float32 values: equal for the same weights in any container. 64 hex digits."""
    digest = hashlib.sha256()
    for name in sorted(name for name in state if not name.endswith(_COUNTER)):
        tensor = state[name].detach().float().contiguous().cpu()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def open_checkpoint(path: str | Path, key: str = "teacher") -> Checkpoint:
    """Read the backbone of `path`; `key` chooses the network of a full checkpoint.

    Raises CheckpointError with the reason where the file is missing, truncated, not a checkpoint, would run code, or
    holds no network under `key`.
    """
    path = expand(path)
    try:
        content, container, notes = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    state, chosen, used = _choose(content, key, path)
    state, prefix = _strip(state)
    state = {name: tensor for name, tensor in state.items() if not name.endswith(_COUNTER)}
    ignored = {name: tensor for name, tensor in state.items() if _IGNORED.fullmatch(name)}
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    odd = [name for name, tensor in state.items() if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta]
    if odd:
        raise CheckpointError(f"{path} holds tensors that are no plain floating-point numbers: {join_names(odd)}")
    words = [container, "full checkpoint" if used else "one network"]
    if any(name.startswith("embeddings.") for name in state):
        state = _from_hugging_face(state, path)
        words.append("Hugging Face names")
    words += [f"key {'.'.join(chosen)}"] if chosen else []
    words += [f"prefix {prefix}"] if prefix else []
    words += [f"ignored {', '.join(sorted({name.split('.')[0] for name in ignored}))}"] if ignored else []
    state, ignored = _copies(state), _copies(ignored)
    if "tensor_digest" in notes and notes["tensor_digest"] != tensor_digest({**state, **ignored}):
        raise CheckpointError(f"{path} is damaged: its tensors are not those whose digest its header holds. Make or fetch it again.")
    return Checkpoint(state, ignored, ", ".join(words), used, notes.get("arch"))


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 copies: a tensor still mapped to its file would change under our feet when a training run writes the file anew."""
    return {
        name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for name, tensor in state.items()
    }


def save_backbone(path: Path, state: Mapping[str, Tensor], *, arch: str, dtype: torch.dtype = torch.float32, **notes: str) -> None:
    """Write a backbone as safetensors with its architecture and digest in the header; whole or not at all."""
    tensors = {
        name: tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous().cpu().clone()
        for name, tensor in state.items()
        if not name.endswith(_COUNTER)
    }
    header = {"format": "pt", "arch": arch, "tensor_digest": tensor_digest(tensors), **notes}
    check_writable(path)  # safetensors' own errors do not say what the system said
    write_whole(path, lambda target: save_file(tensors, target, header))


def match_state_dict(
    state: Mapping[str, Tensor], ignored: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, arch: str, source: str
) -> dict[str, Tensor]:
    """Return what a network loads strictly: its `expected` names and shapes; raises CheckpointError that shows the difference.

    Where the network has a part that is named like a head, it comes from `ignored`; BatchNorm's counters come from nowhere.
    """
    counters = {name: tensor for name, tensor in expected.items() if name.endswith(_COUNTER)}
    expected = {name: tensor for name, tensor in expected.items() if name not in counters}
    state = {**{name: tensor for name, tensor in ignored.items() if name in expected}, **state}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(expected[name].shape)} in the network"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    parts = []
    if missing:
        parts.append(f"missing in the file ({len(missing)} of {len(expected)}): {join_names(missing)}")
    if unexpected:
        parts.append(f"unknown to the network ({len(unexpected)}): {join_names(unexpected)}")
    if shapes:
        parts.append(f"wrong shape ({len(shapes)}): {join_names(shapes, 2)}")
    if parts:
        hint = describe_shapes(state)
        looks = f" The file looks like {hint}." if hint and (shapes or missing) and not unexpected else ""
        raise CheckpointError(f"{source} does not fit {arch}; {'; '.join(parts)}.{looks}")
    kinds = [name for name in expected if state[name].is_floating_point() != expected[name].is_floating_point()]
    if kinds:
        raise CheckpointError(f"{source} holds tensors that are no plain floating-point numbers: {join_names(kinds)}")
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(f"{source} holds NaN or infinite values in {join_names(broken)}: features from it would mean nothing")
    return {**state, **{name: torch.zeros((), dtype=tensor.dtype) for name, tensor in counters.items()}}


def describe_shapes(state: Mapping[str, Tensor]) -> str | None:
    """Say in words which network these tensors would fit, as far as shapes tell."""
    try:
        dim, _, patch, _ = state["patch_embed.proj.weight"].shape
        _, entries, _ = state["pos_embed"].shape
    except (KeyError, ValueError):
        return None
    depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    return f"a network of {dim} dims, {depth} blocks, patch {patch} and {entries} positions"


def read_file(path: Path) -> tuple[Any, str, dict[str, str]]:
    """Return the content, the container in words, and what the file says of itself: arch, tensor_digest."""
    if not path.exists():
        raise CheckpointError(f"no file {path}. Give a path to weights, or a name from `dinoeval models`.")
    if path.is_dir():
        inside = [name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not inside:
            raise CheckpointError(f"{path} is a folder without model.safetensors or pytorch_model.bin. Name the file of weights.")
        return read_file(path / inside[0])
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty: a download that never began?")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(f"{path} is a web page, not a checkpoint: the download fetched an error or a login page")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` where it came from")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    content = read_pickle(path)
    args = content.get("args") if isinstance(content, Mapping) else None
    notes = {"arch": args["arch"]} if isinstance(args, dict) and "recipe" in args else {}  # a checkpoint of our own trainer
    return content, "PyTorch zip file" if head.startswith(b"PK") else "PyTorch pickle file", notes


def _read_safetensors(path: Path) -> tuple[Any, str, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, "safetensors", file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error


def check_zip(path: Path) -> bool:
    """Check the checksums inside a zip file; returns whether its parts are stored plainly. Raises CheckpointError."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint: {_first_line(error)}") from error
    if damaged:
        raise CheckpointError(f"{path} is damaged: the checksum of {damaged} inside does not match. Fetch or copy it again.")
    return plain


def read_pickle(path: Path) -> Any:
    """Read what torch.save wrote, without running any code from it. Raises CheckpointError."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    mapped = zipped and check_zip(path) and path.suffix != ".safetensors"  # by that ending torch.load would choose another reader
    try:
        with torch.serialization.safe_globals(_ALLOWED), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|of ([\w.]+) was not", str(error))
        if refused:
            name = next(group for group in refused.groups() if group)
            raise CheckpointError(
                f"{path} was not opened: it refers to {name}, and opening it could run code. A checkpoint of plain "
                "tensors can be made of it where you trust it: save its state dict alone, or as safetensors."
            ) from error
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise CheckpointError(f"{path} is truncated or no checkpoint: {reason[1] if reason else 'it is no pickle of tensors'}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{path} is truncated or no checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values())


def _choose(content: Any, key: str, path: Path) -> tuple[dict[str, Tensor], list[str], str | None]:
    """Go down to the one mapping of names to tensors that was asked for; say by which keys, and whether as `key`."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a mapping of names to tensors")
    inside = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Mapping)}
    networks = [name for name in ("student", "teacher") if name in inside]
    flat = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    for name in () if networks else ("student", "teacher"):  # one mapping for both, told apart by the beginning of names
        if members := {entry.removeprefix(f"{name}."): value for entry, value in flat.items() if entry.startswith(f"{name}.")}:
            inside[name] = members
            networks.append(name)
    if networks:
        if key not in networks:
            raise CheckpointError(f"{path} holds no '{key}': its networks are {', '.join(networks)}. Choose one with --key.")
        state, chosen, _ = _choose(inside[key], key, path)
        return state, [key, *chosen], key
    for name in _CONTAINER_KEYS:
        if _is_state(inside.get(name)) or any(part in inside.get(name, {}) for part in ("student", "teacher")):
            state, chosen, used = _choose(inside[name], key, path)
            return state, [name, *chosen], used
    if not flat:
        keys = join_names(map(str, content)) or "nothing"
        raise CheckpointError(f"{path} holds no tensors under a name this program knows; its keys: {keys}")
    return flat, [], None


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
        split = _SPLIT_QKV.fullmatch(name)
        if split:
            part = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}.get(split[2], split[2])
            parts.setdefault(f"blocks.{split[1]}.attn.qkv.{split[3]}", {})[part] = tensor
            continue
        for theirs, ours in _HUGGING_FACE.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(theirs)}(?=\.|$)", ours, name)
        renamed[name] = tensor
    for name, qkv in parts.items():
        lacking = {"query", "key", "value"} - qkv.keys()
        if lacking:
            raise CheckpointError(f"{path} lacks {', '.join(sorted(lacking))} of {name}")
        if len({tensor.shape for tensor in qkv.values()}) > 1 or not qkv["query"].ndim:
            raise CheckpointError(f"{path}: query, key and value of {name} differ in shape")
        renamed[name] = torch.cat([qkv["query"], qkv["key"], qkv["value"]])
    return renamed
