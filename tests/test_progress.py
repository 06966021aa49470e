"""Progress of long loops: the lines of a log, and bars where a person looks."""

from __future__ import annotations

import io
import logging
import threading
import time

import pytest

from dinoeval import progress
from dinoeval.progress import Progress, track


@pytest.fixture
def fast(monkeypatch):
    """A first line after 0.1 s, then a line every 0.2 s."""
    monkeypatch.setattr(progress, "FIRST_SECONDS", 0.1)
    monkeypatch.setattr(progress, "SECONDS", 0.2)
    monkeypatch.setattr(Progress, "_last_line", -1.0)


def test_line_counts_what_this_run_did():
    resumed = Progress("train images", 50_000, "images", done=200)
    resumed.update(1000, note="loss 2.5")
    assert resumed.line(25.0) == "train images: 1,200 of 50,000 (2%), 40 images/s, 20 min left, loss 2.5"
    assert Progress("frames", 9, "frames").line(60.0) == "frames: 0 of 9 (0%)"
    download = Progress("download of x", 50_000_000, "B")
    download.update(5_000_000)
    assert download.line(4.0) == "download of x: 5 of 50 MB (10%), 1.2 MB/s, 36 s left"
    assert Progress("t-SNE").line(120.0) == "t-SNE: running for 2 min"
    unknown = Progress("download of x", None, "B")
    unknown.update(12_000_000)
    assert unknown.line(1.0) == "download of x: 12 MB, 12 MB/s"


def test_log_gets_a_line_per_interval_even_if_nothing_moves(fast, caplog):
    caplog.set_level(logging.INFO, logger="dinoeval")
    with Progress("frames", 4, "frames") as shown:
        shown.update()
        time.sleep(0.4)
    with Progress("other frames", 4, "frames"):  # The next line is due 0.2 s after the last one, of any loop.
        time.sleep(0.04)
    lines = [record.getMessage() for record in caplog.records]
    assert 1 <= len(lines) <= 3
    assert all(line.startswith("frames: 1 of 4 (25%)") for line in lines)


def test_short_loop_logs_nothing_and_leaves_no_thread(caplog):
    caplog.set_level(logging.INFO, logger="dinoeval")
    assert list(track(iter("abc"), "letters", 3, "letters")) == ["a", "b", "c"]
    with pytest.raises(KeyError), Progress("letters", 3, "letters"):
        raise KeyError
    assert not caplog.records
    assert "dinoeval-progress" not in [thread.name for thread in threading.enumerate()]


def test_other_processes_are_silent(fast, caplog, monkeypatch):
    for name, value in (("TORCHELASTIC_RUN_ID", "run"), ("RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.INFO, logger="dinoeval")
    with Progress("frames", 4, "frames"):
        time.sleep(0.15)
    assert not caplog.records


def test_terminal_gets_a_bar_that_is_removed(monkeypatch, caplog):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    for _ in track(range(3), "letters", 3, "letters"):
        time.sleep(0.12)
    shown = terminal.getvalue()
    assert "letters:" in shown
    assert "3/3" in shown or "2/3" in shown
    assert shown.endswith("\r")
