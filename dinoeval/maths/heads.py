"""Many linear classifiers on the same features, trained side by side: one matrix product steps them all.

B images of a batch, H heads, C classes, D dims.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.9
_INIT_STD = 0.01  # of the weights; biases begin at 0 (eval_linear.py)
_LOGIT_BYTES = 64 << 20
_NO_HIT = 1 << 30


class Heads:
    """H linear classifiers that differ in learning rate and weight decay, and begin from the same weights.

    Each is trained as torch.optim.SGD with momentum 0.9 would, by its own cross-entropy; none sees another. The gradient
    of softmax regression is written out: that of all heads is one product of (H*C, B) and (B, D).
    """

    def __init__(
        self, rates: Sequence[float], decays: Sequence[float], dim: int, num_classes: int, *, seed: int, device: torch.device
    ) -> None:
        drawn = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed)) * _INIT_STD
        self.rates, self.decays = (torch.tensor(values, dtype=torch.float32, device=device) for values in (rates, decays))
        self.weight = drawn.to(device).repeat(len(rates), 1, 1)  # (H, C, D)
        self.bias = torch.zeros(len(rates), num_classes, device=device)  # (H, C)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.alive = torch.ones(len(rates), dtype=torch.bool, device=device)  # (H,)

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, H, C)."""
        heads, classes, _ = self.weight.shape
        return torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T).view(-1, heads, classes)

    def step(self, features: Tensor, labels: Tensor, schedule: float) -> Tensor:
        """Take one step of every head on features (B, D) and labels (B,) at its rate times `schedule`.

        Returns the losses before the step, (H,). A head whose loss is no number any more stops: it is set to zero, and
        `alive` says so; the others go on as if it were not there.
        """
        gradient = self.logits(features).log_softmax(-1)  # (B, H, C)
        losses = -gradient[torch.arange(len(labels), device=labels.device), :, labels].mean(0)
        self._zero(~torch.isfinite(losses))
        gradient = gradient.exp_()
        gradient[torch.arange(len(labels), device=labels.device), :, labels] -= 1
        gradient = (gradient / len(labels)).masked_fill_(~self.alive[:, None], 0)
        velocity = self.weight_velocity.flatten(0, 1)
        torch.addmm(velocity, gradient.flatten(1).T, features, beta=MOMENTUM, out=velocity)
        self.bias_velocity.mul_(MOMENTUM).add_(gradient.sum(0))
        if self.decays.any():
            self.weight_velocity.add_(self.weight * self.decays[:, None, None])
            self.bias_velocity.add_(self.bias * self.decays[:, None])
        rates = self.rates * schedule
        self.weight.addcmul_(self.weight_velocity, rates[:, None, None], value=-1)
        self.bias.addcmul_(self.bias_velocity, rates[:, None], value=-1)
        return losses

    def stop_broken(self) -> None:
        """Stop the heads whose last step left weights that are no numbers: their next loss would tell, and a score comes first."""
        self._zero(~(torch.isfinite(self.weight).flatten(1).all(1) & torch.isfinite(self.bias).all(1)))

    def _zero(self, broken: Tensor) -> None:
        if broken.any():
            self.alive &= ~broken
            for part in (self.weight, self.bias, self.weight_velocity, self.bias_velocity):
                part[broken] = 0

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Say how many classes each head puts before the right one, (B, H) int64: 0 is a top-1 hit, below 5 a top-5 hit.

        Of equal logits the earlier class comes first. A head with a logit that is no number hits nothing.
        """
        heads, classes, _ = self.weight.shape
        earlier = torch.arange(classes, device=labels.device)
        parts = []
        step = max(1, _LOGIT_BYTES // (4 * heads * classes))
        for rows, truth in zip(features.split(step), labels.split(step), strict=True):
            logits = self.logits(rows)
            own = logits.gather(2, truth[:, None, None].expand(-1, heads, 1))
            before = (logits > own) | ((logits == own) & (earlier < truth[:, None, None]))
            parts.append(before.sum(-1).masked_fill(~torch.isfinite(logits).all(-1), _NO_HIT))
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        return {name: getattr(self, name).cpu() for name in ("weight", "bias", "weight_velocity", "bias_velocity", "alive")}

    def restore(self, state: dict[str, Any]) -> None:
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)
