"""Files of linear heads: the released layout, and ours, which the released code could open."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoeval.errors import CheckpointError, join_names
from dinoeval.files import expand, write_whole
from dinoeval.models.checkpoints import read_file
from dinoeval.models.download import ensure_weights
from dinoeval.models.zoo import ZOO


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A linear classifier of C classes on D dims."""

    weight: Tensor
    """(C, D)."""
    bias: Tensor
    """(C,)."""
    source: str
    """A name of the zoo, or a path."""
    says: dict[str, Any]
    """What the file says of itself; only ours say: readout, lr, weight_decay, arch, backbone (a digest), classes."""


def open_head(name: str) -> LinearHead:
    """Read a linear head by its path, or by a name such as vit_b16_linear. Raises CheckpointError where there is none."""
    row = ZOO.get(name)
    if row is not None and row.kind != "linear head":
        raise CheckpointError(f"'{name}' is no linear head. Heads: {', '.join(r.name for r in ZOO.values() if r.kind == 'linear head')}")
    path = ensure_weights(row) if row else expand(name)
    if not path.is_file():
        raise CheckpointError(f"no file {path}. --head takes a file of the released layout, or a name such as vit_b16_linear.")
    content, _, notes = read_file(path)
    content = content if isinstance(content, Mapping) else {}
    state = content.get("state_dict", content)
    state = state if isinstance(state, Mapping) else {}
    plain = {str(key).removeprefix("module.").removeprefix("linear."): value for key, value in state.items()}
    weight, bias = plain.get("weight"), plain.get("bias")
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        held = join_names(map(str, state)) or "nothing"
        raise CheckpointError(f"{path} holds no linear head: it must have linear.weight (C, D) and linear.bias (C,), and has {held}")
    if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise CheckpointError(f"{path} holds NaN or infinite values: its scores would mean nothing")
    says = content.get("dinoeval", {})
    if "classes" in notes:  # written by finetune, whose head is on [CLS]
        says = {"readout": "cls", "backbone": notes.get("backbone"), "classes": json.loads(notes["classes"])}
    if not isinstance(says, dict) or not isinstance(says.get("readout", ""), str):
        raise CheckpointError(f"{path} is no sound head: what it says of itself is {says!r:.100}")
    return LinearHead(weight.float(), bias.float(), row.name if row else str(path), says)


def save_head(path: Path, head: Mapping[str, Any], says: dict[str, Any]) -> None:
    """Write a head with its `weight`, `bias`, `epoch` and `score` in the released layout, and beside it what `says` of it."""
    content = {
        "state_dict": {"module.linear.weight": head["weight"], "module.linear.bias": head["bias"]},
        "epoch": head["epoch"] + 1,
        "best_acc": head["score"],
        "dinoeval": says,
    }
    write_whole(path, lambda target: torch.save(content, target))
