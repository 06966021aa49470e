"""One run of the linear probe: hold images out, train all heads of a sweep, choose among them.

Q queries, C classes, D dims.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.subsets import hold_out
from dinoeval.errors import ConfigError
from dinoeval.files import expand
from dinoeval.protocols._classification import labels_of

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from dinoeval.features.features import Features
    from dinoeval.features.readout import Readout
    from dinoeval.session import Session
    from dinoeval.training.probe.sources import FeatureSource
    from dinoeval.training.probe.sweep import EvalSet, Sweep

SEED = 0
MAX_HELD_OUT = 10_000
"""Maximum number of held-out images: enough to choose between heads, and less than one percent of ImageNet."""


@dataclasses.dataclass(frozen=True)
class HeadScores:
    """The result of one training run."""

    ranks: dict[str, np.ndarray]
    """Number of classes (Q,) ranked above the correct one, by suffix of the metrics: of the chosen head, and of the head that is best
    on val."""
    chosen: list[str]
    """Which heads were chosen, and where they are stored."""
    table: list[dict[str, Any]]
    """One row per head."""
    bad: list[dict[str, Any]]
    """Training images that could not be read: `row`, `path`, `reason`."""
    notes: list[str]

    @property
    def metrics(self) -> dict[str, float]:
        """Accuracies in percent."""
        return {name: 100 * float(hits.mean()) for name, hits in self.hits.items()}

    @property
    def hits(self) -> dict[str, np.ndarray]:
        """Outcomes (Q,) bool by metric."""
        return {f"top{count}{suffix}": ranks < count for suffix, ranks in self.ranks.items() for count in (1, 5)}


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """The sweep of heads of one dataset, which can be trained on any rows of the training split."""

    config: Any
    """The Config of `linear`."""
    version: int
    session: Session
    train_images: ImageSet
    readouts: Mapping[str, Readout]
    val: Mapping[str, Features]
    """Features of the evaluation split by readout."""

    def train(self, rows: np.ndarray, seed: int) -> HeadScores:
        """Train all heads; a run of the same options resumes.

        Args:
            rows: Rows (n,) of the training split.
            seed: Seed of the held-out images.

        Returns:
            The scores of the chosen heads, and a row for every head.
        """
        from dinoeval.features.cache import RUNS
        from dinoeval.features.spec import key_of
        from dinoeval.training.probe.sweep import Head, Sweep, SweepSettings
        from dinoeval.training.probe.train import train_heads

        config, train_images = self.config, self.train_images
        labels = labels_of(train_images)
        kept, held = rows, rows[:0]
        if config.held_out:
            count = max(1, min(MAX_HELD_OUT, int(config.held_out * len(rows))))
            fitted, chosen_by = hold_out(labels[rows], count, seed)
            kept, held = rows[fitted], rows[chosen_by]
        batch, notes = self._batch(len(kept))
        heads = [
            Head(readout=readout, lr=lr, weight_decay=decay)
            for readout in self.readouts
            for lr in config.lrs
            for decay in config.weight_decays
        ]
        eval_sets = {"val": _eval_set(self.val)}
        held_bad: list[dict[str, Any]] = []
        if len(held):
            held_features = {name: self.session.features(train_images, readout, held) for name, readout in self.readouts.items()}
            eval_sets["held_out"] = _eval_set(held_features)
            paths = {train_images.paths[row] for row in held}
            held_bad = [bad for bad in next(iter(held_features.values())).bad if bad["path"] in paths]
        source, kept, dims = self._source(kept)
        val_images = next(iter(self.val.values())).images
        spec = {
            "version": self.version,
            **describe_input(self.session),
            "place and times of the files": [train_images.stamp, val_images.stamp],
            "data": train_images.fingerprint(),
            "val": val_images.fingerprint(),
            "seed": seed,
            "rows": hashlib.sha256(kept.tobytes() + held.tobytes()).hexdigest()[:16],
            "features": config.features,
            "heads": [dataclasses.astuple(head) for head in heads],
            "epochs": config.epochs,
            "batch": batch,
        }
        spec = json.loads(json.dumps(spec))
        folder = expand(config.out) if config.out else self.session.cache.root / RUNS / f"linear-{key_of(spec)}"
        folder = folder / f"subset{seed}" if config.out and config.train_subset else folder
        device = self.session.backbone.device
        settings = SweepSettings(epochs=config.epochs, batch_size=batch, seed=SEED, device=device)
        sweep = Sweep(heads, dims, labels, len(train_images.classes), settings)
        train_heads(sweep, source, kept, eval_sets, folder, spec)
        scores = self._report(sweep, eval_sets, folder, notes)
        return dataclasses.replace(scores, bad=[*scores.bad, *held_bad])

    def _batch(self, images: int) -> tuple[int, list[str]]:
        """Return the images per step: the default, reduced to the number of training images, or a passed value that must fit."""
        batch = self.config.train_batch_size
        if batch <= images:
            return batch, []
        default = type(self.config)().train_batch_size
        if batch != default:
            raise ConfigError(f"--train-batch-size {batch} exceeds the {images:,} training images: pass {images} or less")
        return images, [f"the batch of {default} was cut to {images}, the number of training images"]

    def _source(self, kept: np.ndarray) -> tuple[FeatureSource, np.ndarray, dict[str, int]]:
        """Return where training features come from, the rows that it has, and the dimensions by readout."""
        from dinoeval.training.probe.sources import Augmented, AugmentedSettings, Cached

        session, train_images = self.session, self.train_images
        if self.config.features == "augmented":
            dims = {name: readout.feature_shape(session.backbone.dim, (0, 0))[0] for name, readout in self.readouts.items()}
            settings = AugmentedSettings(
                seed=SEED,
                bad_images=session.config.bad_images,
                batch_size=session.config.batch_size,
                workers=session.config.workers,
            )
            return Augmented(session.backbone, train_images, list(self.readouts.values()), session.transform, settings), kept, dims
        features = {name: session.features(train_images, readout, kept) for name, readout in self.readouts.items()}
        first = next(iter(features.values()))
        part = first.entry.num_rows != len(train_images)  # extracted for these rows alone, not taken from the whole split
        rows = kept[first.rows] if part else first.rows
        bad = {int(kept[one["row"]] if part else one["row"]): one for one in first.bad}
        return Cached(features, rows, bad), rows, {name: one.entry.feature_shape[0] for name, one in features.items()}

    def _report(self, sweep: Sweep, eval_sets: Mapping[str, EvalSet], folder: Path, notes: list[str]) -> HeadScores:
        """Choose a head by each evaluation set, save the chosen heads, and list the scores of all."""
        from dinoeval.models.linear_head import save_head

        backbone = self.session.backbone
        ranks: dict[str, np.ndarray] = {}
        chosen = []
        for name, suffix, how in (("held_out", "", "chosen on held-out training images"), ("val", "_best_on_val", "best on val")):
            if name in eval_sets:
                best = sweep.best[name]
                head = sweep.heads[best["head"]]
                val = eval_sets["val"]
                ranks[suffix] = ranks_of(best["weight"], best["bias"], val.features[head.readout], val.labels, backbone.device)
                chosen.append(f"{how}: {head.readout}, lr {head.lr:g}, weight decay {head.weight_decay:g}, epoch {best['epoch']}")
                if distributed.rank() == 0:
                    metadata = {
                        **dataclasses.asdict(head),
                        "arch": backbone.arch,
                        **describe_input(self.session),
                        "classes": list(self.train_images.classes),
                    }
                    save_head(folder / f"head{suffix or '_chosen'}.pth", best, metadata)
        if "held_out" not in eval_sets and len(sweep.heads) == 1:
            ranks = {"": sweep.ranks(eval_sets["val"])[:, 0], **ranks}
            notes = [*notes, "top1 is the score of the last epoch: with one head and no held-out images, nothing was chosen"]
        if self.config.features == "cached":
            notes = [*notes, "trained on cached center crops; the paper trains with augmentation"]
        line = f"{'; '.join(chosen)}; heads in {folder}"
        return HeadScores(ranks, [line], _table(sweep, list(eval_sets)), list(sweep.bad.values()), notes)


def describe_input(session: Session) -> dict[str, Any]:
    """Return what a head belongs to.

    Tensors alone determine neither the number of attention heads nor the preprocessing.

    Args:
        session: The backbone and the transform that the head was trained with.

    Returns:
        Digest and configuration of the network, precision, transform and the rule for images.
    """
    backbone = session.backbone
    return {
        "backbone": backbone.digest,
        "network": dataclasses.asdict(backbone.config),
        "precision": backbone.precision,
        "transform": session.transform.id,
        "image": session.rule.id,
    }


def ranks_of(weight: Tensor, bias: Tensor, features: np.ndarray, labels: np.ndarray, device: torch.device) -> np.ndarray:
    """Return how many classes a linear head ranks above the correct one.

    Args:
        weight: (C, D) float32.
        bias: (C,) float32.
        features: (Q, D) float32.
        labels: (Q,) int64.
        device: Where to compute.

    Returns:
        (Q,) int64; 0 if the prediction is correct.
    """
    import torch

    from dinoeval.maths.heads import Heads

    classes, dim = weight.shape
    heads = Heads([0.0], [0.0], dim, classes, seed=0, device=device)
    heads.weight[0], heads.bias[0] = weight, bias
    return heads.ranks(torch.from_numpy(features).to(device), torch.from_numpy(labels).to(device))[:, 0].cpu().numpy()


def _eval_set(features: Mapping[str, Features]) -> EvalSet:
    from dinoeval.training.probe.sweep import EvalSet

    images = next(iter(features.values())).images
    return EvalSet(features={name: one.numpy() for name, one in features.items()}, labels=labels_of(images))


def _table(sweep: Sweep, eval_sets: list[str]) -> list[dict[str, Any]]:
    """Return the scores of each head, at the last epoch and at its best epoch on each evaluation set."""
    rows = []
    for number, head in enumerate(sweep.heads):
        row: dict[str, Any] = {"readout": head.readout, "lr": head.lr, "weight_decay": head.weight_decay}
        diverged = next((line["epoch"] for line in sweep.history if line["loss"][number] is None), None)
        row["diverged_in_epoch"] = diverged
        row["train_loss"] = sweep.history[-1]["loss"][number]
        for name in eval_sets:
            scores = [line[name][number] for line in sweep.history if line[name][number] is not None]
            row[f"{name}_last"] = None if diverged is not None else scores[-1]
            row[f"{name}_best"] = max(scores, default=None)
            row[f"{name}_best_epoch"] = int(np.argmax(scores)) if scores else None
        rows.append(row)
    return rows
