"""Fine-tuning by DeiT's recipe: steps, a log line and a checkpoint an epoch, and the way back after a stop.

Under torchrun every process takes its share of each batch and of the evaluation; gradients are averaged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import CenterCrop, normalize_images
from dinoeval.errors import ConfigError, DataError, DinoevalError, join_names
from dinoeval.files import expand, write_whole
from dinoeval.models.backbone import Backbone
from dinoeval.models.build import build_network
from dinoeval.models.checkpoints import read_pickle, save_backbone, tensor_digest
from dinoeval.models.loading import load
from dinoeval.models.vit import init_linear
from dinoeval.training.finetune.batches import AugmentedImages, CenterCroppedImages, Mixing, RepeatedOrder, collate, deal
from dinoeval.training.finetune.recipes import FinetuneRecipe

CHECKPOINT, LOG, BACKBONE, HEAD = "checkpoint.pth", "log.txt", "backbone.safetensors", "head.safetensors"
# DeiT's; the class token and positions by the names that they have in our networks and in timm's.
NOT_DECAYED = ("cls_token", "dist_token", "reg_token", "pos_embed")
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a run is carried out. The seed apart, numbers change by rounding and by what stochastic depth and BatchNorm see at a time."""

    out: str | None = None
    """Folder of the run; None to keep nothing."""
    seed: int = 0
    save_every: int = 0
    """Epochs between checkpoints that are kept beside the last; 0 for none."""
    workers: int | None = None
    """Processes that decode, for each training process; None for one a core."""
    forward_images: int | None = None
    """Images a forward pass; gradients are summed up to the batch. None for as many as are fast and fit most GPUs."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a finished run says of the evaluation half, of Q images."""

    predictions: np.ndarray
    """(Q, up to 5) int64 classes, the likeliest first, after the last epoch."""
    history: list[dict[str, Any]]
    """The log: one row an epoch."""


class Classifier(nn.Module):
    """A backbone and a linear head: images (N, 3, H, W) -> logits (N, classes)."""

    def __init__(self, backbone: nn.Module, dim: int, classes: int, head_scale: float) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Linear(dim, classes)
        init_linear(self.head)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))


def trainable_copy(backbone: Backbone, drop_path: float) -> nn.Module:
    """Build the backbone's network anew, trainable and in float32; raises ConfigError where its weights are lost to rounding."""
    network = build_network(backbone.arch, drop_path=drop_path)
    source = backbone
    if tensor_digest(backbone.network.state_dict()) != backbone.digest:  # its matrices were rounded to a shorter precision
        _log.info("the float32 weights are read once more: training begins from those")
        key = "student" if backbone.provenance.key == "student" else "teacher"
        source = load(backbone.arch, weights=backbone.provenance.name, key=key, device="cpu")
        if source.digest != backbone.digest:
            raise ConfigError(f"the float32 weights of {backbone!r} are not in {backbone.provenance.name}: load it with precision fp32")
    network.load_state_dict(source.network.state_dict())
    return network.requires_grad_(True)


