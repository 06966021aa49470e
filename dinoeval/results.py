"""Result: what was measured and all that is needed to repeat it. Reference and Verdict: how it compares.

Metrics are in percent, everywhere. This module needs NumPy only, so that `dinoeval check` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dinoeval.errors import DinoevalError

SCHEMA = "dinoeval-result/1"
Z = 2.0  # standard errors of a difference that are put down to chance


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """A number to compare with."""

    metric: str
    value: float
    """Percent."""
    decimals: int | None
    """Decimals that were printed, so that the true value lies within half of the last one; None for a full float."""
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """One run of one protocol."""

    protocol: str
    version: int
    metrics: dict[str, float]
    """Percent, by names such as `top1@20`."""
    standard_errors: dict[str, float]
    """Percent, for the metrics that have one."""
    config: dict[str, Any]
    backbone: dict[str, Any]
    """arch, weights, layout, key, digest, precision, device, random."""
    data: dict[str, Any]
    """name, and for each half its split, fingerprint, images, classes and the images that could not be read."""
    transform: str
    machine: dict[str, str]
    seconds: dict[str, float]
    references: list[Reference] = dataclasses.field(default_factory=list)
    not_comparable: str | None = None
    """Why there is no published number to compare with."""
    notes: list[str] = dataclasses.field(default_factory=list)
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    """One list a column, all of the same length: `path`, `label`, then outcomes by metric (1 right, 0 wrong)."""

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        path = Path(path).expanduser()
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        content = {"schema": SCHEMA, **dataclasses.asdict(self)}
        try:
            aside.write_text(json.dumps(content, indent=None) + "\n", encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            raise DinoevalError(f"{path} cannot be written: {error.strerror}") from error
        finally:
            aside.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote."""
        path = Path(path).expanduser()
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise DinoevalError(f"no Result can be read from {path}: {error.strerror}") from error
        except ValueError as error:
            raise DinoevalError(f"{path} is no Result: {error}") from error
        if not isinstance(content, dict) or content.get("schema") != SCHEMA:
            raise DinoevalError(f"{path} is no Result of this version ({SCHEMA}); write one with --json")
        del content["schema"]
        try:
            references = [Reference(**reference) for reference in content.pop("references")]
            return cls(**content, references=references)
        except (TypeError, KeyError) as error:
            raise DinoevalError(f"{path} is no complete Result: {error}") from error


def proportion_error(percent: float, count: int) -> float:
    """Standard error of a percentage of `count` independent outcomes, in percent."""
    share = percent / 100
    return 100 * math.sqrt(max(share * (1 - share), 0.0) / count)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one metric compares."""

    metric: str
    measured: float
    reference: float
    difference: float
    tolerance: float
    """A difference within it is put down to chance and rounding."""
    outcome: Literal["same", "better", "worse"]
    method: str


def compare(result: Result, against: Result | None) -> tuple[list[Verdict], str | None]:
    """Compare with another Result, or with the published numbers where `against` is None.

    Returns the verdicts, and where there are none the reason why the two are not comparable. The tolerance is two
    standard errors of the difference plus half a unit of the last published digit. Two Results on the same images are
    compared pair by pair; then the error is that of the outcomes that changed, sqrt(b + c) / n.
    """
    if against is None:
        if not result.references:
            return [], result.not_comparable or "the Result names no published number"
        return [_against_published(result, reference) for reference in result.references if reference.metric in result.metrics], None
    if reason := _difference_of_recipe(result, against):
        return [], reason
    common = [name for name in result.metrics if name in against.metrics]
    if not common:
        return [], "they have no metric in common"
    return [_against_result(result, against, name) for name in common], None


def _difference_of_recipe(one: Result, other: Result) -> str | None:
    if one.protocol != other.protocol:
        return f"one is of {one.protocol}, the other of {other.protocol}"
    if one.version != other.version:
        return f"{one.protocol} has VERSION {one.version} in one and {other.version} in the other: its numbers may have moved"
    for half in ("train", "val"):
        prints = [result.data.get(half, {}).get("fingerprint") for result in (one, other)]
        if prints[0] != prints[1]:
            return f"their {half} images are not the same (fingerprints {prints[0]} and {prints[1]})"
    return None


def _outcome(difference: float, tolerance: float) -> Literal["same", "better", "worse"]:
    if abs(difference) <= tolerance:
        return "same"
    return "better" if difference > 0 else "worse"


def _against_published(result: Result, reference: Reference) -> Verdict:
    name = reference.metric
    difference = result.metrics[name] - reference.value
    rounding = 0.5 * 10**-reference.decimals if reference.decimals is not None else 0.0
    error = result.standard_errors.get(name, 0.0)
    tolerance = Z * error + rounding
    return Verdict(
        metric=name, measured=result.metrics[name], reference=reference.value, difference=difference, tolerance=tolerance,
        outcome=_outcome(difference, tolerance), method=f"{Z:g} x SE {error:.3f} + rounding {rounding:g} ({reference.source})",
    )  # fmt: skip


def _against_result(result: Result, against: Result, name: str) -> Verdict:
    difference = result.metrics[name] - against.metrics[name]
    columns = [run.samples.get(name) for run in (result, against)]
    paths = [run.samples.get("path") for run in (result, against)]
    if columns[0] and columns[1] and paths[0] == paths[1] and len(columns[0]) == len(columns[1]):
        changed = int((np.array(columns[0]) != np.array(columns[1])).sum())
        error, method = 100 * math.sqrt(changed) / len(columns[0]), f"{changed} outcomes changed, paired"
    else:
        error = math.hypot(*(run.standard_errors.get(name, 0.0) for run in (result, against)))
        method = "unpaired"
    tolerance = Z * error
    return Verdict(
        metric=name, measured=result.metrics[name], reference=against.metrics[name], difference=difference, tolerance=tolerance,
        outcome=_outcome(difference, tolerance), method=f"{Z:g} x SE {error:.3f}, {method}",
    )  # fmt: skip
