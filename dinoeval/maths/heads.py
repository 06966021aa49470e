"""Many linear classifiers trained together on the same features, with one matrix product per step.

B images per batch, H heads, C classes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.9
_INIT_STD = 0.01  # of the weights; the biases start at 0 (eval_linear.py)
_LOGIT_BYTES = 64 << 20
_NO_HIT = 1 << 30
_STATE = ("weight", "bias", "weight_velocity", "bias_velocity", "alive")


class Heads:
    """H linear classifiers that are trained together but independently.

    All heads start with the same weights and differ in learning rate and weight decay. Each is trained as by
    torch.optim.SGD with momentum 0.9 on its own cross-entropy. The gradient of softmax regression is written out: the
    gradients of all heads are one product of (H*C, B) and (B, D).

    Args:
        rates: Learning rate of each head, H values.
        decays: Weight decay of each head, H values.
        dim: Number of feature dimensions D.
        num_classes: Number of classes C.
        seed: Seed of the initial weights.
        device: Device of all tensors.

    Examples:
        Two heads on one feature; the second does not change because its learning rate is 0:

        >>> import torch
        >>> heads = Heads([0.5, 0.0], [0.0, 0.0], 1, 2, seed=0, device=torch.device("cpu"))
        >>> features, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
        >>> losses = [heads.step(features, labels, 1.0) for _ in range(20)]
        >>> (losses[-1] < losses[0]).tolist()
        [True, False]
        >>> heads.ranks(features, labels)[:, 0].tolist()
        [0, 0]
    """

    def __init__(
        self, rates: Sequence[float], decays: Sequence[float], dim: int, num_classes: int, *, seed: int, device: torch.device
    ) -> None:
        initial = torch.randn(num_classes, dim, generator=torch.Generator().manual_seed(seed)) * _INIT_STD
        self.rates = torch.tensor(rates, dtype=torch.float32, device=device)  # (H,)
        self.decays = torch.tensor(decays, dtype=torch.float32, device=device)  # (H,)
        self.weight = initial.to(device).repeat(len(rates), 1, 1)  # (H, C, D)
        self.bias = torch.zeros(len(rates), num_classes, device=device)  # (H, C)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        self.alive = torch.ones(len(rates), dtype=torch.bool, device=device)  # (H,)

    def logits(self, features: Tensor) -> Tensor:
        """Compute the logits of every head.

        Args:
            features: Features, (B, D) float32.

        Returns:
            Logits, (B, H, C) float32.
        """
        heads, classes, _ = self.weight.shape
        return torch.addmm(self.bias.flatten(), features, self.weight.flatten(0, 1).T).view(-1, heads, classes)

    def step(self, features: Tensor, labels: Tensor, schedule: float) -> Tensor:
        """Take one optimizer step with every head.

        A head whose loss becomes NaN or infinite is stopped: it is set to zero and marked in `alive`. Other heads are
        unaffected.

        Args:
            features: Features, (B, D) float32.
            labels: Class indices, (B,) int64.
            schedule: Factor for all learning rates.

        Returns:
            Losses before the step, (H,) float32.
        """
        gradient = self.logits(features).log_softmax(-1)  # (B, H, C)
        losses = -gradient[torch.arange(len(labels), device=labels.device), :, labels].mean(0)
        self._stop(~torch.isfinite(losses))
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

    def stop_diverged(self) -> None:
        """Stop the heads with NaN or infinite weights.

        `step` finds them only by their next loss. Call this after the last step, before the heads are scored.
        """
        self._stop(~(torch.isfinite(self.weight).flatten(1).all(1) & torch.isfinite(self.bias).all(1)))

    def _stop(self, diverged: Tensor) -> None:
        """Set the marked heads (H,) to zero."""
        if diverged.any():
            self.alive &= ~diverged
            for part in (self.weight, self.bias, self.weight_velocity, self.bias_velocity):
                part[diverged] = 0

    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Rank the correct class of each image among the logits of each head.

        Args:
            features: Features, (B, D) float32.
            labels: Class indices, (B,) int64.

        Returns:
            Number of classes ahead of the correct one, (B, H) int64: 0 is a top-1 hit, below 5 a top-5 hit. Ties go to the
            lower index. A head with a NaN or infinite logit has no hit.
        """
        heads, classes, _ = self.weight.shape
        indices = torch.arange(classes, device=labels.device)
        parts = []
        step = max(1, _LOGIT_BYTES // (4 * heads * classes))
        for batch, ground_truth in zip(features.split(step), labels.split(step), strict=True):
            logits = self.logits(batch)
            own = logits.gather(2, ground_truth[:, None, None].expand(-1, heads, 1))
            ahead = (logits > own) | ((logits == own) & (indices < ground_truth[:, None, None]))
            parts.append(ahead.sum(-1).masked_fill(~torch.isfinite(logits).all(-1), _NO_HIT))
        return torch.cat(parts)

    def state(self) -> dict[str, Any]:
        """Return the state of the training, for `restore`.

        Returns:
            CPU tensors by name.
        """
        return {name: getattr(self, name).cpu() for name in _STATE}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `state` returned.

        Args:
            state: Tensors by name.
        """
        for name, tensor in state.items():
            getattr(self, name).copy_(tensor)
