"""Result: what was measured and all that is needed to repeat it. Reference and Verdict: how it compares.

Metrics are in percent, everywhere. This module needs NumPy only, so that `dinoeval check` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from dinoeval.errors import DinoevalError
from dinoeval.files import expand, write_whole

SCHEMA = "dinoeval-result/1"
LOWER_IS_BETTER = ("J_decay", "F_decay")
Z = 2.0  # standard errors of a difference that are put down to chance
MOST_CHANCE = 1.0
"""Points of a difference from a published number that are put down to chance, at most. A reference goes only with the images that
it was measured on, and the standard error tells how scores would vary with others: over 70 queries two of it are 6 points. What is
left on the same images is decoders and last digits: Table 4 has 85.5 where the released README has 85.8 of the same command."""


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
    deviations: dict[str, float] = dataclasses.field(default_factory=dict)
    """Percent, between runs on several subsets of the training set, where the metrics are means over them."""
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
    table: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """What goes beyond the metrics, such as every head of a sweep; one mapping a row."""
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    """One list a column, all of the same length: `path`, `label`, then outcomes by metric: 1 right, 0 wrong, a fraction where
    that is what a metric averages, null where it leaves the sample out."""

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        content = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, allow_nan=False) + "\n"
        write_whole(path, lambda target: target.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read what `save` wrote."""
        path = expand(path)
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
            result = cls(**content, references=references)
            good = all(math.isfinite(value) for values in (result.metrics, result.standard_errors) for value in values.values())
            good &= all(isinstance(part, dict) for part in (result.data, result.samples, result.config, result.backbone))
        except (TypeError, KeyError, AttributeError) as error:
            raise DinoevalError(f"{path} is no complete Result: {error}") from error
        if not good:
            raise DinoevalError(f"{path} is no sound Result: a number is NaN or infinite, or a part is not what it should be")
        return result


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

    Returns the verdicts, or none and the reason why the two are not comparable. A difference within the tolerance is put
    down to chance and rounding: z standard errors of the difference, against a published number no more than MOST_CHANCE
    points, plus half a unit of the last published digit. z is 2 for one metric; for m metrics it is that of m times
    smaller tails (Bonferroni), so that the chance that equal models fail on any of them stays below 2.3 %. Two Results
    on the same images are compared pair by pair: where the outcomes changed by d, the difference is the sum of d over n
    and its error the root of the sum of d squared over n.
    """
    if against is None:
        lacking = [reference.metric for reference in result.references if reference.metric not in result.metrics]
        if lacking or not result.references:
            return [], result.not_comparable or f"the Result holds no {', '.join(lacking) or 'published number'}"
        z = _threshold(len(result.references))
        return [_against_published(result, reference, z) for reference in result.references], None
    if reason := _difference_of_recipe(result, against):
        return [], reason
    z = _threshold(len(against.metrics))
    return [_against_result(result, against, name, z) for name in against.metrics], None


def _threshold(metrics: int) -> float:
    return -NormalDist().inv_cdf(NormalDist().cdf(-Z) / metrics)


def _difference_of_recipe(one: Result, other: Result) -> str | None:
    if one.protocol != other.protocol:
        return f"one is of {one.protocol}, the other of {other.protocol}"
    if one.version != other.version:
        return f"{one.protocol} has VERSION {one.version} in one and {other.version} in the other: its numbers may have moved"
    for half in (half for half, facts in {**one.data, **other.data}.items() if isinstance(facts, dict)):
        prints = [result.data.get(half, {}).get("fingerprint") for result in (one, other)]
        if prints[0] != prints[1]:
            return f"their {half} images are not the same (fingerprints {prints[0]} and {prints[1]})"
        counts = [result.data.get(half, {}).get("images") for result in (one, other)]
        if counts[0] != counts[1]:
            return f"one read {counts[0]} of the {half} images, the other {counts[1]}"
    settings = [{"transform": result.transform, "precision": result.backbone.get("precision"), **result.config} for result in (one, other)]
    for name in settings[0].keys() | settings[1].keys():
        values = [setting.get(name) for setting in settings]
        if name not in ("data", "k") and values[0] != values[1]:
            return f"{name} is {values[0]} in one and {values[1]} in the other"
    lacking = [name for name in other.metrics if name not in one.metrics]
    return f"one lacks {', '.join(lacking)}, which the other has" if lacking else None


def _verdict(name: str, measured: float, reference: float, tolerance: float, beyond: bool, method: str) -> Verdict:
    difference = measured - reference
    outcome = "same" if not beyond else "better" if (difference > 0) != (name in LOWER_IS_BETTER) else "worse"
    return Verdict(
        metric=name, measured=measured, reference=reference, difference=difference, tolerance=tolerance, outcome=outcome, method=method
    )


def _against_published(result: Result, reference: Reference, z: float) -> Verdict:
    measured, error = result.metrics[reference.metric], result.standard_errors.get(reference.metric, 0.0)
    rounding = 0.5 * 10**-reference.decimals if reference.decimals is not None else 0.0
    tolerance = min(z * error, MOST_CHANCE) + rounding
    chance = f"{z:.2f} x SE {error:.3f}" + (f", at most {MOST_CHANCE:g}," if z * error > MOST_CHANCE else "")
    method = f"{chance} + rounding {rounding:g} ({reference.source})"
    beyond = abs(measured - reference.value) > tolerance
    return _verdict(reference.metric, measured, reference.value, tolerance, beyond, method)


def _against_result(result: Result, against: Result, name: str, z: float) -> Verdict:
    outcomes = [run.samples.get(name) for run in (result, against)]
    paths = [run.samples.get("path") for run in (result, against)]
    if outcomes[0] and outcomes[1] and paths[0] == paths[1] and len(outcomes[0]) == len(outcomes[1]):
        change = np.array(outcomes[0], float) - np.array(outcomes[1], float)
        change = change[~np.isnan(change)]  # null: a query that the metric leaves out
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        squares = float((change**2).sum())  # of outcomes 0 and 1 the number that changed
        tolerance = z * 100 * math.sqrt(squares) / len(change)
        beyond = float(change.sum()) ** 2 > z**2 * squares
        method = f"paired: {gained} outcomes gained, {lost} lost; {z:.2f} x SE"
    else:
        error = math.hypot(*(run.standard_errors.get(name, 0.0) for run in (result, against)))
        tolerance, method = z * error, f"unpaired: {z:.2f} x SE {error:.3f}"
        beyond = abs(result.metrics[name] - against.metrics[name]) > tolerance
    return _verdict(name, result.metrics[name], against.metrics[name], tolerance, beyond, method)
