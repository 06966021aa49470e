"""Random choices, and files that are cut off or have changed bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def choose(generator: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of several options, which may have any type."""
    return options[int(generator.integers(len(options)))]


def changed(generator: np.random.Generator, content: bytes) -> bytes:
    """Cut off a file, or change, insert, remove or repeat some of its bytes."""
    data = bytearray(content)
    if not data:
        return b"\0"
    start, stop = sorted(int(place) for place in generator.integers(0, len(data), 2))
    match generator.integers(6):
        case 0:
            del data[start:]
        case 1:
            for place in generator.integers(0, len(data), generator.integers(1, 9)):
                data[place] ^= 1 << int(generator.integers(8))
        case 2:
            data[start:start] = generator.bytes(int(generator.integers(1, 64)))
        case 3:
            del data[start:stop]
        case 4:
            data[start:start] = data[start:stop]
        case _:
            data[start : start + 4] = choose(generator, (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"))
    return bytes(data)
