"""Agreement of masks: region similarity J and contour accuracy F of DAVIS, their statistics, and Jaccard indices.

All results are fractions. O objects, M masks, H x W pixels, n frames. Source: davis2017/metrics.py and utils.py of
davisvideochallenge/davis2017-evaluation. That code dilates with OpenCV; here shifted lines give the same pixels.
"""

from __future__ import annotations

import math

import numpy as np

TOLERANCE = 0.008  # of the diagonal of the image
BINS = 4
_RECALL_THRESHOLD = 0.5


def region_similarity(ground_truth: np.ndarray, mask: np.ndarray) -> float:
    """Compute J, the Jaccard index of two masks.

    Args:
        ground_truth: Mask, (H, W) bool.
        mask: Mask, (H, W) bool.

    Returns:
        Intersection over union; 1 if both masks are empty.

    Examples:
        One of four pixels is shared:

        >>> region_similarity(np.array([[True, True, False, False]]), np.array([[False, True, True, True]]))
        0.25
    """
    _check_masks(ground_truth, mask)
    union = np.count_nonzero(ground_truth | mask)
    return float(np.count_nonzero(ground_truth & mask) / union) if union else 1.0


def jaccard_indices(ground_truths: np.ndarray, masks: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """Compute the Jaccard index of every object with every mask.

    Args:
        ground_truths: Masks of the objects, (O, H, W) bool.
        masks: Masks to compare, (M, H, W) bool.
        valid: Pixels to count, (H, W) bool; all by default.

    Returns:
        Jaccard indices, (O, M) float64; 1 if both masks are empty.

    Examples:
        >>> objects, masks = np.array([[[True, True]]]), np.array([[[True, False]], [[True, True]]])
        >>> jaccard_indices(objects, masks).tolist()
        [[0.5, 1.0]]
    """
    # One matrix product is faster than counting pair by pair. float32 holds integers up to 2**24 exactly.
    exact = np.float32 if ground_truths[0].size <= 2**24 else np.float64
    pixels = [
        (one.reshape(len(one), -1) if valid is None else one[:, valid]).astype(exact)  # (O or M, H*W)
        for one in (ground_truths, masks)
    ]
    shared = (pixels[0] @ pixels[1].T).astype(np.float64)  # (O, M)
    areas = [one.sum(1, dtype=np.float64) for one in pixels]
    union = areas[0][:, None] + areas[1] - shared
    return np.divide(shared, union, out=np.ones_like(shared), where=union > 0)


def contour_accuracy(ground_truth: np.ndarray, mask: np.ndarray, tolerance: float = TOLERANCE) -> float:
    """Compute F, the harmonic mean of precision and recall of the boundary of a mask.

    A boundary pixel is matched if the other boundary has a pixel within the tolerance.

    Args:
        ground_truth: Mask, (H, W) bool.
        mask: Mask, (H, W) bool.
        tolerance: Largest distance as a fraction of the diagonal, rounded up to whole pixels.

    Returns:
        F; 0 if only one mask has a boundary, 1 if neither has.

    Examples:
        A shift by one pixel is within a tolerance of one pixel (0.1 of the diagonal of 10), but not within 0:

        >>> ground_truth, mask = np.zeros((2, 6, 8), bool)
        >>> ground_truth[:, 2:], mask[:, 3:] = True, True
        >>> contour_accuracy(ground_truth, mask, tolerance=0.1), contour_accuracy(ground_truth, mask, tolerance=0)
        (1.0, 0.0)
    """
    _check_masks(ground_truth, mask)
    radius = int(np.ceil(tolerance * np.linalg.norm(ground_truth.shape)))
    expected, found = boundary(ground_truth), boundary(mask)
    box = _bounding_box(expected | found)
    expected, found = expected[box], found[box]
    num_expected, num_found = np.count_nonzero(expected), np.count_nonzero(found)
    if not (num_expected and num_found):
        return 0.0 if num_expected or num_found else 1.0
    precision = np.count_nonzero(found & dilate(expected, radius)) / num_found
    recall = np.count_nonzero(expected & dilate(found, radius)) / num_expected
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def boundary(mask: np.ndarray) -> np.ndarray:
    """Mark the pixels that differ from their right, lower or lower right neighbor.

    Args:
        mask: Mask, (H, W) bool.

    Returns:
        Boundary pixels, (H, W) bool. Neighbors outside the image do not differ.
    """
    edge = np.zeros_like(mask)
    edge[:, :-1] = mask[:, :-1] ^ mask[:, 1:]
    edge[:-1] |= mask[:-1] ^ mask[1:]
    edge[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return edge


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Mark the pixels within a Euclidean distance of a marked pixel.

    Args:
        mask: Mask, (H, W) bool.
        radius: Largest distance, in pixels.

    Returns:
        Dilated mask, (H, W) bool.
    """
    height, width = mask.shape
    dilated, line, reach = np.zeros_like(mask), mask.copy(), 0  # `line`: the mask dilated by `reach` to the left and right
    for down in range(radius, -1, -1):  # one row of the disk at a time
        while reach < math.isqrt(radius**2 - down**2):
            reach += 1
            line[:, reach:] |= mask[:, : max(0, width - reach)]
            line[:, : max(0, width - reach)] |= mask[:, reach:]
        dilated[down:] |= line[: max(0, height - down)]
        dilated[: max(0, height - down)] |= line[down:]
    return dilated


def sequence_statistics(values: np.ndarray) -> tuple[float, float, float]:
    """Compute mean, recall and decay of the values of one object over its frames.

    Recall is the share of frames above 0.5. Decay is the mean of the first of four bins of frames minus the mean of the
    last; neighboring bins share the frame at their border. The official code computes the borders in 8 bits, which
    fails beyond 256 frames; here they are exact.

    Args:
        values: Values per frame, (n,) float, at least one. NaN is left out of the means and is not above 0.5.

    Returns:
        Mean, recall and decay. Mean and decay are NaN if they have no value.

    Examples:
        Five frames make bins of two frames; the first two have mean 0.9, the last two 0.4:

        >>> mean, recall, decay = sequence_statistics(np.array([1.0, 0.8, 0.6, 0.5, 0.3]))
        >>> round(mean, 2), recall, round(decay, 2)
        (0.64, 0.6, 0.5)
    """
    values = np.asarray(values, np.float64)
    assert values.ndim == 1
    assert len(values)
    borders = np.round(np.linspace(1, len(values), BINS + 1) + 1e-10).astype(int) - 1
    first, last = values[: borders[1] + 1], values[borders[-2] :]
    return _known_mean(values), float(np.mean(values > _RECALL_THRESHOLD)), _known_mean(first) - _known_mean(last)


def _known_mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _bounding_box(mask: np.ndarray) -> tuple[slice, slice]:
    """Smallest box that holds the marked pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)) if len(rows) else (slice(0), slice(0))


def _check_masks(ground_truth: np.ndarray, mask: np.ndarray) -> None:
    assert ground_truth.dtype == mask.dtype == bool
    assert ground_truth.shape == mask.shape
    assert ground_truth.ndim == 2
