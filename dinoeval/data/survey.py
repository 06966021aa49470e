"""Find something out about many images, in several threads of all processes of a run."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import TypeVar

from dinoeval import distributed
from dinoeval.errors import DataError

T = TypeVar("T")
_THREADS = 8  # More of them wait for a disk at the same time.
_TASK = 64  # Images per task. A task per image would take more memory than the answers of a million images.


def survey(rows: Sequence[int], ask: Callable[[int], T | None]) -> list[tuple[int, T]]:
    """Call a function for many images. The processes of a run share the work.

    Args:
        rows: Numbers of the images; the same in all processes.
        ask: Called with the number of an image; returns a small object that can be pickled, or None.

    Returns:
        The numbers in ascending order, each with what the function returned, without those of None. It is the same in all
        processes.

    Raises:
        DataError: If the function raised an error in another process.
        Exception: What the function raised in this process.

    Examples:
        >>> survey([4, 1, 3], lambda row: f"odd {row}" if row % 2 else None)
        [(1, 'odd 1'), (3, 'odd 3')]
    """
    own = [rows[number] for number in distributed.shard(len(rows))]
    tasks = [own[first : first + _TASK] for first in range(0, len(own), _TASK)]
    answers: list[tuple[int, T]] = []
    failure = None
    try:
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            for part in pool.map(lambda task: [(row, answer) for row in task if (answer := ask(row)) is not None], tasks):
                answers += part
    except Exception as error:  # noqa: BLE001  The other processes wait for this one.
        failure = error
    reason = None if failure is None else str(failure) or type(failure).__name__
    parts = distributed.all_gather((answers, reason))
    if failure is not None:
        raise failure
    if reasons := [reason for _, reason in parts if reason]:
        raise DataError(reasons[0])
    return sorted((pair for answers, _ in parts for pair in answers), key=lambda pair: pair[0])
