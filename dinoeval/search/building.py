"""Build an index of a folder, or update it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import filelock
import numpy as np

from dinoeval import distributed
from dinoeval.data.images import MISSING, ImageSet
from dinoeval.data.opening import open_images
from dinoeval.data.remarks import merge_remarks
from dinoeval.errors import BadImage, ConfigError, DataError, join_names, unknown
from dinoeval.features.features import Features
from dinoeval.features.readout import Readout, parse_readout
from dinoeval.guard import entry_point
from dinoeval.maths.neighbors import l2_normalize
from dinoeval.models.backbone import Backbone
from dinoeval.progress import Progress
from dinoeval.search.approximate import IndexKind, add_vectors, needs_retraining, read_index, train_index, tune, write_index
from dinoeval.search.index import ImageIndex
from dinoeval.search.records import FileRecord
from dinoeval.search.spec import check_readout, check_session, index_spec, make_session
from dinoeval.search.store import (
    LOCK,
    MANIFEST,
    NEIGHBORS,
    VECTORS,
    IndexDraft,
    StoredIndex,
    check_index_folder,
    open_stored,
    relative_folder,
    remove_leftovers,
    resolve,
)
from dinoeval.search.vectors import VectorFile, write_vectors
from dinoeval.session import Session, SessionConfig

_log = logging.getLogger(__name__)
_THREADS = 8  # that read files for their digests


@dataclasses.dataclass(frozen=True)
class _Changes:
    """The differences between a folder and its index."""

    kept: np.ndarray
    """Rows of the index whose files have the same content."""
    refreshed: dict[int, FileRecord]
    """New records of the kept rows whose files have other times."""
    added: np.ndarray
    """Positions in the folder of the images that need features: new and changed ones."""
    deleted: list[str]
    changed: list[str]
    bad: list[FileRecord]
    """Files that were not readable images, and have not changed since."""

    def __bool__(self) -> bool:
        return bool(len(self.added) or self.deleted or self.changed or self.refreshed)

    def __str__(self) -> str:
        parts = [f"{len(self.kept):,} images unchanged", f"{len(self.added) - len(self.changed):,} new"]
        named = (("changed", self.changed), ("deleted", self.deleted))
        parts += [f"{len(names):,} {word}: {join_names(names)}" for word, names in named if names]
        return "; ".join(parts)


@entry_point
def build(
    folder: str | Path,
    out: str | Path,
    backbone: Backbone | str | Path | None = None,
    *,
    session: SessionConfig | Mapping[str, Any] | None = None,
    readout: str | None = None,
    index: IndexKind | None = None,
) -> ImageIndex:
    """Build an index of the images of a folder, or update an existing one.

    An update extracts features of new and changed images only, and drops deleted images.

    Args:
        folder: Folder of images, searched recursively.
        out: Folder of the index.
        backbone: Backbone, or a name or a file that `dinoeval.load` takes; by default that of the existing index, or that of the
            options.
        session: Options for the backbone and for reading images, a SessionConfig or a dict.
        readout: cls, lastN, clsavg or gem; by default that of the existing index, else cls.
        index: exact, ivf, hnsw or pq; by default that of the existing index, else exact.

    Returns:
        The open index.

    Raises:
        DataError: If there are fewer than two images, or an image is unreadable.
        ConfigError: If folder, weights or readout do not match the existing index.

    Examples:
        An index of two images, with the bundled demonstration weights:

        >>> import tempfile
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        ...     photos = Path(work) / "photos"
        ...     photos.mkdir()
        ...     Image.new("RGB", (28, 28), "red").save(photos / "red.png")
        ...     Image.new("RGB", (28, 28), "blue").save(photos / "blue.png")
        ...     built = build(photos, Path(work) / "index", session=SessionConfig(cache=f"{work}/cache"))
        ...     [Path(path).name for path in built.query(photos / "red.png", k=1)[0].paths]
        ['blue.png']
    """
    if index is not None and index not in get_args(IndexKind):
        raise ConfigError(unknown("index", index, get_args(IndexKind)))
    root, target = resolve(folder), resolve(out)
    if not root.is_dir():
        raise DataError(f"folder {root} does not exist: pass a folder of images")
    check_index_folder(target)
    images = open_images(root)
    if len(images) < 2:
        raise DataError(f"an index needs at least 2 images, got 1 in {root}: {images.paths[0]}")
    with _locked(target):
        stored = open_stored(target)
        if distributed.rank() == 0:
            files = stored.manifest["files"].values() if stored else ()
            remove_leftovers(target, keep=[entry["name"] for entry in files])
        if stored is not None:
            check_readout(stored, readout)
            _check_folder(stored, root)
        distributed.join()
        opened = make_session(SessionConfig.of(session), backbone, stored)
        chosen = parse_readout(readout or (stored.manifest["readout"] if stored else "cls"))
        _vector_dim(chosen, opened)
        if stored is not None:
            check_session(stored, opened)
        _update(stored, target, images, root, opened, chosen, index or (stored.manifest["kind"] if stored else "exact"))
    distributed.barrier()
    stored = open_stored(target)
    assert stored is not None
    return ImageIndex(stored, opened)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Create the folder of an index and lock it; only the first of several processes does so."""
    if distributed.rank() > 0:
        yield
        return
    lock = filelock.FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        raise ConfigError(f"another process is building the index {folder}: wait for it to end") from None
    except (OSError, NotImplementedError) as error:
        raise DataError(f"cannot write the index {folder}: {getattr(error, 'strerror', None) or error}") from error
    try:
        yield
    finally:
        lock.release()
        if not (folder / MANIFEST).exists():  # the build failed; remove the folder if it is empty
            with contextlib.suppress(OSError):
                (folder / LOCK).unlink(missing_ok=True)
                folder.rmdir()


