"""Training on several processes under torchrun: gradients, sums over processes, batch normalization.

In a single process nothing is exchanged. Tensors on CUDA are exchanged by NCCL, others by gloo.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from dinoeval import distributed


def tensor_group(device_type: str) -> Any:
    """Return the process group that exchanges tensors.

    Args:
        device_type: `cuda`, `cpu` and so on.

    Returns:
        The group of all processes, of which there are several.
    """
    # The group of gloo is not cached here: a reference to it must not outlive `distributed`, which ends it at exit.
    return _nccl_group() if device_type == "cuda" else distributed.group()


@functools.cache
def _nccl_group() -> Any:
    distributed.group()  # makes the default group, which others require
    return torch.distributed.new_group(backend="nccl")


def in_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a model so that the gradients of all processes are averaged.

    Args:
        model: The model, on its device.
        device: The device.

    Returns:
        The wrapped model; the model itself in a single process.
    """
    if distributed.world_size() == 1:
        return model
    distributed.join()
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, process_group=tensor_group(device.type), broadcast_buffers=False)


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Add the tensors of all processes, without gradients.

    Args:
        tensor: Of the same shape in all processes.

    Returns:
        The sum; the tensor itself in a single process.
    """
    return _reduce(tensor, "SUM")


def max_over_processes(tensor: Tensor) -> Tensor:
    """Return the largest values of all processes, without gradients.

    Args:
        tensor: Of the same shape in all processes.

    Returns:
        The maximum; the tensor itself in a single process.
    """
    return _reduce(tensor, "MAX")


def _reduce(tensor: Tensor, operation: str) -> Tensor:
    if distributed.world_size() == 1:
        return tensor
    combined = tensor.detach().clone()
    kind = getattr(torch.distributed.ReduceOp, operation)
    torch.distributed.all_reduce(combined, kind, group=tensor_group(tensor.device.type))
    return combined


def gather_rows(tensor: Tensor) -> Tensor:
    """Join the rows of all processes in the order of their ranks, without gradients.

    Args:
        tensor: Rows of this process, (R, ...).

    Returns:
        (world_size * R, ...).
    """
    if distributed.world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(distributed.world_size())]
    torch.distributed.all_gather(parts, tensor.detach().contiguous(), group=tensor_group(tensor.device.type))
    return torch.cat(parts)


class _Sum(torch.autograd.Function):
    """The sum over processes. Its gradient is the sum of the gradients, because every process uses the sum."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:  # type: ignore[override]
        return sum_over_processes(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return sum_over_processes(gradient)


class SyncBatchNorm(_BatchNorm):
    """Batch normalization by the statistics of all processes. PyTorch's own requires CUDA.

    Only training is synchronized. All processes have the same number of samples.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalize a batch.

        Args:
            input: (N, C) or (N, C, ...).

        Returns:
            The same shape.
        """
        if not self.training or distributed.world_size() == 1:
            return super().forward(input)
        x = input.float()
        dims = [0, *range(2, x.ndim)]
        count = x.numel() / x.shape[1] * distributed.world_size()
        mean = _Sum.apply(x.sum(dims)) / count
        shape = (1, -1, *[1] * (x.ndim - 2))
        centered = x - mean.view(shape)
        variance = _Sum.apply(centered.square().sum(dims)) / count
        with torch.no_grad():
            if self.running_mean is not None and self.running_var is not None and self.momentum is not None:
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        normalized = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(input.dtype)


def synchronize_batch_norm(network: nn.Module) -> None:
    """Synchronize the batch normalization of a network.

    In a single process it stays as it is.

    Args:
        network: Changed in place. Parameters and buffers stay the same objects.
    """
    if distributed.world_size() == 1:
        return
    for name, child in network.named_children():
        if isinstance(child, _BatchNorm):
            replacement = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
            replacement._parameters, replacement._buffers = child._parameters, child._buffers
            replacement.train(child.training)
            setattr(network, name, replacement)
        else:
            synchronize_batch_norm(child)
