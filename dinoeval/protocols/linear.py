"""Linear probe: linear classifiers on frozen features, trained with augmentation (Tables 2, 7, 8, 13 to 15, appendix F.2).

Random resized crops (bilinear) and mirror images in training, central crops in validation; SGD with momentum 0.9, batch
1024, 100 epochs, cosine per epoch, no weight decay. Features go by architecture: ViT-S the [CLS] of the last four blocks,
ViT-B [CLS] and the mean patch, others their pooled feature. Source: eval_linear.py of facebookresearch/dino.

The paper's number is the best of all epochs AND of an unpublished sweep of learning rates, both chosen on the validation
images it is measured on. Here every head of a sweep is trained side by side from one forward pass; head and epoch are
chosen on training images held out (`top1`), and the paper's way is printed beside it (`top1_best_on_val`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.subsets import hold_out
from dinoeval.errors import ConfigError, DataError
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.files import expand
from dinoeval.models.zoo import ZOO
from dinoeval.protocols._classification import (
    average_runs,
    classification_result,
    labels_of,
    open_labeled,
    published_rows,
    resolve_dataset,
    training_subsets,
)
from dinoeval.results import Reference, Result
from dinoeval.session import SplitRecord

if TYPE_CHECKING:
    from pathlib import Path

    from dinoeval.session import Session
    from dinoeval.training.probe.sweep import FeatureSource, Sweep

VERSION = 1
SEED = 0
BATCH, EPOCHS = 1024, 100
MOST_HELD_OUT = 10_000  # images: enough to tell heads apart, and under one percent of ImageNet
BEST_ON_VAL = "top1_best_on_val"
PAPER = {
    name: Reference(metric=BEST_ON_VAL, value=row.published["linear"], decimals=1, source=row.source)
    for name, row in ZOO.items()
    if "linear" in row.published and row.kind != "linear head"
}
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Linear classification of frozen features."""

    data: str | None = None
    """As for knn; sets with several labels an image do not go. By default $DINOEVAL_DATA/imagenet, or else the built-in digits."""
    readouts: tuple[str, ...] = ("auto",)
    """Features to train heads on: auto (the paper's for the architecture), cls, lastN, clsavg, gem."""
    lrs: tuple[float, ...] = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    """Learning rates for a batch of 256, each a head of its own; scaled by batch / 256. The paper's sweep is unpublished."""
    weight_decays: tuple[float, ...] = (0.0,)
    """Each with every learning rate; the paper has none."""
    epochs: int = EPOCHS
    """Epochs over the training images."""
    train_batch_size: int = BATCH
    """Images a step; a forward pass takes as many as --batch-size says, so memory does not limit it."""
    features: Literal["augmented", "cached"] = "augmented"
    """cached trains on the central crops' features from the cache: minutes instead of days, and not the paper's protocol."""
    held_out: float = 0.1
    """Share of the training images, at most 10,000, held out to choose head and epoch; 0 trains on all, as the paper does."""
    head: str | None = None
    """Score this head instead of training: a file of the released layout, or a name such as vit_b16_linear."""
    train_subset: str | None = None
    """1pct, 10pct, any <number>pct of every class, or a file that lists image names; by default all."""
    subset_seeds: int = 3
    """For a percentage: how many random subsets to average over."""
    out: str | None = None
    """Folder of the run: its state, log and heads. By default one beside the feature cache, by the run's settings."""


@dataclasses.dataclass(frozen=True)
class LinearProbeRun:
    """What one training run found."""

    ranks: dict[str, np.ndarray]
    """(Q,) classes that the head puts before the right one: of the chosen head, and of that which is best on val, by suffix of
    the metrics."""
    chosen: list[str]
    table: list[dict[str, Any]]
    bad: list[dict[str, Any]]
    notes: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        return {name: 100 * float(hits.mean()) for name, hits in self.hits.items()}

    @property
    def hits(self) -> dict[str, np.ndarray]:
        """(Q,) bool, by metric."""
        return {f"top{most}{suffix}": ranks < most for suffix, ranks in self.ranks.items() for most in (1, 5)}


