"""Read pickles as data: an interpreter of the pickle language that builds plain values and calls nothing that a file names.

A pickle is a program. Python's own readers run it: they import what it names, hash what it nests and allocate what it
declares. This one knows a fixed table of names, each with a function of dinoeval that checks its arguments, and counts
what the program builds, so that no file takes more memory, time or stack than its size justifies.
"""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import io
import math
import pickletools
import re
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np

MAX_DEPTH = 100
"""Deepest nesting of containers."""
MAX_OPCODES = 4_000_000
"""Most operations of a program; each builds at most one small object."""
MAX_NODES = 50_000_000
"""Most values that a walk through the content may meet, where an object that is referred to twice counts twice."""
_MAX_INTEGER_BITS = 1024
_SCALARS = (type(None), bool, int, float, str, bytes)
_MAX_KEY_LENGTH = 16  # scalars of a tuple that is a key
_BYTES_PER_ENTRY = 100
_BUDGET = 64 << 20  # bytes that the functions of a program may make, in addition to twice its size
_DTYPE = re.compile(r"[<>|=]?[biufSU?]\d{0,9}")
_MAX_AXES = 32


class PickleError(Exception):
    """The bytes are not a pickle, or it is corrupted; str() is the reason."""


class NotData(PickleError):
    """The pickle refers to something other than data; str() names it."""


class Source(Protocol):
    """Where a program is read from; `io.BytesIO` is one."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes."""
        ...

    def readline(self) -> bytes:
        """Return the bytes up to the next end of line."""
        ...


class BoundedFile:
    """A file whose reads never allocate more than the file has left.

    Args:
        file: A regular file.
        size: Its size in bytes.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        return self.file.read(min(size, self.size - self.file.tell()))

    def readline(self) -> bytes:
        """Return the bytes up to the next end of line, at most 1 MiB."""
        return self.file.readline(1 << 20)


@dataclasses.dataclass(frozen=True, eq=False)
class Call:
    """A name that a pickle may call: the function that takes its place."""

    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a pickle may refer to in addition to plain data and NumPy arrays."""

    names: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """By `module.name`: a Call, or the value that the name stands for."""
    leaves: tuple[type, ...] = ()
    """Types of values that Calls return and the content may have."""
    stored: Callable[[Any], Any] | None = None
    """Returns the object that is stored outside the pickle under an id."""


def _shown(name: str) -> str:
    """Return a name of a file as a terminal can print it."""
    return name[:80].encode("unicode_escape").decode()


class _Unfinished:
    """A NumPy array or dtype between the call that makes it and the one that sets its state."""

    def __init__(self, dtype: np.dtype | None = None) -> None:
        self.dtype = dtype


def _dtype(code: str, *_: object) -> _Unfinished:
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise NotData(f"an array of {_shown(str(code)) if isinstance(code, str | int) else type(code).__name__}")
    return _Unfinished(np.dtype(code))


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


def _array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if isinstance(content, str):
        content = content.encode("latin1")
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, np.dtype) or not isinstance(shape, tuple):
        raise ValueError("an array is not made of bytes, a type and a shape")
    if len(shape) > _MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("the shape of an array is invalid")
    if len(content) != dtype.itemsize * math.prod(shape):
        raise ValueError("the bytes of an array do not match its shape")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if order == "F" else "C") if content else np.zeros(shape, dtype)


def _frombuffer(content: Any, dtype: Any, shape: Any, order: Any = "C", *_: object) -> np.ndarray:
    return _array(content, dtype, shape, order)


def _scalar(dtype: Any, content: Any) -> Any:
    return _array(content, dtype, (), "C")[()]


def _mapping(items: Any = ()) -> dict[Any, Any]:
    """Return the entries of an OrderedDict or a Counter as a dict."""
    return items if type(items) is dict else {check_key(key): value for key, value in items}


