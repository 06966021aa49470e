"""What the classification protocols share: data by default, parts to train on, scores, published numbers, what a Result says.

Q queries, C classes, R ranks.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.images import ImageSet, open_splits, require_classes
from dinoeval.data.subsets import parse_subset, subset_rows
from dinoeval.environment import data_folder
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls
from dinoeval.files import expand
from dinoeval.maths.average_precision import mean_average_precision
from dinoeval.models.zoo import ZOO
from dinoeval.results import Reference, Result, proportion_error
from dinoeval.session import describe_data

if TYPE_CHECKING:
    from dinoeval.features.extract import Features
    from dinoeval.session import Session, SplitRecord

IMAGENET = {"train": 1_281_167, "val": 50_000, "classes": 1000}


@dataclasses.dataclass(frozen=True)
class Scores:
    """The evaluation half, scored after training on one part of the training half."""

    metrics: dict[str, float]
    errors: dict[str, float]
    """Standard errors of the metrics that come from the number of images that were scored."""
    samples: dict[str, list] = dataclasses.field(default_factory=dict)
    per_class: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    """(C,) percent, by metric, where images may be of several classes; NaN for a class without an image."""


def resolve_dataset(data: str | None, arch: str) -> tuple[str, list[str]]:
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


def published_rows(
    paper: Mapping[str, Reference], session: Session, sizes: Mapping[str, int], reasons: Sequence[tuple[bool, str]]
) -> tuple[list[Reference], str | None]:
    """Find the published number for this network on ImageNet-1k, or say why there is none.

    `paper` is by name of the zoo; `sizes` are those of the run, like IMAGENET; `reasons` are the protocol's own, each with
    whether it holds.
    """
    backbone, name = session.backbone, _name(session)
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


def published_of_subset(low_shot: Mapping[str, Mapping[int, float]], session: Session, images: int) -> list[str]:
    """Tell what Table 10 has for so many training images of ImageNet, by network and number of images.

    It does not say which images those are, so that its numbers are no references. SimCLR's lists name as many.
    """
    value = low_shot.get(_name(session).removesuffix("_full"), {}).get(images)
    return [f"the paper has {value} for {images:,} images of ImageNet, without naming them (Table 10)"] if value else []


def _name(session: Session) -> str:
    """What published numbers of this network go by."""
    backbone = session.backbone
    return backbone.provenance.name if backbone.provenance.name in ZOO else backbone.arch


def training_subsets(images: ImageSet, subset: str | None, seeds: int) -> list[np.ndarray]:
    """The rows to train on, one array a run: all, those that a list names, or a percentage drawn by the seeds 0, 1, ..."""
    if subset is None:
        return [np.arange(len(images))]
    if seeds < 1:
        raise ConfigError(f"subset seeds must be 1 or more: {seeds}")
    drawn = isinstance(parse_subset(subset), float)
    parts = [subset_rows(images, subset, seed) for seed in range(seeds if drawn else 1)]
    for rows in parts:
        require_classes(images.subset(rows))
    return parts


def open_labeled(name: str) -> tuple[ImageSet, ImageSet]:
    """Open both halves of a set, of at least two classes."""
    train, val = open_splits(name)
    require_classes(train)
    require_classes(val, 1)
    return train, val


def extract_subsets(session: Session, train: ImageSet, parts: Sequence[np.ndarray], val: ImageSet) -> tuple[list[Features], Features]:
    """The [CLS] features of each part of the training half, by way of the whole where the parts are as large, and of the other."""
    if sum(map(len, parts)) >= len(train):
        whole = session.features(train, Cls())
        found = [whole.pick(rows) if len(rows) < len(train) else whole for rows in parts]
    else:
        found = [session.features(train, Cls(), rows) for rows in parts]
    for features in found:
        require_classes(features.images)  # again, for images that cannot be read may have been skipped
    queries = session.features(val, Cls())
    require_classes(queries.images, 1)
    return found, queries


def labels_of(images: ImageSet) -> np.ndarray:
    """Labels (N,), or (N, C) where an image may be of several, of a set that has them."""
    assert images.labels is not None
    return images.labels


def score_predictions(predictions: np.ndarray, truth: np.ndarray, suffix: str = "") -> Scores:
    """Count labels (Q,) that are the first, or among the first five, of predictions (Q, R)."""
    correct = predictions[:, :5] == truth[:, None]
    hits = {f"top1{suffix}": correct[:, 0], f"top5{suffix}": correct.any(1)}
    metrics = {metric: 100 * float(right.mean()) for metric, right in hits.items()}
    return Scores(
        metrics=metrics,
        errors={metric: proportion_error(value, len(truth)) for metric, value in metrics.items()},
        samples={
            f"prediction{suffix}": predictions[:, 0].tolist(),
            **{metric: right.astype(int).tolist() for metric, right in hits.items()},
        },
    )


def score_classes(scores: np.ndarray, labels: np.ndarray, suffix: str = "") -> Scores:
    """Mean average precision of scores (Q, C) for labels (Q, C), by the exact area and by VOC 2007's."""
    found = {
        f"mAP{suffix}": mean_average_precision(scores, labels),
        f"mAP_11point{suffix}": mean_average_precision(scores, labels, "11-point"),
    }
    return Scores(
        metrics={metric: 100 * precision.mean for metric, precision in found.items()},
        errors={metric: 100 * precision.error for metric, precision in found.items()},
        per_class={metric: 100 * precision.per_class for metric, precision in found.items()},
    )


