"""A sweep of linear heads on frozen features: steps, scores and state. All heads are trained at once.

B images of a step, M images of an evaluation set, H heads, C classes, D dims.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoeval import distributed
from dinoeval.errors import DinoevalError
from dinoeval.maths.heads import Heads

_BLOCK_BYTES = 64 << 20  # of the features that are scored at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """One head of a sweep."""

    readout: str
    """Id of the features that the head takes."""
    lr: float
    """Learning rate for a batch of 256 images, as published; the run uses lr * batch / 256."""
    weight_decay: float
    """Weight decay of the head's weights and bias."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Images to score heads on after every epoch; heads are not trained on them."""

    features: Mapping[str, np.ndarray]
    """Features by readout, (M, D) float32."""
    labels: np.ndarray
    """Class indices, (M,) int64."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """What all heads of a sweep share."""

    epochs: int
    """Passes over the training images."""
    batch_size: int
    """Images per step, over all processes."""
    device: torch.device
    """Where the heads are trained."""
    seed: int = 0
    """Random seed of the initial weights and of the order of the images."""


class Sweep:
    """All heads of a run, with their scores so far.

    Args:
        heads: The heads.
        dims: Width of each readout, D.
        labels: Class indices of all training images, by row, int64.
        classes: Number of classes, C.
        settings: Epochs, batch size, seed and device.

    Examples:
        >>> features, labels = torch.eye(4), np.array([0, 0, 1, 1])
        >>> settings = SweepSettings(epochs=2, batch_size=4, device=torch.device("cpu"))
        >>> sweep = Sweep([Head(readout="cls", lr=8.0, weight_decay=0.0)], {"cls": 4}, labels, 2, settings)
        >>> for _ in range(2):
        ...     for rows in sweep.steps(np.arange(4)):
        ...         sweep.learn({"cls": features[rows]}, labels[rows])
        ...     row = sweep.close_epoch({"val": EvalSet(features={"cls": features.numpy()}, labels=labels)}, steps=1)
        >>> row["epoch"], row["val"]
        (1, [100.0])
    """

    def __init__(self, heads: Sequence[Head], dims: Mapping[str, int], labels: np.ndarray, classes: int, settings: SweepSettings) -> None:
        self.heads, self.labels, self.settings = list(heads), labels, settings
        self.members = {
            name: [number for number, head in enumerate(heads) if head.readout == name]
            for name in dict.fromkeys(head.readout for head in heads)
        }
        self.groups = {
            name: Heads(
                [heads[number].lr * settings.batch_size / 256 for number in members],
                [heads[number].weight_decay for number in members],
                dims[name],
                classes,
                seed=settings.seed,
                device=settings.device,
            )
            for name, members in self.members.items()
        }
        self.epoch = self.step = 0
        self.losses = torch.zeros(len(self.heads), dtype=torch.float64)
        self.history: list[dict[str, Any]] = []
        """One row per epoch: by head, the mean loss and the top-1 on each evaluation set."""
        self.bad: dict[int, dict[str, Any]] = {}
        """The training images that could not be read, by row."""
        self.best: dict[str, dict[str, Any]] = {}
        """Head, epoch and weights of the best top-1 so far, by evaluation set."""

    def steps(self, rows: np.ndarray) -> list[np.ndarray]:
        """List the steps of the current epoch, in the order of the released sampler.

        The order is the permutation that DistributedSampler draws from seed + epoch.

        Args:
            rows: Rows of the training set, int64.

        Returns:
            The rows of each step, (B,); the last step may be smaller.
        """
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.settings.seed + self.epoch)).numpy()
        batch = self.settings.batch_size
        return [rows[order[first : first + batch]] for first in range(0, len(rows), batch)]

    def learn(self, features: Mapping[str, Tensor], labels: np.ndarray) -> None:
        """Take one step with every head.

        Args:
            features: Features by readout, (B, D) float32.
            labels: Class indices, (B,) int64.
        """
        targets = torch.from_numpy(labels).to(self.settings.device)
        schedule = (1 + math.cos(math.pi * self.epoch / self.settings.epochs)) / 2
        for name, group in self.groups.items():
            losses = group.step(features[name].to(self.settings.device), targets, schedule)
            self.losses[self.members[name]] += losses.double().cpu()

    def ranks(self, images: EvalSet) -> np.ndarray:
        """Count the classes that each head ranks above the correct one.

        Under torchrun the processes share the images.

        Args:
            images: An evaluation set.

        Returns:
            (M, H) int64: 0 is a top-1 hit, below 5 a top-5 hit.
        """
        shard = np.array_split(np.arange(len(images.labels)), distributed.world_size())[distributed.rank()]
        ranks = np.empty((len(shard), len(self.heads)), np.int64)
        for name, group in self.groups.items():
            step = max(1, _BLOCK_BYTES // (4 * images.features[name].shape[1]))
            for first in range(0, len(shard), step):
                rows = shard[first : first + step]
                block = torch.from_numpy(images.features[name][rows]).to(self.settings.device)
                labels = torch.from_numpy(images.labels[rows]).to(self.settings.device)
                ranks[first : first + step, self.members[name]] = group.ranks(block, labels).cpu().numpy()
        return np.concatenate(distributed.all_gather(ranks))

    def alive(self) -> np.ndarray:
        """Flag the heads that have not diverged.

        Returns:
            (H,) bool.
        """
        flags = np.empty(len(self.heads), bool)
        for name, group in self.groups.items():
            flags[self.members[name]] = group.alive.cpu().numpy()
        return flags

    def close_epoch(self, eval_sets: Mapping[str, EvalSet], steps: int) -> dict[str, Any]:
        """Score all heads, keep the best ones, and begin the next epoch.

        Args:
            eval_sets: The evaluation sets by name.
            steps: Number of steps of the epoch.

        Returns:
            The row of the history; a head that diverged has None.

        Raises:
            DinoevalError: If all heads have diverged.
        """
        for group in self.groups.values():
            group.stop_diverged()
        alive = self.alive()
        losses = (self.losses / steps).tolist()
        row: dict[str, Any] = {"epoch": self.epoch, "loss": [loss if good else None for loss, good in zip(losses, alive, strict=True)]}
        for name, images in eval_sets.items():
            scores = 100 * (self.ranks(images) == 0).mean(0)
            row[name] = [score if good else None for score, good in zip(scores.tolist(), alive, strict=True)]
            first = int(np.where(alive, scores, -1).argmax())
            if alive.any() and (name not in self.best or scores[first] > self.best[name]["score"]):
                self.best[name] = {"score": float(scores[first]), "head": first, "epoch": self.epoch, **self.weights(first)}
        self.history.append(row)
        self.epoch, self.step, self.losses = self.epoch + 1, 0, torch.zeros_like(self.losses)
        if not alive.any():
            raise DinoevalError(f"all heads diverged by epoch {row['epoch']}: their losses are NaN or infinite. Reduce --lrs.")
        return row

    def weights(self, number: int) -> dict[str, Tensor]:
        """Copy the weights of one head.

        Args:
            number: Number of the head.

        Returns:
            `weight` (C, D) and `bias` (C,), on the CPU.
        """
        name = self.heads[number].readout
        group, member = self.groups[name], self.members[name].index(number)
        return {"weight": group.weight[member].cpu().clone(), "bias": group.bias[member].cpu().clone()}

    def state(self) -> dict[str, Any]:
        """Collect what a run resumes from.

        Returns:
            Tensors and plain values.
        """
        return {
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "history": self.history,
            "best": self.best,
            "bad": self.bad,
            "groups": {name: group.state() for name, group in self.groups.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned.

        Args:
            state: Tensors and plain values.
        """
        for name, group in self.groups.items():
            group.restore(state["groups"][name])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.history, self.best, self.bad = state["history"], state["best"], state["bad"]