def run(config: Config, session: Session) -> Result:
    """Train heads on the session's backbone, or score one; a Result with top1 and top5 in percent, and every head in `table`."""
    began = time.monotonic()
    _check(config)
    name, notes = resolve_dataset(config.data, session.backbone.arch)
    train, val = open_labeled(name)
    if train.multi_label:
        raise DataError(f"{name} has several labels an image: logistic and knn score such sets, linear does not")
    readouts = {readout.id: readout for readout in _readouts(config, session.backbone.arch)}
    for readout in readouts.values():
        session.backbone.check_offers(readout.layers, readout.patches)
    if config.head is not None:
        return _score_head(config, session, name, notes, train, val, began)
    parts = training_subsets(train, config.train_subset, config.subset_seeds)
    exams = {readout.id: session.features(val, readout) for readout in readouts.values()}
    seen = next(iter(exams.values()))
    probes = [_probe(config, session, train, rows, readouts, exams, seed) for seed, rows in enumerate(parts)]
    means, errors, deviations = average_runs([probe.metrics for probe in probes], len(seen))
    first = probes[0]
    sizes = {"train": len(train), "val": len(seen), "classes": len(train.classes)}
    references, why_not = published_rows(PAPER, session, sizes, departures(config, session.backbone.arch))
    several = len(probes) > 1
    return classification_result(
        "linear",
        VERSION,
        config,
        session,
        name,
        {"train": SplitRecord(train.subset(parts[0]) if config.train_subset else train, first.bad), "val": seen},
        settled={"readouts": tuple(readouts), "out": None},
        metrics=means,
        standard_errors=errors,
        deviations=deviations,
        seconds={"total": time.monotonic() - began},
        references=references,
        not_comparable=why_not,
        notes=[
            *notes,
            *first.notes,
            *(f"{f'subset {seed}: ' * several}{said}" for seed, probe in enumerate(probes) for said in probe.chosen),
        ],
        table=[{**({"seed": seed} if several else {}), **row} for seed, probe in enumerate(probes) for row in probe.table],
        samples=samples(seen.images, {} if several else first.hits),
    )


def samples(images: ImageSet, hits: Mapping[str, np.ndarray]) -> dict[str, list]:
    columns = {name: right.astype(int).tolist() for name, right in hits.items()}
    return {"path": list(images.paths), "label": labels_of(images).tolist(), **columns}


def default_readout(arch: str) -> str:
    """The features on which the paper's linear numbers stand (appendix F.2)."""
    if not arch.startswith("vit_"):
        return "cls"
    return "clsavg" if arch.startswith("vit_b") else "last4"


def departures(config: Config, arch: str) -> list[tuple[bool, str]]:
    """In what the options may depart from the paper's, each with whether they do."""
    wanted = default_readout(arch)
    return [
        (config.train_subset is not None, f"a subset of the training images was used: {config.train_subset}"),
        (config.features == "cached", "heads were trained on cached central crops, the paper augments"),
        (config.epochs != EPOCHS, f"heads were trained for {config.epochs} epochs, the paper's for {EPOCHS}"),
        (config.train_batch_size != BATCH, f"the batch was {config.train_batch_size}, the paper's {BATCH}"),
        (config.held_out > 0, "training images were held out to choose the head; with --held-out 0 all are trained on, as in the paper"),
        (set(config.readouts) - {"auto", wanted} != set(), f"the paper's features for {arch} are {wanted} alone"),
        (any(config.weight_decays), "weight decay was tried, the paper has none"),
    ]


def _check(config: Config) -> None:
    for field in ("readouts", "lrs", "weight_decays"):
        if not isinstance(getattr(config, field), tuple) or not getattr(config, field):
            raise ConfigError(f"{field} must be a tuple of one value at least: {getattr(config, field)}")
    if not all(0 < lr < math.inf for lr in config.lrs) or not all(0 <= decay < math.inf for decay in config.weight_decays):
        raise ConfigError("learning rates must be above 0 and weight decays 0 or more, and numbers")
    if config.epochs < 1 or config.train_batch_size < 1 or config.subset_seeds < 1:
        raise ConfigError("epochs, batch and subset seeds must be 1 or more")
    if not 0 <= config.held_out < 1:
        raise ConfigError(f"the share held out must be 0 or more and less than 1: {config.held_out}")


def _readouts(config: Config, arch: str) -> list[Readout]:
    readouts = [parse_readout(default_readout(arch) if name == "auto" else name) for name in config.readouts]
    if any(readout.id == "patches" for readout in readouts):
        raise ConfigError("a head takes one vector an image: readouts are cls, lastN, clsavg, gem")
    return readouts


def _batch(config: Config, images: int) -> tuple[int, list[str]]:
    if config.train_batch_size <= images:
        return config.train_batch_size, []
    if config.train_batch_size != BATCH:
        raise ConfigError(f"a batch of {config.train_batch_size} is larger than the {images} training images: lower --train-batch-size")
    return images, [f"the batch of {BATCH} was cut to {images}: there are no more training images"]