def merge_scores(scored: Sequence[Scores]) -> Scores:
    """The scores of several settings after one training, as one."""
    fields = ({name: value for one in scored for name, value in getattr(one, field.name).items()} for field in dataclasses.fields(Scores))
    return Scores(*fields)


def sizes_of(train: Features, val: Features) -> dict[str, int]:
    """As in IMAGENET."""
    return {"train": len(train), "val": len(val), "classes": len(train.images.classes)}


def average_runs(runs: Sequence[Mapping[str, float]], count: int) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Average the metrics of runs on several subsets: means, their standard errors, deviations between the runs; percent.

    A standard error joins that of a proportion of `count` images and that of a mean over the runs. One run has no deviation.
    """
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    return _averaged(runs, {name: proportion_error(value, count) for name, value in means.items()})


def _averaged(runs: Sequence[Mapping[str, float]], own: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """As mean_of_runs, with the `own` standard errors of a run, which come from the images scored: the same in all runs."""
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    if len(runs) == 1:
        return means, dict(own), {}
    deviations = {name: statistics.stdev(run[name] for run in runs) for name in means}
    errors = {name: math.hypot(own[name], deviations[name] / math.sqrt(len(runs))) for name in means}
    return means, errors, deviations


def classification_result(
    protocol: str,
    version: int,
    config: Any,
    session: Session,
    name: str,
    halves: Mapping[str, Features | SplitRecord],
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


def subset_result(
    protocol: str,
    version: int,
    config: Any,
    session: Session,
    name: str,
    trains: Sequence[Features],
    val: Features,
    runs: Sequence[Scores],
    *,
    total: int,
    paper: Mapping[str, Reference],
    low_shot: Mapping[str, Mapping[int, float]],
    reasons: Sequence[tuple[bool, str]],
    settled: Mapping[str, Any],
    notes: Sequence[str],
    table: Sequence[dict[str, Any]] = (),
    seconds: Mapping[str, float],
) -> Result:
    """The Result of one run on the whole of the `total` training images, or of runs on parts of them, averaged.

    Of several runs `samples` holds paths and labels alone: an image's outcomes in them are not independent, so that two
    such Results are compared by their standard errors. `low_shot` is as for published_of_part.
    """
    subset, sizes = config.train_subset, sizes_of(trains[0], val)
    drawn = subset is not None and isinstance(parse_subset(subset), float)
    part = subset if drawn or subset is None else expand(subset).name  # wherever the list lies
    references, why_not = published_rows(paper, session, sizes | {"train": total} if subset else sizes, reasons)
    told = []
    if subset:
        told.append(f"trained on {len(trains[0]):,} of {total:,} images ({part})" + _seeds(len(runs)))
        told += [] if why_not else published_of_subset(low_shot, session, len(trains[0]))
        references, why_not = [], why_not or "a part of ImageNet was trained on, and the paper does not name the images of its parts"
    own = {metric: statistics.fmean(run.errors[metric] for run in runs) for metric in runs[0].metrics}
    means, errors, deviations = _averaged([run.metrics for run in runs], own)
    labels = labels_of(val.images)
    named = [np.flatnonzero(marks == 1).tolist() for marks in labels] if val.images.multi_label else labels.tolist()
    return classification_result(
        protocol,
        version,
        config,
        session,
        name,
        {"train": trains[0], "val": val},
        settled={"train_subset": part, "subset_seeds": len(runs) if drawn else None, **settled},
        metrics=means,
        standard_errors=errors,
        deviations=deviations,
        references=references,
        not_comparable=why_not,
        notes=[*notes, *told],
        table=[*({"seed": seed, **run.metrics} for seed, run in enumerate(runs) if len(runs) > 1), *table],
        samples={"path": list(val.images.paths), "label": named, **(runs[0].samples if len(runs) == 1 else {})},
        seconds=dict(seconds),
    )


def _seeds(runs: int) -> str:
    return f", drawn with the seeds 0 to {runs - 1}; scores are means over them" if runs > 1 else ""
