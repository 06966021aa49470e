"""Training of linear heads on a frozen backbone: many at once, resumable in mid-epoch, scored after every epoch.

B images of a batch, H heads of one readout, C classes, D dims.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop, RandomCrop, normalize_images
from dinoeval.errors import BadImage, CheckpointError, ConfigError, DataError, DinoevalError
from dinoeval.features.readout import Readout
from dinoeval.files import write_whole
from dinoeval.maths.heads import Heads
from dinoeval.models.backbone import Backbone
from dinoeval.models.checkpoints import read_pickle

STATE = "state.pth"
SAVE_SECONDS = 300.0  # between saved states inside an epoch
_BLOCK_BYTES = 64 << 20
_REHEARSED, _REHEARSAL_SECONDS = 8, 10.0
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One head of a sweep."""

    readout: str
    lr: float
    """For a batch of 256 images, as published; the rate of a run is lr * batch / 256."""
    weight_decay: float


class FeatureSource(Protocol):
    """Where the features of training images come from."""

    @property
    def bad(self) -> Mapping[int, dict[str, Any]]:
        """By row, the images that could not be read so far."""
        ...

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[tuple[dict[str, Tensor], np.ndarray]]:
        """Yield for each step the features of its rows, (b, D) by readout, and the rows that could be read, in order."""
        ...


