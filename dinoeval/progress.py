"""Progress of long loops: a bar in a terminal or a notebook, a line every 30 seconds in a log or a pipe."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from dinoeval import distributed

T = TypeVar("T")
FIRST_SECONDS = 10.0
"""Duration of a loop after which its first line is logged. Short loops log nothing."""
SECONDS = 30.0
"""Time between two lines, also of different loops."""
_log = logging.getLogger(__name__)


class Progress:
    """The progress of a loop, shown while the context is entered.

    A terminal and a notebook get a bar that is removed at the end. Elsewhere lines are logged with level INFO, such as
    `train images: 1,200 of 50,000 (2%), 40 images/s, 20 min left`. Under torchrun only the first process shows anything.

    Args:
        what: What is counted, such as `train images`.
        total: Number of items, or None if it is not known.
        unit: Name of the items in a rate, such as `images`; `B` counts bytes. Empty for work that cannot be counted: its lines
            state how long it has run.
        done: Number of items that an earlier run finished.
    """

    _last_line = -SECONDS
    """Time of the last line of any loop, in seconds of the monotonic clock."""

    def __init__(self, what: str, total: int | None = None, unit: str = "", *, done: int = 0) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self.note = ""
        self._first, self._started = done, time.monotonic()
        self._bar: Any = None
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        if distributed.rank() > 0:
            return self
        if self.unit and (_in_notebook() or _in_terminal()):
            bar_class, options = _bar_class(), {"unit_scale": True} if self.unit == "B" else {}
            self._exit.enter_context(_logging_above_bars())
            bar = bar_class(desc=self.what, total=self.total, initial=self.done, unit=f" {self.unit}", leave=False, **options)
            self._bar = self._exit.enter_context(bar)
        elif _log.isEnabledFor(logging.INFO):
            stop = threading.Event()
            thread = threading.Thread(target=self._log_lines, args=(stop,), name="dinoeval-progress", daemon=True)
            thread.start()
            self._exit.callback(thread.join)
            self._exit.callback(stop.set)  # Called first.
        return self

    def __exit__(self, *exception: object) -> None:
        self._exit.close()

    def update(self, count: int = 1, note: str = "") -> None:
        """Count finished items.

        Args:
            count: How many more items are finished.
            note: A value to show, such as `loss 2.345`.
        """
        self.done += count
        self.note = note
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)

    def line(self, seconds: float) -> str:
        """Describe the progress.

        Args:
            seconds: Time since the loop began.

        Returns:
            One line.

        Examples:
            >>> progress = Progress("train images", 50_000, "images", done=200)
            >>> progress.update(1000)
            >>> progress.line(25.0)
            'train images: 1,200 of 50,000 (2%), 40 images/s, 20 min left'
        """
        if not self.unit:
            return f"{self.what}: running for {format_duration(seconds)}"
        scale, suffix = (1e6, " MB") if self.unit == "B" else (1, "")
        count = _number(self.done / scale) if scale > 1 else f"{self.done:,}"
        parts = [count + suffix]
        if self.total:
            total = _number(self.total / scale) if scale > 1 else f"{self.total:,}"
            parts = [f"{count} of {total}{suffix} ({100 * self.done // self.total}%)"]
        new = self.done - self._first
        if new and seconds > 0:
            parts.append(f"{_number(new / scale / seconds)} {suffix.strip() or self.unit}/s")
            if self.total:
                parts.append(f"{format_duration(max(0, self.total - self.done) * seconds / new)} left")
        return f"{self.what}: {', '.join([*parts, self.note] if self.note else parts)}"

    def _log_lines(self, stop: threading.Event) -> None:
        """Log a line when one is due, until the loop ends."""
        while True:
            due = max(self._started + FIRST_SECONDS, Progress._last_line + SECONDS)
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            if (now := time.monotonic()) >= Progress._last_line + SECONDS:  # Another loop may have logged a line meanwhile.
                Progress._last_line = now
                _log.info("%s", self.line(now - self._started))


def track(items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """Yield items, and show how many are finished.

    Args:
        items: What is iterated over.
        what: What is counted, such as `frames`.
        total: Number of items.
        unit: Name of the items in a rate.

    Yields:
        The items, unchanged.

    Examples:
        >>> list(track("ab", "letters", 2, "letters"))
        ['a', 'b']
    """
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def format_duration(seconds: float) -> str:
    """Write a duration in the unit that suits it.

    Args:
        seconds: The duration.

    Returns:
        Such as `40 s`, `20 min`, `3.5 h` or `2.1 days`.

    Examples:
        >>> [format_duration(seconds) for seconds in (40, 1200, 12600, 181440)]
        ['40 s', '20 min', '3.5 h', '2.1 days']
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def _number(value: float) -> str:
    """Write a positive number with two digits or more."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _in_notebook() -> bool:
    """Whether the code runs in a kernel of Jupyter, whose output is not a terminal but shows bars."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", ())


def _in_terminal() -> bool:
    """Whether stderr, which some programs replace or close, is a terminal with space for a bar."""
    try:
        return sys.stderr.isatty() and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:  # A terminal that does not state its size.
        return True
    except (AttributeError, ValueError):
        return False


def _bar_class() -> Any:
    with warnings.catch_warnings():  # Without ipywidgets, tqdm warns and uses its text bars, which notebooks show as well.
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm


@contextlib.contextmanager
def _logging_above_bars() -> Iterator[None]:
    """Write log messages of the command line above a bar, not into it."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logger = logging.getLogger("dinoeval")
    with logging_redirect_tqdm([logger]) if logger.handlers else contextlib.nullcontext():
        yield
