"""ImageIndex: an open index, which finds the nearest images and duplicates.

Q queries, N images, D dimensions.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.data.remarks import describe_remarks
from dinoeval.errors import CheckpointError, ConfigError, DataError, join_names
from dinoeval.features.readout import parse_readout
from dinoeval.maths.neighbors import l2_normalize, nearest
from dinoeval.models.backbone import Backbone
from dinoeval.search.approximate import ApproximateIndex, read_index
from dinoeval.search.duplicates import DuplicateGroup, link_duplicates
from dinoeval.search.query import Matches, QueryImages, embed_queries
from dinoeval.search.spec import check_readout, check_session, complete_config
from dinoeval.search.store import NEIGHBORS, StoredIndex, open_stored, resolve
from dinoeval.search.threshold import Threshold, measure_threshold
from dinoeval.session import Session, SessionConfig

_log = logging.getLogger(__name__)


class ImageIndex:
    """An open index of the images of a folder. Use `build` or `open` to make one.

    Args:
        stored: The files of the index.
        session: Backbone and transform; by default they are loaded when they are needed first.
        config: Options for loading them.

    Raises:
        ConfigError: If `session` does not match the index.
    """

    def __init__(self, stored: StoredIndex, session: Session | None = None, config: SessionConfig | None = None) -> None:
        self._stored, self._session, self._config = stored, session, config or SessionConfig()
        self.manifest: dict[str, Any] = stored.manifest
        """Metadata: backbone, readout, transform, counts, kind, parameters, recall."""
        # Opened now, because a later build may delete the file. Open files stay readable.
        self._approximate = _open_approximate(stored)
        if session is not None:
            check_session(stored, session)

    def __len__(self) -> int:
        return len(self._stored.vectors)

    def __repr__(self) -> str:
        return f"ImageIndex({self.manifest['folder']}, {len(self):,} images, {self.manifest['kind']})"

    @property
    def paths(self) -> list[str]:
        """Paths of the N images, in the order of the vectors."""
        return self._stored.paths

    @property
    def session(self) -> Session:
        """The backbone and transform of the index, loaded on first use.

        Raises:
            CheckpointError: If the weights are no longer stored at the path used when the index was built.
            ConfigError: If the options name other weights, precision or transform.
        """
        if self._session is None:
            try:
                self._session = Session(complete_config(self._config, self.manifest))
            except CheckpointError as error:
                if self._config.weights is not None:
                    raise
                raise CheckpointError(
                    f"{error} The index {self._stored.folder} needs these weights: pass their path as --weights"
                ) from error
            check_session(self._stored, self._session)
        return self._session

    def vectors(self) -> np.ndarray:
        """Read all features into memory.

        Returns:
            Normalized features, (N, D) float32.
        """
        return self._stored.vectors.take(slice(None))

    def nearest(self, features: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Find the k images nearest to features.

        The result is exact, or has about the recall of an approximate index. That recall is for k = 10; it is lower for a
        larger k.

        Args:
            features: Features, (Q, D) float, not necessarily normalized.
            k: Number of images.

        Returns:
            Cosines, (Q, min(k, N)) float32, in descending order, and rows of the index, (Q, min(k, N)) int64.
        """
        k = min(k, len(self))
        queries = l2_normalize(features)
        if self._approximate is None:
            return nearest(queries, self._stored.vectors.blocks(), k, normalized=True)
        cosines, rows = self._approximate.search(queries, k)
        incomplete = np.flatnonzero((rows < 0).any(1))  # the search effort covered fewer than k vectors
        if len(incomplete):
            cosines[incomplete], rows[incomplete] = nearest(queries[incomplete], self._stored.vectors.blocks(), k, normalized=True)
        return cosines, rows

    def query(self, images: QueryImages, k: int = 10) -> list[Matches]:
        """Find the k images that are most similar to each query.

        If the file of a query is in the index, under any path or link, it is left out of its own result. Copies of it in
        other files are not.

        Args:
            images: A folder, a file, a CSV table or a PIL image; or several paths or PIL images.
            k: Number of images per query.

        Returns:
            One result per readable query.

        Raises:
            ConfigError: If k is below 1.
            DataError: If an image is missing or unreadable.
        """
        if k < 1:
            raise ConfigError(f"--k must be at least 1, got {k}")
        sources, features, remarks = embed_queries(self.session, parse_readout(self.manifest["readout"]), images)
        for note in describe_remarks(remarks, self.session.config.exif_transpose):
            _log.warning("%s", note)
        cosines, rows = self.nearest(features, k + 1)
        results = [self._without_self(*one, k) for one in zip(sources, features, cosines, rows, strict=True)]
        found = {(path, row) for matches in results for path, row in zip(matches.paths, matches.rows, strict=True)}
        if changed := sorted({path for path, row in found if self._stored.is_changed(row)}):
            _log.warning(
                "%d images of the result were changed or deleted after the index was built: %s. Rebuild the index",
                len(changed),
                join_names(changed),
            )
        fewest = min(len(matches.rows) for matches in results)
        if fewest < k:
            _log.warning("k = %d exceeds the %d other images of the index: all of them are returned", k, fewest)
        return results

    def duplicates(self, threshold: float | None = None) -> list[DuplicateGroup]:
        """Find groups of images that are linked by cosines of at least a threshold.

        The comparison is exact for any kind of index.

        Args:
            threshold: Smallest cosine of a pair, from -1 to 1; by default that of `measure_threshold`.

        Returns:
            Groups; those with the most similar pairs come first.

        Raises:
            ConfigError: If the threshold is not a cosine.
            DataError: If the threshold cannot be measured.
        """
        if threshold is None:
            threshold = self.measure_threshold().cosine
        if not -1 <= threshold <= 1:
            raise ConfigError(f"--threshold must be a cosine between -1 and 1, got {threshold}")
        components, best = link_duplicates(self._stored.vectors, threshold)
        return [DuplicateGroup([self.paths[row] for row in rows], rows, best[rows]) for rows in components]

    def measure_threshold(self) -> Threshold:
        """Calibrate the cosine above which two images of this index count as duplicates.

        Up to 64 of the images are copied by re-encoding, downscaling and cropping. The copies are compared with the nearest
        neighbors of up to 1,000 images.

        Returns:
            The threshold, and its effect on these images.

        Raises:
            DataError: If the images are missing or have changed.
        """
        return measure_threshold(self._stored, self.session)

    def _without_self(self, source: str, features: np.ndarray, cosines: np.ndarray, rows: np.ndarray, k: int) -> Matches:
        """Return the k nearest images other than the file of the query, which the index may contain under several links."""
        own_file = None
        if source:
            with contextlib.suppress(OSError):
                own_file = os.stat(source)  # noqa: PTH116
        requested = k + 1
        while True:
            others = [place for place, row in enumerate(rows) if not (own_file and _is_same_file(own_file, self.paths[row]))][:k]
            if len(others) == k or len(rows) == len(self):
                return Matches(source, [self.paths[row] for row in rows[others]], rows[others], cosines[others])
            requested *= 2
            (cosines,), (rows,) = self.nearest(features[None], requested)


