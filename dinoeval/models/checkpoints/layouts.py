"""Layouts of checkpoints: the place of a network in a file, and the mapping of its tensor names to the released ones.

| layout | recognized by | mapping |
|---|---|---|
| backbone-only release, timm | tensors at the top level | none |
| full checkpoint of the released code or of `dinoeval train` | keys or name prefixes `student`, `teacher` | `--key` selects one |
| state dict in a container | a key of `CONTAINER_KEYS` | the mapping under that key |
| raw weights and their moving average | also a key of `EMA_KEYS`, or a name prefix of that name | `--ema` or `--no-ema` selects one |
| wrapped network (DDP, multi-crop, torch.compile, task model) | a prefix of `PREFIXES`, in any nesting | prefixes are removed |
| network with a head, also files from before June 2021 (`projection_head`) | a name that `IGNORED` matches | set aside |
| Hugging Face ViTModel | a name that begins with `embeddings.` | a row of `NAMINGS` |

To read another layout, add a key, a prefix or a Naming to these tables. Source of the released layouts:
main_dino.py and utils.py of facebookresearch/dino at 7c446df, and its issue 65.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoeval.display import short_repr
from dinoeval.errors import CheckpointError, join_names
from dinoeval.models.checkpoints.state_dict import BATCH_NORM_COUNTER
from dinoeval.models.checkpoints.stored import StoredTensor

NETWORKS = ("student", "teacher")
"""Networks of a full checkpoint, as keys or as prefixes of tensor names."""

CONTAINER_KEYS = ("state_dict", "model", "model_state_dict")
"""Keys under which training programs store one state dict."""

EMA_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema")
"""Keys under which training programs store the exponential moving average of the weights."""

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
_SMALL = 1 << 24  # elements that tensors may have without regard to their storages
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


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which network to take from a file that contains several."""

    key: str = "teacher"
    """The network of a full checkpoint, `teacher` or `student`."""
    ema: bool | None = None
    """Whether to take the moving average of the weights; None is an error if the file contains both."""


def to_released_names(content: Any, choice: Choice, path: Path) -> NamedTensors:
    """Select a network, read its tensors and map their names to the released ones.

    Args:
        content: What the file contains, usually nested mappings with a StoredTensor per tensor.
        choice: The network to select.
        path: The file, for error messages.

    Returns:
        The tensors of the network, without BatchNorm counters.

    Raises:
        CheckpointError: If there is no such network, or its tensors or names cannot be used.
    """
    stored, keys = _select_network(content, choice, path)
    if choice.ema and not any(key in EMA_KEYS for key in keys):
        raise CheckpointError(f"{path} contains no moving average of the weights: leave out --ema")
    stored, prefix = _remove_prefixes(stored)
    stored = {name: tensor for name, tensor in stored.items() if not name.endswith(BATCH_NORM_COUNTER)}
    if odd := [name for name, tensor in stored.items() if not tensor.is_dense and not IGNORED.fullmatch(name)]:
        raise CheckpointError(f"{path} contains tensors that are not dense floating-point numbers: {join_names(odd)}")
    state = _read(stored, path)
    ignored = {name: tensor for name, tensor in state.items() if IGNORED.fullmatch(name)}
    state = {name: tensor for name, tensor in state.items() if name not in ignored}
    network = next((key for key in keys if key in NETWORKS), None)
    labels = ["full checkpoint" if network else "one network"]
    for naming in NAMINGS:
        if any(name.startswith(naming.marker) for name in state):
            state = _rename(state, naming, path)
            labels.append(naming.label)
    labels += [f"key {'.'.join(keys)}"] if keys else []
    labels += [f"prefix {prefix}"] if prefix else []
    labels += [f"ignored {', '.join(sorted({name.split('.')[0] for name in ignored}))}"] if ignored else []
    return NamedTensors(state, ignored, tuple(labels), network)


