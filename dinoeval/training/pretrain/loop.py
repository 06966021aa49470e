"""The pretraining run: epochs of steps, a checkpoint and a log line per epoch, and resumption."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

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
from dinoeval.training.checks import check_fields
from dinoeval.training.loading import raise_error
from dinoeval.training.precision import Precision
from dinoeval.training.pretrain.augment import MultiCropAugmentation, SeededCrops, collate
from dinoeval.training.pretrain.monitor import find_collapse
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer

BACKBONE = "teacher.safetensors"
KnnEval = Callable[[nn.Module], float]  # the teacher's backbone -> its k-NN top-1 in percent
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainSettings:
    """How a pretraining run is executed; its training is defined by `Recipe`."""

    out: str | Path
    """Folder of the run."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "fp32"
    """Precision of the forward passes."""
    workers: int = 1
    """Data-loading processes; the results do not depend on it."""
    exif_transpose: bool = False
    """Rotate images by their EXIF orientation. The released code does not."""
    seed: int = 0
    """Random seed of weights, order, augmentation and stochastic depth."""
    save_every: int = 20
    """Epochs between checkpoints that are kept; 0 keeps only the last one."""
    knn_every: int = 10
    """Epochs between k-NN evaluations of the teacher, which also follow the last epoch; 0 turns them off."""

    def __post_init__(self) -> None:
        check_fields(self, ("workers", "seed", "save_every", "knn_every"), lambda value: value >= 0, "at least 0")


@entry_point
def train(images: ImageSet, arch: str, recipe: Recipe, settings: PretrainSettings, knn_eval: KnnEval | None = None) -> Path:
    """Pretrain a backbone.

    The folder `settings.out` gets checkpoint.pth after every epoch, checkpointNNNN.pth every `save_every` epochs, log.txt
    with one JSON line per epoch, and teacher.safetensors at the end. An interrupted run resumes from checkpoint.pth; on a
    CPU it ends with the same bits as an uninterrupted one.

    Args:
        images: Training images; labels are not used.
        arch: Architecture of the backbone: vit_s16, resnet50, xcit_small_12_p16, timm/NAME and so on.
        recipe: All values of the training.
        settings: Folder, device, precision, seed and intervals.
        knn_eval: Returns the k-NN top-1 of a backbone in percent, for the log.

    Returns:
        Path of the teacher's backbone, a safetensors file.

    Raises:
        ConfigError: If images, architecture and recipe do not fit together, or the folder belongs to a different run.
        DataError: If an image cannot be read.
        DinoevalError: If training diverges or the folder cannot be written.
    """
    images = images.with_rule(ImageRule(settings.exif_transpose))
    if len(images) < recipe.batch_size:
        raise ConfigError(f"{len(images):,} training images are fewer than one batch of {recipe.batch_size}: reduce --batch-size")
    device, reason = choose_device(settings.device)
    steps = len(images) // recipe.batch_size
    torch.manual_seed(settings.seed)
    trainer = Trainer(arch, recipe, steps, device, settings.precision)
    config: Config = trainer.teacher.backbone.config  # type: ignore[assignment]
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
    augmentation = MultiCropAugmentation(recipe)
    with RunFolder(settings.out, identity, keep_every=settings.save_every) as folder:
        done, history = 0, []
        if state := folder.resume(recipe.epochs):
            trainer.restore(state)
            done, history = state["epoch"], folder.read_log(state["epoch"])
        log_remarks(images.remarks(), settings.exif_transpose)
        _log.info("training %s on %d images, %d steps per epoch, on %s (%s)", arch, len(images), steps, device, reason)
        for epoch in range(done, recipe.epochs):
            started = time.monotonic()
            means = _train_epoch(trainer, ImageDataset(images, SeededCrops(augmentation, settings.seed, epoch)), epoch, settings)
            row = {
                "epoch": epoch,
                **{f"train_{name}": value for name, value in means.items()},
                "train_lr": float(trainer.lr[epoch * steps : (epoch + 1) * steps].mean()),
                "train_wd": float(trainer.weight_decay[epoch * steps : (epoch + 1) * steps].mean()),
                "images_per_second": steps * recipe.batch_size / (time.monotonic() - started),
            }
            if knn_eval and settings.knn_every and ((epoch + 1) % settings.knn_every == 0 or epoch + 1 == recipe.epochs):
                row["knn_teacher"] = knn_eval(trainer.teacher.backbone)
            _warn_of_collapse(means, recipe, history)
            history.append(row)
            folder.write_log(history)
            folder.save(trainer.state(epoch + 1), number=epoch)
            _log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))
        backbone = folder.path / BACKBONE
        save_backbone(backbone, trainer.teacher.backbone.state_dict(), arch=arch)
    return backbone


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


def _train_epoch(trainer: Trainer, dataset: ImageDataset, epoch: int, settings: PretrainSettings) -> dict[str, float]:
    """Train for one epoch and return the means over its steps."""
    torch.manual_seed(settings.seed + 1 + epoch)  # Stochastic depth; the order below has its own generator.
    loader = BatchLoader(
        dataset,
        collate,
        workers=num_workers(settings.workers, trainer.steps, small=False),
        device=trainer.device,
        batch_size=trainer.recipe.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(settings.seed * 1_000_003 + epoch),
        drop_last=True,
    )
    sums: dict[str, float] = {}
    with Progress(f"steps of epoch {epoch}", trainer.steps, "steps") as progress:
        for step, batch in enumerate(loader):
            crops = [normalize_images(crop.to(trainer.device, non_blocking=True)) for crop in raise_error(batch)]
            for name, value in trainer.step(crops, epoch * trainer.steps + step).items():
                sums[name] = sums.get(name, 0.0) + value
            progress.update(note=f"loss {sums['loss'] / (step + 1):.3f}")
    return {name: value / trainer.steps for name, value in sums.items()}


def _warn_of_collapse(means: dict[str, float], recipe: Recipe, history: list[dict[str, float]]) -> None:
    """Report a collapse in the epoch in which it happens. The first epoch is not judged."""
    if not history or not (collapse := find_collapse(means, recipe)):
        return
    before = {name.removeprefix("train_"): value for name, value in history[-1].items()}
    if len(history) == 1 or not find_collapse(before, recipe):
        _log.warning("training collapsed in epoch %d: %s", len(history), collapse)
