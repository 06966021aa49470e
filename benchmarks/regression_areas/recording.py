"""Numbers by name, in a form that is equal only if every bit is: floats in hexadecimal, arrays by their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

SHOWN = 4  # first values of an array that are kept readable
DIGITS = 16  # of a digest
COLUMNS = {"best for % of objects": "share_best"}  # columns of a result's table that have another name here


class Book:
    """The numbers of one area."""

    def __init__(self, area: str) -> None:
        self.area = area
        self.numbers: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Record a number, a word, an array, a tensor, or a list of numbers or words, as `<area>/<name>`."""
        full = f"{self.area}/{name}"
        if full in self.numbers:
            raise ValueError(f"{full} is recorded twice")
        self.numbers[full] = encode(value)

    def add_all(self, name: str, values: Mapping[str, Any]) -> None:
        """Record each of several values as `<name>/<key>`."""
        for key, value in values.items():
            self.add(f"{name}/{key}", value)

    def state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Record the names of a state dict, and all its values as one array."""
        keys = sorted(state)
        self.add(f"{name}/keys", keys)
        self.add(f"{name}/values", torch.cat([state[key].detach().double().flatten() for key in keys]))

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], leave_out: Sequence[str] = ()) -> None:
        """Record each column of a table; a row that lacks a column is not in it."""
        for column in dict.fromkeys(key for row in rows for key in row if key not in leave_out):
            stable = COLUMNS.get(column, column.replace(" ", "_"))
            self.add(f"{name}/{stable}", [row[column] for row in rows if column in row])

    def result(self, name: str, result: Any) -> None:
        """Record all numbers of a Result: metrics with errors and deviations, samples, table, numbers of images."""
        for metric, value in result.metrics.items():
            self.add(f"{name}/{metric}", value)
        for metric, value in result.standard_errors.items():
            self.add(f"{name}/{metric}/error", value)
        for metric, value in result.deviations.items():
            self.add(f"{name}/{metric}/deviation", value)
        for half, facts in result.data.items():
            if isinstance(facts, dict):
                self.add(f"{name}/images/{half}", [facts["images"], facts["classes"], len(facts["bad_images"])])
        for column, values in result.samples.items():
            ragged = any(isinstance(value, list) for value in values)
            self.add(f"{name}/samples/{column}", [json.dumps(value) for value in values] if ragged else values)
        self.table(f"{name}/table", result.table)


def encode(value: Any) -> Any:
    """Turn a value into what is written to the file."""
    match value:
        case None:
            return "none"
        case str():
            return value
        case bool() | np.bool_():
            return int(value)
        case int() | np.integer():
            return int(value)
        case float() | np.floating():
            return float(value).hex()
        case torch.Tensor():
            value = value.detach().cpu()
            return encode((value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).numpy())
        case np.ndarray():
            return value.item() if value.ndim == 0 and value.dtype.kind in "iu" else _encode_array(value)
        case list() | tuple():
            if value and all(isinstance(one, str) for one in value):
                return {"count": len(value), "dtype": "text", "sha256": _digest("\n".join(value).encode()), "first": list(value[:SHOWN])}
            return _encode_array(np.array([math.nan if one is None else one for one in value]))
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} cannot be recorded")
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(math.nan), array)  # one kind of NaN
    first = array.ravel()[:SHOWN].tolist()
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": _digest(array.tobytes()),
        "first": [float(one).hex() if array.dtype.kind == "f" else int(one) for one in first],
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def write(path: Path, numbers: Mapping[str, Any]) -> None:
    """Write numbers as JSON, one a line, in the order of their names."""
    lines = [f"{json.dumps(name)}: {json.dumps(numbers[name])}" for name in sorted(numbers)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    """Read what `write` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each number that is not the same, not there any more, or new; one line each."""
    found = []
    for name in sorted(earlier.keys() | now.keys()):
        if name not in now:
            found.append(f"{name}: missing; was {_shown(earlier[name])}")
        elif name not in earlier:
            found.append(f"{name}: new; is {_shown(now[name])}")
        elif earlier[name] != now[name]:
            found.append(f"{name}: was {_shown(earlier[name])}, is {_shown(now[name])}{_change(earlier[name], now[name])}")
    return found


def _shown(value: Any) -> str:
    """A recorded value for people."""
    if isinstance(value, dict):
        what = "x".join(map(str, value["shape"])) if "shape" in value else f"{value['count']} words"
        return f"{what} {value['dtype']} {value['sha256']} [{', '.join(map(_shown, value['first']))}, ...]"
    number = _number(value)
    return str(value) if number is None else repr(number)


def _number(value: Any) -> float | None:
    """A recorded float; None for anything else."""
    if isinstance(value, str) and value.lstrip("-").startswith(("0x", "nan", "inf")):
        return float.fromhex(value)
    return None


def _change(earlier: Any, now: Any) -> str:
    pair = _number(earlier), _number(now)
    return "" if None in pair else f", changed by {pair[1] - pair[0]:.3g}"  # type: ignore[operator]
