"""Results that meet, or nearly meet, the requirements of a printed number."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinoeval.paper.comparable import comparable, fields_of
from dinoeval.paper.rows import PaperRow, rows_for
from dinoeval.results import Result


def result_for(row: PaperRow, changes: dict[str, Any] | None = None) -> Result:
    """Make a Result that meets all requirements of a row, except for changed fields given by their dotted paths."""
    random = row.network.startswith("random/")
    parts: dict[str, Any] = {
        "config": {},
        "backbone": {
            "arch": row.network.removeprefix("random/"),
            "network": None if random else row.network,
            "weights": row.network,
            "random": random,
            "key": None,
            "precision": "fp32",
        },
        "data": {"name": "x"},
        "details": {},
        "transform": "dino@1:256/224",
    }
    fields = {one.field: one.maximum if one.maximum is not None else one.allowed[0] for one in row.requires}
    for field, value in {**fields, **(changes or {})}.items():
        *path, last = field.split(".")
        place = parts
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    for split in parts["data"].values():
        if isinstance(split, dict):
            split.setdefault("bad_images", [])
    metrics = parts.pop("metrics", {row.metric: row.value})
    return Result(
        protocol=row.protocol,
        version=1,
        metrics=metrics,
        standard_errors=dict.fromkeys(metrics, 0.1),
        machine={},
        seconds={},
        **parts,
    )


def scored_as(result: Result, network: str) -> Result:
    """Return the Result as if it were of a released network."""
    return dataclasses.replace(result, backbone={**result.backbone, "network": network, "random": False, "key": None})


def reasons(result: Result, network: str = "vit_s16") -> str:
    """Return why the Result, taken for one of `network`, is not compared with a printed number; empty if it is."""
    return "; ".join(comparable(scored_as(result, network)).reasons)


def missing_facts(result: Result) -> set[str]:
    """Return the fields that the rows of the protocol require and that the Result does not hold at all."""
    fields = fields_of(result)
    return {one.field for row in rows_for(result.protocol) for one in row.requires if one.field not in fields}