class FinetuneTrainer:
    """A classifier, its optimizer, schedule and average; `step` does one iteration."""

    def __init__(self, model: Classifier, recipe: FinetuneRecipe, device: torch.device, precision: str, forward_images: int) -> None:
        self.model, self.recipe, self.device, self.forward_images = model.to(device), recipe, device, forward_images
        kept = {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] in NOT_DECAYED}
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=kept)
        match recipe.optimizer:
            case "adamw":
                self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr)
            case "sgd":
                self.optimizer = torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=0.9, nesterov=True)
        self.schedule = CosineLRScheduler(
            self.optimizer, t_initial=recipe.epochs, lr_min=recipe.min_lr, warmup_t=recipe.warmup_epochs, warmup_lr_init=recipe.warmup_lr
        )  # fmt: skip
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.loss = SoftTargetCrossEntropy()
        self.average = ModelEmaV3(self.model, decay=recipe.ema_decay)
        self.parallel = _in_parallel(self.model, device)

    def begin(self, epoch: int) -> float:
        """Set the learning rate of an epoch and return it.

        The rate lags by one epoch: DeiT's loop moves the schedule after an epoch by that epoch's number (main.py), so the
        first two epochs have the warm-up's first rate.
        """
        self.schedule.step(max(0, epoch - 1))
        self.model.train()
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: Tensor, targets: Tensor) -> float:
        """One iteration on this process's share of a batch: images (B, 3, s, s), targets (B, classes); returns its loss."""
        chunks = list(zip(images.split(self.forward_images), targets.split(self.forward_images), strict=True))
        total = 0.0
        for number, (some_images, some_targets) in enumerate(chunks, 1):
            # Processes exchange gradients once, when they are complete.
            waits = isinstance(self.parallel, DistributedDataParallel) and number < len(chunks)
            with self.parallel.no_sync() if waits else contextlib.nullcontext():  # type: ignore[union-attr]
                with self._autocast():
                    logits = self.parallel(some_images)
                loss = self.loss(logits.float(), some_targets) * (len(some_images) / len(images))
                self.scaler.scale(loss).backward()
            total += loss.item()
        if not math.isfinite(total):
            raise DinoevalError(
                f"training diverged: the loss became {total}. Lower --lr, or raise --warmup-epochs, or say --precision fp32."
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        return total

    @torch.inference_mode()
    def predict(self, images: Tensor) -> np.ndarray:
        """The five likeliest classes, the likeliest first, (N, up to 5); the model must be in eval mode."""
        with self._autocast():
            logits = self.model(images)
        if not torch.isfinite(logits).all():
            raise DinoevalError("training diverged: the network's output is no number. Lower --lr, or say --precision fp32.")
        return logits.topk(min(5, logits.shape[1])).indices.cpu().numpy()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def state(self) -> dict[str, Any]:
        """What a run goes on from; `model` opens like any checkpoint."""
        return {
            "model": self.model.state_dict(),
            "model_ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def _in_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    if distributed.world_size() == 1:
        return model
    distributed.barrier()  # joins the processes
    if device.type != "cuda":
        return DistributedDataParallel(model)
    return DistributedDataParallel(model, device_ids=[device], process_group=torch.distributed.new_group(backend="nccl"))


class Run:
    """One fine-tuning run: its batches, its folder, its log."""

    def __init__(
        self, backbone: Backbone, train: ImageSet, val: ImageSet, recipe: FinetuneRecipe, transform: CenterCrop, settings: Settings,
        precision: str,
    ) -> None:  # fmt: skip
        check_fits(train, val, recipe)
        self.recipe, self.transform, self.settings, self.device, self.val = recipe, transform, settings, backbone.device, val
        self.arch, self.classes, self.out = backbone.arch, train.classes, expand(settings.out) if settings.out else None
        torch.manual_seed(settings.seed)
        network = trainable_copy(backbone, recipe.drop_path)
        parts = deal(recipe.train_batch_size, recipe.mixed_together, distributed.rank(), distributed.world_size())
        positions = np.concatenate([part for _, part in parts])
        forward_images = settings.forward_images or backbone.fast_batch(transform.crop, training=True)
        self.trainer = FinetuneTrainer(
            Classifier(network, backbone.dim, len(train.classes), recipe.head_scale), recipe, self.device, precision, forward_images
        )
        self.order = RepeatedOrder(len(train), recipe, positions, settings.seed)
        self.mixing = Mixing(recipe, len(train.classes), parts, settings.seed)
        workers = distributed.num_workers(settings.workers, len(train), train.small)
        options: dict[str, Any] = {
            "collate_fn": collate, "num_workers": workers, "pin_memory": self.device.type == "cuda",
            "generator": torch.Generator(),  # its own: starting workers would otherwise draw from stochastic depth's
        }  # fmt: skip
        pictures = AugmentedImages(train, recipe, transform, settings.seed)
        self.loader = DataLoader(pictures, batch_sampler=self.order, persistent_workers=workers > 0, **options)
        mine = list(distributed.shard(len(val)))
        # 4 times the images: nothing is kept for a gradient.
        self.val_loader = DataLoader(CenterCroppedImages(val, transform), sampler=mine, batch_size=4 * forward_images, **options)
        self.facts = {
            "arch": backbone.arch, "weights": backbone.digest, "precision": precision, "seed": settings.seed, "transform": transform.id,
            "train images": train.fingerprint(), "val images": val.fingerprint(), "place and times of the files": [train.stamp, val.stamp],
            "recipe": recipe.record(),
        }  # fmt: skip
        self.history: list[dict[str, Any]] = []

    def finish(self) -> Outcome:
        """Train from where the folder says the run is to its end, and return the last epoch's predictions."""
        self._resume()
        epochs, steps = self.recipe.epochs, len(self.order)
        _log.info("fine-tuning %s on %d images: %d epochs of %d steps, batch %d, peak lr %.3g, on %s", self.arch, self.order.count,
                  epochs, steps, self.recipe.train_batch_size, self.recipe.peak_lr, self.device)  # fmt: skip
        done, predictions = len(self.history), None
        hidden = None if distributed.rank() == 0 else True
        with (
            tqdm(total=epochs * steps, initial=done * steps, unit="step", disable=hidden, leave=False) as bar,
            logging_redirect_tqdm([logging.getLogger("dinoeval")]),
        ):
            for epoch in range(done, epochs):
                bar.set_description(f"epoch {epoch + 1} of {epochs}")
                row = {"epoch": epoch, **self._train(epoch, bar)}
                predictions = self.evaluate()
                row |= scores(predictions, self.val)
                self.history.append(row)
                self._save()
                said = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch")
                _log.info("epoch %d of %d: %s", epoch + 1, epochs, said)
        predictions = self.evaluate() if predictions is None else predictions
        self._write_results()
        return Outcome(predictions, self.history)

    def _train(self, epoch: int, bar: tqdm) -> dict[str, float]:
        began = time.monotonic()
        self.order.epoch = epoch
        rate = self.trainer.begin(epoch)
        torch.manual_seed(int(np.random.SeedSequence((self.settings.seed, epoch, distributed.rank())).generate_state(1)[0]))  # drop path
        total = 0.0
        for step, batch in enumerate(self.loader):
            images, labels = (part.to(self.device, non_blocking=True) for part in _sound(batch))
            total += self.trainer.step(*self.mixing(images, labels, epoch, step))
            bar.set_postfix(loss=f"{total / (step + 1):.3f}", refresh=False)
            bar.update()
        loss = float(np.mean(distributed.all_gather(total))) / len(self.order)
        speed = len(self.order) * self.recipe.train_batch_size / (time.monotonic() - began)
        return {"train_loss": loss, "train_lr": rate, "images_per_second": speed}

    def evaluate(self) -> np.ndarray:
        """Predict for all images of the evaluation half, each process for its share: (Q, up to 5)."""
        model = self.trainer.model.eval()
        for buffer in model.buffers() if distributed.world_size() > 1 else ():  # BatchNorm's statistics: those of the first process
            torch.distributed.broadcast(buffer, 0)
        share = []
        for batch in self.val_loader:
            images, _ = _sound(batch)
            share.append(self.trainer.predict(normalize_images(images.to(self.device), self.transform.mean, self.transform.std)))
        width = min(5, len(self.classes))
        predictions = np.empty((len(self.val), width), np.int64)
        for rank, part in enumerate(distributed.all_gather(np.concatenate(share) if share else np.empty((0, width), np.int64))):
            predictions[rank :: distributed.world_size()] = part
        return predictions

    def _save(self) -> None:
        if self.out is None or distributed.rank() != 0:
            return
        state = {**self.trainer.state(), "epoch": len(self.history), "history": self.history, "args": self.facts}
        every = self.settings.save_every
        if every and len(self.history) % every == 0:
            write_whole(self.out / f"checkpoint{len(self.history):04}.pth", lambda path: torch.save(state, path))
        write_whole(self.out / CHECKPOINT, lambda path: torch.save(state, path))
        self._write_log()

    def _write_log(self) -> None:
        assert self.out is not None
        lines = "".join(json.dumps(row) + "\n" for row in self.history)
        write_whole(self.out / LOG, lambda path: path.write_text(lines))

    def _write_results(self) -> None:
        if self.out is None or distributed.rank() != 0:
            return
        self._write_log()  # once more, for a run that was killed between the checkpoint and the log
        model = self.trainer.model
        save_backbone(self.out / BACKBONE, model.backbone.state_dict(), arch=self.arch)
        head = {name: tensor.detach().cpu() for name, tensor in model.head.state_dict().items()}
        notes = {"format": "pt", "classes": json.dumps(self.classes), "backbone": tensor_digest(model.backbone.state_dict())}
        write_whole(self.out / HEAD, lambda path: save_file(head, path, notes))

    def _resume(self) -> None:
        """Go back to the last whole epoch in the folder; raises ConfigError where it is of another run."""
        if self.out is None:
            _log.info("no --out: nothing is kept, and a run that is stopped starts anew")
            return
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DinoevalError(f"{self.out} cannot be written: {error.strerror}") from error
        path = self.out / CHECKPOINT
        if path.exists():
            state = read_pickle(path)
            _check_same(path, state, self.facts)
            self.trainer.restore(state)
            self.history = list(state["history"])
            _log.info("going on from %s after %d of %d epochs", path, len(self.history), self.recipe.epochs)
        if len(set(distributed.all_gather(len(self.history)))) > 1:
            raise ConfigError(f"the processes do not see the same {path}: put --out on a disk that they share")


def check_fits(train: ImageSet, val: ImageSet, recipe: FinetuneRecipe) -> None:
    """Raise DataError or ConfigError where these images cannot be learned from."""
    for half in (train, val):
        if half.labels is None or half.multi_label:
            raise DataError(f"{half.name} ({half.split}) has {'several' if half.multi_label else 'no'} labels an image; finetune takes one")
    if len(train.classes) < 2:
        raise DataError(f"{train.name} has one class only, {join_names(train.classes)}: there is nothing to tell apart")
    if len(train) < recipe.train_batch_size:
        raise ConfigError(
            f"the {len(train):,} training images make no batch of {recipe.train_batch_size}: lower --train-batch-size, "
            "or take --preset short"
        )


def scores(predictions: np.ndarray, val: ImageSet) -> dict[str, float]:
    """top1 and top5 in percent of predictions (Q, up to 5)."""
    assert val.labels is not None
    right = predictions == val.labels[:, None]
    return {"top1": 100 * float(right[:, 0].mean()), "top5": 100 * float(right.any(1).mean())}


def _check_same(path: Path, state: Any, facts: dict[str, Any]) -> None:
    saved = state.get("args") if isinstance(state, dict) else None
    if not isinstance(saved, dict) or "train images" not in saved or "history" not in state:
        raise ConfigError(f"{path} was not written by finetune: choose another --out")
    differences = [
        f"{name} was {old.get(name)} and is {new[name]}"
        for old, new in ((saved, facts), (saved["recipe"], facts["recipe"]))
        for name in new
        if name != "recipe" and old.get(name) != new[name]
    ]
    if differences:
        raise ConfigError(f"{path} is of another run ({'; '.join(differences)}): choose another --out, or delete it to start anew")


def _sound(batch: tuple[Tensor, Tensor] | DataError) -> tuple[Tensor, Tensor]:
    if isinstance(batch, DataError):
        raise batch
    return batch
