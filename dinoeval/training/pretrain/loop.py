"""The pretraining run: epochs of steps, checkpoints, a log line per epoch, and resumption.

Under torchrun each process takes its shard of every batch; gradients, centers and the like are combined.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinoeval import distributed
from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import ImageSet
from dinoeval.data.loading import ImageRule
from dinoeval.data.remarks import log_remarks
from dinoeval.data.transforms import normalize_images
from dinoeval.data.workers import BatchLoader
from dinoeval.distributed import num_workers
from dinoeval.errors import ConfigError
from dinoeval.guard import entry_point
from dinoeval.models.architectures import VitConfig
from dinoeval.models.build import Config
from dinoeval.models.checkpoints import save_backbone
from dinoeval.models.loading import choose_device
from dinoeval.progress import Progress
from dinoeval.training.checkpointing import RunFolder
from dinoeval.training.loading import derive_seed, raise_error
from dinoeval.training.parallel import max_over_processes
from dinoeval.training.pretrain.augment import MultiCropAugmentation, SeededCrops, collate
from dinoeval.training.pretrain.monitor import find_collapse
from dinoeval.training.pretrain.order import ShardedOrder
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.settings import PretrainSettings
from dinoeval.training.pretrain.trainer import Trainer


class Stopped(Exception):  # noqa: N818  not an error
    """A run that saved its state and ended because it was asked to."""


BACKBONE = "teacher.safetensors"
KnnEval = Callable[[nn.Module], float]  # the teacher's backbone -> its k-NN top-1 in percent
_log = logging.getLogger(__name__)


@entry_point
def train(
    images: ImageSet,
    arch: str,
    recipe: Recipe,
    settings: PretrainSettings,
    knn_eval: KnnEval | None = None,
    stop: Callable[[], bool] | None = None,
) -> Path:
    """Pretrain a backbone.

    The folder `settings.out` gets checkpoint.pth after every epoch and every few minutes, checkpointNNNN.pth every
    `save_every` epochs, log.txt with one JSON line per epoch, and teacher.safetensors at the end. An interrupted run resumes
    from checkpoint.pth; on a CPU it ends with the same bits as an uninterrupted one.

    Args:
        images: Training images; labels are not used.
        arch: Architecture of the backbone: vit_s16, resnet50, xcit_small_12_p16, timm/NAME and so on.
        recipe: All values of the training.
        settings: Folder, device, precision, seed and intervals.
        knn_eval: Returns the k-NN top-1 of a backbone in percent, for the log. Under torchrun it is called in one process.
        stop: Called after every step; if it returns True, the state is saved and the run ends.

    Returns:
        Path of the teacher's backbone, a safetensors file.

    Raises:
        ConfigError: If images, architecture and recipe do not fit together, or the folder belongs to a different run.
        DataError: If an image cannot be read.
        DinoevalError: If training diverges or the folder cannot be written.
        Stopped: If `stop` returned True.
    """
    images = images.with_rule(ImageRule(settings.exif_transpose))
    if len(images) < recipe.batch_size:
        raise ConfigError(f"{len(images):,} training images are fewer than one batch of {recipe.batch_size}: reduce --batch-size")
    if recipe.batch_size % (processes := distributed.world_size()):
        raise ConfigError(f"--batch-size {recipe.batch_size} is not a multiple of the {processes} processes of torchrun")
    return _Run(images, arch, recipe, settings, knn_eval, stop or (lambda: False)).finish()


class _Run:
    """One pretraining run: its trainer, its batches and its folder."""

    def __init__(
        self,
        images: ImageSet,
        arch: str,
        recipe: Recipe,
        settings: PretrainSettings,
        knn_eval: KnnEval | None,
        stop: Callable[[], bool],
    ) -> None:
        self.images, self.arch, self.recipe, self.settings = images, arch, recipe, settings
        self.knn_eval, self.stop = knn_eval, stop
        self.device, self.reason = choose_device(settings.device)
        self.order = ShardedOrder(len(images), recipe.batch_size, settings.seed, distributed.rank(), distributed.world_size())
        self.steps = len(self.order)
        torch.manual_seed(settings.seed)
        self.trainer = Trainer(arch, recipe, self.steps, self.device, settings.precision)
        config: Config = self.trainer.teacher.backbone.config  # type: ignore[assignment]
        _check(arch, config, recipe)
        identity = {
            "arch": arch,
            "patch_size": config.patch_size,
            "seed": settings.seed,
            "precision": settings.precision,
            "image": images.rule.id,
            "images": images.fingerprint(),
            "recipe": json.loads(json.dumps(dataclasses.asdict(recipe))),
        }
        self.folder = RunFolder(settings.out, identity, keep_every=settings.save_every)
        self.history: list[dict[str, float]] = []
        self.epoch = self.step = 0
        """The present epoch, and how many of its steps are done."""
        self.sums: dict[str, float] = {}
        """Sums over these steps."""
        self.seconds, self.saved = 0.0, time.monotonic()

    def finish(self) -> Path:
        """Train to the last epoch, or resume the run in the folder, and save the backbone."""
        with self.folder as folder:
            if state := folder.resume(self.recipe.epochs):
                self.trainer.restore(state)
                self.epoch, self.step = state["epoch"], state.get("step", 0)
                self.sums, self.seconds = dict(state.get("sums", {})), state.get("seconds", 0.0)
                self.history = folder.read_log(self.epoch)
            log_remarks(self.images.remarks(), self.settings.exif_transpose)
            _log.info(
                "training %s on %d images, %d steps per epoch, on %s (%s)",
                *(self.arch, len(self.images), self.steps, self.device, self.reason),
            )
            while self.epoch < self.recipe.epochs:
                self._train_epoch()
                self._end_epoch()
            backbone = folder.path / BACKBONE
            if distributed.rank() == 0:
                save_backbone(backbone, self.trainer.teacher.backbone.state_dict(), arch=self.arch)
            distributed.barrier()
        return backbone

    def _train_epoch(self) -> None:
        """Take the steps of the epoch that are not done yet."""
        started = time.monotonic() - self.seconds
        with Progress(f"steps of epoch {self.epoch}", self.steps, "steps", done=self.step) as progress:
            for batch in self._batches():
                crops = [normalize_images(crop.to(self.device, non_blocking=True)) for crop in raise_error(batch)]
                iteration = self.epoch * self.steps + self.step
                torch.manual_seed(derive_seed(self.settings.seed, iteration))  # of stochastic depth
                for name, value in self.trainer.step(crops, iteration).items():
                    self.sums[name] = self.sums.get(name, 0.0) + value
                self.step += 1
                self.seconds = time.monotonic() - started
                progress.update(note=f"loss {self.sums['loss'] / self.step:.3f}")
                if self.step < self.steps:
                    self._pause()

    def _batches(self) -> Iterator[Any]:
        """Yield the batches of the epoch that are not done yet."""
        self.order.epoch, self.order.first_step = self.epoch, self.step
        loader = BatchLoader(
            ImageDataset(self.images, SeededCrops(MultiCropAugmentation(self.recipe), self.settings.seed, self.epoch)),
            collate,
            workers=num_workers(self.settings.workers, self.steps, small=False),
            device=self.device,
            batch_sampler=self.order,
        )
        try:
            yield from loader
        except RuntimeError:
            if self.stop():  # A scheduler that ends a job may end the worker processes as well.
                self._pause()
            raise

    def _pause(self) -> None:
        """Save the state within an epoch if it is time to, and end the run if it was asked to stop."""
        wishes = torch.tensor([self.stop(), self._save_is_due()], dtype=torch.float32, device=self.device)
        stopped, due = max_over_processes(wishes).tolist()
        if stopped or due:
            self.folder.save(self.trainer.state(self.epoch) | {"step": self.step, "sums": self.sums, "seconds": self.seconds})
            self.saved = time.monotonic()
        if stopped:
            distributed.barrier()
            raise Stopped(
                f"training stops as requested, after {self.step} of {self.steps} steps of epoch {self.epoch}: rerun the command to resume"
            )

    def _save_is_due(self) -> bool:
        minutes = self.settings.save_minutes
        return bool(minutes) and time.monotonic() - self.saved >= 60 * minutes

    def _end_epoch(self) -> None:
        """Log the epoch, evaluate the teacher if it is time to, and save the state."""
        epoch = self.epoch
        means = {name: value / self.steps for name, value in self.sums.items()}
        part = slice(epoch * self.steps, (epoch + 1) * self.steps)
        row = {
            "epoch": epoch,
            **{f"train_{name}": value for name, value in means.items()},
            "train_lr": float(self.trainer.lr[part].mean()),
            "train_wd": float(self.trainer.weight_decay[part].mean()),
            "images_per_second": self.steps * self.recipe.batch_size / self.seconds,
        }
        every = self.settings.knn_every
        if self.knn_eval and every and ((epoch + 1) % every == 0 or epoch + 1 == self.recipe.epochs):
            score = self.knn_eval(self.trainer.teacher.backbone) if distributed.rank() == 0 else 0.0
            row["knn_teacher"] = distributed.broadcast(score)
        _warn_of_collapse(means, self.recipe, self.history)
        self.history.append(row)
        self.epoch, self.step, self.sums, self.seconds = epoch + 1, 0, {}, 0.0
        self.folder.write_log(self.history)
        self.folder.save(self.trainer.state(self.epoch), number=epoch)
        self.saved = time.monotonic()
        _log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))


def _check(arch: str, config: Config, recipe: Recipe) -> None:
    crops = {"--global-crop": recipe.global_crop, **({"--local-crop": recipe.local_crop} if recipe.local_crops else {})}
    for option, size in crops.items():
        if config.patch_size and size < config.patch_size:
            raise ConfigError(f"{option} {size} is smaller than a patch of {arch}: pass at least {config.patch_size}")
    if recipe.out_dim and recipe.out_dim < recipe.bottleneck_dim:
        _log.warning(
            "%d prototypes are fewer than the %d dimensions of the bottleneck, in which they can all be orthogonal: increase --out-dim",
            recipe.out_dim,
            recipe.bottleneck_dim,
        )
    if isinstance(config, VitConfig) and config.image_size != recipe.global_crop:
        _log.info(
            "%s was made for images of %d pixels: its positions are resampled for --global-crop %d",
            arch,
            config.image_size,
            recipe.global_crop,
        )


def _warn_of_collapse(means: dict[str, float], recipe: Recipe, history: list[dict[str, float]]) -> None:
    """Report a collapse in the epoch in which it happens. The first epoch is not judged."""
    if not history or not (collapse := find_collapse(means, recipe)):
        return
    before = {name.removeprefix("train_"): value for name, value in history[-1].items()}
    if len(history) == 1 or not find_collapse(before, recipe):
        _log.warning("training collapsed in epoch %d: %s", len(history), collapse)
