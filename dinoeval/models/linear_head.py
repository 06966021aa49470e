"""Files of linear heads: the released layout, and that of dinoeval, which the released code can open. C classes, D dims."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from dinoeval.decoding import convert, decode
from dinoeval.display import short_repr
from dinoeval.errors import CheckpointError, DinoevalError, join_names
from dinoeval.files import expand, streamed, write_whole
from dinoeval.models.checkpoints import read_file
from dinoeval.models.download import ensure_weights
from dinoeval.models.zoo import ZOO


@dataclasses.dataclass(frozen=True)
class LinearHead:
    """A linear classifier."""

    weight: Tensor
    """(C, D) float32."""
    bias: Tensor
    """(C,) float32."""
    source: str
    """A model name or a path."""
    metadata: dict[str, Any]
    """What the file records about itself. Only files of dinoeval do: readout, lr, weight_decay, arch, backbone (a digest), classes."""

    __repr__ = short_repr


def open_head(name: str) -> LinearHead:
    """Read a linear head.

    Args:
        name: A path, or a model name such as `vit_b16_linear`.

    Returns:
        The head, on the CPU.

    Raises:
        CheckpointError: If there is no such head, or the file cannot be used.
    """
    entry = ZOO.get(name)
    if entry is not None and entry.kind != "linear head":
        heads = ", ".join(entry.name for entry in ZOO.values() if entry.kind == "linear head")
        raise CheckpointError(f"'{name}' is not a linear head. Available: {heads}.")
    path = ensure_weights(entry) if entry else expand(name)
    try:
        content, _, header = read_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"--head cannot be used: {error}") from error
    content = content if isinstance(content, Mapping) else {}
    state = content.get("state_dict", content)
    state = state if isinstance(state, Mapping) else {}
    plain = {str(key).removeprefix("module.").removeprefix("linear."): value for key, value in state.items()}
    weight, bias = plain.get("weight"), plain.get("bias")
    wrong = CheckpointError(
        f"{path} is not a linear head: expected linear.weight (C, D) and linear.bias (C,), found {join_names(map(str, state)) or 'nothing'}"
    )
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or not weight.numel():
        raise wrong
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not (weight.is_floating_point() and bias.is_floating_point()):
        raise wrong
    if not (torch.isfinite(weight.float()).all() and torch.isfinite(bias.float()).all()):
        raise CheckpointError(f"{path} contains NaN or infinite values: choose another head")
    try:
        metadata = _read_metadata(content, header, len(weight))
    except DinoevalError as error:
        raise CheckpointError(f"{path} has invalid metadata: {error}") from error
    return LinearHead(weight.float(), bias.float(), entry.name if entry else str(path), metadata)


class _Metadata(TypedDict, total=False):
    """The metadata that decides whether a head fits; a head may have more."""

    readout: str
    arch: str
    backbone: str | None
    classes: list[str]


def _read_metadata(content: Mapping[Any, Any], header: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """Return what a file of dinoeval records about its head, with the types that it must have."""
    metadata = content.get("dinoeval", {})
    if "classes" in header:  # written by finetune, whose head is on [CLS]
        classes = decode(header["classes"].encode(), list[str], "the list of classes")
        metadata = {"readout": "cls", "backbone": header.get("backbone"), "classes": classes}
    convert(metadata, _Metadata, "the record of the head")
    if len(metadata.get("classes", range(num_classes))) != num_classes:
        raise DinoevalError(f"the head has {num_classes} classes, but {len(metadata['classes'])} are named")
    return metadata


def save_head(path: Path, head: Mapping[str, Any], metadata: dict[str, Any]) -> None:
    """Write a linear head in the released layout.

    Args:
        path: The file to write.
        head: `weight` (C, D), `bias` (C,), `epoch` (from 0) and `score` (percent).
        metadata: What `open_head` returns as metadata. The released code ignores it.

    Raises:
        DinoevalError: If the file cannot be written.
    """
    content = {
        "state_dict": {"module.linear.weight": head["weight"], "module.linear.bias": head["bias"]},
        "epoch": head["epoch"] + 1,
        "best_acc": head["score"],
        "dinoeval": metadata,
    }
    write_whole(path, streamed(lambda file: torch.save(content, file)))
