"""Result: what one run of a protocol measured, and everything needed to repeat it.

Metrics are in percent everywhere. This module imports neither torch nor the numbers of the paper, so that
`dinoeval check` starts fast.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from pathlib import Path
from typing import Any, TypedDict

from dinoeval.decoding import convert, decode_file
from dinoeval.display import short_repr, shorten
from dinoeval.errors import DinoevalError
from dinoeval.files import expand, write_whole

SCHEMA = "dinoeval-result/2"
READABLE_SCHEMAS = ("dinoeval-result/1", SCHEMA)
"""Version 1 also held published numbers; they are dropped, because `dinoeval.paper` decides what a Result is compared with."""
_SHOWN = 6  # Metrics in the text of a Result; its table in a notebook has all.
RENAMED_OPTIONS = {
    "copydays": {"top": "ap_cutoff", "whitening_centred": "center_whitening"},
    "davis": {"context": "context_frames", "top": "top_k", "reading": "resize_backend", "failures": "edge_cases"},
    "logistic": {"max_passes": "max_iter"},
    "retrieval": {"whitening_centred": "center_whitening"},
}
"""Options that have another name in Results of version 1, by protocol."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """What a protocol measured: metrics, their uncertainty, and the outcomes behind them."""

    metrics: dict[str, float]
    """Percent, by names such as `top1@20`."""
    standard_errors: dict[str, float]
    """Percent, for the metrics that have one."""
    deviations: dict[str, float] = dataclasses.field(default_factory=dict)
    """Standard deviation over runs on several training subsets, in percent, if the metrics are means over them."""
    table: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Details beyond the metrics, such as every head of a sweep; one mapping per row."""
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    """One list per column, all of the same length: `path`, `label`, then outcomes by metric. An outcome is 1 for correct, 0 for
    wrong, a fraction if the metric averages fractions, or None if the metric leaves the sample out."""

    __repr__ = short_repr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result(Scores):
    """One run of one protocol."""

    protocol: str
    version: int
    """The protocol's VERSION: raised when its numbers may change."""
    config: dict[str, Any]
    """The protocol's options, with defaults that depend on the data or the network resolved."""
    backbone: dict[str, Any]
    """arch, network, weights, layout, key, random, digest, precision, device."""
    data: dict[str, Any]
    """name, and for each split: split, fingerprint, images (those that were used), classes, bad_images (those that
    cannot be read), skipped_files (numbers of other files in the folder, by ending)."""
    transform: str
    """Id of the transform, such as `dino@1:256/224`."""
    machine: dict[str, str]
    """Versions and hardware."""
    seconds: dict[str, float]
    """Wall-clock time by stage."""
    image_rule: str = ""
    """Id of the rule by which image files became pixels, such as `image@1`; empty in Results of earlier versions."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values that the protocol counted or checked, such as the number of images in each block of a dataset."""
    notes: list[str] = dataclasses.field(default_factory=list)
    """Sentences that a reader of the numbers needs."""

    def __repr__(self) -> str:
        """Write the scores and what they are of, without the outcomes of the images."""
        metrics = [f"{name} {score}" for name, score in self._scores().items()]
        more = f" and {len(metrics) - _SHOWN} more" if len(metrics) > _SHOWN else ""
        return f"Result({self._summary()}: {', '.join(metrics[:_SHOWN]) or 'no metrics'}{more})"

    def _repr_html_(self) -> str:
        """Write the metrics as a table, which notebooks show at the end of a cell."""
        rows = [f"<tr><td>{html.escape(name)}</td><td>{html.escape(score)}</td></tr>" for name, score in self._scores().items()]
        table = f"<table><tr><th>metric</th><th>percent ± standard error</th></tr>{''.join(rows)}</table>"
        notes = "".join(f"<li>{html.escape(str(note))}</li>" for note in self.notes)
        return f"<p>{html.escape(self._summary())}</p>{table}<ul>{notes}</ul>"

    def _scores(self) -> dict[str, str]:
        """Return each metric with its standard error, as text."""
        errors = {name: f" ± {error:.2f}" for name, error in self.standard_errors.items()}
        return {name: f"{value:.2f}{errors.get(name, '')}" for name, value in self.metrics.items()}

    def _summary(self) -> str:
        """Name the protocol, the data and the network."""
        backbone, data = self.backbone, self.data.get("name") or "unnamed data"
        network = f"{backbone.get('arch')}, weights {backbone.get('weights')}, {self.transform}, {backbone.get('precision')}"
        return f"{self.protocol}@{self.version} on {shorten(str(data))}, {shorten(network, 160)}"

    def save(self, path: str | Path) -> None:
        """Write the Result as JSON; the file appears complete or not at all.

        Args:
            path: Target file.

        Raises:
            DinoevalError: If the file cannot be written, or a value is not one of JSON's, such as NaN.
        """
        try:
            content = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise DinoevalError(f"the Result of {self.protocol} cannot be written to {path}: {error}") from error
        write_whole(path, lambda target: target.write_text(content, encoding="utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """Read a file that `save` or `--json` wrote, also one of an earlier version.

        Args:
            path: A JSON file.

        Returns:
            The Result.

        Raises:
            DinoevalError: If the file cannot be read or is not a Result; the message names the field that is wrong.
        """
        path = expand(path)
        what = f"the Result {path}"
        content = decode_file(path, dict[str, Any], what)
        if (schema := content.pop("schema", None)) not in READABLE_SCHEMAS:
            raise DinoevalError(f"{path} is not a Result of a known schema ({', '.join(READABLE_SCHEMAS)}): write one with --json")
        if schema != SCHEMA:
            renamed = RENAMED_OPTIONS.get(str(content.get("protocol")), {})
            content = {name: value for name, value in content.items() if name not in ("references", "not_comparable")}
            if isinstance(config := content.get("config"), dict):
                content["config"] = {renamed.get(name, name): value for name, value in config.items()}
        result = convert(content, cls, what)
        convert(result.backbone, _BackboneFacts, f"{what} (field backbone)")
        for name, split in result.splits.items():
            convert(split, _SplitFacts, f"{what} (field data.{name})")
        if problem := _problem(result):
            raise DinoevalError(f"{what} is corrupted or was not written by dinoeval: {problem}")
        return result

    @property
    def splits(self) -> dict[str, dict[str, Any]]:
        """The metadata of each split in `data`, by name."""
        return {name: metadata for name, metadata in self.data.items() if isinstance(metadata, dict)}


class _BackboneFacts(TypedDict, total=False):
    """Types of the fields of `backbone` that comparisons and tables use."""

    arch: str | None
    network: str | None
    weights: str | None
    key: str | None
    digest: str | None
    precision: str | None
    random: bool | None


class _SplitFacts(TypedDict, total=False):
    """Types of the fields of a split that comparisons and tables use."""

    split: str
    fingerprint: str | None
    images: int
    classes: int
    bad_images: list[str] | None


def _problem(result: Result) -> str | None:
    """Describe what types do not show: columns of different lengths, or outcomes that are not numbers."""
    lengths = {name: len(column) for name, column in result.samples.items()}
    if len(set(lengths.values())) > 1:
        return f"the columns of samples have different lengths: {', '.join(f'{name} {length}' for name, length in lengths.items())}"
    for name in result.samples.keys() & result.metrics.keys():
        for row, outcome in enumerate(result.samples[name]):
            if outcome is not None and not isinstance(outcome, (int, float)):
                return f"samples.{name}[{row}] is {outcome!r:.50}, expected a number or null"
    if negative := [name for name, error in result.standard_errors.items() if error < 0]:
        return f"standard_errors.{negative[0]} is negative"
    return None


def proportion_error(percent: float, count: int) -> float:
    """Return the standard error of a proportion, in percent.

    Args:
        percent: The proportion, in percent.
        count: Number of independent outcomes.

    Returns:
        sqrt(p (1 - p) / count), in percent.

    Examples:
        >>> round(proportion_error(50.0, 100), 2)
        5.0
    """
    share = percent / 100
    return 100 * math.sqrt(max(share * (1 - share), 0.0) / count)
