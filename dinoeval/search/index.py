"""ImageIndex: an open index, which finds the nearest images and duplicates.

Q queries, N images, D dimensions.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.coercion import coerce
from dinoeval.data.remarks import log_remarks
from dinoeval.errors import CheckpointError, ConfigError, DataError, join_names
from dinoeval.features.readout import parse_readout
from dinoeval.guard import entry_point
from dinoeval.maths.neighbors import l2_normalize, nearest
from dinoeval.models.backbone import Backbone
from dinoeval.search.approximate import ApproximateIndex, read_index
from dinoeval.search.duplicates import DuplicateGroup, is_chain, link_duplicates, lowest_cosine
from dinoeval.search.files import FileChecker, FileKey, FileStates, check_files, file_key
from dinoeval.search.query import Matches, QueryImages, embed_queries
from dinoeval.search.spec import check_readout, check_session, complete_config, make_session
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
        self.manifest: dict[str, Any] = {**stored.manifest, "folder": str(stored.root)}
        """Metadata: folder of the images, backbone, readout, transform, counts, kind, parameters, recall."""
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
    def unreadable(self) -> list[str]:
        """Paths of files that were skipped because they are not readable images."""
        return [str(self._stored.root / record.name) for record in self._stored.bad]

    @property
    def session(self) -> Session:
        """The backbone and transform of the index, loaded on first use.

        Raises:
            CheckpointError: If the weights are no longer stored at the path used when the index was built.
            ConfigError: If the options name other weights, precision or transform.
        """
        if self._session is None:
            try:
                session = Session(complete_config(self._config, self.manifest))
                check_session(self._stored, session)  # loads the weights
            except CheckpointError as error:
                if self._config.weights is not None:
                    raise
                raise CheckpointError(
                    f"{error} The index {self._stored.folder} needs these weights: pass their path as --weights"
                ) from error
            self._session = session
        return self._session

    def vectors(self) -> np.ndarray:
        """Read all features into memory.

        Returns:
            Normalized features, (N, D) float32.
        """
        return self._stored.vectors.take(slice(None))

    @entry_point
    def nearest(self, features: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Find the k images nearest to features.

        The result is exact, or has about the recall of an approximate index. That recall is for k = 10; it is lower for a
        larger k.

        Args:
            features: Features, (Q, D) float, not necessarily normalized.
            k: Number of images.

        Returns:
            Cosines, (Q, min(k, N)) float32, in descending order, and rows of the index, (Q, min(k, N)) int64.

        Raises:
            ConfigError: If k is below 1.
            DataError: If the features have another shape, or are NaN or infinite.
        """
        k = min(_check_k(k), len(self))
        features, dim = np.asarray(features), self._stored.vectors.dim
        if features.shape[1:] != (dim,):
            raise DataError(f"expected features of shape (queries, {dim}), got {features.shape}")
        if not np.isfinite(features).all():
            raise DataError("the features have NaN or infinite values")
        queries = l2_normalize(features)
        if self._approximate is None:
            return nearest(queries, self._stored.vectors.blocks(), k, normalized=True)
        cosines, rows = self._approximate.search(queries, k)
        incomplete = np.flatnonzero((rows < 0).any(1))  # the search effort covered fewer than k vectors
        if len(incomplete):
            cosines[incomplete], rows[incomplete] = nearest(queries[incomplete], self._stored.vectors.blocks(), k, normalized=True)
        return cosines, rows

    @entry_point
    def query(self, images: QueryImages, k: int = 10) -> list[Matches]:
        """Find the k images that are most similar to each query.

        If the file of a query is in the index, under any path or link, it is left out of its own result. Copies of it in
        other files are not. Images that were deleted or changed after the index was built are left out and named. A file with
        several paths is one image.

        Args:
            images: A folder, a file, a CSV table or a PIL image; or several paths or PIL images.
            k: Number of images per query.

        Returns:
            One result per readable query.

        Raises:
            ConfigError: If k is below 1.
            DataError: If an image is missing or unreadable.
        """
        k = _check_k(k)
        sources, features, remarks = embed_queries(self.session, parse_readout(self.manifest["readout"]), images)
        log_remarks(remarks, self.session.config.exif_transpose)
        cosines, rows = self.nearest(features, k + 1)
        files = FileChecker(self._stored)
        results = [self._other_files(*one, k, files) for one in zip(sources, features, cosines, rows, strict=True)]
        if len(files.deleted) == len(self):
            raise self._without_images(files.deleted)
        _warn_of_missing(files)
        fewest = min(len(matches.rows) for matches in results)
        if fewest < k:
            _log.warning("k = %d exceeds the %d other images of the index: all of them are returned", k, fewest)
        return results

    def check_files(self) -> FileStates:
        """Compare the image files with those that were indexed.

        Returns:
            The unchanged images, one per file, other paths of the same file, and what was deleted or changed.

        Raises:
            DataError: If no image exists any more.
        """
        files = check_files(self._stored)
        if len(files.deleted) == len(self):
            raise self._without_images(files.deleted)
        return files

    def _without_images(self, deleted: list[str]) -> DataError:
        return DataError(
            f"none of the {len(self):,} images of the index {self._stored.folder} exist: {join_names(deleted)}. "
            f"If the folder was moved, run `dinoeval search build FOLDER --out {self._stored.folder}`"
        )

    @entry_point
    def duplicates(self, threshold: float | None = None, files: FileStates | None = None) -> list[DuplicateGroup]:
        """Find groups of images that are linked by cosines of at least a threshold.

        The comparison is exact for any kind of index. Images that were deleted or changed after the index was built are left
        out and named. A file with several paths is one image.

        Args:
            threshold: Smallest cosine of a pair, from -1 to 1; by default that of `measure_threshold`.
            files: States of the files; by default those of now.

        Returns:
            Groups; those with the most similar pairs come first.

        Raises:
            ConfigError: If the threshold is not a cosine.
            DataError: If the threshold cannot be measured, or no image exists any more.
        """
        threshold = coerce(threshold, float | None, "threshold")
        if threshold is not None and not -1 <= threshold <= 1:
            raise ConfigError(f"--threshold must be a cosine between -1 and 1, got {threshold}")
        files = files or self.check_files()
        if threshold is None:
            threshold = self.measure_threshold(files).cosine
        _warn_of_missing(files)
        if files.links:
            names = [f"{path} is {self.paths[row]}" for row, paths in files.links.items() for path in paths]
            _log.warning("%d paths are links to images of the index, not duplicates: %s", len(names), join_names(names))
        components, best = link_duplicates(self._stored.vectors, threshold, files.rows)
        return [self._group(rows, best[rows], threshold, files) for rows in components]

    def _group(self, rows: np.ndarray, cosines: np.ndarray, threshold: float, files: FileStates) -> DuplicateGroup:
        lowest = lowest_cosine(self._stored.vectors, rows)
        first: dict[str, int] = {}
        originals = [first.setdefault(self._stored.records[row].digest, row) for row in rows.tolist()]
        return DuplicateGroup(
            paths=[self.paths[row] for row in rows],
            rows=rows,
            cosines=cosines,
            lowest=lowest,
            is_chain=is_chain(lowest, threshold),
            identical_to=[self.paths[original] if original != row else None for row, original in zip(rows, originals, strict=True)],
            links=[files.links.get(row, []) for row in rows.tolist()],
        )

    @entry_point
    def measure_threshold(self, files: FileStates | None = None) -> Threshold:
        """Calibrate the cosine above which two images of this index count as duplicates.

        Up to 96 of the images are copied by re-encoding, downscaling and cropping. The copies are compared with the nearest
        different images of up to 300 images. Duplicates in the index have no effect.

        Args:
            files: States of the files; by default those of now.

        Returns:
            The threshold, and what it finds among copies of images that it was not chosen on.

        Raises:
            DataError: If images cannot be read, or fewer than two are left.
        """
        return measure_threshold(self._stored, self.session, (files or self.check_files()).rows)

    def _other_files(self, source: str, features: np.ndarray, cosines: np.ndarray, rows: np.ndarray, k: int, files: FileChecker) -> Matches:
        """Return the k nearest images in other files than the query, one per file."""
        own_key = None
        if source:
            with contextlib.suppress(OSError):
                own_key = file_key(source)
        requested = k + 1
        while True:
            found: dict[FileKey, int] = {}
            for place, row in enumerate(rows.tolist()):
                key = files.key(row)
                if key is None or key == own_key or (len(found) == k and key not in found):
                    continue
                if key not in found or (self._is_link(rows[found[key]]) and not self._is_link(row)):
                    found[key] = place
            places = list(found.values())
            if len(places) == k or len(rows) == len(self):
                return Matches(source, [self.paths[row] for row in rows[places]], rows[places], cosines[places])
            requested *= 2
            (cosines,), (rows,) = self.nearest(features[None], requested)

    def _is_link(self, row: int) -> bool:
        return os.path.islink(self.paths[row])  # noqa: PTH114  faster than Path


