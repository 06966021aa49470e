"""The one way to read batches of images, in worker processes or in the main process.

Workers send tensors through shared memory. If it is full, as in a container whose /dev/shm is small, they use pipes.
"""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from dinoeval.errors import DataError

_log = logging.getLogger(__name__)


class BatchLoader(DataLoader):
    """A DataLoader that survives a full /dev/shm and does not use the random numbers of the process.

    If a worker process ends unexpectedly, `guard.Guard` turns the error into a DataError.

    Args:
        dataset: The samples.
        collate: Makes a batch of a list of samples: a tensor, or tuples and lists that contain tensors.
        workers: Number of worker processes; 0 reads in this process.
        device: Where batches are used. For CUDA they are pinned.
        **options: Of `torch.utils.data.DataLoader`, such as `batch_sampler`.

    Examples:
        >>> loader = BatchLoader([1, 2, 3], torch.tensor, workers=0, device=torch.device("cpu"), batch_size=2)
        >>> [batch.tolist() for batch in loader]
        [[1, 2], [3]]
    """

    def __init__(
        self, dataset: Dataset | list, collate: Callable[[list], Any], *, workers: int, device: torch.device, **options: Any
    ) -> None:
        if workers and (error := _why_no_workers(workers)):
            _log.warning("images are read in the main process: no other process can be started (%s)", error)
            workers = 0
            options["persistent_workers"] = False
        # Starting workers draws a number, by default from the generator of the process.
        options.setdefault("generator", torch.Generator())
        super().__init__(
            dataset,  # type: ignore[arg-type]
            collate_fn=_Sender(collate),
            num_workers=workers,
            pin_memory=device.type == "cuda",
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            batches = super().__iter__()
        except OSError as error:  # such as a limit of processes
            raise DataError(f"cannot start {self.num_workers} processes that read images: {error}. Pass --workers 0.") from error
        return map(_receive, batches)


def _why_no_workers(count: int) -> OSError | None:
    """Return the error with which the queues of worker processes could not be made. Their locks take space in /dev/shm."""
    try:
        _ = [multiprocessing.Lock() for _ in range(4 * count + 16)]
    except OSError as error:
        return error
    return None


@dataclasses.dataclass(frozen=True)
class _Piped:
    """A tensor on its way through a pipe."""

    array: np.ndarray


@dataclasses.dataclass
class _Sender:
    """Collate samples in a worker process and move the batch to shared memory.

    PyTorch would do so in a thread, whose failure leaves the main process waiting forever.
    """

    collate: Callable[[list], Any]
    warned: bool = False

    def __call__(self, samples: list) -> Any:
        batch = self.collate(samples)
        return batch if get_worker_info() is None else _map_tensors(batch, Tensor, self._share)

    def _share(self, tensor: Tensor) -> Tensor | _Piped:
        try:
            return tensor.share_memory_()
        except (RuntimeError, OSError) as error:
            if not self.warned:
                self.warned = True
                _log.warning("images are sent through pipes, which is slower (%s). Enlarge /dev/shm, or pass --workers 0", error)
            return _Piped(tensor.numpy())


def _receive(batch: Any) -> Any:
    return _map_tensors(batch, _Piped, lambda piped: torch.from_numpy(piped.array))


def _map_tensors(batch: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply a function to all objects of a kind in nested tuples and lists."""
    if isinstance(batch, kind):
        return function(batch)
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map_tensors(part, kind, function) for part in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_map_tensors(part, kind, function) for part in batch)
    return batch
