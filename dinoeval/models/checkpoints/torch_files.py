"""Files of torch.save: a zip file, or the older sequence of pickles and storages. They are read without torch.load.

The pickle in a file is interpreted by `dinoeval.pickles`, so nothing in it is executed. The declared size of every storage
is compared with the size in the file before a tensor is read. Storages are read when a tensor needs them, and are not
mapped: a mapped file changes the tensors if it is overwritten, and cannot be replaced on Windows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dinoeval.models.checkpoints.stored import MAX_AXES, Storage, StoredTensor, read_bytes_at
from dinoeval.pickles import BoundedFile, Call, NotData, Vocabulary, load_data

MAX_PICKLE_BYTES = 64 << 20
"""Largest pickle in a zip file: it describes the tensors, it does not contain them."""
_MAX_EXPANSION, _SMALL = 20, 64 << 20  # members may be compressed up to this factor, or to this many bytes
_MAGIC_NUMBER, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the older format, from torch/serialization.py
_BLOCK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class _StorageType:
    """A class such as torch.FloatStorage, by the type of its elements."""

    dtype: torch.dtype
    typed: bool = True


_STORAGE_TYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QUInt8": torch.quint8,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
}


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
    if not isinstance(storage, _TypedStorage):
        raise ValueError("a tensor without a storage")
    return StoredTensor(storage.storage, storage.dtype, _tuple(shape), _tuple(stride), offset)


def _tensor_v3(*arguments: Any) -> StoredTensor:
    """Make a tensor whose type is the seventh argument: types that came after the storage classes."""
    if not isinstance(arguments[6], torch.dtype):
        raise ValueError("a tensor without a type")
    return dataclasses.replace(_tensor(*arguments[:4]), dtype=arguments[6])


def _tuple(numbers: Any) -> tuple[int, ...]:
    if type(numbers) is not tuple or len(numbers) > MAX_AXES or not all(type(number) is int for number in numbers):
        raise ValueError("the shape of a tensor is not a short tuple of integers")
    return numbers


def _odd(kind: str) -> Call:
    return Call(lambda *_: StoredTensor(None, "none", (), None, 0, kind))


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Make a tensor that has attributes, which are ignored."""
    if not isinstance(function, Call) or function not in _TENSORS.values() or type(arguments) is not tuple:
        raise NotData("a call of something that does not make a tensor")
    return function.function(*arguments)


def _device(kind: Any, number: Any = None) -> str:
    if type(kind) is not str or type(number) not in (int, type(None)):
        raise ValueError("a device is not a text and a number")
    return kind if number is None else f"{kind}:{number}"


def _layout(name: Any) -> Any:
    layout = _NAMES.get(name) if type(name) is str else None
    if not isinstance(layout, torch.layout):
        raise ValueError("the name of a layout is unknown")
    return layout


def _reject(*_: Any) -> None:
    raise NotData("a call of a class")


_TENSORS = {
    "torch._utils._rebuild_tensor": Call(_tensor),
    "torch._utils._rebuild_tensor_v2": Call(_tensor),
    "torch._utils._rebuild_tensor_v3": Call(_tensor_v3),
    "torch._utils._rebuild_parameter": Call(lambda data, *_: data),
    "torch._utils._rebuild_parameter_with_state": Call(lambda data, *_: data),
    "torch._utils._rebuild_qtensor": _odd("quantized"),
    "torch._utils._rebuild_sparse_tensor": _odd("sparse"),
    "torch._utils._rebuild_meta_tensor_no_storage": _odd("meta"),
    "torch._utils._rebuild_nested_tensor": _odd("nested"),
}
_CONSTANTS = (torch.dtype, torch.qscheme, torch.layout, torch.memory_format)
_NAMES: dict[str, Any] = {
    **{f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, _CONSTANTS)},
    **{f"torch{place}.{name}Storage": _StorageType(dtype) for name, dtype in _STORAGE_TYPES.items() for place in ("", ".cuda")},
    **dict.fromkeys(("torch.storage.UntypedStorage", "torch.UntypedStorage"), _StorageType(torch.uint8, typed=False)),
    **_TENSORS,
    "torch._tensor._rebuild_from_type_v2": Call(_from_type),
    "torch.Tensor": Call(_reject),  # named by _rebuild_from_type_v2, never called
    "torch.nn.parameter.Parameter": Call(lambda data, *_: data),
    "torch.serialization._get_layout": Call(_layout),
    "torch.Size": Call(_tuple),
    "torch.device": Call(_device),
}


@dataclasses.dataclass(frozen=True)
class _TypedStorage:
    """A storage as the pickle refers to it."""

    storage: Storage
    dtype: torch.dtype


class _Storages:
    """The storages that a pickle refers to, by key; `find` returns the place of one."""

    def __init__(self, find: Callable[[str, int, _StorageType], Storage]) -> None:
        self.find = find
        self.declared: dict[str, Storage] = {}
        self.types: dict[str, _StorageType] = {}

    def __call__(self, reference: Any) -> _TypedStorage:
        """Return the storage of a persistent id: ("storage", type, key, device, number of elements[, view])."""
        if type(reference) is not tuple or len(reference) not in (5, 6) or reference[0] != "storage" or any(reference[5:]):
            raise NotData("an object stored elsewhere")
        _, kind, key, _, count = reference[:5]
        if not isinstance(kind, _StorageType) or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("the declaration of a storage is invalid")
        size = count * kind.dtype.itemsize
        if key not in self.declared:
            self.declared[key], self.types[key] = self.find(key, size, kind), kind
        if self.declared[key].num_bytes != size:
            raise ValueError(f"storage {key} has {self.declared[key].num_bytes:,} bytes, but {size:,} are declared")
        return _TypedStorage(self.declared[key], kind.dtype)

    @property
    def vocabulary(self) -> Vocabulary:
        """What the pickle may refer to."""
        return Vocabulary(_NAMES, (StoredTensor, *_CONSTANTS), self)