def _open_approximate(stored: StoredIndex) -> ApproximateIndex | None:
    kind, parameters = stored.manifest["kind"], stored.manifest["parameters"]
    if kind == "exact":
        return None
    effort = parameters.get("nprobe") or parameters["efSearch"]
    return ApproximateIndex(kind, read_index(stored.file(NEIGHBORS)), stored.vectors, effort, parameters.get("rerank", 1))


def _is_same_file(status: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(status, os.stat(path))  # noqa: PTH116
    except OSError:
        return False


def open(
    index: str | Path, backbone: Backbone | None = None, *, session: SessionConfig | None = None, readout: str | None = None
) -> ImageIndex:
    """Open an index and verify the checksums of its files.

    Args:
        index: Folder of the index.
        backbone: Its backbone; by default the weights that it was built with are loaded when they are needed.
        session: Options for loading them.
        readout: Expected readout; any by default.

    Returns:
        The index.

    Raises:
        DataError: If the index does not exist or is corrupted.
        ConfigError: If backbone, options or readout do not match the index.
    """
    folder = resolve(index)
    stored = open_stored(folder)
    if stored is None:
        raise DataError(f"no index found in {folder}: run `dinoeval search build FOLDER --out {folder}`")
    check_readout(stored, readout)
    config = session or SessionConfig()
    return ImageIndex(stored, Session(complete_config(config, stored.manifest), backbone) if backbone else None, config)
