"""The values of pickles: the functions that stand for the names of a pickle, and checks of what a pickle made."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np

MAX_DEPTH = 100
"""Deepest nesting of containers."""
MAX_NODES = 50_000_000
"""Most values that a walk through the content may meet, where an object that is referred to twice counts twice."""
_SCALARS = (type(None), bool, int, float, str, bytes)
_MAX_KEY_LENGTH = 16  # scalars of a tuple that is a key
_DTYPE = re.compile(r"[<>|=]?[biufcSU?]\d{0,9}")
_MAX_AXES = 32


class PickleError(ValueError):
    """The bytes are not a pickle, or it is corrupted; str() is the reason."""


class NotData(PickleError):  # noqa: N818
    """The pickle refers to something other than data; str() names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A name that a pickle may call: the function that takes its place."""

    function: Callable[..., Any]


def shown(name: str) -> str:
    """Return a name of a file as a terminal can print it.

    Args:
        name: Any text.
    """
    return name[:80].encode("unicode_escape").decode()


@dataclasses.dataclass(frozen=True)
class Items:
    """What a call puts into a new container; the interpreter does it, as for the containers of the program itself."""

    target: dict[Any, Any] | set[Any]
    """The empty container."""
    items: list[Any]
    """Values of a set, or keys and values of a dict in turn."""


class Unfinished:
    """A NumPy array or dtype between the call that makes it and the one that sets its state."""

    def __init__(self, dtype: np.dtype | None = None) -> None:
        self.dtype = dtype


def _dtype(code: str, *_: object) -> Unfinished:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise NotData(f"an array of {shown(str(code)) if isinstance(code, str | int) else type(code).__name__}")
    return Unfinished(np.dtype(code))


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Encode bytes as old protocols store them."""
    if encoding not in ("latin1", "latin-1"):
        raise NotData("an encoding other than latin1")
    return text.encode("latin1")


def _bytes(content: Any = b"", *encoding: str) -> bytes:
    """Return the argument: bytes(n) would allocate n bytes."""
    if isinstance(content, str):
        return _encode(content, *encoding)
    if not isinstance(content, bytes | bytearray):
        raise NotData("bytes(...) of something other than bytes")
    return bytes(content)


