"""The fine-tuning run: epochs of steps, an evaluation and a checkpoint per epoch, and resumption.

Under torchrun each process takes its shard of every batch and of the evaluation images; gradients are averaged.

Q evaluation images, C classes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from typing import Any

import numpy as np
import torch

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop, normalize_images
from dinoeval.data.workers import BatchLoader
from dinoeval.display import short_repr
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.files import write_whole
from dinoeval.guard import entry_point
from dinoeval.models.backbone import Backbone
from dinoeval.models.checkpoints import save_backbone, tensor_digest
from dinoeval.models.checkpoints.safetensors_files import write_safetensors
from dinoeval.progress import Progress
from dinoeval.training.checkpointing import RunFolder
from dinoeval.training.finetune.batches import Mixing, RepeatedOrder, assign_mixup_groups, augmented_images, collate, cropped_images
from dinoeval.training.finetune.classifier import Classifier, trainable_copy
from dinoeval.training.finetune.recipes import FinetuneRecipe
from dinoeval.training.finetune.trainer import FinetuneTrainer
from dinoeval.training.loading import derive_seed, raise_error
from dinoeval.training.precision import Precision

BACKBONE, HEAD = "backbone.safetensors", "head.safetensors"
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """How a fine-tuning run is executed; its training is defined by `FinetuneRecipe`.

    Apart from seed and precision, the settings change results only by rounding, by the draws of stochastic depth, and by
    the batches that BatchNorm sees.
    """

    out: str | None = None
    """Folder of the run; None saves nothing."""
    seed: int = 0
    """Random seed of the head, order, augmentation, mixing and stochastic depth."""
    precision: Precision = "fp32"
    """Precision of the forward passes."""
    save_every: int = 0
    """Epochs between checkpoints that are kept; 0 keeps only the last one."""
    workers: int | None = None
    """Data-loading processes per training process (default: one per core)."""
    forward_images: int | None = None
    """Images per forward pass; gradients are summed over the passes of a step (default: chosen for the device)."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a finished run on Q evaluation images."""

    predictions: np.ndarray
    """Class indices after the last epoch, (Q, min(5, C)) int64, in descending order of their logits."""
    history: list[dict[str, Any]]
    """One row per epoch: what log.txt contains."""

    __repr__ = short_repr


