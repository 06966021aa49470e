"""Open a checkpoint safely: from the bytes of a file to float32 tensors under the released names.

Containers: .pth (a zip file, or the older pickle), safetensors, and folders of shards. Files are data: nothing in them is
executed, and nothing that they state about themselves is believed before it is compared with the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dinoeval.display import short_repr
from dinoeval.errors import CheckpointError
from dinoeval.files import expand, reason
from dinoeval.models.checkpoints.layouts import Choice, to_released_names
from dinoeval.models.checkpoints.safetensors_files import read_safetensors
from dinoeval.models.checkpoints.shards import INDEX_SUFFIX, join_shards, read_index
from dinoeval.models.checkpoints.state_dict import tensor_digest
from dinoeval.models.checkpoints.stored import StoredTensor
from dinoeval.models.checkpoints.torch_files import read_legacy, read_zip, report_corrupted_zip
from dinoeval.pickles import NotData

_FOLDER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


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
    arch: Any = None
    """The architecture that the file names, as it is written there. It may be any value: check it against a list."""
    ema: bool | None = None
    """Whether the weights are a moving average, if the file contains it and the raw weights."""

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True)
class Contents:
    """What an open file contains."""

    content: Any
    """Usually a mapping, with a StoredTensor for each tensor."""
    container: str
    """Description of the container."""
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What the file states about itself: `arch`, `tensor_digest`, `classes` and the like, of any type."""


def open_checkpoint(path: str | Path, key: str = "teacher", ema: bool | None = None) -> Checkpoint:
    """Read the backbone of a checkpoint file.

    Args:
        path: A file, the index of sharded weights, or a folder with `model.safetensors`, `pytorch_model.bin` or shards.
        key: The network to read from a full checkpoint, `teacher` or `student`.
        ema: Whether to read the moving average of the weights; None is an error if the file contains both.

    Returns:
        The tensors as float32 on the CPU, with their layout.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or refers to code; if it has no network
            `key`; or if it can be read in two ways and `ema` does not select one.
    """
    path = expand(path)
    with open_contents(path) as opened:
        named = to_released_names(opened.content, Choice(key, ema), path)
        taken: set[int] = set()
        state, ignored = _as_float32(named.state, taken), _as_float32(named.ignored, taken)
    expected = opened.metadata.get("tensor_digest")
    if expected is not None and expected != tensor_digest({**state, **ignored}):
        raise CheckpointError(f"{path} is corrupted: the digest of its tensors differs from the one in its header. Copy the file again.")
    layout = ", ".join((opened.container, *named.labels))
    return Checkpoint(state, ignored, layout, named.network, _stated_architecture(opened), ema)


def _as_float32(state: Mapping[str, Tensor], taken: set[int]) -> dict[str, Tensor]:
    """Convert tensors, and give each memory of its own; `taken` has the addresses of memory that is in use."""
    converted = {}
    for name, tensor in state.items():
        own = (tensor.to(torch.float32) if tensor.is_floating_point() else tensor).contiguous()
        memory = own.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() != own.nbytes:
            own = own.clone()
        taken.add(own.untyped_storage().data_ptr())
        converted[name] = own
    return converted


def _stated_architecture(opened: Contents) -> Any:
    """Return the architecture that a file names: in its header, or in the options of a training run."""
    args = opened.content.get("args") if isinstance(opened.content, Mapping) else None
    if isinstance(args, dict) and "recipe" in args:  # written by `dinoeval train`
        return args.get("arch")
    return opened.metadata.get("arch")


def read_file(path: Path) -> tuple[Any, str, dict[str, Any]]:
    """Read a checkpoint file completely, without interpreting its layout.

    Args:
        path: See `open_checkpoint`.

    Returns:
        The content, usually a mapping, with tensors on the CPU; a description of the container; and metadata of the file.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or refers to code.
    """
    with open_contents(path) as opened:
        return _read_tensors(opened.content, {}), opened.container, opened.metadata


def read_pickle(path: Path) -> Any:
    """Read a file written by torch.save without running code from it.

    Args:
        path: The file.

    Returns:
        The saved object: tensors on the CPU, numbers, strings and containers of these.

    Raises:
        CheckpointError: If the file is truncated, not a checkpoint, or refers to code.
    """
    return read_file(path)[0]


