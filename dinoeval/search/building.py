"""Make an index of a folder, or bring it up to date with the folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import filelock
import numpy as np

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_images
from dinoeval.errors import BadImage, ConfigError, DataError, join_names, unknown
from dinoeval.features.extract import Features
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.models.backbone import Backbone
from dinoeval.search import approximate
from dinoeval.search.approximate import Kind
from dinoeval.search.index import ImageIndex, check_readout, check_same, index_spec, settled
from dinoeval.search.store import LOCK, MANIFEST, NEIGHBOURS, ROWS, Draft, Record, Stored, check_place, open_stored, resolve
from dinoeval.search.vectors import VectorFile, write_vectors
from dinoeval.session import Session, SessionConfig

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Changes:
    """What a folder has that its index has not, and the other way round."""

    kept: np.ndarray
    """Rows of the index whose files are as they were."""
    added: np.ndarray
    """Numbers of the images, in the folder as it is now, that need a row."""
    gone: list[str]
    changed: list[str]
    bad: list[Record]
    """Files that were no images, and have not changed since."""

    def __bool__(self) -> bool:
        return bool(len(self.added) or self.gone or self.changed)

    def __str__(self) -> str:
        parts = [f"{len(self.kept):,} images as they were", f"{len(self.added) - len(self.changed):,} new"]
        parts += [
            f"{len(names):,} {word}: {join_names(names)}" for word, names in (("changed", self.changed), ("gone", self.gone)) if names
        ]
        return "; ".join(parts)


def build(
    folder: str | Path,
    out: str | Path,
    backbone: Backbone | None = None,
    *,
    session: SessionConfig | None = None,
    readout: str | None = None,
    index: Kind | None = None,
) -> ImageIndex:
    """Make an index of the pictures below `folder` in the folder `out`, or bring the one that is there up to date.

    `readout` is `cls` by default; `index` is `exact`, `ivf`, `hnsw` or `pq`. Where `out` holds an index of the same
    folder, only new and changed images go through the network; rows of images that are gone are dropped. Backbone,
    readout and kind are then those of the index, unless asked for otherwise. Raises DataError where there are fewer
    than two images, ConfigError where other weights, another readout or another folder are asked for than the index's.
    """
    if index is not None and index not in get_args(Kind):
        raise ConfigError(unknown("kind of index", index, get_args(Kind)))
    root, target = resolve(folder), resolve(out)
    if not root.is_dir():
        raise DataError(f"no folder {root}")
    check_place(target)
    images = open_images(root)
    if len(images) < 2:
        raise DataError(f"{root} holds one image alone, {images.paths[0]}: a search needs two at least")
    with _locked(target):
        stored = open_stored(target)
        if stored is not None:
            check_readout(stored, readout)
            if stored.manifest["folder"] != str(root):
                raise ConfigError(f"{target} is an index of {stored.manifest['folder']}, not of {root}: name another --out")
        config = session or SessionConfig()
        opened = Session(settled(config, stored.manifest) if stored else config, backbone)
        chosen = parse_readout(readout or (stored.manifest["readout"] if stored else "cls"))
        _check_flat(chosen, opened)
        if stored is not None:
            check_same(stored, opened)
        _update(stored, target, images, root, opened, chosen, index or (stored.manifest["kind"] if stored else "exact"))
    distributed.barrier()
    stored = open_stored(target)
    assert stored is not None
    return ImageIndex(stored, opened)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Make the folder of an index and hold its lock; of the processes of one run only the first does."""
    if distributed.rank() > 0:
        yield
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        raise ConfigError(f"another process builds the index {folder}") from None
    except (OSError, NotImplementedError) as error:
        raise DataError(f"the index {folder} cannot be written: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()
        if not (folder / MANIFEST).exists():  # nothing came of it
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()


def _check_flat(readout: Readout, session: Session) -> None:
    if len(readout.row_shape(session.backbone.dim, (1, 1))) > 1:
        raise ConfigError(f"readout {readout.id} is a map for each image, and a search needs one vector: cls, lastN, clsavg or gem")


def _update(stored: Stored | None, target: Path, images: ImageSet, root: Path, session: Session, readout: Readout, kind: Kind) -> None:
    now = [_record(root, name) for name in images.paths]
    changes = _compare(stored, now)
    if stored is not None:
        _log.info("%s: %s", target, changes)
        if not changes and stored.manifest["kind"] == kind:
            return
    features = _features(session, images, readout, changes.added, whole=stored is None) if len(changes.added) else None
    distributed.barrier()  # all have read the old index before it is replaced
    if distributed.rank() > 0:
        return
    fresh = [] if features is None else [now[row] for row in _places(images, features)]
    records = [stored.records[row] for row in changes.kept] + fresh if stored else fresh
    lost = {now[row] for row in changes.added} - set(fresh)
    if len(records) < 2:
        raise DataError(f"{root} holds {len(records)} image that can be read: a search needs two at least")
    with Draft(target) as draft:
        dim = features.entry.row_shape[0] if features else stored.rows.dim  # type: ignore[union-attr]
        path = draft.write(ROWS, lambda path: write_vectors(path, _all_rows(stored, changes, features), len(records), dim))
        rows = VectorFile(path, len(records), dim)
        facts = _approximate(draft, stored, changes, rows, kind)
        names = hashlib.sha256("".join(f"{record.name}\0{record.size}\n" for record in records).encode(errors="surrogateescape"))
        manifest = {
            "folder": str(root), "images": len(records), "fingerprint": names.hexdigest()[:16], "dim": dim,
            **index_spec(session, readout.id), "kind": kind, **facts, "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }  # fmt: skip
        draft.publish(manifest, records, sorted([*changes.bad, *lost]))


def _features(session: Session, images: ImageSet, readout: Readout, added: np.ndarray, *, whole: bool) -> Features | None:
    """The features of what is new; None where all of it is to be skipped."""
    try:
        return session.features(images, readout, rows=None if whole else added)
    except DataError:
        if whole or session.config.bad_images == "error" or not all(_is_bad(images, row, session) for row in added.tolist()):
            raise
        return None


def _is_bad(images: ImageSet, row: int, session: Session) -> bool:
    try:
        session.transform(images.open(row))
    except BadImage:
        return True
    return False


def _record(root: Path, name: str) -> Record:
    try:
        return Record.of(root, name)
    except OSError as error:
        raise DataError(f"{root / name} went away: {error.strerror}") from error


def _compare(stored: Stored | None, now: list[Record]) -> _Changes:
    if stored is None:
        return _Changes(np.empty(0, np.int64), np.arange(len(now)), [], [], [])
    known = {record.name: row for row, record in enumerate(stored.records)}
    bad = set(stored.bad)
    present = {record.name for record in now}
    added, changed, still = [], [], []
    for number, record in enumerate(now):
        row = known.get(record.name)
        if row is not None and stored.records[row] == record:
            continue
        if record in bad:
            still.append(record)
            continue
        added.append(number)
        if row is not None:
            changed.append(record.name)
    gone = [name for name in known if name not in present]
    away = {*gone, *changed}
    kept = [row for row, record in enumerate(stored.records) if record.name not in away]
    return _Changes(np.array(kept, np.int64), np.array(added, np.int64), gone, changed, still)


def _places(images: ImageSet, features: Features) -> list[int]:
    """Which images of the folder the features are of; some may not have been readable."""
    place = {name: row for row, name in enumerate(images.paths)}
    return [place[name] for name in features.images.paths]


def _all_rows(stored: Stored | None, changes: _Changes, features: Features | None) -> Iterator[np.ndarray]:
    old = stored.rows.blocks(changes.kept) if stored else iter(())
    new = map(l2_normalize, features.blocks()) if features else iter(())
    return itertools.chain(old, new)


def _approximate(draft: Draft, stored: Stored | None, changes: _Changes, rows: VectorFile, kind: Kind) -> dict[str, Any]:
    """Make the approximate index, or add to the one that is there; what the manifest says of it."""
    if kind == "exact":
        return {"parameters": {}, "recall": None}
    began = time.monotonic()
    old = stored.manifest if stored and stored.manifest["kind"] == kind and len(changes.kept) == len(stored.rows) else None
    if old and not approximate.worth_training_again(old["parameters"]["trained_on"], len(rows)):
        assert stored is not None
        trained_on = old["parameters"]["trained_on"]
        made = approximate.load(stored.file(NEIGHBOURS), mapped=False)
        approximate.extend(made, rows.blocks(np.arange(len(stored.rows), len(rows))))
    else:
        trained_on = len(rows)
        made = approximate.make(kind, rows)
    draft.write(NEIGHBOURS, lambda path: approximate.save(made, path))
    tuned, recall = approximate.tune(kind, made, rows)
    _log.info("%s index made and tuned in %.0f seconds", kind, time.monotonic() - began)
    return {"parameters": {**tuned.parameters(), "trained_on": trained_on}, "recall": recall}