def _check_folder(stored: StoredIndex, root: Path) -> None:
    """Check that a folder is that of the index, or that the images of the index were moved to it."""
    if stored.root != root and (stored.has_images_in(stored.root) or not stored.has_images_in(root)):
        raise ConfigError(f"{stored.folder} is an index of {stored.root}, not of {root}: pass another --out")


def _vector_dim(readout: Readout, session: Session) -> int:
    dim, *grid = readout.feature_shape(session.backbone.dim, (1, 1))
    if grid:
        raise ConfigError(f"--readout {readout.id} is a map per image; a search needs one vector: pass cls, lastN, clsavg or gem")
    return dim


def _update(
    stored: StoredIndex | None, target: Path, images: ImageSet, root: Path, session: Session, readout: Readout, kind: IndexKind
) -> None:
    current = [_record(root, name) for name in images.paths]
    changes = _compare(stored, current, root)
    if stored is not None:
        _log.info("%s: %s", target, changes)
        if not changes and (stored.manifest["kind"], stored.manifest["folder"]) == (kind, str(root)):
            return
    features = _extract(session, images, readout, changes.added, whole=stored is None) if len(changes.added) else None
    distributed.barrier()  # all processes have read the old index before it is replaced
    if distributed.rank() > 0:
        return
    added = [] if features is None else [current[row] for row in _positions(images, features)]
    unreadable = {current[row] for row in changes.added} - set(added)
    added = _read_digests(added, root)
    kept = [changes.refreshed.get(row) or stored.records[row] for row in changes.kept.tolist()] if stored else []
    records = kept + added
    if len(records) < 2:
        raise DataError(f"an index needs at least 2 readable images, got {len(records)} in {root}")
    with IndexDraft(target) as draft:
        dim = _vector_dim(readout, session)
        path = draft.write(VECTORS, lambda path: write_vectors(path, _vector_blocks(stored, changes, features), len(records), dim))
        vectors = VectorFile(path, len(records), dim)
        neighbors = _write_neighbors(draft, stored, changes, vectors, kind)
        names = hashlib.sha256("".join(f"{record.name}\0{record.size}\n" for record in records).encode(errors="surrogateescape"))
        manifest = {
            "folder": str(root),
            "relative_folder": relative_folder(root, target),
            "images": len(records),
            "fingerprint": names.hexdigest()[:16],
            "dim": dim,
            **index_spec(session, readout.id),
            "remarks": _merge_remarks(stored, changes, features),
            "kind": kind,
            **neighbors,
            "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        draft.publish(manifest, records, sorted([*changes.bad, *unreadable]))


def _extract(session: Session, images: ImageSet, readout: Readout, added: np.ndarray, *, whole: bool) -> Features | None:
    """Features of the added images; None if all of them are unreadable and skipped."""
    try:
        return session.features(images, readout, rows=None if whole else added)
    except DataError:
        if whole or session.config.bad_images == "error" or not all(_is_unreadable(images, row, session) for row in added.tolist()):
            raise
        return None


def _is_unreadable(images: ImageSet, row: int, session: Session) -> bool:
    try:
        session.transform(images.with_rule(session.rule).open(row))
    except BadImage:
        return True
    return False


def _record(root: Path, name: str) -> FileRecord:
    try:
        return FileRecord.of(root, name)
    except OSError as error:
        if (root / name).is_symlink():  # A broken link is an unreadable image.
            return FileRecord(name, MISSING, 0, 0)
        raise DataError(f"{root / name} was deleted during the build: {error.strerror}. Rerun the command") from error


def _read_digests(records: list[FileRecord], root: Path) -> list[FileRecord]:
    """Add digests to the records of images whose features were extracted."""

    def read(record: FileRecord) -> FileRecord:
        complete = record.with_digest(root)
        if _record(root, record.name) != record or not complete.digest:
            raise DataError(f"{root / record.name} was changed during the build: rerun the command")
        return complete

    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(read, records))


