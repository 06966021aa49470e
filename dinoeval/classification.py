"""What the classification protocols share: which data by default, which published number goes with a run, what a Result says."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dinoeval.environment import data_folder
from dinoeval.models.zoo import ZOO
from dinoeval.results import Reference, Result, proportion_error
from dinoeval.session import describe_data

if TYPE_CHECKING:
    from dinoeval.features.extract import Features
    from dinoeval.session import Session

IMAGENET = {"train": 1_281_167, "val": 50_000, "classes": 1000}


def choose_data(data: str | None, arch: str) -> tuple[str, list[str]]:
    """Settle the data set where none was named: ImageNet if it is there, else the digits, with a line that says so."""
    if data is not None:
        return data, ["digits are a demonstration; no published number goes with them"] if data == "digits" else []
    root = data_folder()
    if root is not None and (root / "imagenet" / "train").is_dir():
        return "imagenet", []
    note = "scored on scikit-learn's digits, a demonstration: name your own set with --data"
    if ZOO.get(arch) is not None:
        note = f"$DINOEVAL_DATA/imagenet was not found, so {arch} was {note}"
    return "digits", [note]


def published(
    paper: Mapping[str, Reference], session: Session, sizes: Mapping[str, int], reasons: Sequence[tuple[bool, str]]
) -> tuple[list[Reference], str | None]:
    """Find the published number for this network on ImageNet-1k, or say why there is none.

    `paper` is by name of the zoo; `sizes` are those of the run, like IMAGENET; `reasons` are the protocol's own, each with
    whether it holds.
    """
    backbone = session.backbone
    name = backbone.provenance.name if backbone.provenance.name in ZOO else backbone.arch
    common = [
        (dict(sizes) != IMAGENET, f"published numbers are of ImageNet-1k ({IMAGENET['train']:,} + {IMAGENET['val']:,} images)"),
        (backbone.provenance.random, "the weights are random"),
        (name not in paper, f"no score of this protocol is published for {name}"),
        (session.transform.id != "dino@1:256/224", f"the transform is {session.transform.id}, the paper's dino@1:256/224"),
        (backbone.precision != "fp32", f"the precision is {backbone.precision}, the paper's fp32"),
        (backbone.provenance.key == "student", "the student was scored, the paper scores the teacher"),
    ]
    for holds, reason in (*common, *reasons):
        if holds:
            return [], reason
    return [paper[name]], None


def sizes_of(train: Features, val: Features) -> dict[str, int]:
    """As in IMAGENET."""
    return {"train": len(train), "val": len(val), "classes": len(train.images.classes)}


def mean_of_runs(runs: Sequence[Mapping[str, float]], count: int) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Average the metrics of runs on several subsets: means, their standard errors, deviations between the runs; percent.

    A standard error joins that of a proportion of `count` images and that of a mean over the runs. One run has no deviation.
    """
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    if len(runs) == 1:
        return means, {name: proportion_error(value, count) for name, value in means.items()}, {}
    deviations = {name: statistics.stdev(run[name] for run in runs) for name in means}
    errors = {name: math.hypot(proportion_error(value, count), deviations[name] / math.sqrt(len(runs))) for name, value in means.items()}
    return means, errors, deviations


def result_of(
    protocol: str,
    version: int,
    config: Any,
    session: Session,
    name: str,
    halves: Mapping[str, Features],
    settled: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Result:
    """Fill in what every Result says of the run; `settled` overrides options that were made definite, `rest` are other fields."""
    settings = {**dataclasses.asdict(config), "data": name, **(settled or {})}
    return Result(
        protocol=protocol,
        version=version,
        config=settings,
        backbone=session.describe_backbone(),
        data=describe_data(name, **halves),
        transform=session.transform.id,
        machine=session.machine,
        **rest,
    )
