"""The part of benchmarks/README.md about patches: DAVIS, segmentation by attention, attention maps."""

from __future__ import annotations

from collections.abc import Callable

Read = Callable[[str], dict]
Table = Callable[..., list[str]]


def sections(read: Read, table: Table) -> list[str]:
    """Return the lines of the page.

    Args:
        read: Returns a record by its name.
        table: Returns the lines of a table.
    """
    return [
        "## DAVIS, attention and segmentation",
        "",
        *parity_davis(read("parity_davis"), table),
        *parity_segmentation(read("parity_segmentation")),
        *parity_attention(read("parity_attention")),
        *davis(read("davis"), table),
        *segmentation(read("segment_davis"), table),
        *speed(read("speed_propagation"), table),
    ]


def parity_davis(record: dict, table: Table) -> list[str]:
    """Propagated masks."""
    rows = []
    for run in record["runs"]:
        other = [f"{run[backend]['min_iou']:.3f} / {run[backend]['mean_iou']:.3f}" for backend in ("pil", "torchvision")]
        rows.append((f"{run['arch']}, {run['weights']}", run["frames"], f"{run['opencv']['min_iou']:.4f}", *other))
    header = ("weights", "frames per sequence", "least IoU", "resized by PIL, least / mean IoU", "resized by torchvision, least / mean IoU")
    return [
        f"`{record['command']}`: propagated masks against those of the released code, for every object in every frame after the first:",
        "",
        *table(header, rows),
    ]


def parity_segmentation(record: dict) -> list[str]:
    """J and F."""
    pairs, times = record["largest_differences"].values(), record["milliseconds_per_mask"]
    largest = max(row[metric] for row in pairs for metric in "JF")
    return [
        f"`{record['command']}`: J and F differ from the official evaluation by at most {largest:.0e} over {sum(row['pairs'] for row in pairs):,} pairs of "
        f"masks ({sum(row['empty_masks'] for row in pairs)} empty masks, {sum(row['one_pixel_masks'] for row in pairs):,} of one pixel), their statistics by "
        f"{record['statistics']['largest_difference']:.0e}. They are {times['J']['speedup']:.1f} and {times['F']['speedup']:.1f} times as fast.",
        "",
    ]


def parity_attention(record: dict) -> list[str]:
    """Attention of the last block."""
    rows, sharp = record["rows"], record["sharp"]
    return [
        f"`{record['command']}`: attention of the last block, photographs at 480 pixels and at their own size. The attention of [CLS] differs by at most "
        f"{max(row['cls_rows'] for row in rows):.0e}, that of all queries by {max(row['all_rows'] for row in rows):.0e}, "
        f"and {sum(row['differing_mask_patches'] for row in rows)} patches of masks differ. With random weights so sharp that attention reaches {sharp['largest_attention']:.2f}, "
        f"both sides differ by {sharp['dinoeval_released']:.0e}: dinoeval is {sharp['dinoeval_double']:.0e} away from double precision, the released code {sharp['released_double']:.0e}.",
        "",
    ]


def davis(record: dict, table: Table) -> list[str]:
    """Scores of label propagation."""
    names, rows = list(record["frames"]), []
    for row in record["rows"]:
        masks = f"{row['masks']}, {row['arch']}" if "arch" in row else row["masks"]
        means = [f"{row['metrics'][metric]:.1f} ± {row['standard_errors'][metric]:.1f}" for metric in ("J&F", "J", "F")]
        rows.append((masks, *means, *(f"{row['sequences'][name]['J']:.1f}" for name in names)))
    return [
        f"`{record['command']}`: {len(names)} sequences of DAVIS 2016, {sum(record['frames'].values())} frames, with one object each, in percent. The paper uses other "
        "sequences. The checkpoints were trained for a few epochs on CIFAR-10.",
        "",
        *table(("masks", "J&F", "J", "F", *(f"J of {name}" for name in names)), rows),
    ]


def segmentation(record: dict, table: Table) -> list[str]:
    """Scores of attention masks."""
    rows = []
    for row in record["rows"]:
        weights = "random" if row["weights"] == "random" else "trained"
        values = [f"{row['metrics'][name]:.1f} ± {row['standard_errors'][name]:.1f}" for name in row["metrics"]]
        rows.append((f"{row['arch']}, {weights}", row["config"]["image_size"], row["config"]["mass"], *values))
    return [
        f"`{record['command']}`: Jaccard of attention masks on {record['images']} frames of {record['sequences']} sequences of DAVIS, in percent (a mask of the whole image: "
        f"{record['whole_image_mask']:.1f}). The paper uses VOC 2012.",
        "",
        *table(("weights", "image size", "mass", "best head per object", "best fixed head", "mean over heads"), rows),
    ]


def speed(record: dict, table: Table) -> list[str]:
    """Time and memory of propagation."""
    labels = {"propagation_seconds": "propagation, s", "propagation_mb": "propagation, MB", "frame_seconds": "whole frame, s"}
    sides, soft = record["medians"], record["soft_maps"]
    rows = [
        (text, f"{sides['dinoeval'][name]:.2f}", f"{sides['released'][name]:.2f}", f"{record['speedup'][name]:.1f}")
        for name, text in labels.items()
    ]
    return [
        f"`{record['command']}`: {record['problem']}, medians of {len(record['runs']['dinoeval'])} runs in turn. Soft maps differ by "
        f"{soft['median_difference']:.0e} (median), and by more than 1e-4 in {soft['differing_tokens']} of "
        f"{soft['tokens']:,} tokens, in which rounding decides which of two equally similar neighbors is kept. The window contains {record['macs_within_radius'] / 1e9:.1f} G MACs: "
        f"{record['gflops_within_radius']:.0f} GFLOP/s.",
        "",
        *table(("", "dinoeval", "released", "ratio"), rows),
    ]
