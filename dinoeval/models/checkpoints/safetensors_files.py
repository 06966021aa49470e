"""The safetensors format: eight bytes with the length of a header, the header in JSON, and the bytes of the tensors.

Files are not mapped, and equal tensors and metadata give equal bytes; the library of the format writes metadata in random
order. Source: README of huggingface/safetensors.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dinoeval.models.checkpoints.stored import MAX_AXES, READABLE, Storage, StoredTensor, read_bytes_at

_MAX_HEADER_BYTES = 16 << 20
_NAMES = {dtype: name for name, dtype in READABLE.items()}


def read_safetensors(file: BinaryIO, size: int) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read the header of a safetensors file; the tensors stay in the file.

    Args:
        file: The file, which must stay open while tensors are read.
        size: Its size in bytes.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        ValueError: If the file is corrupted: every byte must belong to one tensor.
    """
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size - 8, _MAX_HEADER_BYTES):
        raise ValueError(f"its header would have {length:,} bytes")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    metadata = header.pop("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its header is not that of a safetensors file")
    places = {name: _parse_entry(name, entry) for name, entry in header.items()}
    end = 0
    for name, (_, _, begin, after) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != end:
            raise ValueError(f"the bytes of {name} begin at {begin:,}, expected {end:,}")
        end = after
    if 8 + length + end != size:
        raise ValueError(f"it has {size:,} bytes, its header describes {8 + length + end:,}")
    tensors = {}
    for name, (dtype, shape, begin, after) in places.items():
        load = functools.cache(functools.partial(read_bytes_at, file, 8 + length + begin, after - begin))
        tensors[name] = StoredTensor(Storage(name, after - begin, load), dtype, shape, None)
    return tensors, metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("its header contains a name twice")
    return entries


def _parse_entry(name: str, entry: Any) -> tuple[Any, tuple[int, ...], int, int]:
    """Return the type (its name if it is unknown), the shape, and the first byte and the byte after the last."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise ValueError(f"its header does not describe {name[:80]!r}") from None
    numbers = (*shape, begin, end) if isinstance(shape, list) and len(shape) <= MAX_AXES else (-1,)
    if not isinstance(dtype, str) or not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError(f"its header describes {name[:80]!r} by invalid numbers")
    known = READABLE.get(dtype, dtype[:20])
    if end < begin or (isinstance(known, torch.dtype) and end - begin != math.prod(shape) * known.itemsize):
        raise ValueError(f"{name[:80]!r} has {end - begin:,} bytes, which its shape {tuple(shape)} and type {dtype[:20]} do not explain")
    return known, tuple(shape), begin, end


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Equal tensors and metadata give equal bytes.

    Args:
        path: The file to write.
        tensors: Tensors by name.
        metadata: Texts by name.

    Raises:
        OSError: If the file cannot be written.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # the widest first, so that all are aligned
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
