"""The part of benchmarks/README.md that is about patches: DAVIS, segmentation by attention, attention maps."""

from __future__ import annotations

from collections.abc import Callable


def patches(read: Callable[[str], dict]) -> list[str]:
    """Lines of the page, of results that `read` gives by name."""
    return [*parity(read), *davis(read("davis")), *segmentation(read("segment_davis")), *speed(read("speed_propagation"))]


def parity(read: Callable[[str], dict]) -> list[str]:
    video, masks, maps = read("parity_davis"), read("parity_segmentation"), read("parity_attention")
    lines = [
        "## DAVIS, attention and segmentation",
        "",
        f"`{video['command']}`: propagated masks beside those of the released code, every object of every frame after the first:",
        "",
        "| weights | frames a sequence | least IoU | read by PIL, least / mean IoU | read by torchvision, least / mean IoU |",
        "|---|---|---|---|---|",
    ]
    for run in video["runs"]:
        cells = [f"{run[way]['least IoU']:.3f} / {run[way]['mean IoU']:.3f}" for way in ("pil", "torchvision")]
        lines.append(f"| {run['arch']}, {'trained' if 'made-up' not in run['weights'] else 'made up'} | {run['frames']} | {run['opencv']['least IoU']:.4f} | "
                     f"{' | '.join(cells)} |")  # fmt: skip
    pairs = masks["largest differences, fractions"]
    worst = max(row[score] for row in pairs.values() for score in "JF")
    times = masks["milliseconds a mask"]
    sharp = maps["sharp"]
    return [
        *lines,
        "",
        f"`{masks['command']}`: J and F differ from the official evaluation by at most {worst:.0e} over {sum(row['pairs'] for row in pairs.values()):,} pairs of "
        f"masks ({sum(row['empty masks'] for row in pairs.values())} empty ones, {sum(row['of one pixel'] for row in pairs.values()):,} of one pixel), their statistics by "
        f"{masks['statistics']['mean, recall, decay']:.0e}; {times['J']['times faster']:.1f} and {times['F']['times faster']:.1f} times as fast.",
        "",
        f"`{maps['command']}`: attention of the last block, real photographs at 480 pixels and at their own size: rows of [CLS] within "
        f"{max(row['rows of [CLS]'] for row in maps['rows']):.0e}, all rows within {max(row['all rows'] for row in maps['rows']):.0e}, "
        f"{sum(row['masks that differ'] for row in maps['rows'])} patches of masks differ. Made-up weights so sharp that attention reaches {sharp['largest attention']:.2f} "
        f"differ by {sharp['ours and released']:.0e}: from double precision ours are {sharp['ours and double']:.0e} away, the released code {sharp['released and double']:.0e}.",
        "",
    ]


def davis(facts: dict) -> list[str]:
    names = list(facts["frames"])
    lines = [
        f"`{facts['command']}`: {len(names)} sequences of DAVIS 2016, {sum(facts['frames'].values())} frames, with one object each, percent; not the paper's set. Checkpoints "
        "are of a few epochs of CIFAR-10.",
        "",
        f"| weights | J&F | J | F | J of {' | J of '.join(names)} |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for row in facts["rows"]:
        what = f"{row['what']}, {row['arch']}" if "arch" in row else row["what"]
        means = [f"{row['metrics'][metric]:.1f} ± {row['standard errors'][metric]:.1f}" for metric in ("J&F", "J", "F")]
        own = [f"{row['sequences'][name]['J']:.1f}" for name in names]
        lines.append(f"| {' | '.join([what, *means, *own])} |")
    return [*lines, ""]


def segmentation(facts: dict) -> list[str]:
    lines = [
        f"`{facts['command']}`: Jaccard of attention masks on {facts['images']} frames of {facts['sequences']} sequences of DAVIS (a mask of the whole image: "
        f"{facts['a mask of the whole image, percent']:.1f}); not the paper's set.",
        "",
        "| weights | image size | mass | best head an object | best fixed head | mean over heads |",
        "|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        weights = "random" if row["weights"] == "random" else "trained"
        values = [f"{row['metrics'][name]:.1f} ± {row['standard_errors'][name]:.1f}" for name in row["metrics"]]
        lines.append(f"| {row['arch']}, {weights} | {row['config']['image_size']} | {row['config']['mass']} | {' | '.join(values)} |")
    return [*lines, ""]


def speed(facts: dict) -> list[str]:
    ours, theirs, times = facts["medians"]["ours"], facts["medians"]["released"], facts["released / ours"]
    return [
        f"`{facts['command']}`: {facts['what']}, medians of {len(facts['runs']['ours'])} runs in turn. Soft maps differ by "
        f"{facts['soft maps']['median difference']:.0e} (median), and by more than 1e-4 in {facts['soft maps']['tokens that differ by more than 1e-4']} of "
        f"{facts['soft maps']['tokens']:,} tokens, where rounding decides which of two equally near neighbours is kept. Within the radius lie {facts['multiply-adds within the radius'] / 1e9:.1f} G multiply-adds: "
        f"{facts['GFLOP a second within the radius']:.0f} GFLOP a second.",
        "",
        "| | ours | released | ratio |",
        "|---|---|---|---|",
        *(f"| {what} | {ours[what]:.2f} | {theirs[what]:.2f} | {times[what]:.1f} |" for what in ours),
        "",
    ]
