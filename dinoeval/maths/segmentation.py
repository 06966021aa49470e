"""How well masks agree: DAVIS's region similarity J, contour accuracy F and their statistics; Jaccards of many pairs.

Everything is a fraction. O objects, M masks, H x W pixels, n frames. Source: davis2017/metrics.py and utils.py of
davisvideochallenge/davis2017-evaluation, which dilates by OpenCV; here by shifted lines, which are the same pixels.
"""

from __future__ import annotations

import math

import numpy as np

TOLERANCE = 0.008  # of the image's diagonal
BINS = 4
_RECALLED = 0.5


def region_similarity(truth: np.ndarray, mask: np.ndarray) -> float:
    """Return J, the Jaccard of two bool masks (H, W): intersection over union; 1 where both are empty."""
    _check(truth, mask)
    union = np.count_nonzero(truth | mask)
    return np.count_nonzero(truth & mask) / union if union else 1.0


def jaccards(truths: np.ndarray, masks: np.ndarray, counted: np.ndarray | None = None) -> np.ndarray:
    """Return the Jaccard of every truth with every mask, bool (O, H, W) and (M, H, W) -> (O, M); 1 where both are empty.

    Pixels where `counted` (H, W) is False are as if they were not there.
    """
    # One product of matrices takes less time than counting pair by pair; float32 holds whole numbers up to 2**24 exactly.
    exact = np.float32 if truths[0].size <= 2**24 else np.float64
    columns = [
        (one.reshape(len(one), -1) if counted is None else one[:, counted]).astype(exact)  # (O or M, H*W)
        for one in (truths, masks)
    ]
    shared = (columns[0] @ columns[1].T).astype(np.float64)  # (O, M)
    areas = [one.sum(1, dtype=np.float64) for one in columns]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.ones_like(shared), where=union > 0)


def contour_accuracy(truth: np.ndarray, mask: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Return F of two bool masks (H, W): the harmonic mean of the precision and the recall of the mask's boundary.

    A boundary pixel is matched where the other boundary has one within `tolerance` of the diagonal, rounded up to pixels.
    Without any boundary on one side F is 0, without any on both 1.
    """
    _check(truth, mask)
    radius = int(np.ceil(tolerance * np.linalg.norm(truth.shape)))
    wanted, found = boundary(truth), boundary(mask)
    area = _box(wanted | found)
    wanted, found = wanted[area], found[area]
    number_wanted, number_found = np.count_nonzero(wanted), np.count_nonzero(found)
    if not (number_wanted and number_found):
        return 0.0 if number_wanted or number_found else 1.0
    precision = np.count_nonzero(found & dilate(wanted, radius)) / number_found
    recall = np.count_nonzero(wanted & dilate(found, radius)) / number_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Mark the pixels (H, W) that differ from their right, lower or lower right neighbour; those outside do not differ."""
    edge = np.zeros_like(mask)
    edge[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def dilate(pixels: np.ndarray, radius: int) -> np.ndarray:
    """Mark what lies within `radius` of a marked pixel (H, W), by the Euclidean distance: each row of the disk at a time."""
    height, width = pixels.shape
    grown, line, half = np.zeros_like(pixels), pixels.copy(), 0  # `line`: pixels dilated by `half` to both sides
    for down in range(radius, -1, -1):
        while half < math.isqrt(radius**2 - down**2):
            half += 1
            line[:, half:] |= pixels[:, : max(0, width - half)]
            line[:, : max(0, width - half)] |= pixels[:, half:]
        grown[down:] |= line[: max(0, height - down)]
        grown[: max(0, height - down)] |= line[down:]
    return grown


def statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Return mean, recall and decay of one object's values (n,) over the frames, at least one; NaN is left out of means.

    Recall is the share of frames above 0.5, of which NaN is none. Decay is the mean of the first of four bins of frames
    less that of the last; bins share the frame at their border. The official code counts the borders in 8 bits,
    which fails beyond 256 frames; here they go on.
    """
    values = np.asarray(values, np.float64)
    assert values.ndim == 1
    assert len(values)
    borders = np.round(np.linspace(1, len(values), BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[: borders[1] + 1], values[borders[-2] :]
    return _mean(values), float(np.mean(values > _RECALLED)), _mean(first) - _mean(last)


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _box(pixels: np.ndarray) -> tuple[slice, slice]:
    """The smallest box around the marked pixels."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(0), slice(0))


def _check(truth: np.ndarray, mask: np.ndarray) -> None:
    assert truth.dtype == mask.dtype == bool
    assert truth.shape == mask.shape
    assert truth.ndim == 2