def _set(items: Any = ()) -> set[Any]:
    return {check_key(item) for item in items}


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")  # NumPy 1 and 2
_NAMES: dict[str, Any] = {
    **{f"{module}._reconstruct": Call(lambda *_: _Unfinished()) for module in _MULTIARRAY},
    **{f"{module}.scalar": Call(_scalar) for module in _MULTIARRAY},
    **{f"{module}._frombuffer": Call(_frombuffer) for module in ("numpy.core.numeric", "numpy._core.numeric")},
    "numpy.ndarray": Call(lambda *_: _Unfinished()),
    "numpy.dtype": Call(_dtype),
    "_codecs.encode": Call(_encode),
    "collections.OrderedDict": Call(_mapping),
    "collections.Counter": Call(_mapping),
    "argparse.Namespace": Call(lambda: argparse.Namespace()),
    **{
        f"{module}.{name}": Call(function)
        for module in ("builtins", "__builtin__")
        for name, function in (("set", _set), ("frozenset", _set), ("bytes", _bytes), ("bytearray", _bytes), ("complex", complex))
    },
}
_LEAVES = (*_SCALARS, bytearray, complex, np.ndarray, np.generic, np.dtype)
_CONTAINERS = (dict, list, tuple, set, argparse.Namespace)
_EMPTY = (1, 1)  # number of values in an empty container, and its depth


def load_data(source: Source, size: int, vocabulary: Vocabulary | None = None) -> Any:
    """Read one pickle of plain data.

    Args:
        source: The program; it is read up to its end and no further.
        size: Largest number of bytes that the program can have, usually what is left of the file.
        vocabulary: What it may refer to in addition to plain data and NumPy arrays.

    Returns:
        Nested dicts, lists, tuples, sets and Namespaces of scalars, arrays and what the vocabulary makes. A walk through
        them ends: nothing contains itself, the nesting is bounded, and so is the number of values.

    Raises:
        NotData: If the pickle refers to something other than data.
        PickleError: If it is corrupted or asks for more than its size justifies.

    Examples:
        >>> import pickle
        >>> load_data(io.BytesIO(pickle.dumps({"rows": [1, 2]})), 100)
        {'rows': [1, 2]}
    """
    machine = _Machine(source, size, vocabulary or Vocabulary())
    try:
        content = machine.run()
        _check_content(content, (*_LEAVES, *machine.vocabulary.leaves))
    except PickleError:
        raise
    except Exception as error:  # A corrupted program can raise any exception of the values that it handles.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PickleError(reason) from error
    return content


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


def _children(value: Any) -> list[Any]:
    match value:
        case dict():
            return [*value.keys(), *value.values()]
        case argparse.Namespace():
            return list(vars(value).values())
    return list(value)


def _check_content(root: Any, leaves: tuple[type, ...]) -> None:
    """Check the type of every value, and that a walk through the content ends soon."""
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


