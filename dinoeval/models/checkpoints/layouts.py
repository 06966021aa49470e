"""Layouts of checkpoints: the place of a network in a file, and the mapping of its tensor names to the released ones.

| layout | recognized by | mapping |
|---|---|---|
| backbone-only release, timm | tensors at the top level | none |
| full checkpoint of the released code or of `dinoeval train` | keys or name prefixes `student`, `teacher` | `--key` selects one |
| state dict in a container | a key of `CONTAINER_KEYS` | the mapping under that key |
| wrapped network (DDP, multi-crop, torch.compile, task model) | a prefix of `PREFIXES`, in any nesting | prefixes are removed |
| network with a head, also files from before June 2021 (`projection_head`) | a name that `IGNORED` matches | set aside |
| Hugging Face ViTModel | a name that begins with `embeddings.` | a row of `NAMINGS` |

To read another layout, add a key, a prefix or a Naming to these tables. Source of the released layouts:
main_dino.py and utils.py of facebookresearch/dino at 7c446df, and its issue 65.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoeval.display import short_repr
from dinoeval.errors import CheckpointError, join_names
from dinoeval.models.checkpoints.state_dict import BATCH_NORM_COUNTER

NETWORKS = ("student", "teacher")
"""Networks of a full checkpoint, as keys or as prefixes of tensor names."""

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict", "model_ema", "state_dict_ema")
"""Keys under which training programs store one state dict, in order of preference."""

PREFIXES = ("module.", "backbone.", "_orig_mod.", "vit.", "model.")
"""Prefixes added by DDP, the multi-crop wrapper, torch.compile and the task models of Hugging Face."""

IGNORED = re.compile(r"(head|head_dist|projection_head|fc|classifier|pooler|lm_head|decoder)\..*|embeddings\.mask_token|fc_norm\..*")
"""Names of heads, and of the pooler and mask token of Hugging Face. A network may still have a part of such a name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Naming:
    """A scheme of tensor names that differs from the released one."""

    label: str
    """How Provenance.layout names the scheme."""
    marker: str
    """A file uses the scheme if a tensor name begins with this."""
    renames: Mapping[str, str]
    """Dotted parts of names, and what replaces them. They are applied in order."""
    separate_qkv: re.Pattern[str]
    """Matches the separate query, key and value tensors of an attention layer; groups: block, part, weight or bias."""


NAMINGS = (
    Naming(
        label="Hugging Face names",  # as transformers' files have them, and as its 5th version has them in memory
        marker="embeddings.",
        renames={
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
        },
        separate_qkv=re.compile(
            r"(?:encoder\.layer|layers)\.(\d+)\.attention\.(?:attention\.)?(query|key|value|[qkv]_proj)\.(weight|bias)"
        ),
    ),
)
_QKV_PARTS = {"q_proj": "query", "k_proj": "key", "v_proj": "value"}


@dataclasses.dataclass(frozen=True)
class NamedTensors:
    """Tensors of one network under the released names."""

    state: dict[str, Tensor]
    ignored: dict[str, Tensor]
    """Tensors whose names match `IGNORED`."""
    labels: tuple[str, ...]
    """Description of the layout."""
    network: str | None
    """`teacher` or `student`, or None if the file contains one network only."""

    __repr__ = short_repr


def to_released_names(content: Any, key: str, path: Path) -> NamedTensors:
    """Select a network and map its tensor names to the released ones.

    Args:
        content: What the file contains, usually nested mappings.
        key: The network to select from a full checkpoint, `teacher` or `student`.
        path: The file, for error messages.

    Returns:
        The tensors of the network, without BatchNorm counters.

    Raises:
        CheckpointError: If there is no such network, or its tensors or names cannot be used.
    """
    state, keys, network = _select_network(content, key, path)
    state, prefix = _remove_prefixes(state)
    state = {name: tensor for name, tensor in state.items() if not name.endswith(BATCH_NORM_COUNTER)}
    ignored = {name: tensor for name, tensor in state.items() if IGNORED.fullmatch(name)}
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    if odd := [name for name, tensor in state.items() if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta]:
        raise CheckpointError(f"{path} contains tensors that are not dense floating-point numbers: {join_names(odd)}")
    labels = ["full checkpoint" if network else "one network"]
    for naming in NAMINGS:
        if any(name.startswith(naming.marker) for name in state):
            state = _rename(state, naming, path)
            labels.append(naming.label)
    labels += [f"key {'.'.join(keys)}"] if keys else []
    labels += [f"prefix {prefix}"] if prefix else []
    labels += [f"ignored {', '.join(sorted({name.split('.')[0] for name in ignored}))}"] if ignored else []
    return NamedTensors(state, ignored, tuple(labels), network)


def _select_network(content: Any, key: str, path: Path) -> tuple[dict[str, Tensor], list[str], str | None]:
    """Return the state dict of one network, the keys that lead to it, and which network of a full checkpoint it is."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, not a state dict")
    inside = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Mapping)}
    flat = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    networks = {name: inside[name] for name in NETWORKS if name in inside}
    if not networks:  # One mapping can hold both networks, with their names as prefixes.
        for name in NETWORKS:
            if members := {entry.removeprefix(f"{name}."): tensor for entry, tensor in flat.items() if entry.startswith(f"{name}.")}:
                networks[name] = members
    if networks:
        if key not in networks:
            raise CheckpointError(f"{path} has no network '{key}'. Choose one with --key: {', '.join(networks)}.")
        state, keys, _ = _select_network(networks[key], key, path)
        return state, [key, *keys], key
    for name in CONTAINER_KEYS:
        container = inside.get(name, {})
        if any(isinstance(value, Tensor) for value in container.values()) or any(network in container for network in NETWORKS):
            state, keys, network = _select_network(container, key, path)
            return state, [name, *keys], network
    if not flat:
        raise CheckpointError(f"no state dict found in {path}; top-level keys: {join_names(map(str, content)) or 'none'}")
    return flat, [], None


def _remove_prefixes(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Remove the prefixes of wrappers, in any nesting, and return the removed ones."""
    removed: dict[str, None] = {}
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        short = name
        while prefix := next((prefix for prefix in PREFIXES if short.startswith(prefix)), None):
            short = short.removeprefix(prefix)
            removed[prefix] = None
        if short in plain:
            raise CheckpointError(f"two tensors are both named {short} after prefixes are removed; one of them is {name}")
        plain[short] = tensor
    return plain, "".join(removed)


def _rename(state: dict[str, Tensor], naming: Naming, path: Path) -> dict[str, Tensor]:
    """Apply a naming, and join query, key and value of each attention layer into one tensor."""
    renamed: dict[str, Tensor] = {}
    separate: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if match := naming.separate_qkv.fullmatch(name):
            block, part, kind = match.groups()
            separate.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[_QKV_PARTS.get(part, part)] = tensor
            continue
        for old, new in naming.renames.items():
            name = re.sub(rf"(^|(?<=\.)){re.escape(old)}(?=\.|$)", new, name)
        renamed[name] = tensor
    for name, parts in separate.items():
        if missing := {"query", "key", "value"} - parts.keys():
            raise CheckpointError(f"{path} has no {', '.join(sorted(missing))} of {name}")
        if len({tensor.shape for tensor in parts.values()}) > 1 or not parts["query"].ndim:
            raise CheckpointError(f"{path}: query, key and value of {name} differ in shape")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed
