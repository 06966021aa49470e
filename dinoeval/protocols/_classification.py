"""What the classification protocols share: the default dataset, training subsets, scores and their averages.

Q queries, C classes, R ranks.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoeval.data.images import ImageSet, require_classes, require_files
from dinoeval.data.opening import open_splits
from dinoeval.data.subsets import parse_subset, subset_rows
from dinoeval.environment import data_folder
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls
from dinoeval.files import expand
from dinoeval.maths.average_precision import mean_average_precision
from dinoeval.models.zoo import ZOO
from dinoeval.results import Scores, proportion_error

if TYPE_CHECKING:
    from dinoeval.features.features import Features
    from dinoeval.run_record import RunRecord
    from dinoeval.session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultilabelScores(Scores):
    """Scores of images that may belong to several classes."""

    per_class: dict[str, np.ndarray]
    """Average precision (C,) in percent, by metric; NaN for a class without an image."""


def resolve_dataset(data: str | None) -> str:
    """Choose the dataset if --data is not given: ImageNet if it is present, else the digits.

    Args:
        data: What the user passed.

    Returns:
        The dataset to open.
    """
    if data is not None:
        return data
    root = data_folder()
    return "imagenet" if root is not None and (root / "imagenet" / "train").is_dir() else "digits"


def dataset_notes(data: str | None, arch: str) -> list[str]:
    """Note for the Result that the digits are a demonstration.

    Args:
        data: What the user passed.
        arch: Name of the architecture. Protocols open the dataset first, because loading a network can take long.

    Returns:
        One note, or none if another dataset is scored.
    """
    if resolve_dataset(data) != "digits":
        return []
    if data is not None:
        return ["the digits are a demonstration; no published score exists for them"]
    note = "scored on scikit-learn's digits, a demonstration: pass your own dataset with --data"
    if ZOO.get(arch) is not None:
        note = f"$DINOEVAL_DATA/imagenet was not found, so {arch} was {note}"
    return [note]


def open_labeled(name: str, bad_images: Literal["error", "skip"] = "skip") -> tuple[ImageSet, ImageSet]:
    """Open both splits of a dataset whose training images belong to at least two classes.

    Args:
        name: What --data takes: a folder, a table or a name.
        bad_images: `error` to require that all files exist.

    Returns:
        The training split and the evaluation split.

    Raises:
        DataError: If the dataset cannot be opened or has too few classes.
    """
    train, val = open_splits(name)
    require_classes(train)
    require_classes(val, 1)
    for images in (train, val) if bad_images == "error" else ():
        require_files(images)
    return train, val


def training_subsets(images: ImageSet, subset: str | None, seeds: int) -> list[np.ndarray]:
    """Return the rows to train on, one array per run.

    Args:
        images: The training split.
        subset: None for all images, `<number>pct`, or a file that lists image names.
        seeds: Number of random subsets for a percentage; drawn with the seeds 0, 1, ...

    Returns:
        Arrays (n,) int64 of row numbers: one, or `seeds` for a percentage.

    Raises:
        ConfigError: If `seeds` is below 1 or the subset is not one of these.
    """
    if subset is None:
        return [np.arange(len(images))]
    if seeds < 1:
        raise ConfigError(f"--subset-seeds must be at least 1, got {seeds}")
    drawn = isinstance(parse_subset(subset), float)
    subsets = [subset_rows(images, subset, seed) for seed in range(seeds if drawn else 1)]
    for rows in subsets:
        require_classes(images.subset(rows))
    return subsets


def extract_subsets(session: Session, train: ImageSet, subsets: Sequence[np.ndarray], val: ImageSet) -> tuple[list[Features], Features]:
    """Return the [CLS] features of each training subset and of the evaluation split.

    Subsets that together are as large as the training split are taken from the features of the whole split, so that no
    image is extracted twice.

    Args:
        session: The backbone and the cache.
        train: The training split.
        subsets: Rows (n,) of each subset.
        val: The evaluation split.

    Returns:
        The training features of each subset, and the evaluation features.

    Raises:
        DataError: If the readable images belong to too few classes.
    """
    if sum(map(len, subsets)) >= len(train):
        whole = session.features(train, Cls())
        found = [whole.pick(rows) if len(rows) < len(train) else whole for rows in subsets]
    else:
        found = [session.features(train, Cls(), rows) for rows in subsets]
    for features in found:
        require_classes(features.images)  # unreadable images may have been skipped since
    queries = session.features(val, Cls())
    require_classes(queries.images, 1)
    return found, queries


def labels_of(images: ImageSet) -> np.ndarray:
    """Return the labels of images that have labels.

    Args:
        images: A labeled image set of N images and C classes.

    Returns:
        Class indices (N,) int64; for a multi-label dataset (N, C) int8 with 1 present, 0 absent, -1 not counted.
    """
    assert images.labels is not None
    return images.labels


def score_predictions(predictions: np.ndarray, labels: np.ndarray, suffix: str = "") -> Scores:
    """Return top-1 and top-5 accuracy.

    Args:
        predictions: Class indices (Q, R), best first; -1 for no prediction.
        labels: Class indices (Q,).
        suffix: Appended to the names of metrics, such as `@20`.

    Returns:
        Scores with the metrics `top1` and `top5`.
    """
    correct = predictions[:, :5] == labels[:, None]
    hits = {f"top1{suffix}": correct[:, 0], f"top5{suffix}": correct.any(1)}
    metrics = {metric: 100 * float(right.mean()) for metric, right in hits.items()}
    return Scores(
        metrics=metrics,
        standard_errors={metric: proportion_error(value, len(labels)) for metric, value in metrics.items()},
        samples={
            f"prediction{suffix}": predictions[:, 0].tolist(),
            **{metric: right.astype(int).tolist() for metric, right in hits.items()},
        },
    )


def score_multilabel(scores: np.ndarray, labels: np.ndarray, suffix: str = "") -> MultilabelScores:
    """Return mean average precision, by the exact area under the curve and by the 11-point mean of VOC 2007.

    Args:
        scores: Class scores (Q, C).
        labels: 1 present, 0 absent, -1 not counted for this class (Q, C).
        suffix: Appended to the names of metrics, such as `@20`.

    Returns:
        Scores with the metrics `mAP` and `mAP_11point`.
    """
    found = {
        f"mAP{suffix}": mean_average_precision(scores, labels),
        f"mAP_11point{suffix}": mean_average_precision(scores, labels, "11-point"),
    }
    return MultilabelScores(
        metrics={metric: 100 * precision.mean for metric, precision in found.items()},
        standard_errors={metric: 100 * precision.error for metric, precision in found.items()},
        per_class={metric: 100 * precision.per_class for metric, precision in found.items()},
    )


def merge_scores(parts: Sequence[Scores]) -> Scores:
    """Merge scores of different metrics on the same images.

    Args:
        parts: Scores whose metrics have different names.

    Returns:
        One object with all metrics, standard errors and samples.
    """
    return Scores(
        metrics={name: value for part in parts for name, value in part.metrics.items()},
        standard_errors={name: value for part in parts for name, value in part.standard_errors.items()},
        samples={name: column for part in parts for name, column in part.samples.items()},
    )


def average_runs(
    runs: Sequence[Mapping[str, float]], own_errors: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Average the metrics of runs on several training subsets.

    Args:
        runs: The metrics of each run, in percent.
        own_errors: Standard error of each metric over the evaluated images, in percent; every run has the same images.

    Returns:
        Means; standard errors, which combine the images and the subsets; and standard deviations over the runs, empty for
        one run.
    """
    means = {name: statistics.fmean(run[name] for run in runs) for name in runs[0]}
    if len(runs) == 1:
        return means, dict(own_errors), {}
    deviations = {name: statistics.stdev(run[name] for run in runs) for name in means}
    errors = {name: math.hypot(own_errors[name], deviations[name] / math.sqrt(len(runs))) for name in means}
    return means, errors, deviations


