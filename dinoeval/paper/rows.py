"""The printed numbers as rows of data: `rows.toml` for built-in protocols, entry points for protocols of other packages."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any

from dinoeval.errors import ConfigError

ENTRY_POINTS = "dinoeval.protocols"
"""Entry-point group of protocols from other packages; such a module may define `PAPER_ROWS`."""


@dataclasses.dataclass(frozen=True)
class Requirement:
    """A field of a Result and the value it must have to be compared with a printed number."""

    field: str
    """Dotted path in the Result, such as `data.train.images`; see `comparable.fields_of` for derived fields."""
    allowed: tuple[Any, ...] = ()
    """The values that are accepted; empty if `maximum` is set."""
    maximum: float | None = None
    """The largest number that is accepted."""

    def __post_init__(self) -> None:
        # Facts hold tuples for lists; a value that is not in a tuple is the one allowed value.
        allowed = self.allowed if isinstance(self.allowed, (tuple, list)) else (self.allowed,)
        object.__setattr__(self, "allowed", tuple(map(frozen, allowed)))

    def accepts(self, value: object) -> bool:
        """Return whether a Result with this value of the field meets the requirement.

        Args:
            value: The value that the Result holds.

        Returns:
            True if it is allowed. False does not match 0, and True does not match 1.
        """
        if self.maximum is not None:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and value <= self.maximum
        return any(value == allowed and isinstance(value, bool) == isinstance(allowed, bool) for allowed in self.allowed)

    @property
    def expected(self) -> str:
        """Description of the values that the requirement accepts."""
        return f"at most {self.maximum:g}" if self.maximum is not None else " or ".join(map(show, self.allowed))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaperRow:
    """One printed number and what a Result must have to be compared with it."""

    source: str
    """Where the number is printed, such as `Table 2`."""
    protocol: str
    network: str
    """Model name, such as `vit_s16` or `timm/deit_small_patch16_224`."""
    metric: str
    value: float
    """Percent; images per second for the protocol `speed`."""
    decimals: int
    """Printed decimals: the true value is within half a unit of the last one."""
    requires: tuple[Requirement, ...] = ()
    remarks: tuple[str, ...] = ()
    """What a comparison assumes, because the paper or the files do not state it."""
    incomparable: str = ""
    """Why no Result can be compared with this row, such as images that the paper does not name; empty for other rows."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "requires", tuple(self.requires))
        object.__setattr__(self, "remarks", tuple(self.remarks))


def show(value: object) -> str:
    """Format a value of a Result for people.

    Args:
        value: Any value that JSON can hold.

    Returns:
        The value in words.

    Examples:
        >>> show(1281167), show(None), show([0.0])
        ('1,281,167', 'not set', '0.0')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "not set"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(show, value)) or "none"
    return str(value)


@functools.cache
def builtin_rows() -> tuple[PaperRow, ...]:
    """Read the rows of `rows.toml`.

    The file has two parts. `[conditions.NAME]` is a set of requirements with a name: field = value, or field = {any = [...]},
    {max = x}, {unset = true}. `[[rows]]` is a group of numbers with common fields: `source`, `protocol`, `metric`,
    `decimals` (1 by default), `conditions` (names), `requires` (more requirements), `remarks` and `incomparable`. Its
    `values` map a network to a value, or to a table from metric to value.

    Returns:
        All rows, in the order of the file.
    """
    content = tomllib.loads(importlib.resources.files("dinoeval.paper").joinpath("rows.toml").read_text(encoding="utf-8"))
    return tuple(row for group in content["rows"] for row in _rows_of(group, content["conditions"]))


def _rows_of(group: Mapping[str, Any], conditions: Mapping[str, Mapping[str, Any]]) -> list[PaperRow]:
    fields: dict[str, Any] = {}
    for name in group.get("conditions", ()):
        fields |= conditions[name]
    fields |= group.get("requires", {})
    requires = tuple(_requirement(field, value) for field, value in fields.items())
    rows = []
    for network, values in group["values"].items():
        for metric, value in (values if isinstance(values, dict) else {group["metric"]: values}).items():
            rows.append(
                PaperRow(
                    source=group["source"],
                    protocol=group["protocol"],
                    network=network,
                    metric=metric,
                    value=float(value),
                    decimals=group.get("decimals", 1),
                    requires=requires,
                    remarks=tuple(group.get("remarks", ())),
                    incomparable=group.get("incomparable", ""),
                )
            )
    return rows


def _requirement(field: str, value: Any) -> Requirement:
    match value:
        case {"max": maximum}:
            return Requirement(field, maximum=float(maximum))
        case {"any": allowed}:
            return Requirement(field, tuple(map(frozen, allowed)))
        case {"unset": True}:
            return Requirement(field, (None,))
        case _:
            return Requirement(field, (frozen(value),))


def frozen(value: Any) -> Any:
    """Turn lists into tuples, so that rows are hashable.

    Args:
        value: Any value.

    Returns:
        A tuple for a list, at any depth; other values as they are.
    """
    return tuple(map(frozen, value)) if isinstance(value, (list, tuple)) else value


def rows_for(protocol: str) -> tuple[PaperRow, ...]:
    """Return all rows of a protocol, built in or from another package.

    Args:
        protocol: Name of the protocol, such as `knn`.

    Returns:
        The rows of `rows.toml`; for a protocol that has none there, `PAPER_ROWS` of the module that an installed package
        registers under this name.

    Raises:
        ConfigError: If that module cannot be imported or its rows are not rows.

    Examples:
        >>> rows = [row for row in rows_for("knn") if row.network == "vit_s16" and row.source == "Table 2"]
        >>> rows[0].value
        74.5
    """
    if rows := tuple(row for row in builtin_rows() if row.protocol == protocol):
        return rows
    return tuple(row for entry in importlib.metadata.entry_points(group=ENTRY_POINTS, name=protocol) for row in _installed_rows(entry))


def _installed_rows(entry: importlib.metadata.EntryPoint) -> tuple[PaperRow, ...]:
    try:
        rows = tuple(getattr(entry.load(), "PAPER_ROWS", ()))
    except Exception as error:  # A module of another package can raise anything while it is imported.
        raise ConfigError(
            f"the printed numbers of '{entry.name}' cannot be read from {entry.value}: {type(error).__name__}: {error}"
        ) from error
    if wrong := [row for row in rows if not isinstance(row, PaperRow)]:
        raise ConfigError(f"PAPER_ROWS of {entry.value} must hold dinoeval.paper.rows.PaperRow, got {type(wrong[0]).__name__}")
    return rows


def printed_values(protocol: str, metric: str) -> dict[str, float]:
    """Return the printed values of a metric by network, the first of several sources.

    Args:
        protocol: Name of the protocol.
        metric: Name of the metric.

    Returns:
        Value by model name.

    Examples:
        >>> printed_values("speed", "images_per_second")["vit_s16"]
        1007.0
    """
    values: dict[str, float] = {}
    for row in rows_for(protocol):
        if row.metric == metric:
            values.setdefault(row.network, row.value)
    return values