class _Machine:
    """The state of a program while it runs."""

    def __init__(self, source: Source, size: int, vocabulary: Vocabulary) -> None:
        self.source, self.vocabulary = source, vocabulary
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.places: dict[int, list[int]] = {}  # where the memo has an unfinished object
        self.budget = _BUDGET + 2 * size

    def run(self) -> Any:
        """Interpret the program up to its end and return its value."""
        source = self.source
        for _ in range(MAX_OPCODES):
            code = source.read(1)
            opcode = pickletools.code2op.get(code.decode("latin1")) if code else None
            if opcode is None:
                raise PickleError("it is not a pickle" if code else "it ends too early")
            name = opcode.name
            if name == "STRING":  # of Python 2, where text and bytes are one type
                argument = codecs.escape_decode(pickletools.read_stringnl(source, decode=False))[0].decode("latin1")
            else:
                argument = opcode.arg.reader(source) if opcode.arg is not None else None
            if name == "STOP":
                return self.stack.pop()
            if name in _PUSHES:
                self.stack.append(_checked(argument))
            elif (step := _STEPS.get(name)) is not None:
                step(self, argument)
            else:
                raise NotData(f"the operation {name}")
        raise PickleError(f"it has more than {MAX_OPCODES:,} operations")

    def pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]
        if isinstance(self.stack[-1], _Unfinished):
            self.places.setdefault(id(self.stack[-1]), []).append(key)

    def find(self, name: str) -> None:
        if name in self.vocabulary.names:
            self.stack.append(self.vocabulary.names[name])
        elif name in _NAMES:
            self.stack.append(_NAMES[name])
        else:
            raise NotData(_shown(name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise NotData("a call of something that is not a function")
        result = function.function(*arguments)
        if isinstance(result, bytes | dict | set):
            self.budget -= len(result) * (1 if isinstance(result, bytes) else _BYTES_PER_ENTRY)
            if self.budget < 0:
                raise PickleError("it asks for more memory than its size justifies")
        self.stack.append(result)

    def build(self) -> None:
        """Set the state of the last object."""
        state, target = self.stack.pop(), self.stack[-1]
        match target:
            case dict():  # attributes of an OrderedDict
                return
            case argparse.Namespace() if type(state) is dict and all(type(name) is str for name in state):
                vars(target).update(state)
                return
            case _Unfinished(dtype=None):
                _, shape, dtype, fortran, content = state
                finished: Any = _array(content, dtype, shape, "F" if fortran else "C")
            case _Unfinished(dtype=dtype):
                finished = dtype.newbyteorder(state[1]) if state[1] in ("<", ">") else dtype
            case _:
                raise NotData("the state of an object of another type")
        self.stack[-1] = finished
        for key in self.places.pop(id(target), ()):
            self.memo[key] = finished

    def store(self, target: Any, items: list[Any]) -> None:
        """Put items into the container below them on the stack."""
        if type(target) is list:
            target.extend(items)
        elif type(target) is set:
            target.update(map(check_key, items))
        elif type(target) is dict and len(items) % 2 == 0:
            target.update(zip(map(check_key, items[::2]), items[1::2], strict=True))
        else:
            raise NotData(f"items of a {type(target).__name__}")

    def last(self, count: int) -> list[Any]:
        """Take the last values off the stack."""
        if len(self.stack) < count:
            raise PickleError("its stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def load_stored(self, key: Any) -> None:
        if self.vocabulary.stored is None:
            raise NotData("an object stored elsewhere")
        self.stack.append(self.vocabulary.stored(key))


def _checked(scalar: Any) -> Any:
    if type(scalar) is int and scalar.bit_length() > _MAX_INTEGER_BITS:
        raise PickleError("an integer is too large")
    if type(scalar) is str and not scalar.isascii():
        scalar.encode()  # raises for a lone surrogate, which could not be printed
    return scalar


def _make_dict(machine: _Machine) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    machine.store(made, machine.pop_mark())
    return made


_PUSHES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda machine, _: None),
    "NONE": lambda machine, _: machine.stack.append(None),
    "NEWTRUE": lambda machine, _: machine.stack.append(True),
    "NEWFALSE": lambda machine, _: machine.stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_TUPLE": lambda machine, _: machine.stack.append(()),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "EMPTY_SET": lambda machine, _: machine.stack.append(set()),
    "LIST": lambda machine, _: _push(machine, machine.pop_mark()),
    "TUPLE": lambda machine, _: _push(machine, tuple(machine.pop_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.last(3))),
    "DICT": lambda machine, _: _push(machine, _make_dict(machine)),
    "FROZENSET": lambda machine, _: _push(machine, set(map(check_key, machine.pop_mark()))),
    "APPEND": lambda machine, _: _store(machine, machine.last(1)),
    "APPENDS": lambda machine, _: _store(machine, machine.pop_mark()),
    "ADDITEMS": lambda machine, _: _store(machine, machine.pop_mark()),
    "SETITEM": lambda machine, _: _store(machine, machine.last(2)),
    "SETITEMS": lambda machine, _: _store(machine, machine.pop_mark()),
    "MARK": lambda machine, _: machine.mark(),
    "POP": lambda machine, _: machine.stack.pop() if machine.stack else machine.pop_mark(),
    "POP_MARK": lambda machine, _: machine.pop_mark(),
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, key: machine.stack.append(machine.memo[key])),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda machine, key: machine.put(key)),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    "GLOBAL": lambda machine, name: machine.find(name.replace(" ", ".", 1)),
    "STACK_GLOBAL": lambda machine, _: machine.find(".".join(machine.last(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "NEWOBJ": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
    "PERSID": lambda machine, key: machine.load_stored(key),
    "BINPERSID": lambda machine, _: machine.load_stored(machine.stack.pop()),
}


def _push(machine: _Machine, value: Any) -> None:
    """Push what was made of the values above the last mark; the stack is another one by now."""
    machine.stack.append(value)


def _store(machine: _Machine, items: list[Any]) -> None:
    machine.store(machine.stack[-1], items)
