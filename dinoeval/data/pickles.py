"""Open a pickle without running anything: lists, tuples, sets, dicts, strings, numbers and NumPy arrays of those, nothing else.

A pickle is a program that names the functions it wants called. Here the few that NumPy's arrays need are stood in for by
classes of ours, which check what they are given; any other name is refused before it is looked up.
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

_MOST_BYTES = 256 << 20


def open_pickle(path: Path) -> Any:
    """Read what a pickle holds. Raises DataError where it is none, or asks for anything else than data."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path} is larger than any pickle of data should be ({_MOST_BYTES >> 20} MB)")
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return _plain(_DataUnpickler(io.BytesIO(content), encoding="latin1").load())
    except _Refused as refusal:
        raise DataError(f"{path} asks for {refusal}, which is no data: it was not opened, and nothing in it was run") from refusal
    except Exception as error:  # a broken pickle can fail anywhere
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no pickle of plain data: {reason}") from error


class _Refused(Exception):  # noqa: N818
    """str() is the name that the pickle asked for."""


class _Sealed(type):
    """Classes that a pickle cannot write to: the BUILD opcode sets attributes of whatever it is given."""

    def __setattr__(cls, name: str, value: object) -> None:
        raise _Refused(f"a change of {cls.__name__}")


class _Dtype(metaclass=_Sealed):
    """Stands in for numpy.dtype: numbers and fixed strings only."""

    def __init__(self, code: str, *_: object) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biufSU":
            raise _Refused(f"an array of {code}")

    def __setstate__(self, state: tuple) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array(metaclass=_Sealed):
    """Stands in for numpy.ndarray while it is put together."""

    value: np.ndarray

    def __init__(self, *_: object) -> None:
        self.value = np.zeros(0)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, content = state
        self.value = _array(content, dtype, shape, "F" if fortran else "C")


def _array(content: bytes | str, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    content = content.encode("latin1") if isinstance(content, str) else bytes(content)
    if len(content) != dtype.value.itemsize * math.prod(shape):
        raise ValueError("an array whose bytes do not fill its shape")
    return np.frombuffer(content, dtype.value).reshape(shape, order="F" if order == "F" else "C")


class _Buffer(metaclass=_Sealed):
    """Stands in for numpy's _frombuffer."""

    def __init__(self, content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str, *_: object) -> None:
        self.value = _array(content, dtype, shape, order)


class _Scalar(metaclass=_Sealed):
    """Stands in for numpy's scalar."""

    def __init__(self, dtype: _Dtype, content: bytes | str) -> None:
        self.value = _array(content, dtype, (), "C")[()]


class _Encoded(metaclass=_Sealed):
    """Stands in for _codecs.encode, by which old protocols write bytes."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        if encoding != "latin1":
            raise _Refused(f"the encoding {encoding}")
        return text.encode("latin1")


class _Bytes(metaclass=_Sealed):
    """Stands in for bytes and bytearray, which would also fill as much memory as they are told to."""

    def __new__(cls, content: bytes = b"") -> bytes:
        if not isinstance(content, bytes):
            raise _Refused("bytes made of something else")
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
            raise _Refused(f"{module}.{name}")
        return _KNOWN[module, name]

    def persistent_load(self, pid: object) -> Any:
        raise _Refused("an object kept elsewhere")


def _plain(value: Any, depth: int = 0, done: dict[int, Any] | None = None) -> Any:
    """Replace what stands in for arrays by the arrays, all the way down; what is shared stays shared."""
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
        raise _Refused("a class")
    return value
