"""Label propagation on DAVIS (Table 5): the objects of the first frame are propagated through a video by patch tokens alone.

Frames have a short side of 480 pixels; their long side is cut to a multiple of 64. Patch tokens pass the final norm and are
L2-normalized. The context of a frame is the first frame and the previous 7. Each token averages the labels of the 5 most
similar context tokens at most 12 rows and columns away, with weight exp(cosine / 0.1). Source: eval_video_segmentation.py
of facebookresearch/dino. The paper only states that it follows Jabri et al., whose code has other values.

Region similarity J and contour accuracy F are those of davis2017-evaluation, semi-supervised. The first and the last frame
do not count, and void counts as background. The mean is over the objects of all sequences, not over sequences. The objects
of a sequence are the labels of its first mask; other labels are reported.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval import distributed
from dinoeval.data.davis import Video, open_davis
from dinoeval.data.images import from_files
from dinoeval.data.masks import decode_mask
from dinoeval.data.remarks import merge_remarks
from dinoeval.errors import ConfigError, DataError, join_names
from dinoeval.files import expand
from dinoeval.progress import track
from dinoeval.protocols._davis_masks import METRICS, Predictions, format_ranges, open_predictions, score_objects
from dinoeval.protocols._instances import known, query_scores, resolve_root
from dinoeval.results import Result, Scores
from dinoeval.run_record import SplitRecord
from dinoeval.video_config import VideoConfig

if TYPE_CHECKING:
    from dinoeval.data.frame_transforms import FrameTransform
    from dinoeval.data.loading import ImageRule
    from dinoeval.run_record import RunRecord
    from dinoeval.session import Session

VERSION = 2
_PROPAGATION = tuple(field.name for field in dataclasses.fields(VideoConfig))  # options that --masks does not use
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(VideoConfig):
    """Propagate labels through the videos of DAVIS."""

    data: str | None = None
    """Folder with JPEGImages/480p, Annotations/480p and ImageSets, of DAVIS 2017 or 2016. If only first frames have annotations, masks
    are propagated but not scored (default: $DINOEVAL_DATA/DAVIS)."""
    sequences: tuple[str, ...] = ()
    """Names of sequences, or one file that lists them (default: ImageSets/2017/val.txt, else that of 2016)."""
    out: str | None = None
    """Folder for the masks, OUT/<sequence>/NNNNN.png. Sequences that are finished there are not repeated (default: a folder in the
    feature cache)."""
    masks: str | None = None
    """Score existing masks, MASKS/<sequence>/NNNNN.png, instead of propagating. Only Annotations/ is needed, and no network is used
    (default: propagate)."""
    overlay: str | None = None
    """Folder for an animated GIF and a contact sheet of each sequence, with its masks over its frames (default: not drawn)."""


@dataclasses.dataclass
class _Outcome:
    """The masks and scores of one sequence."""

    scores: dict[str, np.ndarray]
    """(objects,) fractions by metric; empty if the sequence is not scored."""
    lost: list[int]
    """Labels of the first mask that no token has."""
    constant: dict[str, list[int]]
    """Labels whose soft map is constant, by frame."""
    seconds: dict[str, float]
    """Wall-clock time by stage."""
    predictions: Predictions | None = None
    """The masks; None if the sequence is not scored."""


def run(config: Config, session: Session) -> Result:
    """Propagate the first masks of all sequences and score the masks.

    Finished sequences are not repeated. Several processes share the sequences.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with J&F, J, F, and the recall and decay of J and F, in percent; without metrics if only first frames have
        annotations.

    Raises:
        ConfigError: If an option is out of range, or --out belongs to a different run.
        DataError: If the dataset or a mask cannot be used.
    """
    record = session.record("davis", VERSION, config)
    with record.stage("open"):
        _check(config, session)
        root = resolve_root(config.data, "DAVIS", "the folder with JPEGImages/ and Annotations/")
        if config.overlay is not None:
            from dinoeval.figures.overlay import make_folder

            make_folder(expand(config.overlay))
        videos = open_davis(root, config.sequences, session.rule, images=config.masks is None or config.overlay is not None)
        if config.masks is not None and not videos[0].annotated:
            raise DataError(f"{root} has annotations of first frames only, so --masks {config.masks} cannot be scored: remove --masks")
        transform = config.frame_transform(session) if config.masks is None else None
    work = _Propagating(config, session, videos, transform) if transform else _Scoring(expand(config.masks or ""))
    shard = distributed.shard(len(videos))
    numbers = track(shard, "sequences", len(shard), "sequences") if config.masks is not None else shard
    own = [(number, work.process(videos[number])) for number in numbers]
    if config.overlay is not None:
        with record.stage("overlay"):
            _draw(expand(config.overlay), [videos[number] for number, _ in own], work.folder, session.rule)
    outcomes = [outcome for _, outcome in sorted(pair for part in distributed.all_gather(own) for pair in part)]
    for outcome in outcomes:
        for stage, seconds in outcome.seconds.items():
            record.seconds[stage] = record.seconds.get(stage, 0.0) + seconds
    if isinstance(work, _Propagating) and work.marker and distributed.rank() == 0:
        work.marker.touch()
    _describe_run(record, root, videos, outcomes)
    record.transform = transform.id if transform else "none"
    backbone = _no_backbone(config.masks) if config.masks is not None else None
    return record.result(_scores(record, videos, outcomes), backbone=backbone)


def _check(config: Config, session: Session) -> None:
    """Check that --masks is passed without options of propagation."""
    settings = session.config
    if config.masks is None:
        return
    network = {"out": config.out, "arch": settings.arch, "weights": settings.weights}
    reading = {"bad_images": settings.bad_images == "skip", "transform": settings.transform != "auto"}
    if unused := [name for name, value in (network | reading).items() if value] + _changed(config):
        raise ConfigError(f"--masks scores existing masks and uses no network: leave out --{unused[0].replace('_', '-')}")


def _changed(config: Config) -> list[str]:
    """List the options of propagation that do not have their default values."""
    default = Config()
    return [name for name in _PROPAGATION if getattr(config, name) != getattr(default, name)]


@dataclasses.dataclass
class _Scoring:
    """Scores existing masks."""

    folder: Path

    def process(self, video: Video) -> _Outcome:
        if not (self.folder / video.name).is_dir():
            raise DataError(f"{self.folder} has no folder {video.name}: --masks expects MASKS/<sequence>/NNNNN.png")
        started = time.monotonic()
        predictions = open_predictions(video, self.folder / video.name)
        scores = score_objects(video, predictions)
        return _Outcome(scores, [], {}, {"scores": time.monotonic() - started}, predictions)


class _Propagating:
    """Propagates masks, then scores them."""

    def __init__(self, config: Config, session: Session, videos: list[Video], transform: FrameTransform) -> None:
        from dinoeval.data.mask_folders import read_record
        from dinoeval.features.cache import FINISHED, RUNS
        from dinoeval.features.spec import key_of

        self.session, self.config, self.transform, self.done = session, config, transform, 0
        fingerprints = {video.name: video.fingerprint() for video in videos}
        common = {
            "version": VERSION,
            "backbone": session.backbone.digest,
            "network": dataclasses.asdict(session.backbone.config),
            "precision": session.backbone.precision,
            "transform": transform.id,
            "image": session.rule.id,
            **config.propagation_options(),
        }
        self.settings = {name: {**common, "frames and first mask": fingerprint} for name, fingerprint in fingerprints.items()}
        runs = session.cache.root / RUNS
        self.folder = expand(config.out) if config.out else runs / f"davis-{key_of({**common, 'videos': fingerprints})}"
        self.marker = None if config.out else self.folder / FINISHED
        # Masks of another run are rejected before any work.
        self.earlier = {name: read_record(self.folder / name, settings) for name, settings in self.settings.items()}
        self.count = len(videos)
        _log.info("writing masks to %s", self.folder)

    def process(self, video: Video) -> _Outcome:
        started = time.monotonic()
        earlier = self.earlier[video.name]
        record = earlier or self._make(video)
        made = time.monotonic()
        self.done += 1
        how = "from an earlier run" if earlier else f"in {made - started:.1f} s"
        _log.info("%s: %d masks %s (%d of %d sequences)", video.name, len(video.frames), how, self.done, self.count)
        predictions = open_predictions(video, self.folder / video.name) if video.annotated else None
        scores = score_objects(video, predictions) if predictions else {}
        seconds = {"masks": made - started, "scores": time.monotonic() - made}
        return _Outcome(scores, record["lost"], record["constant"], seconds, predictions)

    def _make(self, video: Video) -> dict[str, Any]:
        from dinoeval.data.frames import read_frame
        from dinoeval.data.mask_folders import write_masks
        from dinoeval.video import Propagation

        propagation = Propagation(self.session.backbone, video.first_mask, self.transform, self.config)
        names = [path.stem for path in video.frames]
        images = (read_frame(path, self.session.rule) for path in video.frames)
        frames = track(images, f"frames of {video.name}", len(names), "frames")
        masks = zip((f"{name}.png" for name in names), propagation.masks(names, frames), strict=True)
        return write_masks(
            self.folder / video.name,
            self.settings[video.name],
            masks,
            lambda: {"lost": propagation.lost, "constant": propagation.constant},
        )


def _draw(folder: Path, videos: list[Video], masks: Path, rule: ImageRule) -> None:
    """Draw the frames that have a mask. Masks of --masks may lack the first and the last frame."""
    from dinoeval.data.frames import read_frame
    from dinoeval.figures.overlay import draw_video

    for video in videos:
        found = {path: masks / video.name / video.mask_name(number) for number, path in enumerate(video.frames)}
        found = {path: mask for path, mask in found.items() if mask.exists()}
        if found:
            frames = (read_frame(path, rule) for path in found)
            titles = [path.stem for path in found]
            draw_video(folder, video.name, titles, frames, lambda found=found: (decode_mask(path)[0] for path in found.values()))


def _describe_run(record: RunRecord, root: Path, videos: list[Video], outcomes: list[_Outcome]) -> None:
    """Note the data, the resolved options and what happened in the record."""
    config: Config = record.config
    scored = config.masks is not None
    record.use_data(str(root), **_splits(root, videos))
    record.resolved |= {
        "sequences": [video.name for video in videos],
        "out": None,
        "overlay": None,
        "masks": scored,
        **(dict.fromkeys(_PROPAGATION) if scored else {}),
    }
    record.details |= {
        "sequences": len(videos),
        "objects": sum(len(video.labels) for video in videos),
        "frames": sum(len(video.names) for video in videos),
        "annotated": videos[0].annotated,
    }
    record.notes += _notes(videos, outcomes)


def _scores(record: RunRecord, videos: list[Video], outcomes: list[_Outcome]) -> Scores:
    if not videos[0].annotated:
        return Scores(metrics={}, standard_errors={}, table=_table(videos, outcomes), samples={"path": []})
    values = {metric: np.concatenate([outcome.scores[metric] for outcome in outcomes]) for metric in METRICS}
    names = [f"{video.name}/{label}" for video in videos for label in video.labels]
    return query_scores(record, values, names, unit="objects", table=_table(videos, outcomes))


def _no_backbone(masks: str) -> dict[str, Any]:
    name = f"masks in {expand(masks).resolve().name}"
    return {"arch": "none", "weights": name, "layout": name, "key": None, "random": False, "digest": "", "precision": "none", "device": ""}


def _splits(root: Path, videos: list[Video]) -> dict[str, SplitRecord]:
    files = {
        "frames": [path for video in videos for path in video.frames],
        "annotations": [path for video in videos for path in video.annotations],
    }
    remarks = {"frames": merge_remarks(video.remarks for video in videos)}
    return {
        name: SplitRecord(
            from_files(str(root), name, root, [path.relative_to(root).as_posix() for path in paths]), [], remarks.get(name, {})
        )
        for name, paths in files.items()
        if paths
    }


def _notes(videos: list[Video], outcomes: list[_Outcome]) -> list[str]:
    pairs = list(zip(videos, outcomes, strict=True))
    lost = [f"{video.name} {label}" for video, outcome in pairs for label in outcome.lost]
    constant = [f"{video.name} {frame}" for video, outcome in pairs for frame in outcome.constant]
    predictions = [(video.name, outcome.predictions) for video, outcome in pairs if outcome.predictions]
    void = [f"{video.name} ({video.void} of {len(video.annotations)})" for video in videos if video.void]
    found = [
        (lost, "objects that are lost when the first mask is resized to tokens: {}"),
        (constant, "frames in which a soft map is constant: {}"),
        ([video.name for video in videos if len(video.names) < 3 and video.annotated], "sequences of fewer than 3 frames, not scored: {}"),
        (
            [f"{video.name} {format_ranges(video.unused_labels)}" for video in videos if video.unused_labels],
            "labels that no annotation contains, which are not objects (the official evaluation scores them 100): {}",
        ),
        (
            [f"{video.name} {label} (from frame {frame})" for video in videos for label, frame in video.late_labels.items()],
            "objects that the first mask does not contain, which are neither propagated nor scored: {}",
        ),
        (
            [f"{video.name} {label}" for video in videos for label in video.vanished_labels if video.annotated],
            "objects that no scored annotation contains, which score 100 if they are not predicted: {}",
        ),
        (void, "annotations with label 255, which counts as background: {}"),
        ([video.name for video in videos if video.first_mask.all()], "sequences whose first mask has no background: {}"),
        (
            [masks.exchanged for _, masks in predictions if masks.exchanged],
            "palettes that differ (the index counts, not the color): {}",
        ),
        ([name for name, masks in predictions if masks.empty], "sequences whose masks contain no object: {}"),
        ([f"{name}/{stem}.png" for name, masks in predictions for stem in masks.extra], "masks of no annotated frame, not scored: {}"),
    ]
    notes = [text.format(join_names(names, 20)) for names, text in found if names]
    return notes if videos[0].annotated else [*notes, "only first frames have annotations, so the masks are not scored"]


def _table(videos: list[Video], outcomes: list[_Outcome]) -> list[dict[str, Any]]:
    """Return one row per sequence; if a sequence has several objects, also one row per object; in percent."""
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    any_failed = any(outcome.lost or outcome.constant for outcome in outcomes)
    for video, outcome in zip(videos, outcomes, strict=True):
        means = {metric: _percent(outcome.scores[metric].mean()) for metric in METRICS[:3] if outcome.scores}
        failed = {"lost": " ".join(map(str, outcome.lost)), "constant": len(outcome.constant)} if any_failed else {}
        rows.append({"sequence": video.name, "frames": len(video.names), "objects": len(video.labels), **means, **failed})
        for place, label in enumerate(video.labels if outcome.scores else ()):
            scores = {metric: _percent(outcome.scores[metric][place]) for metric in METRICS}
            parts.append({"sequence": video.name, "object": label, **scores})
    return rows + (parts if len(parts) > len(rows) else [])


def _percent(fraction: float) -> float | None:
    return known(100 * float(fraction))