def _probe(
    config: Config, session: Session, train: ImageSet, rows: np.ndarray, readouts: dict[str, Readout], val: dict[str, Any], seed: int
) -> LinearProbeRun:
    """One training run on some rows of the training set."""
    from dinoeval.features.cache import RUNS, key_of
    from dinoeval.training.probe.sweep import EvalSet, Head, Sweep, train_heads

    assert train.labels is not None
    kept, held = rows, rows[:0]
    if config.held_out:
        count = max(1, min(MOST_HELD_OUT, int(config.held_out * len(rows))))
        fitted, chosen_by = hold_out(train.labels[rows], count, seed)
        kept, held = rows[fitted], rows[chosen_by]
    batch, notes = _batch(config, len(kept))
    heads = [
        Head(readout=readout, lr=lr, weight_decay=decay) for readout in readouts for lr in config.lrs for decay in config.weight_decays
    ]
    exams = {"val": EvalSet(features={name: half.numpy() for name, half in val.items()}, labels=labels_of(next(iter(val.values())).images))}
    if len(held):
        halves = {name: session.features(train, readout, held) for name, readout in readouts.items()}
        exams["held_out"] = EvalSet(
            features={name: half.numpy() for name, half in halves.items()}, labels=labels_of(next(iter(halves.values())).images)
        )
    source, kept, dims = _source(config, session, train, kept, readouts)
    recipe = {
        "version": VERSION, **_network(session),
        "place and times of the files": [train.stamp, next(iter(val.values())).images.stamp],
        "data": train.fingerprint(), "val": next(iter(val.values())).images.fingerprint(), "seed": seed,
        "rows": hashlib.sha256(kept.tobytes() + held.tobytes()).hexdigest()[:16],
        "features": config.features, "heads": [dataclasses.astuple(head) for head in heads], "epochs": config.epochs, "batch": batch,
    }  # fmt: skip
    recipe = json.loads(json.dumps(recipe))
    folder = expand(config.out) if config.out else session.cache.root / RUNS / f"linear-{key_of(recipe)}"
    folder = folder / f"subset{seed}" if config.out and config.train_subset else folder
    sweep = Sweep(
        heads, dims, train.labels, len(train.classes), epochs=config.epochs, batch=batch, seed=SEED, device=session.backbone.device
    )
    train_heads(sweep, source, kept, exams, folder, recipe)
    return _report(config, sweep, exams, folder, session, train, notes)


def _source(
    config: Config, session: Session, train: ImageSet, kept: np.ndarray, readouts: dict[str, Readout]
) -> tuple[FeatureSource, np.ndarray, dict[str, int]]:
    """Where training features come from, the rows that it has, and their widths."""
    from dinoeval.training.probe.sweep import Augmented, Cached

    if config.features == "augmented":
        dims = {name: readout.row_shape(session.backbone.dim, (0, 0))[0] for name, readout in readouts.items()}
        settings = session.config
        source = Augmented(
            session.backbone, train, list(readouts.values()), session.transform, seed=SEED,
            bad_images=settings.bad_images, batch_size=settings.batch_size, workers=settings.workers,
        )  # fmt: skip
        return source, kept, dims
    features = {name: session.features(train, readout, kept) for name, readout in readouts.items()}
    first = next(iter(features.values()))
    part = first.entry.num_rows != len(train)  # made of these rows alone, not picked from the whole
    rows = kept[first.rows] if part else first.rows
    bad = {int(kept[one["row"]] if part else one["row"]): one for one in first.bad}
    return Cached(features, rows, bad), rows, {name: some.entry.row_shape[0] for name, some in features.items()}


def _report(
    config: Config, sweep: Sweep, exams: dict[str, Any], folder: Path, session: Session, train: ImageSet, notes: list[str]
) -> LinearProbeRun:
    """Choose by each exam, save the heads, say every head's scores."""
    from dinoeval.models.linear_head import save_head

    ranks: dict[str, np.ndarray] = {}
    said = []
    for exam, suffix, how in (("held_out", "", "chosen on held-out training images"), ("val", "_best_on_val", "best on val")):
        if exam in exams:
            best = sweep.best[exam]
            head = sweep.heads[best["head"]]
            ranks[suffix] = _ranks_of(best, head.readout, exams["val"], session)
            said.append(f"{how}: {head.readout}, lr {head.lr:g}, weight decay {head.weight_decay:g}, epoch {best['epoch']}")
            if distributed.rank() == 0:
                says = {**dataclasses.asdict(head), "arch": session.backbone.arch, **_network(session), "classes": list(train.classes)}
                save_head(folder / f"head{suffix or '_chosen'}.pth", best, says)
    if "held_out" not in exams and len(sweep.heads) == 1:
        ranks = {"": sweep.ranks(exams["val"])[:, 0], **ranks}
        notes = [*notes, "top1 is of the last epoch: with one head and nothing held out there was nothing to choose"]
    if config.features == "cached":
        notes = [*notes, "trained on cached central crops: not the paper's protocol, which augments"]
    return LinearProbeRun(ranks, [f"{'; '.join(said)}; heads in {folder}"], _table(sweep, list(exams)), list(sweep.bad.values()), notes)


