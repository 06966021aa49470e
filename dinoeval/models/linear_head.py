"""Files of linear heads: the released layout, and ours, which the released code could open."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoeval.errors import CheckpointError, some
from dinoeval.files import expand, write_whole
from dinoeval.models.zoo import ZOO

if TYPE_CHECKING:
    from torch import Tensor


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
    from dinoeval.models.checkpoints import read_pickle
    from dinoeval.models.shelf import obtain

    row = ZOO.get(name)
    if row is not None and row.kind != "linear head":
        raise CheckpointError(f"'{name}' is no linear head. Heads: {', '.join(r.name for r in ZOO.values() if r.kind == 'linear head')}")
    path = obtain(row) if row else expand(name)
    if not path.is_file():
        raise CheckpointError(f"no file {path}. --head takes a file of the released layout, or a name such as vit_b16_linear.")
    content = read_pickle(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    plain = {str(key).removeprefix("module.").removeprefix("linear."): value for key, value in state.items()}
    weight, bias = plain.get("weight"), plain.get("bias")
    if getattr(weight, "ndim", 0) != 2 or getattr(bias, "shape", None) != weight.shape[:1]:  # type: ignore[union-attr]
        held = some(map(str, state)) or "nothing"
        raise CheckpointError(f"{path} holds no linear head: it must have linear.weight (C, D) and linear.bias (C,), and has {held}")
    says = content.get("dinoeval", {})
    return LinearHead(weight.float(), bias.float(), row.name if row else str(path), says)  # type: ignore[union-attr]


def save_head(path: Path, head: Mapping[str, Any], says: dict[str, Any]) -> None:
    """Write a head with its `weight`, `bias`, `epoch` and `score` in the released layout, and beside it what `says` of it."""
    import torch

    content = {
        "state_dict": {"module.linear.weight": head["weight"], "module.linear.bias": head["bias"]},
        "epoch": head["epoch"] + 1,
        "best_acc": head["score"],
        "dinoeval": says,
    }
    write_whole(path, lambda target: torch.save(content, target))