def _read(stored: Mapping[str, StoredTensor], path: Path) -> dict[str, Tensor]:
    """Read dense tensors."""
    dense = {name: tensor for name, tensor in stored.items() if tensor.is_dense}
    for name, tensor in dense.items():
        try:
            tensor.check()
        except ValueError as error:
            raise CheckpointError(f"{path} is corrupted: the tensor {join_names([name])} {error}. Copy the file again.") from error
    storages = {id(tensor.storage): tensor.storage.num_bytes for tensor in dense.values() if tensor.storage is not None}
    total = sum(math.prod(tensor.shape) for tensor in dense.values())
    if total > max(_SMALL, sum(storages.values())):  # Tied tensors are copied; a file may not ask for many copies.
        raise CheckpointError(f"{path} has tensors of {total:,} elements in storages of {sum(storages.values()):,} bytes")
    return {name: tensor.read() for name, tensor in dense.items()}


def _select_network(content: Any, choice: Choice, path: Path) -> tuple[dict[str, StoredTensor], list[str]]:
    """Return the state dict of one network, and the keys that lead to it."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} contains a {type(content).__name__}, not a state dict")
    flat = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, StoredTensor)}
    inside: dict[str, Mapping[Any, Any]] = {
        name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Mapping)
    }
    for name in (*NETWORKS, *EMA_KEYS):  # One mapping can hold several networks, with their names as prefixes.
        if name not in inside and (members := {entry for entry in flat if entry.startswith(f"{name}.")}):
            inside[name] = {entry.removeprefix(f"{name}."): flat[entry] for entry in members}
            flat = {entry: tensor for entry, tensor in flat.items() if entry not in members}
    if networks := [name for name in NETWORKS if name in inside]:
        if choice.key not in networks:
            raise CheckpointError(f"{path} has no network '{choice.key}'. Choose one with --key: {', '.join(networks)}.")
        name = choice.key
    else:
        name = _select_container(content, inside, flat, choice, path)
    if name is None:
        if not flat:
            raise CheckpointError(f"no state dict found in {path}; top-level keys: {join_names(map(str, content)) or 'none'}")
        return flat, []
    state, keys = _select_network(inside[name], choice, path)
    return state, [name, *keys]


def _select_container(content: Any, inside: Mapping[str, Any], flat: Mapping[str, Any], choice: Choice, path: Path) -> str | None:
    """Return the key of the one state dict to use, or None for the tensors that are in no container."""
    raw, averaged = ([name for name in keys if _holds_tensors(inside.get(name))] for keys in (CONTAINER_KEYS, EMA_KEYS))
    unnamed = ["the top level"] if flat and not raw and averaged else []
    if averaged and (raw or unnamed) and choice.ema is None:
        raise CheckpointError(
            f"{path} contains both the raw weights ({', '.join(raw or unnamed)}) and their exponential moving average (EMA: "
            f"{', '.join(averaged)}): pass --ema for the average, or --no-ema for the raw weights"
        )
    if averaged and not raw and not unnamed and choice.ema is False:
        raise CheckpointError(f"{path} contains only the moving average of the weights ({', '.join(averaged)}): leave out --no-ema")
    chosen = averaged if averaged and (choice.ema or not (raw or unnamed)) else raw
    if any(content[name] is not content[chosen[0]] for name in chosen if name in content and chosen[0] in content):
        raise CheckpointError(f"{path} contains several state dicts ({', '.join(chosen)}): save the one to use in a file of its own")
    return chosen[0] if chosen else None


def _holds_tensors(value: Any) -> bool:
    """Return whether a value is a state dict, or a mapping with one under a key that is known."""
    if not isinstance(value, Mapping):
        return False
    return any(
        isinstance(inner, StoredTensor) or (key in (*NETWORKS, *CONTAINER_KEYS, *EMA_KEYS) and _holds_tensors(inner))
        for key, inner in value.items()
    )


def _remove_prefixes(state: dict[str, StoredTensor]) -> tuple[dict[str, StoredTensor], str]:
    """Remove the prefixes of wrappers, in any nesting, and return the removed ones."""
    removed: dict[str, None] = {}
    plain: dict[str, StoredTensor] = {}
    for name, tensor in state.items():
        start = 0  # Not a shorter name per prefix: a file can contain a name of millions of prefixes.
        while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix, start)), None):
            start += len(prefix)
            removed[prefix] = None
        short = name[start:]
        if short in plain:
            raise CheckpointError(f"two tensors have one name after prefixes are removed: {join_names([short, name])}")
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
