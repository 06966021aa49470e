"""Tensors that are still in a file: what the file states about them, and how they are read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, BinaryIO

import torch
from torch import Tensor

MAX_AXES = 64
"""Most axes of a tensor."""
READABLE = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
"""Types of elements that can be read, by their names in safetensors files."""


@dataclasses.dataclass(frozen=True, eq=False)
class Storage:
    """Consecutive bytes of a file; several tensors may refer to them."""

    name: str
    """What errors call it."""
    num_bytes: int
    """Number of bytes that the file has, which was compared with the number that it declares."""
    load: Callable[[], Tensor]
    """Returns the bytes, (num_bytes,) uint8, in little-endian order."""


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor in a file. Its numbers come from the file; `read` checks them."""

    storage: Storage | None
    """None for a tensor that is not an array of numbers in the file."""
    dtype: Any
    """A type of PyTorch, or the name of one that PyTorch does not have."""
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    """In elements; None if the elements follow each other."""
    offset: int = 0
    """First element in the storage."""
    kind: str = "dense"
    """`dense`, or why it is not: `sparse`, `quantized`, and so on."""

    @property
    def num_bytes(self) -> int:
        """Number of bytes of its elements; 0 if it is not dense."""
        return math.prod(self.shape) * self.dtype.itemsize if self.is_dense else 0

    @property
    def is_dense(self) -> bool:
        """Whether it is an array of numbers."""
        return self.kind == "dense" and self.storage is not None and (self.dtype in READABLE.values() or self.dtype is torch.complex128)

    def check(self) -> None:
        """Check that the elements are in the storage.

        Raises:
            ValueError: If they are not, or the tensor is not dense.
        """
        if not self.is_dense or self.storage is None:
            raise ValueError(f"is not an array of dense numbers ({self.kind if self.kind != 'dense' else self.dtype})")
        stride = self._stride()
        numbers = (*self.shape, *stride, self.offset)
        if len(stride) != len(self.shape) or len(stride) > MAX_AXES or not all(type(one) is int and 0 <= one < 2**62 for one in numbers):
            raise ValueError("has an invalid shape")
        available, count = self.storage.num_bytes // self.dtype.itemsize, math.prod(self.shape)
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, stride, strict=True)) if count else -1
        # A tensor expanded along an axis has more elements than its storage: a small file could ask for any amount of memory.
        if last >= available or count > available:
            raise ValueError(f"has {count:,} elements, but its storage {self.storage.name} has {available:,}")

    def read(self) -> Tensor:
        """Read the tensor; tensors of one storage share memory.

        Returns:
            The tensor, on the CPU.

        Raises:
            ValueError: As `check` does.
        """
        self.check()
        assert self.storage is not None
        size = self.storage.num_bytes // self.dtype.itemsize * self.dtype.itemsize
        return self.storage.load()[:size].view(self.dtype).as_strided(self.shape, self._stride(), self.offset)

    def _stride(self) -> tuple[int, ...]:
        return self.stride if self.stride is not None else contiguous_stride(self.shape)


def read_bytes_at(file: BinaryIO, position: int, num_bytes: int) -> Tensor:
    """Read consecutive bytes of a file.

    Args:
        file: The file.
        position: Its first byte to read.
        num_bytes: Number of bytes.

    Returns:
        The bytes, (num_bytes,) uint8.

    Raises:
        ValueError: If the file ends too early.
        OSError: If it cannot be read.
    """
    content = torch.empty(num_bytes, dtype=torch.uint8)
    file.seek(position)
    if num_bytes and file.readinto(memoryview(content.numpy())) != num_bytes:  # type: ignore[attr-defined]
        raise ValueError("the file ends too early")
    return content


def contiguous_stride(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides of an array whose elements follow each other.

    Args:
        shape: Its shape.

    Returns:
        One stride per axis, in elements.

    Examples:
        >>> contiguous_stride((2, 3, 4))
        (12, 4, 1)
    """
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
