"""Printed numbers that a Result may be compared with, or every reason why not. No other module decides this."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from dinoeval.errors import join_names
from dinoeval.paper.rows import PaperRow, Requirement, frozen, rows_for, show
from dinoeval.results import Result

MISSING = object()
"""The value of a field that the Result does not have."""
RANDOM = "random/"
"""Prefix of the network name of untrained weights, as in `random/vit_s16`."""
NO_NETWORK = "none"
"""Architecture in a Result that no network of the session made."""
COMMON = (
    Requirement("backbone.precision", ("fp32",)),
    Requirement("backbone.key", ("teacher", None)),
    Requirement("bad_images", (0,)),
    Requirement("image_rule", ("image@1", None)),
)
"""Requirements of every row that does not name another value of the field."""
SELECTORS = ("config.dataset", "config.preset", "config.head")
"""Options that choose what is measured. A row that requires another value is of another experiment."""
LABELS = {
    "backbone.precision": "precision",
    "backbone.key": "network of the checkpoint",
    "bad_images": "images left out because they cannot be read",
    "image_rule": "how images are read",
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What a Result may be compared with."""

    rows: tuple[PaperRow, ...]
    """The rows whose requirements the Result meets."""
    reasons: tuple[str, ...]
    """If `rows` is empty: every requirement of the nearest row that the Result does not meet."""
    related: tuple[PaperRow, ...] = ()
    """Rows whose known requirements the Result meets, but that cannot be compared with any Result."""


def comparable(result: Result, rows: Iterable[PaperRow] | None = None) -> Comparison:
    """Find the printed numbers that a Result may be compared with.

    Args:
        result: Any Result, also one that was saved earlier.
        rows: The rows to choose from; by default all rows of the Result's protocol.

    Returns:
        The rows, or all reasons why there are none.
    """
    rows = tuple(rows_for(result.protocol) if rows is None else rows)
    if not rows:
        return Comparison((), (f"no {result.protocol} score is published",))
    network = network_of(result, rows)
    name = network or result.backbone.get("arch", "unknown")
    fields = fields_of(result)
    own = [row for row in rows if row.network == name]
    unmet = {row: unmet_requirements(row, fields) for row in own}
    met = [row for row in own if network and not unmet[row]]
    usable = _merged(row for row in met if not row.incomparable)
    related = _merged(row for row in met if row.incomparable)
    if usable:
        return Comparison(usable, (), related)
    reasons = [] if network else [_unknown_network(result)]
    if name.startswith(RANDOM):
        reasons.append("the weights are random")
    candidates = [row for row in own if not row.incomparable] or own
    if not own and name != NO_NETWORK:
        networks = join_names(dict.fromkeys(row.network for row in rows if not row.incomparable), 4)
        reasons.append(f"no {result.protocol} score is published for {name}; networks with published scores: {networks}")
    candidates = candidates or [row for row in rows if not row.incomparable]
    reasons += dict.fromkeys(f"{row.source}: {row.incomparable}" for row in related)
    if candidates and not related:
        reasons += unmet_requirements(min(candidates, key=lambda row: _distance(row, fields)), fields)
    return Comparison((), tuple(dict.fromkeys(reasons)), related)


def _merged(rows: Iterable[PaperRow]) -> tuple[PaperRow, ...]:
    """Make one row of the rows that print the same value of the same metric in several places."""
    merged: dict[tuple[str, float, int], PaperRow] = {}
    for row in rows:
        key = row.metric, row.value, row.decimals
        earlier = merged.get(key, row)
        sources = tuple(dict.fromkeys((*earlier.source.split(" and "), row.source)))
        remarks = tuple(dict.fromkeys((*earlier.remarks, *row.remarks)))
        merged[key] = dataclasses.replace(earlier, source=" and ".join(sources), remarks=remarks)
    return tuple(merged.values())


def unmet_requirements(row: PaperRow, fields: dict[str, Any]) -> list[str]:
    """List the requirements of a row that a Result does not meet.

    Args:
        row: The printed number.
        fields: The fields of the Result, as `fields_of` returns them.

    Returns:
        One phrase per requirement, with the value found and the value required.
    """
    named = {requirement.field for requirement in row.requires}
    requirements = [*(common for common in COMMON if common.field not in named), *row.requires]
    phrases = [
        f"{LABELS.get(one.field, one.field)}: {_shown(fields.get(one.field, MISSING))} ({row.source} requires {one.expected})"
        for one in requirements
        if not _meets(one, fields)
    ]
    if f"metrics.{row.metric}" not in fields:
        phrases.append(f"the metric {row.metric} is missing")
    return phrases


def _meets(requirement: Requirement, fields: dict[str, Any]) -> bool:
    """Return whether the fields meet a requirement. An option that an earlier version did not have counts as not set."""
    return requirement.accepts(fields.get(requirement.field))


def _distance(row: PaperRow, fields: dict[str, Any]) -> tuple[int, int]:
    """Count the unmet requirements of a row: those that choose another experiment first, then all."""
    other = sum(one.field in SELECTORS and not _meets(one, fields) for one in row.requires)
    return other, len(unmet_requirements(row, fields))


def fields_of(result: Result) -> dict[str, Any]:
    """Flatten a Result to a mapping with dotted paths.

    Args:
        result: Any Result.

    Returns:
        Values by path, such as `config.temperature`; lists become tuples. `bad_images` is the number of images that were
        left out of any split.
    """
    fields: dict[str, Any] = {
        "transform": result.transform,
        "image_rule": result.image_rule or None,
        "version": result.version,
    }
    parts = {
        "config": result.config,
        "backbone": result.backbone,
        "data": result.data,
        "details": result.details,
        "metrics": result.metrics,
    }
    for name, part in parts.items():
        _flatten(name, part, fields)
    fields["bad_images"] = sum(len(split.get("bad_images") or ()) for split in result.splits.values())
    return fields


def _flatten(prefix: str, part: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in part.items():
        path = f"{prefix}.{name}"
        fields[path] = frozen(value)
        if isinstance(value, dict):
            _flatten(path, value, fields)


def network_of(result: Result, rows: Iterable[PaperRow]) -> str | None:
    """Return the model name of the network that was scored.

    Results name it in `backbone.network`. Results of earlier versions contain only the name of the weights. It is used if
    it is a model name of the rows.

    Args:
        result: Any Result.
        rows: The rows whose networks are known.

    Returns:
        The model name, `random/ARCH` for untrained weights, or None if the weights are not known.
    """
    if result.backbone.get("random"):
        return f"{RANDOM}{result.backbone.get('arch')}"
    if "network" in result.backbone:
        return result.backbone["network"]
    name = str(result.backbone.get("weights", "")).removesuffix("_full")
    if name.startswith("timm/") and name == result.backbone.get("arch"):
        name = name.split(".")[0]  # without the tag
    return name if name in {row.network for row in rows} else None


def _unknown_network(result: Result) -> str:
    weights, arch = result.backbone.get("weights"), result.backbone.get("arch")
    if arch == NO_NETWORK:
        return f"no network was run, {weights} were scored"
    return f"the weights {weights} do not match any released weights: they are scored as {arch} with unknown weights"


def _shown(value: object) -> str:
    return "missing" if value is MISSING else show(value)
