"""What retrieval, copy detection and the other protocols with per-query scores share: descriptors, whitening, bootstrap errors.

Q queries, N database images, D dims.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoeval.data.opening import open_images
from dinoeval.environment import data_folder
from dinoeval.errors import ConfigError, DataError
from dinoeval.files import expand
from dinoeval.maths.bootstrap import DRAWS, LEVEL, SEED, BootstrapEstimate, bootstrap_mean
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.maths.ranks import count_closer_distractors
from dinoeval.maths.whitening import Whitening, learn_whitening
from dinoeval.results import Scores

if TYPE_CHECKING:
    from dinoeval.data.images import ImageSet
    from dinoeval.data.transforms import Transform
    from dinoeval.features.features import Features
    from dinoeval.features.readout import Readout
    from dinoeval.run_record import RunRecord

_log = logging.getLogger(__name__)


def resolve_root(data: str | None, name: str, expected: str) -> Path:
    """Return the folder of a dataset: the one that --data names, or $DINOEVAL_DATA/NAME.

    Args:
        data: What the user passed.
        name: Folder below $DINOEVAL_DATA; empty for $DINOEVAL_DATA itself.
        expected: What --data takes, for the message.

    Returns:
        The folder.

    Raises:
        ConfigError: If neither exists.
        DataError: If --data names something other than a folder.
    """
    root = data_folder()
    if data is not None:
        if not expand(data).is_dir():
            raise DataError(f"--data {data} is not a folder: pass --data, {expected}")
        return expand(data)
    if root is not None and (root / name).is_dir():
        return root / name
    default = f"$DINOEVAL_DATA{'/' + name if name else ''}"
    raise ConfigError(f"--data is not set and {default} does not exist: pass --data, {expected}")


def open_image_folder(folder: str | None, option: str) -> ImageSet | None:
    """Open the images of an optional folder as a split that is named like its option.

    Args:
        folder: What the user passed, or None.
        option: Name of the option without dashes, such as `distractors`.

    Raises:
        DataError: If the folder does not exist or holds no image.
    """
    if folder is None:
        return None
    if not expand(folder).is_dir():
        raise DataError(f"--{option} {folder} does not exist: pass a folder of images")
    return dataclasses.replace(open_images(folder), split=option)


def folder_names(config: Any) -> dict[str, str]:
    """Return the names of the folders that --distractors and --whitening name.

    A Result holds the name and not the path, so that it does not depend on where the folder is stored.

    Args:
        config: A Config with these two options.

    Returns:
        Folder name by option, for the options that are set.
    """
    return {option: Path(value).name for option in ("distractors", "whitening") if (value := getattr(config, option))}


@dataclasses.dataclass
class Descriptors:
    """Extracts the vectors that are compared, with one readout and transform, and adds what it did to the record of the run."""

    record: RunRecord
    readout: Readout
    transform: Transform
    whitening: Whitening | None = None

    def __post_init__(self) -> None:
        self.record.transform = self.transform.id

    def extract(self, split: str, images: ImageSet) -> Features:
        """Return the features of images and note them in the record as a split.

        Args:
            split: Name in the Result, such as `queries`.
            images: The image set.
        """
        features = self.record.session.features(images, self.readout, transform=self.transform)
        self.record.splits[split] = features
        self.record.seconds[f"{split} features"] = features.seconds
        return features

    def learn_whitening(self, images: ImageSet, center: bool) -> None:
        """Learn a whitening from the features of images and apply it to all descriptors from now on.

        Args:
            images: At least two images.
            center: Whether to use the covariance about the mean.

        Raises:
            DataError: If the images do not determine a whitening.
        """
        features = self.extract("whitening", images) if len(images) >= 2 else None
        if features is None or len(features) < 2:
            count = len(images) if features is None else len(features)
            raise DataError(f"--whitening {images.name} has {count} readable image: at least 2 are needed, the paper used 20,000")
        dims = int(np.prod(features.entry.feature_shape))
        if len(features) < dims:
            note = f"the whitening is learned from {len(features):,} images, fewer than its {dims:,} dimensions: it stretches the others"
            _log.warning(note)
            self.record.notes.append(note)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.whitening = learn_whitening(features.blocks(), center)
        if not np.isfinite(self.whitening.projection).all():
            raise DataError(f"--whitening {images.name}: all images have the same features, which determine no whitening")

    def matrix(self, features: Features) -> np.ndarray:
        """Return the L2-normalized descriptors of features.

        Args:
            features: Features of N images.

        Returns:
            (N, D) float32, whitened if a whitening was learned.
        """
        return np.concatenate(list(self.blocks(features)))

    def blocks(self, features: Features) -> Iterator[np.ndarray]:
        """Yield the descriptors of `matrix` in blocks of bounded size.

        Args:
            features: Features of N images.

        Yields:
            (n, D) float32.
        """
        for block in features.blocks():
            yield l2_normalize(self.whitening(block) if self.whitening else block)

    def compare(self, queries: Features, database: Features, distractors: ImageSet | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Compare queries with a database and count the distractors in between.

        Args:
            queries: Features of Q images.
            database: Features of N images.
            distractors: More database images, none of which is correct for any query.

        Returns:
            Cosines (Q, N) float32; and how many distractors are closer to the query than each database image, (Q, N)
            int64, or None without distractors.
        """
        others = self.extract("distractors", distractors) if distractors else None
        with self.record.stage("comparison"):
            vectors = self.matrix(queries)
            cosines = vectors @ self.matrix(database).T
            closer = count_closer_distractors(vectors, cosines, self.blocks(others)) if others else None
        return cosines, closer


def bootstrap_metrics(outcomes: Mapping[str, np.ndarray]) -> dict[str, BootstrapEstimate]:
    """Average the outcomes of each metric over the queries that have one.

    Args:
        outcomes: Fractions (Q,) by metric, NaN for queries that do not count.

    Returns:
        Means in percent with bootstrap errors, by metric; metrics without an outcome are left out.
    """
    scored = {metric: values[~np.isnan(values)] for metric, values in outcomes.items()}
    return {metric: bootstrap_mean(100 * values) for metric, values in scored.items() if len(values)}


def query_scores(
    record: RunRecord,
    outcomes: Mapping[str, np.ndarray],
    names: Sequence[str],
    *,
    unit: str = "queries",
    table: Sequence[dict[str, Any]] = (),
) -> Scores:
    """Make scores of outcomes per query, with bootstrap errors, and note in the record how the errors were computed.

    Args:
        record: The record of the run.
        outcomes: Fractions (Q,) by metric, NaN for queries that do not count.
        names: The Q names of the queries.
        unit: What the Q items are, for the note.
        table: More rows for the Result.
    """
    estimates = bootstrap_metrics(outcomes)
    if estimates:
        record.notes.append(f"standard errors and {LEVEL:.0%} intervals are from {DRAWS:,} bootstrap samples of the {unit}, seed {SEED}")
    if missing := [metric for metric in outcomes if metric not in estimates]:
        record.notes.append(f"left out, because none of the {unit} counts: {', '.join(missing)}")
    return Scores(
        metrics={metric: estimate.mean for metric, estimate in estimates.items()},
        standard_errors={metric: estimate.error for metric, estimate in estimates.items() if estimate.error is not None},
        table=list(table),
        samples={"path": list(names), **{metric: [known(one) for one in values.tolist()] for metric, values in outcomes.items()}},
    )


def known(value: float) -> float | None:
    """Replace NaN, which JSON cannot hold.

    Args:
        value: Any number.

    Returns:
        The number, or None for NaN.
    """
    return None if math.isnan(value) else value