def _network(session: Session) -> dict[str, Any]:
    """What a head belongs to: tensors alone do not show the number of heads, nor how pictures come in."""
    backbone = session.backbone
    return {"backbone": backbone.digest, "network": dataclasses.asdict(backbone.config), "precision": backbone.precision,
            "transform": session.transform.id}  # fmt: skip


def _table(sweep: Sweep, exams: list[str]) -> list[dict[str, Any]]:
    """Each head's scores: at the last epoch, and at its own best one on each exam."""
    rows = []
    for number, head in enumerate(sweep.heads):
        row: dict[str, Any] = {"readout": head.readout, "lr": head.lr, "weight_decay": head.weight_decay}
        lost = next((line["epoch"] for line in sweep.history if line["loss"][number] is None), None)
        row["diverged_in_epoch"] = lost
        row["train_loss"] = sweep.history[-1]["loss"][number]
        for exam in exams:
            scores = [line[exam][number] for line in sweep.history if line[exam][number] is not None]
            row[f"{exam}_last"] = None if lost is not None else scores[-1]
            row[f"{exam}_best"] = max(scores, default=None)
            row[f"{exam}_best_epoch"] = int(np.argmax(scores)) if scores else None
        rows.append(row)
    return rows


def _ranks_of(head: Mapping[str, Any], readout: str, exam: Any, session: Session) -> np.ndarray:
    """How many classes one head puts before the right one, (Q,)."""
    import torch

    from dinoeval.maths.heads import Heads

    classes, dim = head["weight"].shape
    alone = Heads([0.0], [0.0], dim, classes, seed=0, device=session.backbone.device)
    alone.weight[0], alone.bias[0] = head["weight"], head["bias"]
    features, labels = torch.from_numpy(exam.features[readout]), torch.from_numpy(exam.labels)
    return alone.ranks(features.to(session.backbone.device), labels.to(session.backbone.device))[:, 0].cpu().numpy()


def _score_head(config: Config, session: Session, name: str, notes: list[str], train: ImageSet, val: ImageSet, began: float) -> Result:
    """Score a head that was trained elsewhere or before."""
    from dinoeval.models.linear_head import open_head
    from dinoeval.training.probe.sweep import EvalSet

    assert config.head is not None
    head = open_head(config.head)
    source, says = head.source, head.says
    wanted = says.get("readout", "auto") if config.readouts == ("auto",) else config.readouts[0]
    readout = parse_readout(default_readout(session.backbone.arch) if wanted == "auto" else wanted)
    session.backbone.check_offers(readout.layers, readout.patches)
    width = readout.row_shape(session.backbone.dim, (0, 0))[0]
    classes, dim = head.weight.shape
    if (classes, dim) != (len(train.classes), width):
        raise ConfigError(
            f"the head {source} takes {dim} numbers and knows {classes} classes; {readout.id} of {session.backbone.arch} has {width}, "
            f"and {name} has {len(train.classes)} classes"
        )
    own = {**_network(session), "classes": list(train.classes)}
    if others := [name for name, value in json.loads(json.dumps(own)).items() if name in says and says[name] != value]:
        raise ConfigError(
            f"the head {source} was trained with another {' and another '.join(others)}: it would score what it does not know"
        )
    seen = session.features(val, readout)
    exam = EvalSet(features={readout.id: seen.numpy()}, labels=labels_of(seen.images))
    ranks = _ranks_of({"weight": head.weight, "bias": head.bias}, readout.id, exam, session)
    probe = LinearProbeRun({"": ranks}, [], [], [], [])
    metrics, errors, _ = average_runs([probe.metrics], len(seen))
    paper = {row: dataclasses.replace(reference, metric="top1") for row, reference in PAPER.items()}
    sizes = {"train": len(train), "val": len(seen), "classes": classes}
    other = source != f"{session.backbone.provenance.name}_linear"
    references, why_not = published_rows(paper, session, sizes, [(other, f"the head {source} is not the released one of this backbone")])
    return classification_result(
        "linear", VERSION, config, session, name, {"train": SplitRecord(train, []), "val": seen},
        settled={"readouts": (readout.id,), "head": source}, metrics=metrics, standard_errors=errors,
        seconds={"total": time.monotonic() - began}, references=references, not_comparable=why_not,
        notes=[*notes, f"head {source} on {readout.id}"], samples=samples(seen.images, probe.hits),
    )  # fmt: skip
