"""The training run: steps in the released order, a log line and a checkpoint an epoch, and the way back after a stop."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from dinoeval.data.images import ImageSet
from dinoeval.data.transforms import normalize_images
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.files import expand, write_whole
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.checkpoints import read_pickle, save_backbone
from dinoeval.models.loading import choose_device
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.pretrain import schedules
from dinoeval.training.pretrain.augment import Crops, MultiCropAugmentation, collate
from dinoeval.training.pretrain.objectives import GLOBAL_VIEWS, DinoLoss
from dinoeval.training.pretrain.presets import Recipe
from dinoeval.training.pretrain.teacher import build_pair, clip_grad_per_tensor, parameter_groups, update_ema

CHECKPOINT, LOG, BACKBONE = "checkpoint.pth", "log.txt", "teacher.safetensors"
Probe = Callable[[VisionTransformer], float]
Precision = Literal["fp32", "bf16", "fp16"]
_log = logging.getLogger(__name__)


class DinoTrainer:
    """Two networks, the loss, the optimizer and the schedules of one run; `step` does one iteration."""

    def __init__(self, arch: str, recipe: Recipe, steps: int, device: torch.device, precision: Precision = "fp32") -> None:
        config = parse_architecture(arch)
        self.recipe, self.device, self.steps = recipe, device, steps
        student, teacher = build_pair(config, recipe)
        self.student, self.teacher = student.to(device).train(), teacher.to(device).train()
        self.loss = DinoLoss(recipe.out_dim, student_temp=recipe.student_temp, center_momentum=recipe.center_momentum).to(device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student))
        self.dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        peak = recipe.lr * recipe.batch_size / 256
        self.lr = schedules.cosine(peak, recipe.min_lr, recipe.epochs, steps, recipe.warmup_epochs)
        self.weight_decay = schedules.cosine(recipe.weight_decay, recipe.weight_decay_end, recipe.epochs, steps)
        self.momentum = schedules.cosine(recipe.momentum_teacher, 1.0, recipe.epochs, steps)
        self.temperature = schedules.teacher_temperature(
            recipe.warmup_teacher_temp, recipe.teacher_temp, recipe.warmup_teacher_temp_epochs, recipe.epochs
        )

    def step(self, crops: list[Tensor], iteration: int) -> dict[str, float]:
        """One iteration on normalised crops (V of (B, 3, s, s), global ones first); returns what the log wants."""
        epoch = iteration // self.steps
        decayed, plain = self.optimizer.param_groups
        decayed["lr"] = plain["lr"] = float(self.lr[iteration])
        decayed["weight_decay"] = float(self.weight_decay[iteration])
        with torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None):
            with torch.no_grad():
                target = self.teacher(crops[:GLOBAL_VIEWS])
            output = self.student(crops)
        loss = self.loss(output, target, float(self.temperature[epoch]))
        if not math.isfinite(loss.value.item()):
            raise DinoevalError(f"the loss became {loss.value.item()} in epoch {epoch}: lower --lr, or set --clip-grad or --precision fp32")
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss.value).backward()
        self.scaler.unscale_(self.optimizer)
        if self.recipe.clip_grad:
            clip_grad_per_tensor(self.student, self.recipe.clip_grad)
        if epoch < self.recipe.freeze_last_layer:
            for parameter in self.student.head.last_layer.parameters():
                parameter.grad = None  # not zero: AdamW would still decay it
        self.scaler.step(self.optimizer)
        self.scaler.update()
        update_ema(self.teacher, self.student, float(self.momentum[iteration]))
        return {"loss": loss.value.item(), "teacher_entropy": loss.teacher_entropy, "kl": loss.kl}

    def state(self, epoch: int, args: dict[str, Any]) -> dict[str, Any]:
        """A full checkpoint in the released layout: the student under DDP's `module.`, the teacher not."""
        return {
            "student": {f"module.{name}": tensor for name, tensor in self.student.state_dict().items()},
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": epoch,
            "args": args,
            "dino_loss": self.loss.state_dict(),
            **({"fp16_scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Go back to what `state` returned; returns the number of epochs done."""
        self.student.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state["student"].items()})
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss.load_state_dict(state["dino_loss"])
        if "fp16_scaler" in state:
            self.scaler.load_state_dict(state["fp16_scaler"])
        return state["epoch"]


def train(
    images: ImageSet,
    arch: str,
    out: str | Path,
    recipe: Recipe,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    workers: int = 1,
    seed: int = 0,
    save_every: int = 20,
    probe: Probe | None = None,
    probe_every: int = 10,
) -> Path:
    """Train on `images` (labels are not looked at) and return the teacher's backbone as a safetensors file.

    `out` gets checkpoint.pth after every epoch, checkpointNNNN.pth every `save_every`, log.txt (a JSON line an epoch) and
    teacher.safetensors at the end. A run that was stopped goes on from checkpoint.pth, and ends on a CPU with the bits of
    an undisturbed one. `probe` scores the teacher's backbone in percent; it is called every `probe_every` epochs and last.
    """
    out = expand(out)
    where, reason = choose_device(device)
    steps = len(images) // recipe.batch_size
    if steps < 1:
        raise ConfigError(f"{len(images)} images make no batch of {recipe.batch_size}: lower --batch-size")
    if parse_architecture(arch).image_size != recipe.global_crop:
        _log.info("global crops of %d pixels differ from %s's %d: positions are resampled", recipe.global_crop, arch,
                  parse_architecture(arch).image_size)  # fmt: skip
    if min(recipe.global_crop, recipe.local_crop if recipe.local_crops else recipe.global_crop) < parse_architecture(arch).patch_size:
        raise ConfigError(f"crops are smaller than a patch of {arch}: raise --global-crop or --local-crop")
    if seed < 0 or workers < 0:
        raise ConfigError("seed and workers must be 0 or more")
    torch.manual_seed(seed)
    trainer = DinoTrainer(arch, recipe, steps, where, precision)
    args = {"arch": arch, "patch_size": parse_architecture(arch).patch_size, "seed": seed, "precision": precision,
            "images": images.fingerprint(), "recipe": json.loads(json.dumps(dataclasses.asdict(recipe)))}  # fmt: skip
    first = _resume(trainer, out, args)
    _log.info("training %s on %d images, %d steps an epoch, on %s (%s)", arch, len(images), steps, where, reason)
    crops = Crops(images, MultiCropAugmentation(recipe), seed)
    for epoch in range(first, recipe.epochs):
        began = time.monotonic()
        means = _epoch(trainer, crops, epoch, workers, seed)
        row = {"epoch": epoch, **{f"train_{name}": value for name, value in means.items()},
               "train_lr": float(trainer.lr[epoch * steps : (epoch + 1) * steps].mean()),
               "train_wd": float(trainer.weight_decay[epoch * steps : (epoch + 1) * steps].mean()),
               "images_per_second": steps * recipe.batch_size / (time.monotonic() - began)}  # fmt: skip
        if probe and ((epoch + 1) % probe_every == 0 or epoch + 1 == recipe.epochs):
            row["knn_teacher"] = probe(trainer.teacher.backbone)
        _warn_of_collapse(row, recipe.out_dim)
        state = trainer.state(epoch + 1, args)
        if save_every and epoch % save_every == 0:
            write_whole(out / f"checkpoint{epoch:04}.pth", lambda path, state=state: torch.save(state, path))
        write_whole(out / CHECKPOINT, lambda path, state=state: torch.save(state, path))
        with (out / LOG).open("a") as file:
            file.write(json.dumps(row) + "\n")
        _log.info("epoch %d: %s", epoch, ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name != "epoch"))
    final = out / BACKBONE
    save_backbone(final, trainer.teacher.backbone.state_dict(), arch=arch)
    return final


