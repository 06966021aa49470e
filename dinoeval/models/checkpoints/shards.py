"""Sharded weights, as the tools of Hugging Face write them: several files, and an index that names the file of each tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec

from dinoeval.decoding import decode
from dinoeval.errors import CheckpointError, DinoevalError, join_names
from dinoeval.files import read_bytes
from dinoeval.models.checkpoints.stored import StoredTensor

INDEX_SUFFIX = ".index.json"
_MAX_INDEX_BYTES = 64 << 20


class _IndexFile(msgspec.Struct):
    """The index as it is written; other tools add fields."""

    weight_map: dict[str, str]
    metadata: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Index:
    """The index of sharded weights."""

    path: Path
    """The index."""
    weight_map: Mapping[str, str]
    """The file of each tensor, by name."""
    shards: Mapping[str, Path]
    """The path of each file, by name."""
    total_bytes: int
    """Size of all tensors, as the index states it; 0 if it does not."""


def read_index(path: Path) -> Index:
    """Read an index of sharded weights.

    Args:
        path: A file such as model.safetensors.index.json.

    Returns:
        The index. All of its files exist.

    Raises:
        CheckpointError: If the index cannot be read, or a file is missing or outside of its folder.
    """
    try:
        index = decode(read_bytes(path, _MAX_INDEX_BYTES), _IndexFile, f"the index {path}")
    except DinoevalError as error:
        raise CheckpointError(str(error)) from error
    names = sorted(set(index.weight_map.values()))
    for name in names:  # An index in an index could refer to itself.
        plain = PurePosixPath(name).name == name == PureWindowsPath(name).name and name not in ("", ".", "..") and "\0" not in name
        if not plain or name.endswith(INDEX_SUFFIX):
            raise CheckpointError(f"{path} refers to {join_names([name])}: the shards must be files of weights in the same folder")
    if not names:
        raise CheckpointError(f"{path} refers to no file")
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise CheckpointError(f"{path} refers to files that do not exist ({len(missing)} of {len(names)}): {join_names(missing)}")
    total = index.metadata.get("total_size", 0)
    return Index(path, index.weight_map, {name: path.parent / name for name in names}, total if type(total) is int else 0)


def join_shards(index: Index, contents: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Collect the tensors of all shards.

    Args:
        index: The index.
        contents: What each file contains, by name.

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: If a file does not contain the tensors that the index expects there, or contains others.
    """
    for name, content in contents.items():
        expected = {tensor for tensor, file in index.weight_map.items() if file == name}
        found = {entry for entry, value in content.items() if isinstance(value, StoredTensor)} if isinstance(content, dict) else set()
        if found != expected:
            odd = sorted(map(str, found ^ expected))
            raise CheckpointError(
                f"{index.path.parent / name} does not belong to {index.path}; tensors in one of the two only: {join_names(odd)}"
            )
    tensors = {tensor: contents[file][tensor] for tensor, file in index.weight_map.items()}
    total = sum(tensor.num_bytes for tensor in tensors.values())
    if index.total_bytes > total:  # Writers count tied tensors once, and some write 0.
        raise CheckpointError(
            f"the tensors of {index.path} have {total:,} bytes, but it states {index.total_bytes:,}: download the shards again"
        )
    return tensors