def _open_approximate(stored: StoredIndex) -> ApproximateIndex | None:
    kind, parameters = stored.manifest["kind"], stored.manifest["parameters"]
    if kind == "exact":
        return None
    effort = parameters.get("nprobe") or parameters["efSearch"]
    neighbors = read_index(stored.file(NEIGHBORS))
    if (neighbors.ntotal, neighbors.d) != (len(stored.vectors), stored.vectors.dim):
        raise DataError(
            f"the index {stored.folder} is corrupted: {NEIGHBORS} holds {neighbors.ntotal:,} vectors of {neighbors.d} dimensions"
        )
    return ApproximateIndex(kind, neighbors, stored.vectors, effort, parameters.get("rerank", 1))


def _check_k(k: int) -> int:
    if (number := coerce(k, int, "k")) < 1:
        raise ConfigError(f"--k must be at least 1, got {number}")
    return number


def _warn_of_missing(files: FileStates | FileChecker) -> None:
    for word, paths in (("deleted", files.deleted), ("changed", files.changed)):
        if paths:
            _log.warning("%d images were %s after the index was built and are left out: %s", len(paths), word, join_names(paths))


@entry_point
def open(
    index: str | Path,
    backbone: Backbone | str | Path | None = None,
    *,
    session: SessionConfig | Mapping[str, Any] | None = None,
    readout: str | None = None,
) -> ImageIndex:
    """Open an index and verify the checksums of its files.

    Args:
        index: Folder of the index.
        backbone: Its backbone, or a name or a file that `dinoeval.load` takes; by default the weights that it was built with are
            loaded when they are needed.
        session: Options for loading them, a SessionConfig or a dict.
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
    config = SessionConfig.of(session)
    given = None if backbone is None else make_session(config, backbone, stored)
    return ImageIndex(stored, given, config)
