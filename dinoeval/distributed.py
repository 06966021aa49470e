"""Several processes started by torchrun: which items belong to this process, and how results are exchanged.

In a single process every function returns its input or rank 0 of 1. Features are exchanged through the disk; gloo
transports small objects only.
"""

from __future__ import annotations

import atexit
import datetime
import os
from typing import TypeVar

T = TypeVar("T")
_TIMEOUT = datetime.timedelta(days=2)  # A process waits for the slowest shard of an extraction.


def rank() -> int:
    """Return the number of this process, 0 <= rank < world_size."""
    return int(os.environ["RANK"]) if _launched() else 0


def world_size() -> int:
    """Return the number of processes."""
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def shard(count: int) -> range:
    """Choose the items of this process.

    Args:
        count: Number of items in all.

    Returns:
        Item numbers: every `world_size()`-th one, so that all processes finish together.
    """
    return range(rank(), count, world_size())


def num_workers(requested: int | None, jobs: int, small: bool) -> int:
    """Choose the number of data-loading processes of this process.

    Args:
        requested: The value of --workers, or None to choose.
        jobs: Number of batches or images; more workers than jobs are useless.
        small: Whether starting workers takes longer than decoding all images.

    Returns:
        `requested` if it is set, 0 for small datasets, else one per available core, at most 8.
    """
    if requested is not None:
        return requested
    if small:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, jobs, cores // world_size()))


def barrier() -> None:
    """Wait for all processes."""
    broadcast(None)


def broadcast(value: T) -> T:
    """Return the value of rank 0 in every process.

    Args:
        value: An object that can be pickled; ignored if the rank is not 0.

    Returns:
        The value of rank 0.
    """
    return all_gather(value)[0]


def all_gather(value: T) -> list[T]:
    """Return the values of all processes in every process.

    Args:
        value: A small object that can be pickled.

    Returns:
        One value per process, in order of rank.
    """
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_TIMEOUT)
        atexit.register(dist.destroy_process_group)  # Its threads must end before the interpreter, which aborts otherwise.
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def _launched() -> bool:
    """Whether torchrun started this process. Schedulers set RANK and WORLD_SIZE even for a single process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
