"""Target operations: what makes a distribution of the teacher's output. Pure functions, in float32 and without gradients.

R rows (both global views of a batch), K prototypes. Operations over the batch take the functions that combine processes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _same(tensor: Tensor) -> Tensor:
    return tensor


@dataclasses.dataclass(frozen=True)
class Reducer:
    """How tensors of all processes are combined, elementwise. By default there is one process."""

    sum: Callable[[Tensor], Tensor] = _same
    """Adds the tensors of all processes."""
    max: Callable[[Tensor], Tensor] = _same
    """Returns the largest values of all processes."""
    gather: Callable[[Tensor], Tensor] = _same
    """Joins the rows of all processes in the order of their ranks."""


LOCAL = Reducer()


def centered(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Subtract the center, then sharpen.

    The text of the paper adds the center; its pseudocode and DINOLoss in main_dino.py subtract it.

    Args:
        logits: (R, K).
        center: (1, K); zeros for the target `none`.
        temperature: Below 1, it sharpens.

    Returns:
        Logarithms of the targets, (R, K).
    """
    return F.log_softmax((logits - center) / temperature, dim=-1)


def sinkhorn(logits: Tensor, temperature: float, iterations: int, reducer: Reducer = LOCAL) -> Tensor:
    """Balance the prototypes over the batch by Sinkhorn-Knopp iterations.

    Each iteration divides columns by their sums over all processes, then rows by theirs. One iteration is the softmax over
    the batch of appendix B. The sums are computed with logarithms: exp(1 / 0.04) exceeds half precision, and logits of
    prototypes of any length exceed every other.
    Source: appendix B; distributed_sinkhorn in SwAV's main_swav.py.

    Args:
        logits: Rows of this process, (R, K).
        temperature: Divides the logits.
        iterations: At least 1.
        reducer: Combines the processes.

    Returns:
        Logarithms of the targets, (R, K). Rows sum to 1 exactly; columns sum to about R / K.

    Examples:
        >>> sinkhorn(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.1, 3).exp()  # all rows prefer one prototype
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """
    scores = logits / temperature
    for _ in range(iterations):
        largest = reducer.max(scores.max(dim=0, keepdim=True).values)  # (1, K)
        scores = scores - largest - reducer.sum((scores - largest).exp().sum(dim=0, keepdim=True)).log()
        scores = F.log_softmax(scores, dim=-1)
    return scores


def one_hot(logits: Tensor, center: Tensor) -> Tensor:
    """Choose the largest centered output.

    It is the limit of a temperature of 0 (appendix D).

    Args:
        logits: (R, K).
        center: (1, K).

    Returns:
        Targets of 0 and 1, (R, K). The first of equal outputs is chosen.
    """
    return F.one_hot((logits - center).argmax(-1), logits.shape[-1]).to(logits.dtype)


def entropy(log_targets: Tensor) -> Tensor:
    """Compute the mean entropy of targets.

    Args:
        log_targets: Logarithms, (R, K).

    Returns:
        In nats, a scalar tensor.
    """
    return -(log_targets.exp() * log_targets).sum(-1).mean()


def spread(outputs: Tensor) -> Tensor:
    """Measure how different the outputs for the images of a batch are.

    Args:
        outputs: (R, K).

    Returns:
        Standard deviation of outputs of length 1 over the batch, mean over the dimensions, times sqrt(K): about 1 if they
        are spread over the sphere, 0 if all are equal.
    """
    normalized = F.normalize(outputs, dim=-1)
    return normalized.std(dim=0, correction=0).mean() * outputs.shape[-1] ** 0.5


@torch.no_grad()
def mean_of_rows(outputs: Tensor, reducer: Reducer = LOCAL) -> Tensor:
    """Compute the mean over the rows of all processes.

    Args:
        outputs: Rows of this process, (R, K).
        reducer: Combines the processes.

    Returns:
        (1, K).
    """
    rows = reducer.sum(torch.tensor(float(len(outputs)), device=outputs.device))
    return reducer.sum(outputs.sum(dim=0, keepdim=True)) / rows
