"""The interpreter of the pickle language."""

from __future__ import annotations

import argparse
import codecs
import dataclasses
import pickletools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, BinaryIO, Protocol

import numpy as np

from dinoeval.pickles.values import (
    LEAVES,
    NAMES,
    Call,
    Items,
    NotData,
    PickleError,
    Unfinished,
    check_content,
    check_key,
    make_array,
    may_collide,
    shown,
)

MAX_OPCODES = 4_000_000
"""Most operations of a program; each builds at most one small object."""
_OPCODES: dict[str, Any] = {opcode.code: opcode for opcode in pickletools.opcodes}
_MAX_INTEGER_BITS = 1024
_BYTES_PER_ENTRY = 100
_FREE = 64  # entries or bytes of an argument that are not counted
_BUDGET = 64 << 20  # bytes of the arguments that a program may pass, in addition to three times its size
_TEXTS = (str, bytes, bytearray)
_COUNTED = (*_TEXTS, list, tuple, dict, set)
_MAX_COMPARISONS = 400_000_000  # of keys with one hash, a few seconds


class Source(Protocol):
    """Where a program is read from; `io.BytesIO` is one."""

    def read(self, size: int, /) -> bytes:
        """Return the next bytes.

        Args:
            size: Largest number of bytes.
        """
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
        """Return the next bytes, fewer at the end of the file.

        Args:
            size: Largest number of bytes.
        """
        return self.file.read(min(size, self._left()))

    def readline(self) -> bytes:
        """Return the bytes up to the next end of line, at most 1 MiB."""
        return self.file.readline(min(1 << 20, self._left()))

    def _left(self) -> int:
        return max(0, self.size - self.file.tell())


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """What a pickle may refer to in addition to plain data and NumPy arrays."""

    names: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """By `module.name`: a Call, or the value that the name stands for."""
    leaves: tuple[type, ...] = ()
    """Types of values that Calls return and the content may have."""
    stored: Callable[[Any], Any] | None = None
    """Returns the object that is stored outside the pickle under an id."""


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
        OSError: If the source cannot be read.

    Examples:
        >>> import io, pickle
        >>> load_data(io.BytesIO(pickle.dumps({"rows": [1, 2]})), 100)
        {'rows': [1, 2]}
    """
    machine = _Machine(source, size, vocabulary or Vocabulary())
    try:
        content = machine.run()
        check_content(content, (*LEAVES, *machine.vocabulary.leaves))
    except (PickleError, OSError):
        raise
    except Exception as error:  # A corrupted program can raise any exception of the values that it handles.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise PickleError(reason) from error
    return content


class _Machine:
    """The state of a program while it runs."""

    def __init__(self, source: Source, size: int, vocabulary: Vocabulary) -> None:
        self.source, self.vocabulary = source, vocabulary
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.places: dict[int, list[int]] = {}  # where the memo has an unfinished object
        self.budget = _BUDGET + 3 * size
        self.comparisons = _MAX_COMPARISONS

    def run(self) -> Any:
        """Interpret the program up to its end and return its value."""
        source = self.source
        for _ in range(MAX_OPCODES):
            code = source.read(1)
            opcode = _OPCODES.get(code.decode("latin1")) if code else None
            if opcode is None:
                raise PickleError("it is not a pickle" if code else "it ends too early")
            name = opcode.name
            if name == "STRING":  # of Python 2, where text and bytes are one type
                argument = codecs.escape_decode(_read_line(source))[0].decode("latin1")
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
        if isinstance(self.stack[-1], Unfinished):
            self.places.setdefault(id(self.stack[-1]), []).append(key)

    def find(self, name: str) -> None:
        if name in self.vocabulary.names:
            self.stack.append(self.vocabulary.names[name])
        elif name in NAMES:
            self.stack.append(NAMES[name])
        else:
            raise NotData(shown(name))

    def call(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Call) or type(arguments) is not tuple:
            raise NotData("a call of something that is not a function")
        self.charge(arguments)
        result = function.function(*arguments)
        if isinstance(result, Items):
            self.store(result.target, result.items)
            result = result.target
        self.stack.append(result)

    def charge(self, arguments: Iterable[Any]) -> None:
        """Count the arguments of a function: what it makes, and the time that it takes, are in proportion to their sizes."""
        for argument in arguments:
            unit = 1 if isinstance(argument, _TEXTS) else _BYTES_PER_ENTRY
            if isinstance(argument, _COUNTED) and len(argument) > _FREE:
                self.budget -= len(argument) * unit
        if self.budget < 0:
            raise PickleError("it asks for more memory than its size justifies")

    def build(self) -> None:
        """Set the state of the last object."""
        state, target = self.stack.pop(), self.stack[-1]
        self.charge(state if type(state) is tuple else [state])
        match target:
            case dict():  # attributes of an OrderedDict
                return
            case argparse.Namespace() if type(state) is dict and all(type(name) is str for name in state):
                vars(target).update(state)
                return
            case Unfinished(dtype=None):
                _, shape, dtype, fortran, content = state
                finished: Any = make_array(content, dtype, shape, "F" if fortran else "C")
            case Unfinished(dtype=np.dtype() as dtype):
                order = state[1]
                finished = dtype.newbyteorder(order) if type(order) is str and order in ("<", ">") else dtype
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
            target.update(self.keys(target, items))
        elif type(target) is dict and len(items) % 2 == 0:
            target.update(zip(self.keys(target, items[::2]), items[1::2], strict=True))
        else:
            raise NotData(f"items of a {type(target).__name__}")

    def keys(self, target: dict[Any, Any] | set[Any], keys: list[Any]) -> list[Any]:
        """Check keys that are put into a container, and count the comparisons of those that may have one hash."""
        self.comparisons -= sum(may_collide(check_key(key)) for key in keys) * (len(target) + len(keys))
        if self.comparisons < 0:
            raise PickleError("it has too many keys other than texts and numbers")
        return keys

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


def _read_line(source: Any) -> bytes:
    return pickletools.read_stringnl(source, decode=False)  # type: ignore[return-value]


def _checked(scalar: Any) -> Any:
    if type(scalar) is int and scalar.bit_length() > _MAX_INTEGER_BITS:
        raise PickleError("an integer is too large")
    if type(scalar) is str and not scalar.isascii():
        scalar.encode()  # raises for a lone surrogate, which could not be printed
    return scalar


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
    "DICT": lambda machine, _: _push_filled(machine, {}),
    "FROZENSET": lambda machine, _: _push_filled(machine, set()),
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


def _push_filled(machine: _Machine, target: dict[Any, Any] | set[Any]) -> None:
    """Push a container with the values above the last mark."""
    machine.store(target, machine.pop_mark())
    machine.stack.append(target)


def _store(machine: _Machine, items: list[Any]) -> None:
    machine.store(machine.stack[-1], items)
