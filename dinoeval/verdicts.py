"""Verdicts: how a Result compares with printed numbers or with another Result."""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist
from typing import Literal

import numpy as np

from dinoeval.paper.comparable import comparable
from dinoeval.paper.rows import PaperRow
from dinoeval.results import Result

LOWER_IS_BETTER = ("J_decay", "F_decay")
Z = 2.0
"""Standard errors of a difference that are attributed to chance."""
MAX_SAMPLING_POINTS = 1.0
"""Largest part of a difference from a printed number, in points, that is attributed to sampling error.

A printed number is compared only with scores of the same images, but the standard error describes other images. For 70
queries, two standard errors are 6 points. On the same images, only decoders and rounding cause differences: for the same
command, Table 4 prints 85.5 and the released README prints 85.8."""
IGNORED_OPTIONS = ("data", "k")
"""Options that may differ between two Results that are compared: the images are compared by fingerprint, and each k is a metric."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """How one metric compares with a reference value; numbers in percent."""

    metric: str
    measured: float
    reference: float
    difference: float
    """measured - reference."""
    tolerance: float
    """A difference up to this size is attributed to chance and rounding."""
    outcome: Literal["same", "better", "worse"]
    method: str
    """How the tolerance was computed."""


def compare_with_paper(result: Result) -> tuple[list[Verdict], tuple[str, ...]]:
    """Compare a Result with the printed numbers.

    A difference within the tolerance is attributed to chance and rounding: z standard errors, at most
    MAX_SAMPLING_POINTS, plus half a unit of the last printed digit. z is 2 for one metric; for m metrics the tails are m
    times smaller (Bonferroni).

    Args:
        result: Any Result.

    Returns:
        One verdict per printed number, and no reasons; or no verdicts and all reasons why none can be compared.
    """
    found = comparable(result)
    z = _bonferroni_z(len({row.metric for row in found.rows}))
    return [_verdict_on_row(result, row, z) for row in found.rows], found.reasons


def compare_results(result: Result, reference: Result) -> tuple[list[Verdict], str | None]:
    """Compare a Result with another Result of the same protocol, options and images.

    Two Results with outcomes for the same images are compared in pairs. If the outcomes change by d, the difference is
    sum(d) / n and its standard error sqrt(sum(d ** 2)) / n. z is 2 for one metric; for m metrics the tails are m times
    smaller (Bonferroni). So equal models fail on any metric with a probability below 2.3%.

    Args:
        result: The Result to judge.
        reference: The Result to compare with.

    Returns:
        One verdict per metric of `reference`, and None; or no verdicts and the reason why the two cannot be compared.
    """
    if reason := _difference_of_runs(result, reference):
        return [], reason
    z = _bonferroni_z(len(reference.metrics))
    return [_verdict_on_metric(result, reference, name, z) for name in reference.metrics], None


def _bonferroni_z(metrics: int) -> float:
    return -NormalDist().inv_cdf(NormalDist().cdf(-Z) / max(1, metrics))


def _difference_of_runs(result: Result, reference: Result) -> str | None:
    """Describe the first difference between two runs that makes their scores incomparable."""
    if result.protocol != reference.protocol:
        return f"the protocols differ: {result.protocol} and {reference.protocol}"
    if result.version != reference.version:
        return f"{result.protocol} has VERSION {result.version} in one and {reference.version} in the other: its numbers may have changed"
    for name in {**result.splits, **reference.splits}:
        splits = [run.splits.get(name, {}) for run in (result, reference)]
        if splits[0].get("fingerprint") != splits[1].get("fingerprint"):
            return f"the {name} images differ (fingerprints {splits[0].get('fingerprint')} and {splits[1].get('fingerprint')})"
        if splits[0].get("images") != splits[1].get("images"):
            return f"the numbers of {name} images differ: {splits[0].get('images')} and {splits[1].get('images')}"
    options = [
        {"transform": run.transform, "image_rule": run.image_rule or "image@1", "precision": run.backbone.get("precision"), **run.config}
        for run in (result, reference)
    ]
    for name in dict.fromkeys([*options[0], *options[1]]):
        values = [option.get(name) for option in options]
        if name not in IGNORED_OPTIONS and values[0] != values[1]:
            return f"the option {name} differs: {values[0]!s:.200} and {values[1]!s:.200}"
    if not reference.metrics:
        return "the reference has no metric"
    for name, run in {"Result": result, "reference": reference}.items():
        if broken := [metric for metric, value in run.metrics.items() if not math.isfinite(value)]:
            return f"the {name} has a {broken[0]} of {run.metrics[broken[0]]}"
    missing = [name for name in reference.metrics if name not in result.metrics]
    return f"the Result has no {', '.join(missing)}, which the reference has" if missing else None


def _verdict(metric: str, values: tuple[float, float], tolerance: float, within: bool, method: str) -> Verdict:
    measured, reference = values
    difference = measured - reference
    outcome = "same" if within else "better" if (difference > 0) != (metric in LOWER_IS_BETTER) else "worse"
    return Verdict(
        metric=metric, measured=measured, reference=reference, difference=difference, tolerance=tolerance, outcome=outcome, method=method
    )


def _verdict_on_row(result: Result, row: PaperRow, z: float) -> Verdict:
    measured, error = result.metrics[row.metric], result.standard_errors.get(row.metric, 0.0)
    rounding = 0.5 * 10**-row.decimals
    tolerance = min(z * error, MAX_SAMPLING_POINTS) + rounding
    cap = f" (at most {MAX_SAMPLING_POINTS:g})" if z * error > MAX_SAMPLING_POINTS else ""
    method = f"{z:.2f} x SE {error:.3f}{cap} + rounding {rounding:g} ({row.source})"
    return _verdict(row.metric, (measured, row.value), tolerance, _within(measured - row.value, tolerance), method)


def _verdict_on_metric(result: Result, reference: Result, name: str, z: float) -> Verdict:
    values = result.metrics[name], reference.metrics[name]
    change = _change_of_outcomes(result, reference, name)
    if len(change):
        gained, lost = int((change > 0).sum()), int((change < 0).sum())
        with np.errstate(over="ignore"):
            squares = float((change**2).sum())  # for outcomes 0 and 1, the number that changed
            within = _within(float(change.sum() ** 2), z**2 * squares)
        tolerance = z * 100 * math.sqrt(squares) / len(change)
        return _verdict(name, values, tolerance, within, f"paired: {gained} outcomes gained, {lost} lost; {z:.2f} x SE")
    error = math.hypot(*(run.standard_errors.get(name, 0.0) for run in (result, reference)))
    return _verdict(name, values, z * error, _within(values[0] - values[1], z * error), f"unpaired: {z:.2f} x SE {error:.3f}")


def _within(difference: float, tolerance: float) -> bool:
    """Return whether a difference is attributed to chance; never with an infinite tolerance or NaN."""
    return abs(difference) <= tolerance < math.inf


def _change_of_outcomes(result: Result, reference: Result, name: str) -> np.ndarray:
    """Return how much the outcome of each image changed, without the images that the metric leaves out; empty if unknown."""
    outcomes, others = (run.samples.get(name) or [] for run in (result, reference))
    if result.samples.get("path") != reference.samples.get("path") or len(outcomes) != len(others):
        return np.empty(0)
    change = np.array(outcomes, float) - np.array(others, float)
    return change[~np.isnan(change)]  # None marks a sample that the metric leaves out