def _compare(stored: StoredIndex | None, current: list[FileRecord], root: Path) -> _Changes:
    if stored is None:
        return _Changes(np.empty(0, np.int64), {}, np.arange(len(current)), [], [], [])
    known = {record.name: row for row, record in enumerate(stored.records)}
    retimed = [record for record in current if record.name in known and record != stored.records[known[record.name]]]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        same = list(pool.map(lambda record: record.has_content_of(stored.records[known[record.name]], root), retimed))
    changed = [record.name for record, is_same in zip(retimed, same, strict=True) if not is_same]
    refreshed = {}
    for record in itertools.compress(retimed, same):
        row = known[record.name]
        refreshed[row] = dataclasses.replace(record, digest=stored.records[row].digest)
    bad, present, replaced = set(stored.bad), {record.name for record in current}, set(changed)
    added = [
        position for position, record in enumerate(current) if record.name in replaced or (record.name not in known and record not in bad)
    ]
    deleted = [name for name in known if name not in present]
    dropped = {*deleted, *changed}
    kept = [row for row, record in enumerate(stored.records) if record.name not in dropped]
    still_bad = [record for record in current if record in bad and record.name not in known]
    return _Changes(np.array(kept, np.int64), refreshed, np.array(added, np.int64), deleted, changed, still_bad)


def _positions(images: ImageSet, features: Features) -> list[int]:
    """Positions in the folder of the images that have features; unreadable ones have none."""
    position = {name: row for row, name in enumerate(images.paths)}
    return [position[name] for name in features.images.paths]


def _merge_remarks(stored: StoredIndex | None, changes: _Changes, features: Features | None) -> dict[str, list[str]]:
    """Return the names of images by remark, those of kept images from the existing index."""
    kept = {stored.records[row].name for row in changes.kept} if stored else set()
    earlier = stored.manifest["remarks"] if stored else {}
    of_kept = {remark: [name for name in names if name in kept] for remark, names in earlier.items()}
    return merge_remarks([of_kept, features.remarks if features else {}])


def _vector_blocks(stored: StoredIndex | None, changes: _Changes, features: Features | None) -> Iterator[np.ndarray]:
    kept = stored.vectors.blocks(changes.kept) if stored else iter(())
    added = map(l2_normalize, features.blocks()) if features else iter(())
    return itertools.chain(kept, added)


def _write_neighbors(
    draft: IndexDraft, stored: StoredIndex | None, changes: _Changes, vectors: VectorFile, kind: IndexKind
) -> dict[str, Any]:
    """Train an approximate index or extend the existing one; returns its part of the manifest."""
    if kind == "exact":
        return {"parameters": {}, "recall": None}
    started = time.monotonic()
    if stored is not None and _is_extendable(stored, changes, kind, len(vectors)):
        trained_on = stored.manifest["parameters"]["trained_on"]
        neighbors = read_index(stored.file(NEIGHBORS), mapped=False)
        add_vectors(neighbors, vectors.blocks(np.arange(len(stored.vectors), len(vectors))))
    else:
        trained_on = len(vectors)
        with Progress(f"training of the {kind} index"):
            neighbors = train_index(kind, vectors)
    draft.write(NEIGHBORS, lambda path: write_index(neighbors, path))
    tuned, recall = tune(kind, neighbors, vectors)
    _log.info("%s index built and tuned in %.0f s", kind, time.monotonic() - started)
    return {"parameters": {**tuned.parameters(), "trained_on": trained_on}, "recall": recall}


def _is_extendable(stored: StoredIndex, changes: _Changes, kind: IndexKind, count: int) -> bool:
    """Whether the approximate index can be kept: only images were added, and not too many."""
    if stored.manifest["kind"] != kind or len(changes.kept) < len(stored.vectors):
        return False
    return not needs_retraining(stored.manifest["parameters"]["trained_on"], count)
