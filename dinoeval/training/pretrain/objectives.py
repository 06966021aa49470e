"""Objectives: how the student's output for one view is compared with the teacher's for another.

Each is the mean over all pairs of different views (main_dino.py; Eq. 3 sums them) and over the batch.
B images, V views with the global ones first, K outputs, Q entries of the queue.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

GLOBAL_VIEWS = 2


def view_pairs(num_views: int) -> Iterator[tuple[int, int]]:
    """List the pairs of a view of the teacher and another of the student.

    Args:
        num_views: V.

    Yields:
        Numbers of the teacher's and of the student's view.

    Examples:
        >>> list(view_pairs(3))
        [(0, 1), (0, 2), (1, 0), (1, 2)]
    """
    return ((t, v) for t in range(GLOBAL_VIEWS) for v in range(num_views) if v != t)


def cross_entropy(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Compute the cross-entropy of the student relative to the targets.

    Source: DINOLoss in main_dino.py.

    Args:
        student: Logits of all views, (V*B, K) float32, view by view.
        targets: Distributions of the global views, (2*B, K), in the same order.
        temperature: Of the student's softmax.

    Returns:
        The mean in nats, a scalar tensor.

    Examples:
        >>> cross_entropy(torch.zeros(6, 4), torch.full((4, 4), 0.25), 0.1)  # ln 4: both are uniform
        tensor(1.3863)
    """
    batch = len(targets) // GLOBAL_VIEWS
    log_student, target = F.log_softmax(student / temperature, dim=-1).split(batch), targets.split(batch)
    pairs = [torch.sum(-target[t] * log_student[v], dim=-1).mean() for t, v in view_pairs(len(log_student))]
    return torch.stack(pairs).mean()


def mean_squared_error(student: Tensor, targets: Tensor) -> Tensor:
    """Compute the squared distance between outputs of length 1.

    Source: appendix B of the paper; regression_loss in BYOL's helpers.py, which sums two directions.

    Args:
        student: Outputs of all views, (V*B, K) float32, view by view.
        targets: Outputs of the global views, (2*B, K), in the same order.

    Returns:
        The mean of 2 - 2 * cosine, a scalar tensor between 0 and 4.

    Examples:
        >>> mean_squared_error(torch.eye(2).repeat(2, 1), 3 * torch.eye(2).repeat(2, 1))
        tensor(0.)
    """
    batch = len(targets) // GLOBAL_VIEWS
    views, target = F.normalize(student, dim=-1).split(batch), F.normalize(targets, dim=-1).split(batch)
    return torch.stack([(2 - 2 * (target[t] * views[v]).sum(-1)).mean() for t, v in view_pairs(len(views))]).mean()


def info_nce(student: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Compute the contrastive loss.

    A view of the student must find the key of its image among those of the queue.

    Source: MoCo.forward in moco/builder.py, for every view of the student.

    Args:
        student: Queries of all views, (V*B, K) float32, view by view.
        keys: Outputs of the global views, (2*B, K), in the same order.
        queue: Keys of earlier images, of length 1, (Q, K).
        temperature: Of the softmax.

    Returns:
        The mean in nats, a scalar tensor.

    Examples:
        >>> info_nce(torch.eye(2).repeat(2, 1), torch.eye(2).repeat(2, 1), torch.tensor([[1.0, 0.0]]), 1.0)
        tensor(0.5032)
    """
    batch = len(keys) // GLOBAL_VIEWS
    queries, positives = F.normalize(student, dim=-1), F.normalize(keys, dim=-1).split(batch)
    negatives = torch.logsumexp(queries @ queue.T / temperature, dim=-1).split(batch)
    losses = []
    views = queries.split(batch)
    for t, v in view_pairs(len(views)):
        positive = (views[v] * positives[t]).sum(-1) / temperature
        losses.append((torch.logaddexp(positive, negatives[v]) - positive).mean())
    return torch.stack(losses).mean()