def proportion_errors(runs: Sequence[Mapping[str, float]], count: int) -> dict[str, float]:
    """Return the standard error of the mean of each metric as a proportion.

    Args:
        runs: The metrics of each run, in percent.
        count: Number of evaluated images.

    Returns:
        Standard errors in percent, by metric.
    """
    return {name: proportion_error(statistics.fmean(run[name] for run in runs), count) for name in runs[0]}


def subset_scores(
    record: RunRecord, trains: Sequence[Features], val: Features, runs: Sequence[Scores], table: Sequence[dict[str, Any]] = ()
) -> Scores:
    """Average runs on the training split or on subsets of it, and note in the record what was trained on.

    For several runs, `samples` contains paths and labels only. The outcomes of an image are not independent across runs, so
    such Results are compared by their standard errors.

    Args:
        record: The record of the run, whose config has `train_subset`; `details["train_images_total"]` is set.
        trains: The training features of each run.
        val: The evaluation features.
        runs: The scores of each run.
        table: Rows to append to the table.

    Returns:
        The averaged scores.
    """
    subset, total = record.config.train_subset, record.details["train_images_total"]
    drawn = subset is not None and isinstance(parse_subset(subset), float)
    name = subset if drawn or subset is None else expand(subset).name  # equal for the same list in another folder
    if subset:
        seeds = f", drawn with the seeds 0 to {len(runs) - 1}; scores are means over them" if len(runs) > 1 else ""
        record.notes.append(f"trained on {len(trains[0]):,} of {total:,} images ({name}){seeds}")
    record.resolved |= {"train_subset": name, "subset_seeds": len(runs) if drawn else None}
    own_errors = {metric: statistics.fmean(run.standard_errors[metric] for run in runs) for metric in runs[0].metrics}
    means, errors, deviations = average_runs([run.metrics for run in runs], own_errors)
    labels = labels_of(val.images)
    named = [np.flatnonzero(row == 1).tolist() for row in labels] if val.images.multi_label else labels.tolist()
    return Scores(
        metrics=means,
        standard_errors=errors,
        deviations=deviations,
        table=[*({"seed": seed, **run.metrics} for seed, run in enumerate(runs) if len(runs) > 1), *table],
        samples={"path": list(val.images.paths), "label": named, **(runs[0].samples if len(runs) == 1 else {})},
    )