def _epoch(trainer: DinoTrainer, crops: Crops, epoch: int, workers: int, seed: int) -> dict[str, float]:
    crops.epoch = epoch
    torch.manual_seed(seed + 1 + epoch)  # stochastic depth; the order below has its own generator
    loader = DataLoader(
        crops,
        batch_size=trainer.recipe.batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch),
        drop_last=True,
        collate_fn=collate,
        num_workers=workers,
        pin_memory=trainer.device.type == "cuda",
    )
    sums: dict[str, float] = {}
    with tqdm(loader, desc=f"epoch {epoch}", unit="step", disable=None, leave=False) as bar:
        for step, batch in enumerate(bar):
            if isinstance(batch, DataError):
                raise batch
            views = [normalize_images(view.to(trainer.device, non_blocking=True)) for view in batch]
            for name, value in trainer.step(views, epoch * trainer.steps + step).items():
                sums[name] = sums.get(name, 0.0) + value
            bar.set_postfix(loss=f"{sums['loss'] / (step + 1):.3f}")
    return {name: value / trainer.steps for name, value in sums.items()}


def _warn_of_collapse(row: dict[str, float], out_dim: int) -> None:
    most = math.log(out_dim)
    if row["train_teacher_entropy"] > 0.99 * most and row["train_kl"] < 0.01 * most:
        _log.warning("the teacher's entropy is ln K = %.2f: its output is uniform, training has collapsed; lower --teacher-temp", most)
    elif row["train_teacher_entropy"] < 0.001 * most and row["train_kl"] < 0.01 * most:
        _log.warning("the teacher's entropy is 0: one prototype wins always, training has collapsed; raise --teacher-temp")


def _resume(trainer: DinoTrainer, out: Path, args: dict[str, Any]) -> int:
    path = out / CHECKPOINT
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DinoevalError(f"{out} cannot be written: {error.strerror}") from error
    if not path.exists():
        return 0
    state = read_pickle(path)
    saved = state.get("args") if isinstance(state, dict) else None
    if not isinstance(saved, dict) or "recipe" not in saved:
        raise ConfigError(f"{path} was not written by this program: choose another --out")
    differences = [
        f"{name} was {old.get(name)} and is {new.get(name)}"
        for old, new in ((saved, args), (saved["recipe"], args["recipe"]))
        for name in new
        if name != "recipe" and old.get(name) != new[name]
    ]
    if differences:
        raise ConfigError(f"{path} is of another run ({'; '.join(differences)}): choose another --out, or delete it to start anew")
    epochs = trainer.restore(state)
    # A kill between the checkpoint and the log line, or the other way round, leaves no epoch twice in the log.
    log = out / LOG
    if log.exists():
        lines = [line for line in log.read_text().splitlines() if _epoch_of(line) < epochs]
        log.write_text("".join(f"{line}\n" for line in lines))
    _log.info("going on from %s after %d of %d epochs", path, epochs, trainer.recipe.epochs)
    return epochs


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # the last line of a run that was killed while it wrote
