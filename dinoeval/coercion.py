"""Option values of a program, converted to the types of the options: numbers of any kind, paths, lists and text."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

from dinoeval.display import shorten
from dinoeval.errors import ConfigError, unknown

T = TypeVar("T")


class _WrongType(Exception):  # noqa: N818  Caught in this module.
    """A value that cannot be converted."""


def make_config(kind: type[T], values: Mapping[str, Any], owner: str) -> T:
    """Make a dataclass of options from values of any sensible type.

    Args:
        kind: A dataclass.
        values: Values by field. The others get their defaults.
        owner: What the options belong to, for the message about an unknown one, such as "knn".

    Returns:
        The options.

    Raises:
        ConfigError: If there is no such option, or a value has a wrong type.

    Examples:
        >>> import numpy as np
        >>> from dinoeval.protocols.knn import Config
        >>> make_config(Config, {"k": np.array([10, 20]), "temperature": "0.07"}, "knn").k
        (10, 20)
    """
    fields = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise ConfigError(unknown(f"option of {owner}", str(name), fields))
    hints = _hints(kind)
    return kind(**{name: coerce(value, hints.get(name, Any), name) for name, value in values.items()})


def coerce_fields(options: Any) -> None:
    """Convert the fields of a frozen dataclass in its `__post_init__`.

    Args:
        options: The instance.

    Raises:
        ConfigError: If a value has a wrong type.
    """
    for name, hint in _hints(type(options)).items():
        object.__setattr__(options, name, coerce(getattr(options, name), hint, name))


def coerce(value: Any, hint: Any, name: str) -> Any:
    """Convert a value to the type of an option.

    Args:
        value: The value. Whole numbers of any type are integers; a single value stands for a tuple of one.
        hint: Type of the option.
        name: Name of the option.

    Returns:
        The converted value. A value of a type that is not known here is returned as it is.

    Raises:
        ConfigError: If it cannot be converted. The message names the option.

    Examples:
        >>> coerce([20.0], tuple[int, ...], "k")
        (20,)
        >>> coerce(2.5, int, "workers")
        Traceback (most recent call last):
        dinoeval.errors.ConfigError: --workers must be a whole number, got 2.5
    """
    try:
        return _convert(value, hint)
    except _WrongType:
        option = name.replace("_", "-")
        raise ConfigError(f"--{option} must be {_describe(hint)}, got {shorten(repr(value))}") from None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind)
    except NameError:  # A protocol of another package may import types for type checkers only.
        return {}


def _convert(value: Any, hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), list(typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return _convert_to_any(value, arguments)
    if origin is Literal:
        for choice in arguments:
            if type(value) is type(choice) and value == choice:
                return choice
        raise _WrongType
    if origin is tuple:
        return _convert_tuple(value, arguments)
    if hint in _CONVERSIONS:
        return _CONVERSIONS[hint](value)
    return value


def _convert_to_any(value: Any, hints: list[Any]) -> Any:
    if value is None and type(None) in hints:
        return None
    for hint in hints:
        try:
            return _convert(value, hint)
        except _WrongType:
            continue
    raise _WrongType


def _convert_tuple(value: Any, hints: list[Any]) -> tuple[Any, ...]:
    single = isinstance(value, (str, os.PathLike)) or not isinstance(value, Iterable) or getattr(value, "ndim", None) == 0
    parts: tuple[Any, ...] = (value,) if single else tuple(value)  # type: ignore[arg-type]
    if len(hints) == 2 and hints[1] is Ellipsis:
        hints = hints[:1] * len(parts)
    if len(parts) != len(hints) or isinstance(value, (dict, bytes)):
        raise _WrongType
    return tuple(_convert(part, hint) for part, hint in zip(parts, hints, strict=True))


def _to_bool(value: Any) -> bool:
    value = _plain(value)
    if not isinstance(value, bool):
        raise _WrongType
    return value


def _to_int(value: Any) -> int:
    value = _plain(value)
    try:
        if isinstance(value, bool):
            raise _WrongType
        if isinstance(value, str):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
        return operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise _WrongType from None


def _to_float(value: Any) -> float:
    value = _plain(value)
    if isinstance(value, (bool, bytes, bytearray)):
        raise _WrongType
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise _WrongType from None


def _to_text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise _WrongType
    text = os.fspath(value)
    if not isinstance(text, str):
        raise _WrongType
    return str(text)


def _to_none(value: Any) -> None:
    if value is not None:
        raise _WrongType


def _plain(value: Any) -> Any:
    """Return the Python value of a scalar of NumPy or PyTorch."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value


_CONVERSIONS: dict[Any, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_text, type(None): _to_none}
_NAMES: dict[Any, str] = {bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None"}


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), list(typing.get_args(hint))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if origin is tuple:
        parts = arguments[:1] if Ellipsis in arguments else arguments
        names = ", ".join(map(_describe, parts))
        return f"a tuple whose items are each {names}" if Ellipsis in arguments else f"a tuple of {names}"
    return _NAMES.get(hint, str(hint))
