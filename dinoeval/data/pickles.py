"""Open pickles of plain data without running code: lists, tuples, sets, dicts, strings, numbers and NumPy arrays.

A pickle is a program that names functions to call. The few functions that NumPy arrays need are replaced by classes of this
module, which check their arguments. Any other name is rejected before it is looked up.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.errors import DataError

_MAX_BYTES = 256 << 20  # far more than any ground-truth file


def open_pickle(path: Path) -> Any:
    """Read a pickle of plain data.

    Args:
        path: A pickle of any protocol, also of Python 2.

    Returns:
        The content.

    Raises:
        DataError: If the file cannot be read, is not a pickle, or refers to anything other than data.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.pkl").write_bytes(pickle.dumps({"rows": np.arange(3)}))
        ...     open_pickle(Path(folder, "a.pkl"))
        {'rows': array([0, 1, 2])}
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DataError(f"{path} is too large: a pickle of data may have at most {_MAX_BYTES >> 20} MiB")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _plain(_DataUnpickler(io.BytesIO(content), encoding="latin1").load())
    except _Rejected as rejection:
        raise DataError(f"{path} was not opened: it refers to {rejection}, which is not data. Nothing in it was run.") from rejection
    except Exception as error:  # A corrupted pickle can raise any exception.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is not a pickle of plain data: {reason}") from error


class _Rejected(Exception):  # noqa: N818
    """The pickle refers to something other than data; str() names it."""


class _Sealed(type):
    """Classes that a pickle cannot change: the opcode BUILD sets attributes of any object."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise _Rejected(f"an attribute of {cls.__name__}")


class _Dtype(metaclass=_Sealed):
    """Replacement for numpy.dtype: numbers and strings of fixed length only."""

    def __init__(self, code: str, *_: object) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biufSU":
            raise _Rejected(f"an array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array(metaclass=_Sealed):
    """Replacement for numpy.ndarray while it is reconstructed."""

    value: np.ndarray

    def __init__(self, *_: object) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    if len(content) != dtype.value.itemsize * math.prod(shape):
        raise ValueError("the bytes of an array do not match its shape")
    return np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")


class _Buffer(metaclass=_Sealed):
    """Replacement for _frombuffer of NumPy."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> None:
        self.value = _array(content, dtype, shape, order)


class _Scalar(metaclass=_Sealed):
    """Replacement for scalar of NumPy."""

    def __init__(self, dtype: _Dtype, content: bytes | str) -> None:
        self.value = _array(content, dtype, (), "C")[()]


class _Encoded(metaclass=_Sealed):
    """Replacement for _codecs.encode, with which old protocols store bytes."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise _Rejected(f"the encoding {encoding}")
        return text.encode("latin1")


class _Bytes(metaclass=_Sealed):
    """Replacement for bytes and bytearray, which can also be called with a size and then allocate that much memory."""

    def __new__(cls, content: bytes = b"") -> bytes:
        if not isinstance(content, bytes):
            raise _Rejected("bytes(...) of something other than bytes")
        return content


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_KNOWN: dict[tuple[str, str], type] = {
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _Scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _Buffer for module in ("numpy.core.numeric", "numpy._core.numeric")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Encoded,
    **{
        (module, name): kind
        for module in ("builtins", "__builtin__")
        for name, kind in (("set", set), ("bytes", _Bytes), ("bytearray", _Bytes))
    },
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in _KNOWN:
            raise _Rejected(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _Rejected("an object stored elsewhere")


def _plain(value: Any, depth: int = 0, done: dict[int, Any] | None = None) -> Any:
    """Replace stand-in objects with the arrays that they represent, recursively; shared objects stay shared."""
    done = {} if done is None else done
    if depth > min(100, sys.getrecursionlimit() // 4):
        raise ValueError("it is nested too deeply")
    if isinstance(value, (_Array, _Buffer, _Scalar, _Dtype)):
        return value.value
    if isinstance(value, (dict, list, tuple)):
        if id(value) not in done:
            if isinstance(value, dict):
                done[id(value)] = {key: _plain(inside, depth + 1, done) for key, inside in value.items()}
            else:
                done[id(value)] = type(value)(_plain(inside, depth + 1, done) for inside in value)
        return done[id(value)]
    if isinstance(value, type):
        raise _Rejected("a class")
    return value