@contextlib.contextmanager
def report_corrupted_zip() -> Iterator[None]:
    """Turn the errors of `zipfile` for a corrupted file into one.

    Yields:
        None.

    Raises:
        ValueError: If the block raises such an error.
    """
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError for an encrypted or unusual member
        raise ValueError(str(error)) from error


def read_zip(file: BinaryIO, size: int) -> Any:
    """Read the pickle of a zip file of torch.save; its tensors stay in the file.

    Args:
        file: The file, which must stay open while tensors are read.
        size: Its size in bytes.

    Returns:
        The saved object, with a StoredTensor for each tensor.

    Raises:
        NotData: If the pickle refers to something other than data.
        ValueError: If the file is corrupted or not a checkpoint.
    """
    with report_corrupted_zip():
        archive = zipfile.ZipFile(file)
    members = {member.filename: member for member in archive.infolist()}
    if len(members) != len(archive.infolist()):
        raise ValueError("two members of the zip file have one name")
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members.values()):
        raise ValueError("a member of the zip file is compressed in an unusual way")
    if sum(member.file_size for member in members.values()) > max(_SMALL, _MAX_EXPANSION * size):
        raise ValueError("the members of the zip file expand to more than its size justifies")
    pickles = [name for name in members if PurePosixPath(name).name == "data.pkl"]
    if len(pickles) != 1:
        raise ValueError(f"the zip file contains {len(pickles)} files named data.pkl, a checkpoint contains one")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in members:
        raise ValueError("it is a TorchScript archive: save the state_dict of the module")
    order = _read_small(archive, f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order[:20]!r}")
    if members[pickles[0]].file_size > MAX_PICKLE_BYTES:
        raise ValueError(f"its data.pkl has more than {MAX_PICKLE_BYTES >> 20} MiB")

    def find(key: str, _: int, kind: _StorageType) -> Storage:
        member = members.get(f"{folder}data/{key}")
        if member is None:
            raise ValueError(f"storage {key} is missing in the zip file")
        unit = 1
        if order == b"big":
            if not kind.typed:
                raise ValueError("its numbers are big-endian: save the file again on a little-endian machine")
            unit = kind.dtype.itemsize // (2 if kind.dtype.is_complex else 1)
        return Storage(key, member.file_size, functools.cache(lambda: _read_member(archive, member, unit)))

    content = _read_small(archive, pickles[0])
    return load_data(io.BytesIO(content), len(content), _Storages(find).vocabulary)


def _read_small(archive: zipfile.ZipFile, name: str) -> bytes:
    with report_corrupted_zip():
        return archive.read(name)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, unit: int) -> Tensor:
    """Read a member and compare its checksum; reverse the bytes of each unit if it has several."""
    content = torch.empty(member.file_size, dtype=torch.uint8)
    view, done = memoryview(content.numpy()), 0  # type: ignore[arg-type]
    with report_corrupted_zip(), archive.open(member) as source:
        while block := source.read(min(_BLOCK_BYTES, member.file_size - done) or 1):  # the last read compares the checksum
            if done + len(block) > member.file_size:
                raise ValueError(f"storage {member.filename} is longer than declared")
            view[done : done + len(block)] = block
            done += len(block)
    if done < member.file_size:
        raise ValueError(f"storage {member.filename} ends too early")
    return torch.from_numpy(content.numpy().view(f"u{unit}").byteswap().view("u1")) if unit > 1 else content


def read_legacy(file: BinaryIO, size: int) -> Any:
    """Read the pickles of a file of the format before PyTorch 1.6.

    Its tensors stay in the file.

    Args:
        file: The file, which must stay open while tensors are read.
        size: Its size in bytes.

    Returns:
        The saved object, with a StoredTensor for each tensor.

    Raises:
        NotData: If a pickle refers to something other than data.
        ValueError: If the file is corrupted or not a checkpoint.
    """
    source = BoundedFile(file, size)
    if load_data(source, size) != _MAGIC_NUMBER:
        raise ValueError("it is not a file of torch.save")
    if load_data(source, size) != _PROTOCOL:
        raise ValueError("the version of its format is unknown")
    load_data(source, size)  # sizes of the integers of the machine that wrote it
    places: dict[str, int] = {}

    def find(key: str, num_bytes: int, _: _StorageType) -> Storage:
        return Storage(key, num_bytes, functools.cache(lambda: read_bytes_at(file, places[key], num_bytes)))

    storages = _Storages(find)
    content = load_data(source, size, storages.vocabulary)
    keys = load_data(source, size)
    if type(keys) is not list or not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages.declared):
        raise ValueError("the storages of the file are not those of its tensors")
    position = file.tell()
    for key in keys:
        file.seek(position)
        if len(count := file.read(8)) < 8:
            raise ValueError(f"storage {key} is missing")
        (elements,), storage = struct.unpack("<q", count), storages.declared[key]
        if elements * storages.types[key].dtype.itemsize != storage.num_bytes:
            raise ValueError(f"storage {key} has {elements:,} elements, but another number is declared")
        places[key] = position + 8
        position += 8 + storage.num_bytes
    if position > size:
        raise ValueError(f"the file has {size:,} bytes, but its storages end at {position:,}")
    return content
