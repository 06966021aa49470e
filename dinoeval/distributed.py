"""Several processes under torchrun: which rows are mine, wait for the others, put the parts together.

All functions are identities in a single process. The disk carries the features; gloo carries small things only.
"""

from __future__ import annotations

import datetime
import os
from typing import TypeVar

T = TypeVar("T")
_PATIENCE = datetime.timedelta(days=2)  # ranks wait for the slowest one's share of an extraction


def rank() -> int:
    return int(os.environ["RANK"]) if _launched() else 0


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"]) if _launched() else 1


def _launched() -> bool:
    """Whether torchrun started this process: schedulers leave RANK and WORLD_SIZE behind where nobody would answer."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def shard(count: int) -> range:
    """The numbers below `count` that are this process's: every world-th one, so that all finish together."""
    return range(rank(), count, world_size())


def num_decoders(asked: int | None, jobs: int, small: bool) -> int:
    """How many worker processes decode images for this one: as asked, else one a core; none for sets so small that starting
    them takes longer."""
    if asked is not None:
        return asked
    if small:
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(8, jobs, cores // world_size()))


def barrier() -> None:
    """Wait for all processes."""
    broadcast(None)


def broadcast(value: T) -> T:
    """Give every process the value that rank 0 has."""
    return all_gather(value)[0]


def all_gather(value: T) -> list[T]:
    """Give every process the values of all, in order of rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
