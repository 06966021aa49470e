"""What retrieval and copy detection share: vectors, whitening, distractors, the spread of scores, what a Result says.

Q queries, N database rows, D dims.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.images import open_images
from dinoeval.environment import data_folder
from dinoeval.errors import ConfigError, DataError
from dinoeval.files import expand
from dinoeval.maths.bootstrap import DRAWS, LEVEL, SEED, BootstrapEstimate, bootstrap_mean
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.maths.ranks import count_closer_distractors
from dinoeval.maths.whitening import Whitening, learn_whitening
from dinoeval.models.zoo import ZOO
from dinoeval.results import Result
from dinoeval.session import describe_data

if TYPE_CHECKING:
    from dinoeval.data.images import ImageSet
    from dinoeval.data.transforms import Transform
    from dinoeval.features.extract import Features
    from dinoeval.features.readout import Readout
    from dinoeval.session import Session

_log = logging.getLogger(__name__)


def resolve_root(data: str | None, inside: str, wanted: str) -> Path:
    """The folder that was named, or $DINOEVAL_DATA/<inside>; raises ConfigError where there is neither."""
    root = data_folder()
    if data is not None:
        return expand(data)
    if root is not None and (root / inside).is_dir():
        return root / inside
    raise ConfigError(f"no data were named and there is no $DINOEVAL_DATA{'/' + inside if inside else ''}: give --data, {wanted}")


def open_image_folder(folder: str | None, kind: str) -> ImageSet | None:
    """The images of an optional folder, as a set called `kind`."""
    if folder is None:
        return None
    if not expand(folder).is_dir():
        raise DataError(f"there is no folder {folder}, which --{kind} names")
    return dataclasses.replace(open_images(folder), split=kind)


@dataclasses.dataclass
class Descriptors:
    """Makes the vectors that are compared, by one readout and transform, and keeps what was extracted and how long it took."""

    session: Session
    readout: Readout
    transform: Transform
    features: dict[str, Features] = dataclasses.field(default_factory=dict)
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    whitening: Whitening | None = None
    notes: list[str] = dataclasses.field(default_factory=list)

    def extract(self, kind: str, images: ImageSet) -> Features:
        """The features of `images`; they go into the Result as `kind`."""
        features = self.session.features(images, self.readout, transform=self.transform)
        self.features[kind], self.seconds[f"{kind} features"] = features, features.seconds
        return features

    def learn_whitening(self, images: ImageSet, centred: bool) -> None:
        """Whiten all vectors from now on by what the features of `images` say."""
        if len(images) < 2:
            raise DataError(f"whitening cannot be learned from {len(images)} image; the paper used 20,000")
        features = self.extract("whitening", images)
        dims = int(np.prod(features.entry.row_shape))
        if len(features) < 2:
            raise DataError(f"whitening cannot be learned from {len(features)} image that can be read; the paper used 20,000")
        if len(features) < dims:
            note = f"whitening is learned from {len(features):,} images, fewer than the {dims:,} dims: it stretches what it has not seen"
            _log.warning(note)
            self.notes.append(note)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.whitening = learn_whitening(features.blocks(), centred)
        if not np.isfinite(self.whitening.projection).all():
            raise DataError(f"whitening cannot be learned from {images.name}: its images have the same features")

    def of(self, features: Features) -> np.ndarray:
        """Rows (N, D), whitened where that was learned, of length 1."""
        return np.concatenate(list(self.blocks(features)))

    def blocks(self, features: Features) -> Iterator[np.ndarray]:
        """The same in blocks of bounded size."""
        for block in features.blocks():
            yield l2_normalize(self.whitening(block) if self.whitening else block)

    def compare(self, queries: Features, database: Features, distractors: ImageSet | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Cosines (Q, N) of queries and database, and how many distractors are closer (Q, N) where there are any."""
        strangers = self.extract("distractors", distractors) if distractors else None
        began = time.monotonic()
        vectors = self.of(queries)
        cosines = vectors @ self.of(database).T
        closer = count_closer_distractors(vectors, cosines, self.blocks(strangers)) if strangers else None
        self.seconds["comparison"] = time.monotonic() - began
        return cosines, closer


def network_name(session: Session) -> str:
    """What published numbers of this network go by: a name of the zoo, or what timm publishes, without its tag.

    A file goes by the released file's name that it has, and otherwise by its own: one architecture has several rows here.
    """
    source = session.backbone.provenance.name
    names = {row.filename: row.name for row in ZOO.values()}
    name = source if source in ZOO else names.get(Path(source).name, source)
    return name.removesuffix("_full").split(".")[0] if name.startswith("timm/") else name.removesuffix("_full")


def common_requirements(session: Session, published: bool, bad: bool) -> list[tuple[bool, str]]:
    """What keeps any score of these protocols from being compared with the paper's, each with whether it holds."""
    backbone = session.backbone
    return [
        (backbone.provenance.random, "the weights are random"),
        (not published, f"no score of this protocol is published for {network_name(session)}"),
        (backbone.precision != "fp32", f"the precision is {backbone.precision}, the paper's fp32"),
        (backbone.provenance.key == "student", "the student was scored, the paper scores the teacher"),
        (bad, "images that cannot be read were left out"),
    ]


def first_reason(reasons: Sequence[tuple[bool, str]]) -> str | None:
    """The reasons that hold, as one sentence; None where none does."""
    return "; ".join(reason for holds, reason in reasons if holds) or None


def bootstrap_metrics(outcomes: Mapping[str, np.ndarray]) -> dict[str, BootstrapEstimate]:
    """The mean of each metric's outcomes (Q,), fractions, over the queries that have one; in percent. Without any: left out."""
    scored = {metric: values[~np.isnan(values)] for metric, values in outcomes.items()}
    return {metric: bootstrap_mean(100 * values) for metric, values in scored.items() if len(values)}


def ranking_result(
    protocol: str,
    version: int,
    config: Any,
    vectors: Descriptors,
    name: str,
    outcomes: Mapping[str, np.ndarray],
    queries: Sequence[str],
    *,
    settled: Mapping[str, Any],
    notes: Sequence[str],
    **rest: Any,
) -> Result:
    """A Result of outcomes by metric, (Q,) fractions, NaN for queries that are not counted; `rest` are fields of Result."""
    spreads = bootstrap_metrics(outcomes)
    session = vectors.session
    folders = {key: Path(value).name for key in ("distractors", "whitening") if (value := getattr(config, key))}
    lacking = [metric for metric in outcomes if metric not in spreads]
    return Result(
        protocol=protocol,
        version=version,
        metrics={metric: spread.mean for metric, spread in spreads.items()},
        standard_errors={metric: spread.error for metric, spread in spreads.items() if spread.error is not None},
        config={**dataclasses.asdict(config), **folders, "data": name, **settled},
        backbone=session.describe_backbone(),
        data=describe_data(name, **vectors.features),
        transform=vectors.transform.id,
        machine=session.machine,
        notes=[
            *notes,
            *vectors.notes,
            f"errors, and the {LEVEL:.0%} from low to high, are of {DRAWS:,} draws of the queries with replacement, seed {SEED}",
            *([f"without a query that has a right image, and left out: {', '.join(lacking)}"] if lacking else []),
        ],
        samples={
            "path": list(queries),
            **{metric: [None if math.isnan(one) else one for one in values.tolist()] for metric, values in outcomes.items()},
        },
        **rest,
    )
