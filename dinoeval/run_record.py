"""RunRecord: what a protocol notes during a run, and the Result that is made of it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoeval.data.remarks import Remarks, describe_remarks, merge_remarks
from dinoeval.environment import describe_machine
from dinoeval.results import Result, Scores

if TYPE_CHECKING:
    from dinoeval.data.images import ImageSet
    from dinoeval.features.features import Features
    from dinoeval.session import Session


@dataclasses.dataclass(frozen=True)
class SplitRecord:
    """The images of one split that were used without cached features, and those left out because they cannot be read."""

    images: ImageSet
    """The images that were used; `of` removes the unreadable ones."""
    bad: list[dict[str, Any]]
    """The unreadable images: `path`, `reason`."""
    remarks: Remarks = dataclasses.field(default_factory=dict)
    """Names of images by remark."""

    @classmethod
    def of(cls, images: ImageSet, bad: Sequence[dict[str, Any]] = (), remarks: Remarks | None = None) -> SplitRecord:
        """Record a split of which some images could not be read.

        Args:
            images: All images of the split.
            bad: The unreadable ones among them: `path`, `reason`.
            remarks: Names of images by remark.

        Returns:
            The record, whose images are the readable ones.
        """
        paths = {one["path"] for one in bad}
        kept = [row for row, path in enumerate(images.paths) if path not in paths] if paths else []
        return cls(images.subset(kept) if paths else images, list(bad), remarks or {})

    def __len__(self) -> int:
        return len(self.images)


@dataclasses.dataclass
class RunRecord:
    """The record of a protocol run, from which `result` assembles the Result.

    Examples:
        A protocol's `run` in outline:

            record = session.record("texture", VERSION, config)
            with record.stage("open"):
                train, val = open_splits(data)
            record.use_data(data, train=train_features, val=val_features)
            return record.result(Scores(metrics={"top1": 97.3}, standard_errors={}))
    """

    session: Session
    protocol: str
    version: int
    config: Any
    data_name: str = ""
    splits: dict[str, Features | SplitRecord] = dataclasses.field(default_factory=dict)
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Options whose value was determined during the run; they replace those of `config` in the Result."""
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    transform: str | None = None
    """Id of the transform that was used, if it is not the session's."""
    started: float = dataclasses.field(default_factory=time.monotonic)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time of a block of code.

        Args:
            name: Name of the stage. Times of blocks with the same name are added up.

        Yields:
            Nothing.
        """
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def use_data(self, name: str, /, **splits: Features | SplitRecord) -> None:
        """Note the dataset and the splits that the scores are about.

        Args:
            name: What the user called the dataset.
            **splits: By name, such as `train` and `val`.
        """
        self.data_name = name
        self.splits |= splits

    def result(self, scores: Scores, *, backbone: Mapping[str, Any] | None = None) -> Result:
        """Assemble the Result.

        Args:
            scores: What was measured.
            backbone: Metadata in place of the session's backbone, for scores that no network of the session made.

        Returns:
            The Result of the run.
        """
        self.seconds["total"] = time.monotonic() - self.started
        remarks = merge_remarks(split.remarks for split in self.splits.values())
        about_images = [note for split in self.splits.values() for note in split.images.notes]
        data = {"data": self.data_name} if self.data_name else {}
        return Result(
            **{field.name: getattr(scores, field.name) for field in dataclasses.fields(Scores)},
            protocol=self.protocol,
            version=self.version,
            config={name: _plain(value) for name, value in {**dataclasses.asdict(self.config), **data, **self.resolved}.items()},
            backbone=dict(backbone) if backbone is not None else self.session.describe_backbone(),
            data={
                "name": str(Path(self.data_name)) if self.data_name else "",
                **{name: _describe_split(split) for name, split in self.splits.items()},
            },
            transform=self.transform or self.session.transform.id,
            machine=describe_machine(),
            seconds=dict(self.seconds),
            details=self.details,
            notes=list(dict.fromkeys([*self.notes, *about_images, *describe_remarks(remarks, self.session.config.exif_transpose)])),
            image_rule=self.session.rule.id,
        )


def _plain(value: Any) -> Any:
    """Return the value of an option as JSON can hold it: a path and an enum as text, a set as a sorted list."""
    match value:
        case Path():
            return str(value)
        case enum.Enum():
            return value.name
        case set() | frozenset():
            return sorted(value)
        case dict():
            return {str(name): _plain(one) for name, one in value.items()}
        case list() | tuple():
            return type(value)(map(_plain, value)) if type(value) in (list, tuple) else list(map(_plain, value))
        case _:
            return value


def _describe_split(split: Features | SplitRecord) -> dict[str, Any]:
    return {
        "split": split.images.split,
        "fingerprint": split.images.fingerprint(),
        "images": len(split),
        "classes": len(split.images.classes),
        "bad_images": [bad["path"] for bad in split.bad],
        "skipped_files": dict(split.images.skipped),
    }
