"""`dinoeval train`."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import signal
import threading
from collections.abc import Iterator, Sequence

import tyro

from dinoeval.cli.knn_score import KnnScore
from dinoeval.cli.options import parse
from dinoeval.cli.presets import format_option, list_presets
from dinoeval.data.folders import is_split_folder
from dinoeval.data.images import ImageSet, require_files
from dinoeval.data.loading import ImageRule
from dinoeval.data.opening import open_images, open_splits
from dinoeval.distributed import rank
from dinoeval.errors import ConfigError
from dinoeval.files import expand
from dinoeval.models.loading import choose_device
from dinoeval.training.checkpointing import CHECKPOINT
from dinoeval.training.pretrain import loop
from dinoeval.training.pretrain.presets import BASES, Preset, get_preset
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.settings import PretrainSettings

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Train a backbone by self-supervision. Rerun the same command to resume an interrupted run."""

    data: str
    """Labeled dataset as for `dinoeval knn` (trained on its training images; labels serve the k-NN score only), or a folder of
    images."""
    arch: str
    """Architecture: vit_s16, vit_ti4_32, resnet50, xcit_small_12_p16, timm/NAME."""
    preset: str = "released"
    """Training whose values are the defaults of the options below; --list-presets lists those of the paper."""
    base: str | None = None
    """digits or cifar10: apply what the preset changes to a training that two cores can do."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListOptions:
    """List the trainings of the paper: what each changes, its published scores, and values that are published nowhere."""

    list_presets: bool = True
    """List the presets."""
    json: str | None = None
    """Also write them to this file."""


def train(args: Sequence[str], program: str) -> int:
    """Train a backbone; the values of --preset are the defaults of the other options.

    Args:
        args: The words after the name of the command.
        program: What the user typed before them.

    Raises:
        DinoevalError: If an option or the data cannot be used.
    """
    if "--list-presets" in args:
        (listing,) = parse((ListOptions(),), args, program, ListOptions.__doc__ or "")
        return list_presets(listing.json)
    words = [word for arg in args for word in arg.split("=", 1)]
    following = dict(itertools.pairwise(words))
    name, base = following.get("--preset", "released"), following.get("--base")
    preset = get_preset(name, base)
    options = Options(data=tyro.MISSING, arch=preset.arch, preset=name, base=base)
    defaults = options, PretrainSettings(out=tyro.MISSING), preset.recipe
    options, settings, recipe = parse(
        defaults, args, program, f"{Options.__doc__} Presets: {', '.join(BASES)}, and those of --list-presets."
    )
    _describe(preset, options.arch, recipe)
    images, knn_eval = _open(options, settings)
    if knn_eval and rank() == 0 and not (expand(settings.out) / CHECKPOINT).exists():
        knn_eval.report_pixels()
    try:
        with _noting_sigterm() as stopped:
            final = loop.train(images, options.arch, recipe, settings, knn_eval, stopped.is_set)
    except loop.Stopped as message:
        _log.info("%s", message)
        return 0
    if rank() == 0:
        print(f"{final}\nto evaluate it: dinoeval knn --weights {final} --data {options.data}")
    return 0


@contextlib.contextmanager
def _noting_sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, as SLURM sends it before it ends a job. Only the main thread can handle signals."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _describe(preset: Preset, arch: str, recipe: Recipe) -> None:
    """Log what a preset stands for, and which of its values the user has changed."""
    given, own = dataclasses.asdict(recipe) | {"arch": arch}, dataclasses.asdict(preset.recipe) | {"arch": preset.arch}
    changed = [f"{format_option(name, given[name])} instead of {own[name]}" for name in own if given[name] != own[name]]
    if changed:
        _log.info("%s with other values: %s", preset.id, "; ".join(changed))
    if preset.published and not changed:
        scores = ", ".join(f"{name} {value}" for name, value in preset.published.items())
        _log.info("%s: published on ImageNet: %s", preset.id, scores)
    for choice in preset.choices:
        _log.info("%s: not published, chosen: %s", preset.id, choice)
    if preset.note:
        _log.info("%s: %s", preset.id, preset.note)


def _open(options: Options, settings: PretrainSettings) -> tuple[ImageSet, KnnScore | None]:
    """Open the images to train on; the second value computes the k-NN score, if they have labels."""
    folder = expand(options.data)
    rule = ImageRule(settings.exif_transpose)
    if folder.is_dir() and not is_split_folder(folder):
        images = open_images(folder)
        require_files(images, advice="")
        return images, None
    images, val = (split.with_rule(rule) for split in open_splits(options.data))
    require_files(images, advice="")
    for note in dict.fromkeys((*images.notes, *val.notes)):
        _log.warning("%s", note)
    if not settings.knn_every:
        return images, None
    if images.multi_label:
        raise ConfigError(f"{options.data} is a multi-label dataset, which the k-NN score does not support: pass --knn-every 0")
    return images, KnnScore(images, val, options.arch, choose_device(settings.device)[0])
