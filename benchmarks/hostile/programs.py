"""Pickles that execute code, are nested without end, or ask for gigabytes, and random programs for the pickle machine."""

from __future__ import annotations

import itertools
import os
import pickle
import pickletools
import struct
from collections.abc import Callable

import numpy as np

from hostile import CANARY
from hostile.changes import changed, choose

START = b"\x80\x02"
GLOBALS = (
    *("os system", "builtins eval", "builtins exec", "builtins getattr", "builtins __import__", "subprocess Popen", "torch load"),
    *("numpy load", "torch.hub load", "timm create_model", "webbrowser open", "builtins bytearray", "builtins set", "builtins complex"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_qtensor", "torch._utils _rebuild_sparse_tensor", "torch FloatStorage"),
    *("torch float32", "torch Size", "torch device", "torch.nn.parameter Parameter", "torch._tensor _rebuild_from_type_v2"),
    *("collections OrderedDict", "collections Counter", "argparse Namespace", "numpy dtype", "numpy ndarray", "_codecs encode"),
    *("numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy._core.numeric _frombuffer"),
)
PLAIN = tuple(bytes([code]) for code in b"}])(N\x88tRbsuea\x85\x86\x87012\x81\x8f\x90\x91\x93\x94Qldo\x92")
"""Operations without an argument."""
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


def text(word: str) -> bytes:
    """Encode the operation that pushes a text."""
    encoded = word.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    """Encode the operation that pushes a 64-bit integer."""
    return b"\x8a\x08" + struct.pack("<q", value)


class Call:
    """An object whose pickle calls a function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def code(generator: np.random.Generator) -> Call:
    """Return an object whose pickle makes the canary, or tries to."""
    command = f"open({CANARY!r}, 'w').close()"
    calls = (Call(os.system, f"touch {CANARY}"), Call(eval, command), Call(exec, command), Call(os.mkdir, CANARY), Call(open, CANARY, "w"))
    return choose(generator, calls)


def _random(generator: np.random.Generator) -> bytes:
    def operation() -> bytes:
        name = choose(generator, GLOBALS).replace(" ", "\n").encode() + b"\n"
        arguments = (
            *(b"c" + name, b"i" + name, b"q" + generator.bytes(1), b"h" + bytes([int(generator.integers(8))]), b"K\x05", b"P1\n", b"I01\n"),
            *(text(choose(generator, ("storage", "0", "cpu", "latin1", "hex", "f4", "cls_token", "\x1b[2J", "a" * 300))), b"C\x03abc"),
            *(number(choose(generator, (0, 1, -1, 96, 2**40, 2**62, -(2**63)))), b"G" + generator.bytes(8), b"r" + generator.bytes(4)),
            *(b"j" + generator.bytes(4), b"\x8d" + generator.bytes(8), b"\x8b" + generator.bytes(4)),
        )
        return choose(generator, arguments if generator.random() < 0.5 else PLAIN)

    return START + b"".join(operation() for _ in range(generator.integers(3, 120))) + b"."


def _bomb(generator: np.random.Generator) -> bytes:
    """Tuples that contain the one before twice: hashing the last takes 2 ** levels steps."""
    levels = int(generator.integers(20, 60))
    shared = b"".join(b"h" + bytes([level]) + b"h" + bytes([level]) + b"\x86q" + bytes([level + 1]) for level in range(levels))
    return START + b"}(K\x01\x85q\x00" + shared + choose(generator, (b"tNs.", b"NNu.", b"t."))


def _nested(generator: np.random.Generator) -> bytes:
    depth = int(generator.integers(50, 200_000))
    ways = (
        b"}N" + b"\x85" * depth + b"Ns.",
        b"N" + b"\x85" * depth + b".",
        b"(" * depth + b"t" * depth + b".",
        b"]" * depth + b"a" * (depth - 1) + b".",
    )
    return START + choose(generator, ways)


def _cyclic(generator: np.random.Generator) -> bytes:
    return START + choose(generator, (b"]q\x00h\x00a.", b"}q\x00K\x01h\x00s.", b"]q\x00h\x00\x85a.", b"}q\x00h\x00K\x01s."))


def _large(generator: np.random.Generator) -> bytes:
    """A program of a few bytes that asks for gigabytes."""
    size = choose(generator, (10**9, 10**11, 2**62))
    dtype = b"cnumpy\ndtype\n" + text(choose(generator, ("b", "f8", "S1000000000", "U400000000", "O", "V8"))) + b"\x85R"
    ways = (
        b"cbuiltins\nbytearray\n" + number(size) + b"\x85R.",
        b"c__builtin__\nbytes\n" + number(size) + b"\x85R.",
        RECONSTRUCT + b"(K\x01" + number(size) + b"\x85" + dtype + b"\x89C\x01atb.",
        RECONSTRUCT + b"(K\x01K\x00" + number(size) + b"\x86" + dtype + b"\x89C\x00tb.",
        b"cnumpy.core.multiarray\nscalar\n" + dtype + b"C\x04abcd\x86R.",
        b"}r\xff\xff\xff\x0f.",
        b"X" + struct.pack("<I", 2**31) + b"abc.",
        b"\x8e" + struct.pack("<Q", size) + b"abc.",
        b"\x8b" + struct.pack("<i", 40_000) + b"\x7f" * 40_000 + b".",
        b"L" + b"9" * 5000 + b"L\n.",
        b"(" + text("A" * 200_000) + b"q\x00" + b"c_codecs\nencode\nh\x00\x85R" * 5000 + b"t.",
    )
    return START + choose(generator, ways)


def _tensor(generator: np.random.Generator) -> bytes:
    """A state dict of one tensor, some of whose sizes are wrong."""

    def value(good: int) -> bytes:
        return number(choose(generator, (good, good, good, 0, -1, 10**6, 2**40, 2**62, -(2**62))))

    storage = b"(" + text("storage") + b"ctorch\n" + choose(generator, (b"Float", b"Half", b"Long", b"QInt8")) + b"Storage\n"
    storage += text(choose(generator, ("0", "0", "1", "../0", ""))) + text("cpu") + value(96) + b"tQ"
    strides = choose(generator, (value(96) + value(96) + value(1), value(0) * 3)) + b"\x87"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + value(0) + b"K\x01K\x01" + value(96) + b"\x87" + strides + b"\x89}tR"
    return START + b"}" + text("cls_token") + tensor + b"s."


PROGRAMS: dict[str, Callable[[np.random.Generator], bytes]] = {
    "random program": _random,
    "hash bomb": _bomb,
    "nesting": _nested,
    "cycle": _cyclic,
    "large": _large,
    "tensor": _tensor,
    "code": lambda generator: pickle.dumps({"cls_token": code(generator)}, 2),
}


def edited(generator: np.random.Generator, program: bytes) -> bytes:
    """Remove, repeat, exchange or change operations of a program."""
    places = [place for _, _, place in pickletools.genops(program)] + [len(program)]
    parts = [program[start:stop] for start, stop in itertools.pairwise(places)]
    for _ in range(generator.integers(1, 4)):
        one, other = (int(place) for place in generator.integers(1, len(parts), 2))
        match generator.integers(4):
            case 0 if len(parts) > 2:
                del parts[one]
            case 1:
                parts.insert(one, parts[other])
            case 2:
                parts[one], parts[other] = parts[other], parts[one]
            case _:
                parts[one] = changed(generator, parts[one])
    return b"".join(parts)
