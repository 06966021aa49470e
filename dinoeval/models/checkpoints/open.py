"""Open a checkpoint safely: from the bytes of a file to float32 tensors under the released names.

Containers: .pth (a zip file, or the older pickle) and safetensors. Files are data: nothing in them is executed.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
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
from torch import Tensor

from dinoeval.display import short_repr
from dinoeval.errors import CheckpointError
from dinoeval.files import expand
from dinoeval.models.checkpoints.layouts import to_released_names
from dinoeval.models.checkpoints.state_dict import tensor_digest

# Harmless names in the checkpoints of DINO: the argparse.Namespace of the options, and NumPy scalars in the optimizer
# groups (the schedules are NumPy arrays). NumPy 1 and 2 have different module paths.
_SCALAR = np._core.multiarray.scalar  # type: ignore[attr-defined]
_SAFE_GLOBALS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    codecs.encode,
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
]
# What torch.load raises for a corrupted file.
_LOAD_ERRORS = (RuntimeError, EOFError, ValueError, OSError, LookupError, AttributeError, TypeError, ImportError, AssertionError)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The backbone of a file under the released names, and its layout."""

    state: dict[str, Tensor]
    """Tensors by name; floating-point ones are float32."""
    ignored: dict[str, Tensor]
    """Tensors that their names mark as parts of a head; some timm models have a part of such a name."""
    layout: str
    """Description of the layout, such as `PyTorch zip file, full checkpoint, key teacher, prefix backbone.`."""
    key: str | None
    """`teacher` or `student`, or None if the file contains one network only."""
    arch: str | None = None
    """The architecture that the file names; only files written by dinoeval do."""

    __repr__ = short_repr


def open_checkpoint(path: str | Path, key: str = "teacher") -> Checkpoint:
    """Read the backbone of a checkpoint file.

    Args:
        path: A file, or a folder with `model.safetensors` or `pytorch_model.bin`.
        key: The network to read from a full checkpoint, `teacher` or `student`.

    Returns:
        The tensors as float32 copies on the CPU, with their layout.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or would run code; or if it has no network `key`.
    """
    path = expand(path)
    try:
        content, container, metadata = read_file(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    named = to_released_names(content, key, path)
    state, ignored = _copy_as_float32(named.state), _copy_as_float32(named.ignored)
    if "tensor_digest" in metadata and metadata["tensor_digest"] != tensor_digest({**state, **ignored}):
        raise CheckpointError(f"{path} is corrupted: the digest of its tensors differs from the one in its header. Copy the file again.")
    return Checkpoint(state, ignored, ", ".join((container, *named.labels)), named.network, metadata.get("arch"))


def _copy_as_float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors: one that is still mapped to its file would change if a training run overwrote the file."""
    return {
        name: tensor.detach().to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        for name, tensor in state.items()
    }


def read_file(path: Path) -> tuple[Any, str, dict[str, str]]:
    """Read a checkpoint file without interpreting its layout.

    Args:
        path: A file, or a folder with `model.safetensors` or `pytorch_model.bin`.

    Returns:
        The content, usually a mapping; a description of the container; and metadata of the file, such as `arch` and
        `tensor_digest`.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or would run code.
        OSError: If the system cannot read it.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: pass the path of a checkpoint, or a model name from `dinoeval models`")
    if path.is_dir():
        inside = [name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not inside:
            raise CheckpointError(f"folder {path} contains neither model.safetensors nor pytorch_model.bin. Pass the file of weights.")
        return read_file(path / inside[0])
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise CheckpointError(f"{path} is empty. Download it again.")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: the download returned an error page or a login page. Download the file again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    if head[8:9] == b"{":
        return _read_safetensors(path)
    content = read_pickle(path)
    args = content.get("args") if isinstance(content, Mapping) else None
    metadata = {"arch": args["arch"]} if isinstance(args, dict) and "recipe" in args else {}  # written by `dinoeval train`
    return content, "PyTorch zip file" if head.startswith(b"PK") else "PyTorch pickle file", metadata


def _read_safetensors(path: Path) -> tuple[Any, str, dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, "safetensors", file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is truncated or not a safetensors file: {error}") from error


def check_zip(path: Path) -> bool:
    """Check the checksums of a zip file.

    Args:
        path: The file.

    Returns:
        Whether all members are stored without compression.

    Raises:
        CheckpointError: If the file is truncated, corrupted, or not a zip file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            corrupted = archive.testzip()
            uncompressed = all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_first_line(error)}") from error
    if corrupted:
        raise CheckpointError(f"{path} is corrupted: the checksum of {corrupted} does not match. Download or copy the file again.")
    return uncompressed


def read_pickle(path: Path) -> Any:
    """Read a file written by torch.save without running code from it.

    Args:
        path: The file.

    Returns:
        The saved object: tensors on the CPU, numbers, strings and containers of these.

    Raises:
        CheckpointError: If the file is truncated, not a checkpoint, or refers to code.
        OSError: If the system cannot open it.
    """
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    mapped = zipped and check_zip(path) and path.suffix != ".safetensors"  # torch.load picks its reader by that suffix
    try:
        with torch.serialization.safe_globals(_SAFE_GLOBALS), path.open("rb") as file:
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        rejected = re.search(r"GLOBAL ([\w.]+)|Unsupported class ([\w.]+)|of ([\w.]+) was not", str(error))
        if rejected:
            name = next(group for group in rejected.groups() if group)
            raise CheckpointError(
                f"{path} was not opened: it refers to {name}, and loading it could run code. "
                "If you trust the file, save its state dict alone, or as safetensors."
            ) from error
        reason = re.search(r"WeightsUnpickler error: (.*)", str(error))
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {reason[1] if reason else 'not a pickle of tensors'}") from error
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
