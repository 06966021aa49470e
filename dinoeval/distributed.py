"""Several processes started by torchrun: which items belong to this process, and how results are exchanged.

In a single process every function returns its input or rank 0 of 1. Features are exchanged through the disk; gloo
transports small objects only. If only some of the processes call dinoeval, the call ends with an error within a minute.
"""

from __future__ import annotations

import atexit
import datetime
import functools
import multiprocessing
import os
from typing import Any, TypeVar

from dinoeval import guard
from dinoeval.errors import ConfigError, DinoevalError

T = TypeVar("T")
_TIMEOUT = datetime.timedelta(days=2)  # A process waits for the slowest shard of an extraction.
JOIN_SECONDS = 60
"""How long a process waits for the others at the beginning of a call."""
_joins = 0
_joined_call: int | None = None  # the call of the guard that all processes have joined
_group: Any = None


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
        `requested` if it is set, 0 for small datasets, else one per available core, at most 8. Always 0 in a daemonic process,
        such as those of multiprocessing.Pool, which may not start others.
    """
    if multiprocessing.current_process().daemon:
        return 0
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

    join()
    values: list = [None] * world_size()
    try:
        dist.all_gather_object(values, value, group=group())
    except RuntimeError as error:
        raise DinoevalError(f"another of the {world_size()} processes ended: {error}. Rerun the command to resume") from error
    return values


def join() -> None:
    """Wait until all processes have begun the present call of a public function.

    Raises:
        ConfigError: If a process does not begin such a call within a minute.
    """
    global _joins, _joined_call
    call = guard.current_call()
    if world_size() == 1 or (_joins and call in (None, _joined_call)):
        return
    limit = datetime.timedelta(seconds=JOIN_SECONDS)
    names = [f"dinoeval/{_joins}/{number}" for number in range(world_size())]
    store: Any = None
    try:
        store = _store(limit)
        store.set(names[rank()], "")
        store.wait(names, limit)
    except RuntimeError as error:  # DistStoreError is a RuntimeError
        # The store is in the first process, unless torchrun provides it.
        missing = [number for number, name in enumerate(names) if not store.check([name])] if store else [0]
        raise ConfigError(
            f"torchrun started {world_size()} processes, but number {', '.join(map(str, missing))} did not call dinoeval within "
            f"{JOIN_SECONDS} seconds of number {rank()}: make the same calls in all processes, or in a program that torchrun does "
            "not start"
        ) from error
    _joins, _joined_call = _joins + 1, call


def group() -> Any:
    """Return the gloo process group of dinoeval, never one of the calling program."""
    global _group
    if _group is None:
        import torch.distributed as dist

        if dist.is_initialized():
            _group = dist.new_group(backend="gloo", timeout=_TIMEOUT)
        else:
            store = dist.PrefixStore("dinoeval/group", _store(_TIMEOUT))  # pyright: ignore[reportPrivateImportUsage]
            dist.init_process_group("gloo", store=store, rank=rank(), world_size=world_size(), timeout=_TIMEOUT)
            atexit.register(_leave)
            _group = dist.group.WORLD
    return _group


def _leave() -> None:
    """End the threads of the process group. If they outlived the interpreter, the process would abort."""
    import torch.distributed as dist

    global _group
    _group = None
    dist.destroy_process_group()
    _store.cache_clear()


@functools.cache
def _store(timeout: datetime.timedelta) -> Any:
    """Connect to the store in which the processes of torchrun find each other."""
    from torch.distributed.rendezvous import rendezvous

    return next(iter(rendezvous("env://", timeout=timeout)))[0]


def _launched() -> bool:
    """Whether torchrun started this process. Schedulers set RANK and WORLD_SIZE even for a single process."""
    return "TORCHELASTIC_RUN_ID" in os.environ
