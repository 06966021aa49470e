"""Linear probe: linear classifiers on frozen features, trained with augmentation (Tables 2, 7, 8, 13 to 15, appendix F.2).

Training uses random resized crops (bilinear) and horizontal flips, validation uses center crops. SGD with momentum 0.9,
batch 1024, 100 epochs, one cosine step per epoch, no weight decay. The features depend on the architecture. ViT-S uses the
[CLS] tokens of the last four blocks, ViT-B uses [CLS] and the mean patch token, other networks their pooled feature.
Source: eval_linear.py of facebookresearch/dino.

The paper reports the best of all epochs and of an unpublished sweep of learning rates. Both are chosen on the validation
images that are also scored. Here all heads of a sweep are trained from one forward pass. Head and epoch are chosen on
held-out training images (`top1`). The score chosen as in the paper is also reported (`top1_best_on_val`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any, Literal

from dinoeval.data.images import ImageSet
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.protocols._classification import (
    average_runs,
    dataset_notes,
    labels_of,
    open_labeled,
    proportion_errors,
    resolve_dataset,
    training_subsets,
)
from dinoeval.protocols._linear_probe import HeadScores, LinearProbe, describe_input, ranks_of
from dinoeval.results import Result, Scores
from dinoeval.run_record import SplitRecord

if TYPE_CHECKING:
    from dinoeval.features.features import Features
    from dinoeval.run_record import RunRecord
    from dinoeval.session import Session

VERSION = 1
BATCH, EPOCHS = 1024, 100  # eval_linear.py


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Train linear classifiers on frozen features. To resume an interrupted run, rerun the same command."""

    data: str | None = None
    """Folder, CSV table or name, as `dinoeval knn` takes; multi-label datasets are not supported (default: $DINOEVAL_DATA/imagenet, else
    the built-in digits)."""
    readouts: tuple[str, ...] = ("auto",)
    """Features to train heads on: cls, lastN such as last4, clsavg, gem, or auto (the choice of the paper for the architecture)."""
    lrs: tuple[float, ...] = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Learning rates for a batch of 256, each for one head; scaled by batch / 256. The sweep of the paper is not published."""
    weight_decays: tuple[float, ...] = (0.0,)
    """Weight decays, each combined with every learning rate. The paper uses 0."""
    epochs: int = EPOCHS
    """Passes over the training images."""
    train_batch_size: int = BATCH
    """Images per step. --batch-size sets the images per forward pass, so this does not limit memory."""
    features: Literal["augmented", "cached"] = "augmented"
    """augmented computes features of new random crops in every epoch, as the paper does; cached trains on the cached features of center
    crops, in minutes instead of days."""
    held_out: float = 0.1
    """Fraction of the training images, at most 10,000 images, held out to choose head and epoch; 0 trains on all, as the paper does."""
    head: str | None = None
    """Score this head instead of training: a file of the released layout, or a name such as vit_b16_linear (default: train heads)."""
    train_subset: str | None = None
    """Part of the training images: <number>pct of every class, such as 1pct, or a file that lists image names (default: all)."""
    subset_seeds: int = 3
    """Random subsets to average if --train-subset is a percentage."""
    out: str | None = None
    """Run folder: state, log and heads (default: a folder in the feature cache, named by the hash of the options)."""


def run(config: Config, session: Session) -> Result:
    """Train linear heads on the session's backbone, or score one head.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with top1 and top5 in percent, and every head in `table`.

    Raises:
        ConfigError: If an option is out of range, or --out belongs to a different run.
        DataError: If the dataset cannot be used.
    """
    record = session.record("linear", VERSION, config)
    _check(config)
    name = resolve_dataset(config.data)
    train, val = (images.with_rule(session.rule) for images in open_labeled(name, session.config.bad_images))
    if train.multi_label:
        raise DataError(f"{name} is a multi-label dataset, which linear does not support: use knn or logistic")
    subsets = training_subsets(train, config.train_subset, config.subset_seeds)
    record.notes += dataset_notes(config.data, session.backbone.arch)
    readouts = {readout.id: readout for readout in _readouts(config, session.backbone.arch)}
    for readout in readouts.values():
        session.backbone.check_offers(readout.layers, readout.patches)
    if config.head is not None:
        return _score_head(record, name, train, val)
    val_features = {readout.id: session.features(val, readout) for readout in readouts.values()}
    evaluated = next(iter(val_features.values()))
    probe = LinearProbe(config, VERSION, session, train, readouts, val_features)
    runs = [probe.train(rows, seed) for seed, rows in enumerate(subsets)]
    used = train.subset(subsets[0]) if config.train_subset else train
    record.use_data(name, train=SplitRecord.of(used, runs[0].bad, used.remarks()), val=evaluated)
    record.details["train_images_total"] = len(train)
    record.resolved |= {"readouts": tuple(readouts), "out": None}
    several = len(runs) > 1
    record.notes += runs[0].notes
    record.notes += [f"{f'subset {seed}: ' * several}{line}" for seed, one in enumerate(runs) for line in one.chosen]
    table = [{**({"seed": seed} if several else {}), **row} for seed, one in enumerate(runs) for row in one.table]
    return record.result(_scores(runs, evaluated, table))


def _scores(runs: list[HeadScores], val: Features, table: list[dict[str, Any]]) -> Scores:
    metrics = [one.metrics for one in runs]
    means, errors, deviations = average_runs(metrics, proportion_errors(metrics, len(val)))
    hits = runs[0].hits if len(runs) == 1 else {}
    return Scores(
        metrics=means,
        standard_errors=errors,
        deviations=deviations,
        table=table,
        samples={
            "path": list(val.images.paths),
            "label": labels_of(val.images).tolist(),
            **{name: correct.astype(int).tolist() for name, correct in hits.items()},
        },
    )


def default_readout(arch: str) -> str:
    """Return the readout of published linear scores (appendix F.2).

    Args:
        arch: Name of the architecture.

    Returns:
        Name of a readout.

    Examples:
        >>> default_readout("vit_s16"), default_readout("vit_b8"), default_readout("resnet50")
        ('last4', 'clsavg', 'cls')
    """
    if not arch.startswith("vit_"):
        return "cls"
    return "clsavg" if arch.startswith("vit_b") else "last4"


def _check(config: Config) -> None:
    for field in ("readouts", "lrs", "weight_decays"):
        if not isinstance(getattr(config, field), tuple) or not getattr(config, field):
            raise ConfigError(f"--{field.replace('_', '-')} needs at least one value, got {getattr(config, field)}")
    if not all(0 < lr < math.inf for lr in config.lrs):
        raise ConfigError(f"--lrs must be positive numbers, got {' '.join(map(str, config.lrs))}")
    if not all(0 <= decay < math.inf for decay in config.weight_decays):
        raise ConfigError(f"--weight-decays must be at least 0, got {' '.join(map(str, config.weight_decays))}")
    for field in ("epochs", "train_batch_size", "subset_seeds"):
        if getattr(config, field) < 1:
            raise ConfigError(f"--{field.replace('_', '-')} must be at least 1, got {getattr(config, field)}")
    if not 0 <= config.held_out < 1:
        raise ConfigError(f"--held-out must be at least 0 and below 1, got {config.held_out}")


def _readouts(config: Config, arch: str) -> list[Readout]:
    readouts = [parse_readout(default_readout(arch) if name == "auto" else name) for name in config.readouts]
    if any(readout.id == "patches" for readout in readouts):
        raise ConfigError("--readouts patches gives a map of vectors, and a head needs one vector: use cls, lastN, clsavg or gem")
    return readouts


def _score_head(record: RunRecord, name: str, train: ImageSet, val: ImageSet) -> Result:
    """Score the head of --head."""
    from dinoeval.models.linear_head import open_head

    config: Config = record.config
    session = record.session
    assert config.head is not None
    head = open_head(config.head)
    readout_name = head.metadata.get("readout", "auto") if config.readouts == ("auto",) else config.readouts[0]
    readout = parse_readout(default_readout(session.backbone.arch) if readout_name == "auto" else readout_name)
    session.backbone.check_offers(readout.layers, readout.patches)
    width = readout.feature_shape(session.backbone.dim, (0, 0))[0]
    classes, dim = head.weight.shape
    if (classes, dim) != (len(train.classes), width):
        raise ConfigError(
            f"--head {head.source} has {dim} inputs and {classes} classes; {readout.id} of {session.backbone.arch} has {width} "
            f"dimensions and {name} has {len(train.classes)} classes: pass the --arch, --readouts and --data that it was trained with"
        )
    own = json.loads(json.dumps({**describe_input(session), "classes": list(train.classes)}))
    if others := [field for field, value in own.items() if field in head.metadata and head.metadata[field] != value]:
        raise ConfigError(f"--head {head.source} was trained with another {' and another '.join(others)}: pass the one it was trained with")
    features = session.features(val, readout)
    ranks = ranks_of(head.weight, head.bias, features.numpy(), labels_of(features.images), session.backbone.device)
    record.use_data(name, train=SplitRecord(train, []), val=features)
    record.details["train_images_total"] = len(train)
    record.resolved |= {"readouts": (readout.id,), "head": head.source}
    record.notes.append(f"head {head.source} on {readout.id}")
    return record.result(_scores([HeadScores({"": ranks}, [], [], [], [])], features, []))