def make_array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Make an array whose shape is that of its bytes.

    Args:
        content: Its bytes, or the same as latin1 text.
        dtype: Type of its elements.
        shape: Numbers of elements per axis.
        order: `F` for the order of Fortran.

    Returns:
        A read-only array.

    Raises:
        ValueError: If the arguments do not fit each other.
    """
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
        raise ValueError("an array is not made of bytes, a type and a shape")
    if len(shape) > _MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("the shape of an array is invalid")
    if len(content) != dtype.itemsize * math.prod(shape) or not (dtype.itemsize or 0 in shape):
        raise ValueError("the bytes of an array do not match its shape")
    if dtype.kind == "U":
        content.decode("utf-32-be" if dtype.str[0] == ">" else "utf-32-le")  # raises for a number that is not a character
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C") if content else np.zeros(shape, dtype)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: object) -> np.ndarray:
    return make_array(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any) -> Any:
    return make_array(content, dtype, (), "C")[()]


def _mapping(items: Any = ()) -> dict[Any, Any] | Items:
    """Return the entries of an OrderedDict or a Counter as a dict."""
    return items if type(items) is dict else Items({}, [part for key, value in items for part in (key, value)])


def _set(items: Any = ()) -> Items:
    if not isinstance(items, list | tuple | set):
        raise NotData("set(...) of something other than a list")
    return Items(set(), list(items))


def _complex(real: Any, imaginary: Any) -> complex:
    if type(real) is not float or type(imaginary) is not float:
        raise NotData("complex(...) of something other than two numbers")
    return complex(real, imaginary)


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
NAMES: dict[str, Any] = {
    **{f"{module}._reconstruct": Call(lambda *_: Unfinished()) for module in _MULTIARRAY},
    **{f"{module}.scalar": Call(_scalar) for module in _MULTIARRAY},
    **{f"{module}._frombuffer": Call(_frombuffer) for module in ("numpy.core.numeric", "numpy._core.numeric")},
    "numpy.ndarray": Call(lambda *_: Unfinished()),
    "numpy.dtype": Call(_dtype),
    "_codecs.encode": Call(_encode),
    "collections.OrderedDict": Call(_mapping),
    "collections.Counter": Call(_mapping),
    "argparse.Namespace": Call(lambda: argparse.Namespace()),
    **{
        f"{module}.{name}": Call(function)
        for module in ("builtins", "__builtin__")
        for name, function in (("set", _set), ("frozenset", _set), ("bytes", _bytes), ("bytearray", _bytes), ("complex", _complex))
    },
}
"""What a pickle of plain data may refer to, by `module.name`."""
LEAVES = (*_SCALARS, bytearray, complex, np.ndarray, np.generic, np.dtype)
"""Types of plain values that are not containers."""
_CONTAINERS = (dict, list, tuple, set, argparse.Namespace)
_EMPTY = (1, 1)  # number of values in an empty container, and its depth


def check_key(key: Any) -> Any:
    """Return a key of a mapping or a set if it can be hashed in little time.

    Args:
        key: Any value of a pickle.

    Returns:
        The same value.

    Raises:
        NotData: If it is not a scalar or a short tuple of scalars.
    """
    inside = key if type(key) is tuple and len(key) <= _MAX_KEY_LENGTH else (key,)
    if not all(isinstance(one, np.generic) or type(one) in _SCALARS for one in inside):
        raise NotData(f"a key that is a {type(key).__name__}")
    return key


def may_collide(key: Any) -> bool:
    """Return whether there are many keys of this kind with one hash.

    A dict compares each of them with all others. Python makes the hashes of texts unpredictable, and few numbers of up to
    64 bits have the same hash.

    Args:
        key: What `check_key` accepts.
    """
    match key:
        case int():
            return key.bit_length() > 64
        case tuple():
            return not all(isinstance(one, (str, bytes)) for one in key)
    return isinstance(key, (np.complexfloating, np.longdouble))  # type: ignore[arg-type]


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value.keys(), *value.values()]
        case argparse.Namespace():
            return list(vars(value).values())
    return list(value)


def check_content(root: Any, leaves: tuple[type, ...]) -> None:
    """Check the type of every value, and that a walk through the content ends soon.

    Args:
        root: What a pickle made.
        leaves: Types that values may have, in addition to dicts, lists, tuples, sets and Namespaces.

    Raises:
        NotData: If there is a value of another type.
        PickleError: If something contains itself, or the content is nested or shared too much.
    """
    seen: dict[int, tuple[int, int]] = {}  # id of a container: number of values in it, depth
    entered: set[int] = set()
    pending: list[tuple[Any, bool]] = [(root, False)]
    while pending:
        value, left = pending.pop()
        if not isinstance(value, _CONTAINERS):
            if not isinstance(value, leaves):
                raise NotData("a class" if isinstance(value, Call) else f"a {type(value).__name__.strip('_').lower()} alone")
        elif left:
            inside = [seen.get(id(child), _EMPTY) if isinstance(child, _CONTAINERS) else (_weight(child), 0) for child in _children(value)]
            nodes, depth = 1 + sum(count for count, _ in inside), 1 + max((depth for _, depth in inside), default=0)
            if depth > MAX_DEPTH:
                raise PickleError("it is nested too deeply")
            if nodes > MAX_NODES:
                raise PickleError("its objects refer to each other so often that they expand to more than memory can hold")
            seen[id(value)] = nodes, depth
            entered.discard(id(value))
        elif id(value) in entered:
            raise PickleError("an object contains itself")
        elif id(value) not in seen and _children(value):
            entered.add(id(value))
            pending.append((value, True))
            pending += [(child, False) for child in _children(value)]


def _weight(leaf: Any) -> int:
    return 1 + len(leaf) // 16 if isinstance(leaf, str | bytes | bytearray) else 1
