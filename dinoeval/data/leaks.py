"""Images that are in both splits, by content. Such an image makes its own nearest neighbor, so scores are too high."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from dinoeval.data.images import MISSING, ImageSet
from dinoeval.data.survey import survey
from dinoeval.errors import BadImage, join_names

MAX_COMPARED = 100_000
"""Largest number of files that are opened. The files of ImageNet would take longer than their k-NN search."""
_TAIL = 4096  # bytes at the end of a file, which differ in images with the same size and header


def note_shared_images(train: ImageSet, val: ImageSet, limit: int = MAX_COMPARED) -> tuple[str, ...]:
    """Find images with equal content in both splits.

    Only files of equal size are read, first their last bytes and then, if those are equal, all of them. The processes of a run
    share the work.

    Args:
        train: The training split.
        val: The evaluation split.
        limit: Largest number of files to open. The sizes with the fewest files are compared first.

    Returns:
        Notes: how many evaluation images are training images too, with examples; and how many were not compared.

    Raises:
        DataError: If the disk fails.
    """
    rows, left_out = _candidates(train.sizes, val.sizes, limit)
    splits = (train, val)
    ends = [_digests(images, one, _TAIL) for images, one in zip(splits, rows, strict=True)]
    shared = set(ends[0].values()) & set(ends[1].values())
    digests = []
    for images, of_end in zip(splits, ends, strict=True):
        alike = [row for row, digest in of_end.items() if digest in shared]
        small = {row: of_end[row] for row in alike if images.sizes[row] <= _TAIL}  # read in full already
        digests.append(small | _digests(images, [row for row in alike if row not in small], None))
    first = {digest: row for row, digest in reversed(digests[0].items())}
    copies = {row: first[digest] for row, digest in digests[1].items() if digest in first}
    notes = []
    if copies:
        examples = join_names((f"{val.paths[row]} = {train.paths[original]}" for row, original in sorted(copies.items())), 3)
        shared = f"{len(copies):,} of {len(val):,} images of {val.split} are also in {train.split}, with equal content"
        notes.append(f"{shared} ({examples}): scores are too high")
    if left_out:
        compared = f"{len(val) - left_out:,} of {len(val):,} images of {val.split} were compared"
        notes.append(f"identical images in {train.split} and {val.split}: {compared}, because at most {limit:,} files are opened for it")
    return tuple(notes)


def _candidates(train: np.ndarray, val: np.ndarray, limit: int) -> tuple[tuple[list[int], ...], int]:
    """Return the rows whose size occurs in both splits, and the number of evaluation images among the sizes beyond the limit."""
    sizes = np.intersect1d(train[train != MISSING], val[val != MISSING])
    counts = [np.bincount(np.searchsorted(sizes, one[np.isin(one, sizes)]), minlength=len(sizes)) for one in (train, val)]
    order = np.argsort(counts[0] + counts[1], kind="stable")
    chosen = order[np.cumsum((counts[0] + counts[1])[order]) <= limit]
    rows = tuple(np.flatnonzero(np.isin(one, sizes[chosen])).tolist() for one in (train, val))
    return rows, int(counts[1].sum() - counts[1][chosen].sum())


def _digests(images: ImageSet, rows: Sequence[int], last: int | None) -> dict[int, bytes]:
    """Hash the size and the content of images, or its last bytes. Files that do not exist are left out."""

    def digest(row: int) -> bytes | None:
        try:
            content = images.content(row, last)
        except BadImage:  # reported when the features are computed
            return None
        return hashlib.blake2b(content, digest_size=16, key=int(images.sizes[row]).to_bytes(8, "little")).digest()

    return dict(survey(rows, digest))
