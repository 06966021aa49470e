"""Classify images by texture: k-NN on patch statistics.

The descriptor of an image is the mean and the standard deviation of each channel of its patch tokens. These statistics do
not depend on where a patch is, so the score shows how far classes differ without their layout. The vote is that of
`dinoeval knn`. Channel statistics as a description of style: Huang and Belongie, ICCV 2017.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from dinoeval.data.images import require_classes
from dinoeval.data.opening import open_splits
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Readout
from dinoeval.maths.neighbors import nearest, vote
from dinoeval.paper.rows import PaperRow, Requirement
from dinoeval.results import Result, Scores, proportion_error

if TYPE_CHECKING:
    from dinoeval.session import Session

VERSION = 1
PAPER_ROWS = (
    PaperRow(
        source="README of dinoeval-texture",
        protocol="texture",
        network="vit_digits",
        metric="top1",
        value=96.4,
        decimals=1,
        requires=(Requirement("config.k", (20,)), Requirement("data.name", ("digits",)), Requirement("transform", ("dino@1:16/16",))),
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Classify images by the statistics of their patch tokens."""

    data: str = "digits"
    """Labeled dataset, as for `dinoeval knn`."""
    k: int = 20
    """Number of neighbors that vote."""


class PatchStatistics(Readout):
    """The readout: patch tokens (N, h, w, D) -> means and standard deviations over positions (N, 2 * D)."""

    id = "texture1"  # part of the cache key: change it if the values change
    patches = True  # it reads the patch tokens of the last block
    num_vectors = 2  # features have 2 * D dims

    def __call__(self, tokens: Any) -> Any:
        import torch

        patches = tokens.patches.flatten(1, 2)  # (N, h * w, D)
        return torch.cat([patches.mean(dim=1), patches.std(dim=1, correction=0)], dim=1)


def run(config: Config, session: Session) -> Result:
    """Score the session's backbone; the Result holds `top1` in percent."""
    if config.k < 1:
        raise ConfigError(f"--k must be at least 1, got {config.k}")
    record = session.record("texture", VERSION, config)
    train, val = (session.features(split, PatchStatistics()) for split in open_splits(config.data))
    require_classes(train.images)
    record.use_data(config.data, train=train, val=val)
    with record.stage("search"):
        cosines, rows = nearest(val.numpy(), train.blocks(), min(config.k, len(train)))  # (Q, k)
    classes, labels = len(train.images.classes), val.images.labels
    votes = vote(cosines, train.images.labels[rows], ks=[cosines.shape[1]], temperature=0.07, num_classes=classes)
    correct = votes[0, :, 0] == labels
    top1 = 100 * float(correct.mean())
    samples = {"path": list(val.images.paths), "label": labels.tolist(), "top1": correct.astype(int).tolist()}
    return record.result(Scores(metrics={"top1": top1}, standard_errors={"top1": proportion_error(top1, len(labels))}, samples=samples))
