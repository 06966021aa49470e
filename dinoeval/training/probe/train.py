"""The training loop of linear probes: resumable within an epoch, scored after every epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval import distributed
from dinoeval.progress import Progress, format_duration
from dinoeval.training.checkpointing import RunFolder
from dinoeval.training.probe.sources import Augmented, FeatureBatch, FeatureSource, concatenate
from dinoeval.training.probe.sweep import EvalSet, Sweep

STATE = "state.pth"
SAVE_SECONDS = 300.0  # between saved states inside an epoch
_TIMED_BATCHES, _TIMING_SECONDS = 8, 10.0
_log = logging.getLogger(__name__)


def train_heads(sweep: Sweep, source: FeatureSource, rows: np.ndarray, eval_sets: Mapping[str, EvalSet], folder: RunFolder) -> None:
    """Train all heads of a sweep, or resume the run in the folder.

    Under torchrun every process computes the features of its shard of each batch; then all take the same step.

    Args:
        sweep: The heads; they are trained in place.
        source: Where the features of the training images come from.
        rows: Rows of the training set to train on, int64.
        eval_sets: Images to score all heads on after every epoch, by name.
        folder: Folder of the run, from `run_folder`.

    Raises:
        ConfigError: If the folder belongs to a different run.
        DataError: If an image cannot be read.
        DinoevalError: If all heads diverge or the folder cannot be written.
    """
    with folder:
        _train(sweep, source, rows, eval_sets, folder)


def run_folder(path: Path, settings: dict[str, Any], *, wait: bool) -> RunFolder:
    """Make the folder of a run of `train_heads`.

    Args:
        path: The folder.
        settings: What two runs must share for one to resume the other. JSON values.
        wait: Whether to wait for another run in the folder instead of raising an error.

    Returns:
        The folder; it is created when the run begins.
    """
    return RunFolder(path, settings, checkpoint=STATE, settings_key="recipe", wait=wait)


def _train(sweep: Sweep, source: FeatureSource, rows: np.ndarray, eval_sets: Mapping[str, EvalSet], folder: RunFolder) -> None:
    epochs = sweep.settings.epochs
    if state := folder.resume(epochs):
        sweep.restore(state)
    if sweep.epoch < epochs and isinstance(source, Augmented):
        _log_duration(sweep, source, rows)
    saved = time.monotonic()
    world_size, rank = distributed.world_size(), distributed.rank()
    for epoch in range(sweep.epoch, epochs):
        steps = sweep.steps(rows)
        shards = [step[rank::world_size] for step in steps[sweep.step :]]
        with Progress(f"steps of epoch {epoch}", len(steps), "steps", done=sweep.step) as progress:
            for batch in source.batches(epoch, shards):
                features, good = _gather(batch)
                if len(good):
                    sweep.learn(features, sweep.labels[good])
                sweep.step += 1
                progress.update()
                # The clocks of several processes differ, and all must resume from the same step, so they save whole epochs only.
                if world_size == 1 and sweep.step < len(steps) and time.monotonic() - saved > SAVE_SECONDS:
                    folder.save(sweep.state())
                    saved = time.monotonic()
        for bad in distributed.all_gather(source.bad):
            sweep.bad |= bad
        row = sweep.close_epoch(eval_sets, len(steps))
        folder.save(sweep.state())
        saved = time.monotonic()
        scores = {name: max((score for score in row[name] if score is not None), default=math.nan) for name in eval_sets}
        _log.info("epoch %d: %s", epoch, ", ".join(f"best top-1 on {name} {score:.2f}" for name, score in scores.items()))


def _gather(batch: FeatureBatch) -> FeatureBatch:
    """Concatenate the shards of all processes, in order of rank."""
    if distributed.world_size() == 1:
        return batch
    features, rows = batch
    return concatenate(distributed.all_gather(({name: vectors.cpu() for name, vectors in features.items()}, rows)))


def _log_duration(sweep: Sweep, source: Augmented, rows: np.ndarray) -> None:
    """Estimate the duration of the run from a few batches whose features are not used."""
    starts = range(0, len(rows), source.batch_size)[:_TIMED_BATCHES]
    started, done = time.monotonic(), 0
    for _, good in source.batches(sweep.settings.epochs, [rows[first : first + source.batch_size] for first in starts]):
        done += len(good)
        if time.monotonic() - started > _TIMING_SECONDS:
            break
    epochs = sweep.settings.epochs - sweep.epoch
    images = len(rows) * epochs / distributed.world_size()
    seconds = images * (time.monotonic() - started) / max(1, done)
    _log.info("training %d heads for %d epochs of %d images: about %s", len(sweep.heads), epochs, len(rows), format_duration(seconds))
