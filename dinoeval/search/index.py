"""Library: an index that is open for questions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinoeval.data.images import ImageSet, in_memory, open_images
from dinoeval.errors import BadImage, CheckpointError, ConfigError, DataError, join_names
from dinoeval.features.extract import forward, forward_readable
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.maths.neighbors import l2_normalize, nearest
from dinoeval.models.backbone import RANDOM, Backbone
from dinoeval.models.zoo import ZOO
from dinoeval.search import approximate
from dinoeval.search.approximate import Approximate
from dinoeval.search.duplicates import Group, linked
from dinoeval.search.store import NEIGHBOURS, Record, Stored, open_stored, resolve
from dinoeval.search.threshold import Threshold, choose_threshold, copies
from dinoeval.search.vectors import sample
from dinoeval.session import Session, SessionConfig

_COPIED, _COMPARED = 64, 1000  # images, to measure a threshold
_FEW = 32  # pictures of a query whose features are made again sooner than an entry of the cache is looked after
Pictures = str | Path | Image.Image | Iterable[str | Path] | Iterable[Image.Image]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Matches:
    """The images of an index that are nearest to one picture, nearest first."""

    query: str
    paths: list[str]
    rows: np.ndarray
    """(k,) int64, where they stand in the index."""
    cosines: np.ndarray
    """(k,) float32."""


class ImageIndex:
    """The images of one folder, and what their features say of which are alike."""

    def __init__(self, stored: Stored, session: Session | None = None, config: SessionConfig | None = None) -> None:
        self._stored, self._session, self._config = stored, session, config or SessionConfig()
        self.manifest: dict[str, Any] = stored.manifest
        """What is known of the index: backbone, readout, transform, counts, kind, parameters, recall."""
        self._approximate = self._neighbours()  # now: a build meanwhile may take the file away, but not what is open
        if session is not None:
            check_same(stored, session)

    def __len__(self) -> int:
        return len(self._stored.rows)

    def __repr__(self) -> str:
        return f"Library({self.manifest['folder']}, {len(self):,} images, {self.manifest['kind']})"

    @functools.cached_property
    def paths(self) -> list[str]:
        """N paths, in order of row."""
        return [os.path.join(self.manifest["folder"], record.name) for record in self._stored.records]  # noqa: PTH118  as in data/images.py

    @property
    def session(self) -> Session:
        """The backbone that the index was made with; loaded when a picture is first asked about."""
        if self._session is None:
            config = settled(self._config, self.manifest)
            try:
                self._session = Session(config)
            except CheckpointError as error:
                if self._config.weights is not None:
                    raise
                raise CheckpointError(
                    f"{error} The index {self._stored.folder} was made with it; name where it is by --weights."
                ) from error
            check_same(self._stored, self._session)
        return self._session

    def _neighbours(self) -> Approximate | None:
        kind, parameters = self.manifest["kind"], self.manifest["parameters"]
        if kind == "exact":
            return None
        index = approximate.load(self._stored.file(NEIGHBOURS))
        effort = parameters.get("nprobe") or parameters["efSearch"]
        return Approximate(kind, index, self._stored.rows, effort, parameters.get("rerank", 1))

    def rows(self) -> np.ndarray:
        """All features in memory, each of length 1, (N, D) float32."""
        return self._stored.rows.take(slice(None))

    def nearest(self, features: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Find the k images nearest to features (Q, D): cosines and rows, (Q, min(k, N)), nearest first.

        Exact, or as near to it as the index's recall says; that is of k = 10, and is lower for a larger k.
        """
        k = min(k, len(self))
        queries = l2_normalize(features)
        if self._approximate is None:
            return nearest(queries, self._stored.rows.blocks(), k, normalized=True)
        cosines, rows = self._approximate.search(queries, k)
        short = np.flatnonzero((rows < 0).any(1))  # fewer than k were looked at
        if len(short):
            cosines[short], rows[short] = nearest(queries[short], self._stored.rows.blocks(), k, normalized=True)
        return cosines, rows

    def query(self, images: Pictures, k: int = 10) -> list[Matches]:
        """Find the k images that are most like each picture, which itself is left out.

        `images` is a folder, a path, a PIL image, or several paths or PIL images. A picture that is in the index is
        known by its file, whatever path or link leads there; an equal copy of it is an answer.
        """
        if k < 1:
            raise ConfigError(f"k must be 1 or more: {k}")
        sources, features = self._embed(images)
        cosines, rows = self.nearest(features, k + 1)
        found = [self._others(*one, k) for one in zip(sources, features, cosines, rows, strict=True)]
        if changed := sorted({path for one in found for row, path in zip(one.rows, one.paths, strict=True) if self._changed(row)}):
            _log.warning("%d images of the answer changed or went away since the index was built, which knows them as they were: %s. "
                         "Build it again.", len(changed), join_names(changed))  # fmt: skip
        fewest = min(len(matches.rows) for matches in found)
        if fewest < k:
            _log.warning("k = %d, and there are %d other images in the index: all of them are listed", k, fewest)
        return found

    def duplicates(self, threshold: float | None = None) -> list[Group]:
        """Find groups of images linked by cosines of at least `threshold`, surest first; exact, with any kind of index.

        By default the threshold is measured, as `threshold` does.
        """
        if threshold is None:
            threshold = self.threshold().cosine
        if not -1 <= threshold <= 1:
            raise ConfigError(f"a threshold is a cosine, from -1 to 1: {threshold}")
        components, best = linked(self._stored.rows, threshold)
        return [Group([self.paths[row] for row in rows], rows, best[rows]) for rows in components]

    def threshold(self) -> Threshold:
        """Measure from which cosine on two images of this set, by this network, are duplicates.

        Makes copies of up to 64 of the images, re-encoded, halved and cropped a little, and compares them with the nearest
        others of up to 1,000. Raises DataError where the images are no longer there.
        """
        count, rows = len(self), self._stored.rows
        chosen = sample(count, min(_COPIED, max(8, count // 10)))
        try:
            images = open_images([self.paths[row] for row in chosen])
            if changed := [self.paths[row] for row in chosen if self._changed(row)]:
                raise DataError(f"{len(changed)} of {len(chosen)} images changed since the index was built: {join_names(changed)}")
            session, readout = self.session, parse_readout(self.manifest["readout"])
            parts = []
            for row in range(len(images)):  # one at a time: photographs are large
                made = forward(session.backbone, in_memory(copies(images.open(row))), readout, session.transform)
                parts.append(l2_normalize(made))
        except (BadImage, DataError, OSError) as fault:
            raise DataError(f"no threshold can be measured: {fault}. Build the index again, or name a threshold") from fault
        made = np.concatenate(parts)
        originals = np.repeat(rows.take(chosen), len(made) // len(chosen), axis=0)
        compared = sample(count, _COMPARED)
        cosines, found = nearest(rows.take(compared), rows.blocks(), 2, normalized=True)
        itself = np.where((found == compared[:, None]).any(1), (found == compared[:, None]).argmax(1), 1)
        others = np.take_along_axis(cosines, 1 - itself[:, None], 1)[:, 0]
        return choose_threshold(np.einsum("nd,nd->n", made, originals), others, len(chosen))

    def _changed(self, row: int) -> bool:
        """Whether the file of a row is no longer the one that the row was made of."""
        record = self._stored.records[row]
        try:
            return Record.of(Path(self.manifest["folder"]), record.name) != record
        except OSError:
            return True

    def _others(self, source: str, features: np.ndarray, cosines: np.ndarray, rows: np.ndarray, k: int) -> Matches:
        """The k nearest that are not the picture's own file; several links to it may lie in the index."""
        itself = None
        if source:
            with contextlib.suppress(OSError):
                itself = os.stat(source)  # noqa: PTH116
        asked = k + 1
        while True:
            others = [place for place, row in enumerate(rows) if not (itself and _is(itself, self.paths[row]))][:k]
            if len(others) == k or len(rows) == len(self):
                return Matches(source, [self.paths[row] for row in rows[others]], rows[others], cosines[others])
            asked *= 2
            (cosines,), (rows,) = self.nearest(features[None], asked)

    def _embed(self, images: Pictures) -> tuple[list[str], np.ndarray]:
        """The path of each picture, empty where it has none, and the features (Q, D)."""
        session, readout = self.session, parse_readout(self.manifest["readout"])
        if not isinstance(images, (str, Path)):
            several = [images] if isinstance(images, Image.Image) else list(images)
            if pictures := [image for image in several if isinstance(image, Image.Image)]:
                if len(pictures) < len(several):
                    raise DataError("a query takes paths or PIL images, not both at once")
                return [""] * len(pictures), forward(session.backbone, in_memory(pictures), readout, session.transform)
            images = several  # type: ignore[assignment]
        rows, found = self._features(open_images(images), readout)  # type: ignore[arg-type]
        where = resolve(images) if isinstance(images, (str, Path)) else Path()
        base = where if where.is_dir() else where.parent if where.suffix.lower() in (".csv", ".tsv") else Path()
        return [str(base / path) for path in found.paths], rows

    def _features(self, images: ImageSet, readout: Readout) -> tuple[np.ndarray, ImageSet]:
        """The features of pictures that are asked about, and those that can be read; only of many are they kept in the cache."""
        session, config = self.session, self.session.config
        if len(images) > _FEW:
            features = session.features(images, readout)
            return features.numpy(), features.images
        session.backbone.check_unchanged()
        return forward_readable(
            session.backbone, images, readout, session.transform, bad_images=config.bad_images, batch_size=config.batch_size
        )


def _is(facts: os.stat_result, path: str) -> bool:
    try:
        return os.path.samestat(facts, os.stat(path))  # noqa: PTH116
    except OSError:
        return False


def open(
    index: str | Path, backbone: Backbone | None = None, *, session: SessionConfig | None = None, readout: str | None = None
) -> ImageIndex:
    """Open an index, checking every byte of it.

    Its backbone is loaded from where its weights were when it was built, unless one is given here, or named in
    `session`. Raises ConfigError where that is another one, DataError where the index is damaged or not there.
    """
    folder = resolve(index)
    stored = open_stored(folder)
    if stored is None:
        raise DataError(f"no index {folder}: `dinoeval search build FOLDER --out {folder}` makes one")
    check_readout(stored, readout)
    config = session or SessionConfig()
    return ImageIndex(stored, Session(settled(config, stored.manifest), backbone) if backbone else None, config)


def settled(config: SessionConfig, manifest: dict[str, Any]) -> SessionConfig:
    """Fill in from an index what was not asked for: its weights, precision and transform."""
    default, recorded = SessionConfig(), manifest["session"]
    names = ["precision", "transform"] + (["arch", "weights", "key"] if config.arch is None and config.weights is None else [])
    filled = {name: recorded[name] for name in names if getattr(config, name) == getattr(default, name)}
    return dataclasses.replace(config, **filled)


def index_spec(session: Session, readout_id: str) -> dict[str, Any]:
    """The part of a manifest that says what makes a row: two with different ones have nothing to do with each other."""
    backbone, source = session.backbone, session.backbone.provenance
    weights: str | None = source.name
    if source.name == backbone.arch:
        weights = None  # the weights that an architecture has by itself
    elif source.name not in (RANDOM, *ZOO):
        weights = str(resolve(source.name))
    return {
        "readout": readout_id,
        "transform": session.transform.id,
        "precision": backbone.precision,
        "digest": backbone.digest,
        "network": json.loads(json.dumps(dataclasses.asdict(backbone.config))),
        "session": {
            "arch": backbone.arch,
            "weights": weights,
            "key": source.key or "teacher",
            "precision": backbone.precision,
            "transform": session.config.transform,
        },
    }


def check_readout(stored: Stored, readout: str | None) -> None:
    """Raise ConfigError where a readout is asked for that is not the index's."""
    if readout is not None and parse_readout(readout).id != (own := stored.manifest["readout"]):
        raise ConfigError(
            f"the index {stored.folder} is of readout {own}, and {readout} was asked for: rows of two readouts cannot be compared. "
            f"Leave --readout out, or build another index with --readout {readout}."
        )


def check_same(stored: Stored, session: Session) -> None:
    """Raise ConfigError where features of this session cannot be compared with those of the index."""
    manifest, here = stored.manifest, index_spec(session, stored.manifest["readout"])
    if (manifest["digest"], manifest["network"]) != (here["digest"], here["network"]):
        told = [f"{facts['session']['arch']} ({facts['session']['weights'] or 'its own weights'}), digest {facts['digest']}"
                for facts in (manifest, here)]  # fmt: skip
        raise ConfigError(
            f"the index {stored.folder} was built with {told[0]}; asked for now is {told[1]}. Their features cannot be compared: "
            "use the index's own weights, or build another index with these."
        )
    for name in ("precision", "transform"):
        if manifest[name] != here[name]:
            raise ConfigError(
                f"the index {stored.folder} was built with {name} {manifest[name]}, not {here[name]}: leave --{name} out, or build another"
            )
