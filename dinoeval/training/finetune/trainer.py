"""One iteration of fine-tuning by DeiT's recipe (main.py and engine.py of facebookresearch/deit).

N images of one process, s pixels of their side, C classes.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import torch
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim import param_groups_weight_decay  # pyright: ignore[reportPrivateImportUsage]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dinoeval.errors import DinoevalError
from dinoeval.training.finetune.classifier import Classifier
from dinoeval.training.finetune.recipes import FinetuneRecipe
from dinoeval.training.parallel import in_parallel
from dinoeval.training.precision import MixedPrecision, Precision

# As in DeiT: class token and positions, by their names in the networks of dinoeval and timm.
NOT_DECAYED = ("cls_token", "dist_token", "reg_token", "pos_embed")
_ADVICE = "Reduce --lr, increase --warmup-epochs, or pass --precision fp32."


class FinetuneTrainer:
    """A classifier with optimizer, schedule and moving average of its weights.

    Args:
        model: The classifier.
        recipe: All values of the run.
        device: Where the classifier runs.
        precision: Precision of the forward passes.
        forward_images: Images per forward pass; gradients are summed over the passes of a step.
    """

    def __init__(self, model: Classifier, recipe: FinetuneRecipe, device: torch.device, precision: Precision, forward_images: int) -> None:
        self.model, self.recipe, self.device, self.forward_images = model.to(device), recipe, device, forward_images
        kept = {name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] in NOT_DECAYED}
        groups = param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=kept)
        match recipe.optimizer:
            case "adamw":
                self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(groups, lr=recipe.peak_lr)
            case "sgd":
                self.optimizer = torch.optim.SGD(groups, lr=recipe.peak_lr, momentum=0.9, nesterov=True)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.epochs,
            lr_min=recipe.min_lr,
            warmup_t=recipe.warmup_epochs,
            warmup_lr_init=recipe.warmup_lr,
        )
        self.precision = MixedPrecision(device, precision)
        self.loss = SoftTargetCrossEntropy()
        self.average = ModelEmaV3(self.model, decay=recipe.ema_decay)
        self.parallel = in_parallel(self.model, device)

    def begin(self, epoch: int) -> float:
        """Begin an epoch: set the learning rate and the training mode.

        The learning rate lags by one epoch: DeiT's loop updates the schedule after an epoch, with the number of that
        epoch (main.py). So the first two epochs both use the first rate of the warm-up.

        Args:
            epoch: Number of the epoch, from 0.

        Returns:
            The learning rate.
        """
        self.schedule.step(max(0, epoch - 1))
        self.model.train()
        return self.optimizer.param_groups[0]["lr"]

    def step(self, images: Tensor, targets: Tensor) -> float:
        """Take one optimizer step on this process's shard of a batch.

        Args:
            images: Normalized images, (N, 3, s, s).
            targets: Class probabilities, (N, C).

        Returns:
            The mean cross-entropy of the shard before the step, in nats.

        Raises:
            DinoevalError: If the loss is NaN or infinite.
        """
        scaler = self.precision.scaler
        chunks = list(zip(images.split(self.forward_images), targets.split(self.forward_images), strict=True))
        total = 0.0
        for number, (chunk, chunk_targets) in enumerate(chunks, 1):
            # The processes exchange gradients once per step, after the last chunk.
            waits = isinstance(self.parallel, DistributedDataParallel) and number < len(chunks)
            with self.parallel.no_sync() if waits else contextlib.nullcontext():  # type: ignore[union-attr]
                with self.precision.autocast():
                    logits = self.parallel(chunk)
                loss = self.loss(logits.float(), chunk_targets) * (len(chunk) / len(images))
                scaler.scale(loss).backward()
            total += loss.item()
        if not math.isfinite(total):
            raise DinoevalError(f"training diverged: the loss became {total}. {_ADVICE}")
        scaler.step(self.optimizer)
        scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.update(self.model)
        return total

    @torch.inference_mode()
    def predict(self, images: Tensor) -> np.ndarray:
        """Predict classes; the model must be in eval mode.

        Args:
            images: Normalized images, (N, 3, s, s).

        Returns:
            Class indices, (N, min(5, C)) int64, in descending order of their logits.

        Raises:
            DinoevalError: If a logit is NaN or infinite.
        """
        with self.precision.autocast():
            logits = self.model(images)
        if not torch.isfinite(logits).all():
            raise DinoevalError(f"training diverged: the network's output is NaN or infinite. {_ADVICE}")
        return logits.topk(min(5, logits.shape[1])).indices.cpu().numpy()

    def state(self) -> dict[str, Any]:
        """Collect what a run resumes from.

        Returns:
            State dicts; `model` can be loaded like any checkpoint.
        """
        return {
            "model": self.model.state_dict(),
            "model_ema": self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned.

        Args:
            state: State dicts.
        """
        self.model.load_state_dict(state["model"])
        self.average.module.load_state_dict(state["model_ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.precision.scaler.load_state_dict(state["scaler"])