class StoredFeatures(Protocol):
    """Features that were made before; `features.extract.Features` is such."""

    def take(self, positions: np.ndarray) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Cached:
    """Features of central crops that were made before: the same ones in every epoch."""

    features: Mapping[str, StoredFeatures]
    """By readout."""
    rows: np.ndarray
    """Which row of the training set each feature is of, ascending."""
    bad: dict[int, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[tuple[dict[str, Tensor], np.ndarray]]:
        for step in steps:
            positions = np.searchsorted(self.rows, step)
            yield {name: torch.from_numpy(features.take(positions)) for name, features in self.features.items()}, step


class Augmented:
    """Features of random crops, made anew in every epoch by one forward pass for all readouts."""

    def __init__(
        self, backbone: Backbone, images: ImageSet, readouts: Sequence[Readout], transform: CenterCrop, *, seed: int,
        bad_images: str = "error", batch_size: int | None = None, workers: int | None = None,
    ) -> None:  # fmt: skip
        self.backbone, self.images, self.readouts, self.transform, self.seed = backbone, images, readouts, transform, seed
        self.skip_bad, self.workers = bad_images == "skip", workers
        self.together = batch_size or backbone.fast_batch(transform.crop)
        self.bad: dict[int, dict[str, Any]] = {}

    def batches(self, epoch: int, steps: Sequence[np.ndarray]) -> Iterator[tuple[dict[str, Tensor], np.ndarray]]:
        parts = [(number, step[first : first + self.together]) for number, step in enumerate(steps)
                 for first in range(0, max(1, len(step)), self.together)]  # fmt: skip
        loader = DataLoader(
            _RandomCrops(self.images, RandomCrop(self.transform.crop), self.seed, epoch, [rows for _, rows in parts]),
            batch_size=None,
            num_workers=distributed.num_workers(self.workers, len(parts), self.images.small),
            pin_memory=self.backbone.device.type == "cuda",
        )
        gathered: list[tuple[dict[str, Tensor], np.ndarray]] = []
        for place, ((number, _), (crops, good, bad)) in enumerate(zip(parts, loader, strict=True)):
            self._note(bad)
            features = self.features(crops)
            for rows in features.values():
                self.backbone.check_finite(rows, [self.images.paths[row] for row in good])
            gathered.append((features, good))
            if place + 1 == len(parts) or parts[place + 1][0] != number:
                names = gathered[0][0]
                yield {name: torch.cat([part[name] for part, _ in gathered]) for name in names}, np.concatenate([r for _, r in gathered])
                gathered = []

    def features(self, crops: Tensor) -> dict[str, Tensor]:
        """uint8 (b, 3, H, W) -> (b, D) by readout."""
        if not len(crops):
            widths = {readout.id: readout.feature_shape(self.backbone.dim, (0, 0))[0] for readout in self.readouts}
            return {name: torch.empty(0, width, device=self.backbone.device) for name, width in widths.items()}
        images = normalize_images(crops.to(self.backbone.device, non_blocking=True), self.transform.mean, self.transform.std)
        layers, patches = max(readout.layers for readout in self.readouts), any(readout.patches for readout in self.readouts)
        tokens = self.backbone(images, layers=layers, patches=patches)
        return {readout.id: readout(tokens) for readout in self.readouts}

    def _note(self, bad: list[dict[str, Any]] | DataError) -> None:
        if isinstance(bad, DataError):
            raise bad
        for one in bad:
            if not self.skip_bad:
                raise DataError(
                    f"{one['path']} cannot be read: {one['reason']}. Mend or remove it, or say --bad-images skip; "
                    "the same command goes on from there."
                )
            if one["row"] not in self.bad:
                _log.warning("%s cannot be read (%s) and is left out", one["path"], one["reason"])
                self.bad[one["row"]] = one


class _RandomCrops(Dataset):
    """Number of a part -> (uint8 crops of its pictures that decode, their rows, what is wrong with the others)."""

    def __init__(self, images: ImageSet, crop: RandomCrop, seed: int, epoch: int, parts: list[np.ndarray]) -> None:
        self.images, self.crop, self.seed, self.epoch, self.parts = images, crop, seed, epoch, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[Tensor, np.ndarray, list[dict[str, Any]] | DataError]:
        crops, good, bad = [], [], []
        for row in self.parts[number].tolist():
            seed = int(np.random.SeedSequence((self.seed, self.epoch, row)).generate_state(1)[0])
            try:
                crops.append(self.crop(self.images.open(row), seed))
                good.append(row)
            except BadImage as fault:
                bad.append({"row": row, "path": self.images.paths[row], "reason": str(fault)})
            except DataError as fault:  # as a value: PyTorch would wrap a worker's exception in its traceback
                return torch.empty(0), np.array([], np.int64), fault
        size = self.crop.crop
        return torch.stack(crops) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8), np.array(good, np.int64), bad


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Images that heads are scored on after every epoch; not trained on."""

    features: Mapping[str, np.ndarray]
    """(M, D) by readout."""
    labels: np.ndarray
    """(M,)."""


class Sweep:
    """All heads of a run, with their scores so far."""

    def __init__(
        self, heads: Sequence[Head], dims: Mapping[str, int], labels: np.ndarray, classes: int, *, epochs: int, batch: int, seed: int,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.heads, self.labels, self.epochs, self.batch, self.seed, self.device = list(heads), labels, epochs, batch, seed, device
        self.members = {
            name: [n for n, head in enumerate(heads) if head.readout == name] for name in dict.fromkeys(h.readout for h in heads)
        }
        self.groups = {
            name: Heads([heads[n].lr * batch / 256 for n in members], [heads[n].weight_decay for n in members], dims[name], classes,
                        seed=seed, device=device)
            for name, members in self.members.items()
        }  # fmt: skip
        self.epoch = self.step = 0
        self.losses = torch.zeros(len(self.heads), dtype=torch.float64)
        self.history: list[dict[str, Any]] = []
        """One row an epoch: lr factor, and by head the mean loss and each exam's top-1."""
        self.bad: dict[int, dict[str, Any]] = {}
        """By row, the training images that could not be read."""
        self.best: dict[str, dict[str, Any]] = {}
        """By exam: the head and the epoch of its best top-1 so far, with their weights."""

    def steps(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows of every step of this epoch, in the order that the released DistributedSampler draws."""
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed + self.epoch)).numpy()
        return [rows[order[first : first + self.batch]] for first in range(0, len(rows), self.batch)]

    def learn(self, features: Mapping[str, Tensor], labels: np.ndarray) -> None:
        """One step of every head."""
        truth = torch.from_numpy(labels).to(self.device)
        schedule = (1 + math.cos(math.pi * self.epoch / self.epochs)) / 2
        for name, group in self.groups.items():
            self.losses[self.members[name]] += group.step(features[name].to(self.device), truth, schedule).double().cpu()

    def ranks(self, exam: EvalSet) -> np.ndarray:
        """How many classes each head puts before the right one, (M, all heads); several processes share the images."""
        mine = np.array_split(np.arange(len(exam.labels)), distributed.world_size())[distributed.rank()]
        ranks = np.empty((len(mine), len(self.heads)), np.int64)
        for name, group in self.groups.items():
            step = max(1, _BLOCK_BYTES // (4 * exam.features[name].shape[1]))
            for first in range(0, len(mine), step):
                rows = mine[first : first + step]
                block = torch.from_numpy(exam.features[name][rows]).to(self.device)
                truth = torch.from_numpy(exam.labels[rows]).to(self.device)
                ranks[first : first + step, self.members[name]] = group.ranks(block, truth).cpu().numpy()
        return np.concatenate(distributed.all_gather(ranks))

    def alive(self) -> np.ndarray:
        flags = np.empty(len(self.heads), bool)
        for name, group in self.groups.items():
            flags[self.members[name]] = group.alive.cpu().numpy()
        return flags

    def close_epoch(self, exams: Mapping[str, EvalSet], steps: int) -> dict[str, Any]:
        """Score all heads, remember the best, and go on to the next epoch; returns the row of the history."""
        for group in self.groups.values():
            group.stop_diverged()
        alive = self.alive()
        losses = (self.losses / steps).tolist()
        row: dict[str, Any] = {"epoch": self.epoch, "loss": [loss if good else None for loss, good in zip(losses, alive, strict=True)]}
        for exam, content in exams.items():
            scores = 100 * (self.ranks(content) == 0).mean(0)
            row[exam] = [score if good else None for score, good in zip(scores.tolist(), alive, strict=True)]
            first = int(np.where(alive, scores, -1).argmax())
            if alive.any() and (exam not in self.best or scores[first] > self.best[exam]["score"]):
                self.best[exam] = {"score": float(scores[first]), "head": first, "epoch": self.epoch, **self.weights(first)}
        self.history.append(row)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, torch.zeros_like(self.losses)
        if not alive.any():
            raise DinoevalError(f"every head diverged by epoch {row['epoch']}: its loss is no number any more. Lower --lrs.")
        return row

    def weights(self, number: int) -> dict[str, Tensor]:
        """`weight` (C, D) and `bias` (C,) of one head, as copies."""
        name = self.heads[number].readout
        group, place = self.groups[name], self.members[name].index(number)
        return {"weight": group.weight[place].cpu().clone(), "bias": group.bias[place].cpu().clone()}

    def state(self) -> dict[str, Any]:
        groups = {name: group.state() for name, group in self.groups.items()}
        return {"epoch": self.epoch, "step": self.step, "losses": self.losses, "history": self.history, "best": self.best, "bad": self.bad,
                "groups": groups}  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        for name, group in self.groups.items():
            group.restore(state["groups"][name])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.history, self.best, self.bad = state["history"], state["best"], state["bad"]


def train_heads(
    sweep: Sweep, source: FeatureSource, rows: np.ndarray, exams: Mapping[str, EvalSet], out: Path, recipe: dict[str, Any]
) -> None:
    """Train all heads on `rows` of the training set to the last epoch, going on from what `out` holds of the same recipe.

    Under torchrun every process makes the features of its share of each batch; all then take the same step.
    """
    _resume(sweep, out, recipe)
    if sweep.epoch < sweep.epochs:
        _announce(sweep, source, rows)
    saved = time.monotonic()
    world, rank = distributed.world_size(), distributed.rank()
    for _ in range(sweep.epoch, sweep.epochs):
        steps = sweep.steps(rows)
        mine = [step[rank::world] for step in steps[sweep.step :]]
        label = f"epoch {sweep.epoch}"
        with tqdm(total=len(steps), initial=sweep.step, desc=label, unit="step", disable=None if rank == 0 else True, leave=False) as bar:
            for features, good in source.batches(sweep.epoch, mine):
                features, good = _together(features, good)
                if len(good):
                    sweep.learn(features, sweep.labels[good])
                sweep.step += 1
                bar.update()
                # Several processes, whose clocks differ, keep whole epochs only: all must go on from one step.
                if time.monotonic() - saved > SAVE_SECONDS and sweep.step < len(steps) and world == 1:
                    _save(sweep, out, recipe)
                    saved = time.monotonic()
        for bad in distributed.all_gather(source.bad):
            sweep.bad |= bad
        row = sweep.close_epoch(exams, len(steps))
        _save(sweep, out, recipe)
        saved = time.monotonic()
        scores = {exam: max((score for score in row[exam] if score is not None), default=math.nan) for exam in exams}
        _log.info("epoch %d: %s", row["epoch"], ", ".join(f"best head's top-1 on {exam} {score:.2f}" for exam, score in scores.items()))


def _together(features: dict[str, Tensor], good: np.ndarray) -> tuple[dict[str, Tensor], np.ndarray]:
    """Put the shares of all processes together, in order of rank."""
    if distributed.world_size() == 1:
        return features, good
    shares = distributed.all_gather(({name: part.cpu() for name, part in features.items()}, good))
    return {name: torch.cat([share[0][name] for share in shares]) for name in features}, np.concatenate([share[1] for share in shares])


def _announce(sweep: Sweep, source: FeatureSource, rows: np.ndarray) -> None:
    """Say how long it will take, by a few batches that are thrown away."""
    if not isinstance(source, Augmented):
        return
    parts = [rows[first : first + source.together] for first in range(0, len(rows), source.together)][:_REHEARSED]
    began, done = time.monotonic(), 0
    for _, good in source.batches(sweep.epochs, parts):
        done += len(good)
        if time.monotonic() - began > _REHEARSAL_SECONDS:
            break
    images = len(rows) * (sweep.epochs - sweep.epoch) / distributed.world_size()
    seconds = images * (time.monotonic() - began) / max(1, done)
    _log.info(
        "training %d heads for %d epochs of %d images: about %s", len(sweep.heads), sweep.epochs - sweep.epoch, len(rows), _words(seconds)
    )


def _words(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds > 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _save(sweep: Sweep, out: Path, recipe: dict[str, Any]) -> None:
    if distributed.rank() == 0:
        write_whole(out / STATE, lambda path: torch.save({"recipe": recipe, **sweep.state()}, path))


def _resume(sweep: Sweep, out: Path, recipe: dict[str, Any]) -> None:
    path = out / STATE
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DinoevalError(f"{out} cannot be written: {error.strerror}") from error
    if distributed.rank() == 0:
        for left in out.glob(f".*.{STATE}"):  # what a killed process was writing
            left.unlink()
    distributed.barrier()
    try:
        state = read_pickle(path) if path.exists() else None
    except CheckpointError as error:
        raise ConfigError(f"{error} Delete it to start anew, or choose another --out.") from error
    if len(set(distributed.all_gather((state["epoch"], state["step"]) if state else None))) > 1:
        raise ConfigError(f"the processes do not see the same {path}: put --out on a disk that they share")
    if state is None:
        return
    saved = state.get("recipe") if isinstance(state, dict) else None
    if not isinstance(saved, dict):
        raise ConfigError(f"{path} was not written by this program: choose another --out")
    differences = [f"{name} was {saved.get(name)} and is {value}" for name, value in recipe.items() if saved.get(name) != value]
    if differences:
        raise ConfigError(f"{path} is of another run ({'; '.join(differences)}): choose another --out, or delete it to start anew")
    sweep.restore(state)
    _log.info("going on from %s: epoch %d, step %d", path, sweep.epoch, sweep.step)
