"""Values by name, in a form that is equal only if every bit is equal: floats in hexadecimal, arrays by their digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dinoeval
from dinoeval.environment import describe_machine

FIRST_VALUES = 4  # of an array, which are recorded readably next to its digest
DIGITS = 16  # of a digest
COLUMNS = {"best for % of objects": "share_best"}  # columns of a table whose name is a phrase
LIBRARIES = ("torch", "torchvision", "timm", "faiss-cpu", "numpy", "scipy", "scikit-learn", "cyanure", "pillow", "matplotlib")


class CannotRunError(Exception):
    """Raised by an area that needs a library that is not installed."""


class Recorder:
    """The values of one area.

    Args:
        area: Name of the area, which starts the name of each value.
    """

    def __init__(self, area: str) -> None:
        self.area = area
        self.values: dict[str, Any] = {}

    def add(self, name: str, value: Any) -> None:
        """Record a number, a word, an array, a tensor, or a list of numbers or words as `<area>/<name>`."""
        full = f"{self.area}/{name}"
        if full in self.values:
            raise ValueError(f"{full} is recorded twice")
        self.values[full] = encode(value)

    def add_all(self, name: str, values: Mapping[str, Any]) -> None:
        """Record each of several values as `<name>/<key>`."""
        for key, value in values.items():
            self.add(f"{name}/{key}", value)

    def add_state(self, name: str, state: Mapping[str, torch.Tensor]) -> None:
        """Record the keys of a state dict, and its tensors as one array."""
        keys = sorted(state)
        self.add(f"{name}/keys", keys)
        self.add(f"{name}/values", torch.cat([state[key].detach().double().flatten() for key in keys]))

    def add_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record each column of a table, except speeds; rows without the column are left out."""
        for column in dict.fromkeys(key for row in rows for key in row if key != "images_per_second"):
            self.add(f"{name}/{COLUMNS.get(column, column.replace(' ', '_'))}", [row[column] for row in rows if column in row])

    def add_result(self, name: str, result: dinoeval.Result) -> None:
        """Record the numbers of a Result: metrics with their errors, samples, table, numbers and fingerprints of images."""
        for metric, value in result.metrics.items():
            self.add(f"{name}/{metric}", value)
        self.add_all(name, {f"{metric}/error": value for metric, value in result.standard_errors.items()})
        self.add_all(name, {f"{metric}/deviation": value for metric, value in result.deviations.items()})
        for split, metadata in result.splits.items():
            self.add(f"{name}/images/{split}", [metadata["images"], metadata["classes"], len(metadata["bad_images"])])
            self.add(f"{name}/fingerprint/{split}", metadata["fingerprint"])
        for column, values in result.samples.items():
            ragged = any(isinstance(value, list) for value in values)
            self.add(f"{name}/samples/{column}", [json.dumps(value) for value in values] if ragged else values)
        self.add_table(f"{name}/table", result.table)

    def run(self, protocol: str, runs: Mapping[str, Mapping[str, Any]], **common: Any) -> None:
        """Run a protocol several times and record each Result.

        Args:
            protocol: Name of the protocol.
            runs: Arguments of `dinoeval.evaluate` by the name of the run; they replace those of `common`.
            **common: Arguments of all runs.
        """
        for name, options in runs.items():
            self.add_result(name, dinoeval.evaluate(protocol, **{**common, **options}))


def encode(value: Any) -> Any:
    """Turn a value into what is written to the file."""
    match value:
        case None:
            return "none"
        case str():
            return value
        case bool() | np.bool_() | int() | np.integer():
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
                first = list(value[:FIRST_VALUES])
                return {"count": len(value), "dtype": "text", "sha256": _digest("\n".join(value).encode()), "first": first}
            return _encode_array(np.array([math.nan if one is None else one for one in value]))
    raise TypeError(f"{type(value).__name__} cannot be recorded")


def _encode_array(array: np.ndarray) -> dict[str, Any]:
    if array.dtype.kind not in "biuf":
        raise TypeError(f"an array of {array.dtype} cannot be recorded")
    array = np.ascontiguousarray(array)
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(math.nan), array)  # one bit pattern for all NaN
    first = [encode(one) for one in array.ravel()[:FIRST_VALUES]]
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": _digest(array.tobytes()), "first": first}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def machine() -> dict[str, str]:
    """Return the versions of the libraries and the processor, on which the last bits of the values depend."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    processor = {"system": platform.system(), "architecture": platform.machine(), "processor": describe_machine()["processor"]}
    return {**versions, **processor, "instructions": torch.backends.cpu.get_cpu_capability()}


def write(path: Path, values: Mapping[str, Any]) -> None:
    """Write a record as JSON: the machine, then one value per line in the order of the names."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values[name])}" for name in sorted(values))
    path.write_text(f'{{"machine": {json.dumps(machine(), indent=1)},\n"values": {{\n{lines}\n}}}}\n', encoding="utf-8")


def read(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Read what `write` wrote: the machine and the values."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["machine"], content["values"]


def differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Describe each value that changed, is missing or is new; one line each."""
    names = sorted(name for name in earlier.keys() | now.keys() if earlier.get(name) != now.get(name))
    return [f"{name}: was {_readable(earlier.get(name))}, is {_readable(now.get(name))}" for name in names]


def _readable(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, dict):
        size = "x".join(map(str, value["shape"])) if "shape" in value else f"{value['count']} words"
        return f"{size} {value['dtype']} {value['sha256']} [{', '.join(map(_readable, value['first']))}, ...]"
    if isinstance(value, str) and value.lstrip("-").startswith(("0x", "nan", "inf")):
        return repr(float.fromhex(value))
    return str(value)
