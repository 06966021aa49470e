"""Landmark retrieval on the revisited Oxford and Paris datasets (Table 3).

The final-norm [CLS] token of the last block is L2-normalized, and the database is ranked by cosine to each query. Images
keep their aspect ratio: they are reduced to fit in a square (Lanczos) and never enlarged. At several scales (1, 1/sqrt 2,
1/2) the raw features are averaged and the mean is L2-normalized. Sources: eval_image_retrieval.py of
facebookresearch/dino; for the scores, evaluate.py of revisitop: average precision by trapezoids, with junk images removed
from the ranking.

The paper queries with the whole image; the official benchmark crops queries to their bounding boxes (--query-crop). The
released code divides the multi-scale feature by the norm of the whole batch, which is correct for its batches of one. Here
each image is divided by its own norm, and images of equal size share a batch. The released code fills truncated files with
gray; here they are listed and rejected. The released code does not define the order of equal cosines; here the earlier
image comes first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import numpy as np

from dinoeval.data.retrieval import LEVELS, DatasetName, Query, open_retrieval
from dinoeval.data.transforms import MULTISCALE, Thumbnail
from dinoeval.errors import ConfigError
from dinoeval.features.readout import Cls
from dinoeval.maths.ranks import positive_ranks, rank_by_similarity, score_ranks
from dinoeval.protocols._instances import Descriptors, bootstrap_metrics, folder_names, open_image_folder, query_scores, resolve_root

if TYPE_CHECKING:
    from dinoeval.features.features import Features
    from dinoeval.results import Result
    from dinoeval.session import Session

VERSION = 1
KS = (1, 5, 10)
SETTINGS: dict[DatasetName, tuple[int, bool]] = {"roxford5k": (224, False), "rparis6k": (512, True)}
"""Image size, and whether at several scales (README of facebookresearch/dino and its issue 90, for the GLDv2 model)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Retrieve landmarks on the revisited Oxford and Paris datasets."""

    dataset: DatasetName = "roxford5k"
    """Dataset to evaluate."""
    data: str | None = None
    """Folder with roxford5k/ or rparis6k/, each with its gnd_*.pkl and jpg/ (default: $DINOEVAL_DATA)."""
    image_size: int | None = None
    """Maximum image side in pixels; the aspect ratio is kept (default: the published setting of the dataset, 224 for Oxford, 512 at
    several scales for Paris)."""
    multiscale: bool = False
    """Average the features at the scales 1, 0.71 and 0.5."""
    query_crop: bool = False
    """Crop queries to their bounding boxes, as in the official benchmark; the paper uses whole images."""
    distractors: str | None = None
    """Folder of images to add to the database, such as the one million of revisitop (default: none)."""
    whitening: str | None = None
    """Folder of images to learn a whitening from (default: none, as in the paper)."""
    center_whitening: bool = False
    """Whiten by the covariance about the mean, instead of the uncentered one that the paper uses for copy detection."""


def run(config: Config, session: Session) -> Result:
    """Rank the database for every query.

    Args:
        config: The options.
        session: The backbone and how images are read.

    Returns:
        A Result with `mAP_LEVEL` and `mP@K_LEVEL` in percent, for the levels easy, medium and hard.

    Raises:
        ConfigError: If an option is out of range.
        DataError: If the dataset cannot be used.
    """
    record = session.record("retrieval", VERSION, config)
    with record.stage("open"):
        size, scales = resolve_setting(config)
        transform = Thumbnail(size, scales, *session.normalization())
        root = resolve_root(config.data, "", f"the folder with {config.dataset}/")
        opened = open_retrieval(root, config.dataset)
        opened = dataclasses.replace(opened, queries=opened.queries.with_rule(session.rule))  # crops are cut from decoded images
        query_images = opened.cropped() if config.query_crop else opened.queries
        distractors = open_image_folder(config.distractors, "distractors")
        whitening = open_image_folder(config.whitening, "whitening")
    record.use_data(str(root))
    descriptors = Descriptors(record, Cls(), transform)
    queries = descriptors.extract("queries", query_images)
    database = descriptors.extract("database", opened.database)
    if whitening:
        descriptors.learn_whitening(whitening, config.center_whitening)
    cosines, closer = descriptors.compare(queries, database, distractors)
    outcomes = score_queries(cosines, closer, queries, database, opened.ground_truth)
    record.resolved |= {
        "image_size": size,
        "multiscale": scales != (1.0,),
        "ground_truth": _digest(opened.ground_truth),
        **folder_names(config),
    }
    estimates = {metric: estimate for metric, estimate in bootstrap_metrics(outcomes).items() if metric.startswith("mAP")}
    table = [{"metric": metric, "low": estimate.low, "high": estimate.high} for metric, estimate in estimates.items()]
    return record.result(query_scores(record, outcomes, queries.images.paths, table=table))


def resolve_setting(config: Config) -> tuple[int, tuple[float, ...]]:
    """Return the image size and scales, by default those of the dataset.

    Args:
        config: The options.

    Returns:
        Pixels of the longest side, and the scales.

    Raises:
        ConfigError: If an option is out of range.

    Examples:
        >>> resolve_setting(Config())
        (224, (1.0,))
    """
    if config.image_size is not None and config.image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, got {config.image_size}")
    if config.center_whitening and config.whitening is None:
        raise ConfigError("--center-whitening requires --whitening")
    size, several = SETTINGS[config.dataset]
    if config.image_size is not None:
        size, several = config.image_size, config.multiscale
    return size, MULTISCALE if several or config.multiscale else (1.0,)


def score_queries(
    cosines: np.ndarray, closer: np.ndarray | None, queries: Features, database: Features, ground_truth: tuple[Query, ...]
) -> dict[str, np.ndarray]:
    """Return average precision and precision at k of every query at each level.

    Queries that cannot be read are not scored. A database image that cannot be read counts as not found.

    Args:
        cosines: (Q, N) of queries and database images.
        closer: (Q, N) number of distractors closer than each database image, or None.
        queries: Features of the queries.
        database: Features of the database images.
        ground_truth: One entry per query of the dataset.

    Returns:
        Fractions (Q,) by metric; NaN for a query without a correct image.
    """
    order = rank_by_similarity(cosines)
    place = np.full(database.entry.num_rows, -1)
    place[database.rows] = np.arange(len(database))
    scored = [ground_truth[row] for row in queries.rows]
    outcomes = {}
    for level in LEVELS:
        pairs = [query.ground_truth(level) for query in scored]
        ranks = [
            positive_ranks(order[row], place[correct], place[junk], None if closer is None else closer[row])
            for row, (correct, junk) in enumerate(pairs)
        ]
        precision, precision_at = score_ranks(ranks, [len(correct) for correct, _ in pairs], KS)
        outcomes |= {f"mAP_{level}": precision, **{f"mP@{k}_{level}": precision_at[:, column] for column, k in enumerate(KS)}}
    return outcomes


def _digest(ground_truth: tuple[Query, ...]) -> str:
    """Return 16 hex digits of the lists and boxes of the ground truth."""
    lists = b";".join(rows.astype("<i8").tobytes() for query in ground_truth for _, rows in sorted(query.lists.items()))
    boxes = repr([query.box for query in ground_truth]).encode()
    return hashlib.sha256(lists + boxes).hexdigest()[:16]