def _read_tensors(value: Any, done: dict[int, Any]) -> Any:
    """Replace stored tensors by tensors, recursively; shared objects stay shared."""
    if id(value) not in done:
        match value:
            case StoredTensor():
                try:
                    done[id(value)] = value.read()
                except ValueError as error:
                    raise ValueError(f"a tensor {error}") from error
            case dict():
                done[id(value)] = {key: _read_tensors(inner, done) for key, inner in value.items()}
            case list() | tuple():
                done[id(value)] = type(value)(_read_tensors(inner, done) for inner in value)
            case _:
                return value
    return done[id(value)]


@contextlib.contextmanager
def open_contents(path: Path) -> Iterator[Contents]:
    """Open a checkpoint file; its tensors can be read inside the block.

    Args:
        path: See `open_checkpoint`.

    Yields:
        What the file contains.

    Raises:
        CheckpointError: If the file is missing, truncated, not a checkpoint, or refers to code, also if this is found
            while its tensors are read.
    """
    given, path = path, _choose_file(path)
    chosen = f"{path.name}, " if path != given else ""
    try:
        if path.name.endswith(INDEX_SUFFIX):
            index = read_index(path)
            with contextlib.ExitStack() as stack:
                files = {name: stack.enter_context(open_contents(shard)) for name, shard in index.shards.items()}
                yield Contents(join_shards(index, {name: opened.content for name, opened in files.items()}), f"{chosen}{len(files)} shards")
            return
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            contents = _read_container(path, file, before.st_size)
            yield dataclasses.replace(contents, container=chosen + contents.container)
            after = os.fstat(file.fileno())
            if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
                raise CheckpointError(f"{path} was overwritten while it was read: run the command again")
    except NotData as rejected:
        raise CheckpointError(
            f"{path} was not opened: it refers to {rejected}, and loading it could run code. "
            "If you trust the file, save its state dict alone, or as safetensors."
        ) from rejected
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    except MemoryError as error:
        raise CheckpointError(f"{path} does not fit into memory") from error
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" in str(error):  # PyTorch has no error of its own for this.
            raise CheckpointError(f"{path} does not fit into memory ({_first_line(error)})") from error
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_first_line(error)}") from error


def _choose_file(path: Path) -> Path:
    """Return the file to open: `path`, or the weights in the folder `path`."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = [name for name in _FOLDER_FILES if (path / name).exists()]
            if not inside:
                raise CheckpointError(f"folder {path} contains none of {', '.join(_FOLDER_FILES)}. Pass the file of weights.")
            path, status = path / inside[0], (path / inside[0]).stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist: pass the path of a checkpoint, or a model name from `dinoeval models`") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):  # a pipe might never end
        raise CheckpointError(f"{path} is not a regular file: save its content, and pass the path of that file")
    return path


def _read_container(path: Path, file: BinaryIO, size: int) -> Contents:
    head = file.read(512)
    file.seek(0)
    if not head:
        raise CheckpointError(f"{path} is empty. Download it again.")
    if head.lstrip()[:1] == b"<":
        raise CheckpointError(
            f"{path} is a web page, not a checkpoint: the download returned an error page or a login page. Download the file again."
        )
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull` in its repository")
    if head[257:262] == b"ustar":
        raise CheckpointError(f"{path} is a tar archive: unpack it and pass the file of weights in it")
    if head[8:9] == b"{":
        try:
            tensors, metadata = read_safetensors(file, size)
        except ValueError as error:
            raise CheckpointError(f"{path} is truncated or not a safetensors file: {_first_line(error)}") from error
        return Contents(tensors, "safetensors", dict(metadata))
    if head.startswith(b"PK"):
        return Contents(read_zip(file, size), "PyTorch zip file")
    return Contents(read_legacy(file, size), "PyTorch pickle file")


def check_zip(path: Path) -> None:
    """Check the checksums of a zip file.

    Args:
        path: The file.

    Raises:
        CheckpointError: If the file is truncated, corrupted, or not a zip file.
    """
    try:
        with report_corrupted_zip(), zipfile.ZipFile(path) as archive:
            corrupted = archive.testzip()
    except ValueError as error:
        raise CheckpointError(f"{path} is truncated or not a checkpoint: {_first_line(error)}") from error
    if corrupted:
        raise CheckpointError(f"{path} is corrupted: the checksum of {corrupted} does not match. Download or copy the file again.")


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__
