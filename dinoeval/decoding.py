"""JSON that dinoeval wrote itself, decoded to types.

Results, manifests, plans, records of runs and lists of hashes are all read here, so that corruption anywhere in a file is one
error that names the file and the field. Files may come from other people: a decoded value has no integer beyond 64 bits,
no infinite number, and no deep nesting, which later code could not handle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from dinoeval.errors import DinoevalError
from dinoeval.files import read_bytes

T = TypeVar("T")
MAX_DEPTH = 64
"""Deepest nesting of lists and mappings."""
_MAX_INTEGER = 2**63
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # possessive, so that the time is linear
_LONG_NUMBER = re.compile(rb"\d{19}")
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A JSON object with known fields; an unknown field is an error.

    Checks of several fields together belong into `__post_init__`, which raises ValueError.
    """


def decode(content: bytes, type_: type[T], what: str) -> T:
    """Decode JSON to a type.

    Args:
        content: UTF-8 text.
        type_: A Record, a dataclass, or a type such as `dict[str, float]`. An object with unknown fields is an error.
        what: What was read, for the message, such as "the Result r.json".

    Returns:
        A value of the type.

    Raises:
        DinoevalError: If the content is not JSON or does not have the type; the message names the field.

    Examples:
        >>> decode(b'{"top1": 74}', dict[str, float], "scores")
        {'top1': 74.0}
        >>> decode(b'{"top1": null}', dict[str, float], "scores")
        Traceback (most recent call last):
        dinoeval.errors.DinoevalError: scores is corrupted or was not written by dinoeval: expected `float`, got `null` in the field [...]
    """
    try:
        if _needs_care(content):
            return _convert(_parse(content), type_)
        value = msgspec.json.decode(content, type=type_)
        if dataclasses.is_dataclass(type_):
            _check_names(type_, msgspec.json.decode(content, type=dict[str, msgspec.Raw]))
        return value
    except (ValueError, RecursionError, MemoryError, msgspec.MsgspecError) as error:
        raise _corrupted(what, error, content) from error


def convert(value: Any, type_: type[T], what: str) -> T:
    """Convert decoded JSON to a type, as `decode` does.

    Args:
        value: What `decode` returned for a more general type.
        type_: See `decode`.
        what: See `decode`.

    Returns:
        A value of the type.

    Raises:
        DinoevalError: If the value does not have the type.
    """
    try:
        return _convert(value, type_)
    except (ValueError, RecursionError, msgspec.MsgspecError) as error:
        raise _corrupted(what, error) from error


def decode_file(path: Path, type_: type[T], what: str = "") -> T:
    """Read and decode a file.

    Args:
        path: The file.
        type_: See `decode`.
        what: See `decode`; by default the path.

    Returns:
        A value of the type.

    Raises:
        DinoevalError: If the file cannot be read, or as for `decode`.
    """
    return decode(read_bytes(path), type_, what or str(path))


def encode(value: Any) -> bytes:
    """Write JSON that `decode` reads.

    Args:
        value: A Record, or what `json.dumps` accepts. Names of files may hold bytes that are not UTF-8.

    Returns:
        ASCII text.

    Raises:
        ValueError: If a number is NaN or infinite.
    """
    plain = msgspec.to_builtins(value) if isinstance(value, Record) else value
    return json.dumps(plain, allow_nan=False).encode()


def encode_sealed(value: Any) -> bytes:
    """Write JSON with its checksum, so that a change of any byte is noticed.

    Args:
        value: See `encode`.

    Returns:
        What `encode` returns, and its SHA-256 in a last line.
    """
    body = encode(value)
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode()


def decode_sealed(content: bytes, type_: type[T], what: str) -> T:
    """Check the checksum of what `encode_sealed` returned, and decode it.

    Args:
        content: What `encode_sealed` returned.
        type_: See `decode`.
        what: See `decode`.

    Returns:
        A value of the type.

    Raises:
        DinoevalError: If the checksum does not match, or as for `decode`.

    Examples:
        >>> decode_sealed(encode_sealed([1, 2]), list[int], "numbers")
        [1, 2]
    """
    body, _, checksum = content.rpartition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != checksum:
        raise DinoevalError(f"{printable(what)} was changed: its checksum does not match")
    return decode(body, type_, what)


def _convert(value: Any, type_: type[T]) -> T:
    if dataclasses.is_dataclass(type_) and isinstance(value, dict):
        _check_names(type_, value)
    return msgspec.convert(value, type_)


def _check_names(type_: Any, found: Mapping[str, Any]) -> None:
    """Reject fields that a dataclass does not have, which msgspec ignores."""
    known = {field.name for field in dataclasses.fields(type_)}
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"unknown field {unknown[0]!r:.80}")


def _needs_care(content: bytes) -> bool:
    """Return whether the content may hold what msgspec accepts and other code does not, or names that are not UTF-8."""
    structure = _STRING.sub(b"", content)
    if b"\\ud" in content or b"\\uD" in content or _LONG_NUMBER.search(structure):
        return True
    steps = (_STEPS[bracket] for bracket in structure.translate(None, _NO_BRACKET))
    return max(itertools.accumulate(steps), default=0) > MAX_DEPTH


def _parse(content: bytes) -> Any:
    """Parse JSON and check every value. Strings may hold the surrogates that stand for bytes of names that are not UTF-8."""
    tree = json.loads(content.decode())
    pending: list[tuple[str, int, Any]] = [("", 0, tree)]
    while pending:
        field, depth, value = pending.pop()
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels of nesting in the field {field[:40]}")
        match value:
            case dict():
                for name, inner in value.items():
                    pending += [(field, depth, name), (f"{field}.{name}".removeprefix("."), depth + 1, inner)]
            case list():
                pending += [(f"{field}[{number}]", depth + 1, inner) for number, inner in enumerate(value)]
            case bool():
                pass
            case int() if not -_MAX_INTEGER <= value < _MAX_INTEGER:
                raise ValueError(f"an integer beyond 64 bits in the field {field}")
            case float() if not abs(value) < float("inf"):
                raise ValueError(f"a number that is NaN or infinite in the field {field}")
            case str() if not value.isascii():
                try:
                    value.encode(errors="surrogateescape")
                except UnicodeEncodeError:
                    raise ValueError(f"a lone surrogate, which is no character, in the field {printable(field)}") from None
    return tree


def _corrupted(what: str, error: Exception, content: bytes = b"") -> DinoevalError:
    reason, _, place = f"{printable(error):.300}".partition(" - at `$")
    if isinstance(error, RecursionError):
        reason = f"more than {MAX_DEPTH} levels of nesting"
    elif isinstance(error, MemoryError):
        reason = f"its {len(content):,} bytes do not fit into memory"
    elif byte := re.search(r"\(byte (\d+)\)", reason):
        start = int(byte[1])
        reason += f", before {content[start : start + 12].decode(errors='backslashreplace')!r}"
        reason += "; NaN and infinite numbers are not JSON" if content[start : start + 3] in (b"NaN", b"Inf") else ""
    if place := place.rstrip("`").removeprefix("."):
        reason += f" in the field {place}"
    return DinoevalError(f"{printable(what)} is corrupted or was not written by dinoeval: {reason[:1].lower()}{reason[1:]}")


def printable(text: object) -> str:
    """Escape what would move the cursor of a terminal or cannot be printed.

    Args:
        text: Text of a file, which may come from anybody.

    Returns:
        One line of text.

    Examples:
        >>> printable("a" + chr(10) + "b" + chr(0xDCFF))
        'a\\\\nb\\\\udcff'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in str(text))
