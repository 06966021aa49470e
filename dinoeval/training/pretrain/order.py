"""Which images a process reads in each step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler


class ShardedOrder(Sampler):
    """The images of this process in each step of an epoch, in a new order every epoch.

    A step has the same images for any number of processes. Images that do not fill a batch are left out.

    Args:
        count: Number of training images.
        batch_size: Images per step, of all processes; a multiple of their number.
        seed: Random seed of the orders.
        rank: Number of this process.
        processes: Number of processes.

    Examples:
        >>> one = ShardedOrder(9, 4, seed=0, rank=0, processes=1)
        >>> two = [ShardedOrder(9, 4, seed=0, rank=rank, processes=2) for rank in (0, 1)]
        >>> list(one) == [first + second for first, second in zip(*two, strict=True)]
        True
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int, processes: int) -> None:
        self.count, self.batch_size, self.seed, self.rank = count, batch_size, seed, rank
        self.own = batch_size // processes
        self.epoch = self.first_step = 0
        """The epoch to iterate over, and its first step that is not done yet."""

    def __len__(self) -> int:
        """Number of steps of an epoch."""
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        torch.empty((), dtype=torch.int64).random_(generator=generator)  # Earlier versions drew a number first.
        order = torch.randperm(self.count, generator=generator).tolist()
        for step in range(self.first_step, len(self)):
            start = step * self.batch_size + self.rank * self.own
            yield order[start : start + self.own]