class FinetuneRun:
    """One fine-tuning run: its batches, its classifier and its folder.

    Args:
        backbone: The frozen backbone whose weights the run starts from; it does not change.
        train: Training images.
        val: Evaluation images.
        recipe: All values of the training.
        transform: The transform of the evaluation.
        settings: Folder, seed, precision and batches.

    Raises:
        ConfigError: If the batch does not fit the images or the processes.
        DataError: If the labels cannot be learned.
    """

    def __init__(
        self,
        backbone: Backbone,
        train: ImageSet,
        val: ImageSet,
        recipe: FinetuneRecipe,
        transform: CenterCrop,
        settings: FinetuneSettings,
    ) -> None:
        check_fits(train, val, recipe)
        self.recipe, self.transform, self.settings, self.val = recipe, transform, settings, val
        self.arch, self.device, self.classes = backbone.arch, backbone.device, train.classes
        torch.manual_seed(settings.seed)
        network = trainable_copy(backbone, recipe.drop_path)
        parts = assign_mixup_groups(recipe.train_batch_size, recipe.mixed_together, distributed.rank(), distributed.world_size())
        forward_images = settings.forward_images or backbone.fast_batch(transform.crop, training=True)
        model = Classifier(network, backbone.dim, len(train.classes), recipe.head_scale)
        self.trainer = FinetuneTrainer(model, recipe, self.device, settings.precision, forward_images)
        self.order = RepeatedOrder(len(train), recipe, np.concatenate([positions for _, positions in parts]), settings.seed)
        self.mixing = Mixing(recipe, len(train.classes), parts, settings.seed)
        workers = distributed.num_workers(settings.workers, len(train), train.small)
        read_by: dict[str, Any] = {"workers": workers, "device": self.device}
        images = augmented_images(train, recipe, transform, settings.seed)
        self.loader = BatchLoader(images, collate, batch_sampler=self.order, persistent_workers=workers > 0, **read_by)
        shard = list(distributed.shard(len(val)))
        # No gradients are kept in the evaluation, so four times as many images fit.
        self.val_loader = BatchLoader(cropped_images(val, transform), collate, sampler=shard, batch_size=4 * forward_images, **read_by)
        identity = {
            "arch": backbone.arch,
            "weights": backbone.digest,
            "precision": settings.precision,
            "seed": settings.seed,
            "transform": transform.id,
            "image": train.rule.id,
            "train images": train.fingerprint(),
            "val images": val.fingerprint(),
            "place and times of the files": [train.stamp, val.stamp],
            "recipe": recipe.record(),
        }
        self.folder = RunFolder(settings.out, identity, keep_every=settings.save_every) if settings.out else None
        self.history: list[dict[str, Any]] = []

    @entry_point
    def finish(self) -> Outcome:
        """Train to the last epoch, or resume the run in the folder, and save the results.

        Returns:
            The predictions of the last epoch, and the history.

        Raises:
            ConfigError: If the folder belongs to a different run.
            DataError: If an image cannot be read.
            DinoevalError: If training diverges or the folder cannot be written.
        """
        with self.folder or contextlib.nullcontext():
            return self._finish()

    def _finish(self) -> Outcome:
        self._resume()
        epochs, steps = self.recipe.epochs, len(self.order)
        _log.info(
            "fine-tuning %s on %d images: %d epochs of %d steps, batch %d, peak lr %.3g, on %s",
            *(self.arch, self.order.count, epochs, steps, self.recipe.train_batch_size, self.recipe.peak_lr, self.device),
        )
        done, predictions = len(self.history), None
        with Progress("steps", epochs * steps, "steps", done=done * steps) as progress:
            for epoch in range(done, epochs):
                row = {"epoch": epoch, **self._train_epoch(epoch, progress)}
                predictions = self.evaluate()
                row |= topk_scores(predictions, self.val)
                self.history.append(row)
                self._save()
                values = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
                _log.info("epoch %d of %d: %s", epoch + 1, epochs, values)
        predictions = self.evaluate() if predictions is None else predictions
        self._save_results()
        return Outcome(predictions, self.history)

    def evaluate(self) -> np.ndarray:
        """Predict the classes of all evaluation images; each process predicts its shard.

        Returns:
            Class indices, (Q, min(5, C)) int64, in descending order of their logits.

        Raises:
            DataError: If an image cannot be read.
        """
        model = self.trainer.model.eval()
        for buffer in model.buffers() if distributed.world_size() > 1 else ():  # All use BatchNorm's statistics of the first process.
            torch.distributed.broadcast(buffer, 0, group=distributed.group())
        width = min(5, len(self.classes))
        parts = [np.empty((0, width), np.int64)]
        for batch in self.val_loader:
            images, _ = raise_error(batch)
            parts.append(self.trainer.predict(normalize_images(images.to(self.device), self.transform.mean, self.transform.std)))
        predictions = np.empty((len(self.val), width), np.int64)
        for rank, shard in enumerate(distributed.all_gather(np.concatenate(parts))):
            predictions[rank :: distributed.world_size()] = shard
        return predictions

    def _train_epoch(self, epoch: int, progress: Progress) -> dict[str, float]:
        started = time.monotonic()
        self.order.epoch = epoch
        rate = self.trainer.begin(epoch)
        torch.manual_seed(derive_seed(self.settings.seed, epoch, distributed.rank()))  # of stochastic depth
        total = 0.0
        for step, batch in enumerate(self.loader):
            images, labels = (part.to(self.device, non_blocking=True) for part in raise_error(batch))
            total += self.trainer.step(*self.mixing(images, labels, epoch, step))
            progress.update(note=f"epoch {epoch + 1} of {self.recipe.epochs}, loss {total / (step + 1):.3f}")
        loss = float(np.mean(distributed.all_gather(total))) / len(self.order)
        speed = len(self.order) * self.recipe.train_batch_size / (time.monotonic() - started)
        return {"train_loss": loss, "train_lr": rate, "images_per_second": speed}

    def _resume(self) -> None:
        if self.folder is None:
            _log.info("--out is not set: no checkpoint is saved and the run cannot be resumed")
        elif state := self.folder.resume(self.recipe.epochs):
            self.trainer.restore(state)
            self.history = list(state["history"])
            self.folder.write_log(self.history)  # It may have a later line, or be lost.

    def _save(self) -> None:
        if self.folder is not None:
            epochs = len(self.history)
            self.folder.write_log(self.history)
            self.folder.save({**self.trainer.state(), "epoch": epochs, "history": self.history}, number=epochs)

    def _save_results(self) -> None:
        if self.folder is None or distributed.rank() != 0:
            return
        model = self.trainer.model
        save_backbone(self.folder.path / BACKBONE, model.backbone.state_dict(), arch=self.arch)
        head = {name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}
        metadata = {"format": "pt", "classes": json.dumps(self.classes), "backbone": tensor_digest(model.backbone.state_dict())}
        write_whole(self.folder.path / HEAD, lambda file: write_safetensors(file, head, metadata))


def check_fits(train: ImageSet, val: ImageSet, recipe: FinetuneRecipe) -> None:
    """Check that a recipe can be trained on a dataset.

    Args:
        train: Training images.
        val: Evaluation images.
        recipe: All values of the training.

    Raises:
        DataError: If the images do not have one label each, or there are fewer than two classes.
        ConfigError: If the images are fewer than one batch.
    """
    for images in (train, val):
        if images.labels is None or images.multi_label:
            found = "is multi-label" if images.multi_label else "has no labels"
            raise DataError(f"{images.name} ({images.split}) {found}: finetune requires one label per image")
    if len(train.classes) < 2:
        raise DataError(f"{train.name} has one class ({join_names(train.classes)}); classification needs at least 2")
    if len(train) < recipe.train_batch_size:
        raise ConfigError(
            f"{len(train):,} training images are fewer than one batch of {recipe.train_batch_size}: reduce --train-batch-size"
        )


def topk_scores(predictions: np.ndarray, val: ImageSet) -> dict[str, float]:
    """Compute top-1 and top-5 accuracy.

    Args:
        predictions: Class indices, (Q, min(5, C)) int64, best first.
        val: Evaluation images with labels.

    Returns:
        top1 and top5, in percent.
    """
    assert val.labels is not None
    hits = predictions == val.labels[:, None]
    return {"top1": 100 * float(hits[:, 0].mean()), "top5": 100 * float(hits.any(1).mean())}
