"""`dinoeval speed`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from dinoeval.cli.options import JsonOutput
from dinoeval.throughput import Throughput, ThroughputConfig

_TABLE_1 = ("resnet50", "vit_s16", "vit_s8", "vit_b16", "vit_b8")
_HEADINGS = (
    ("parameters", "M"),
    ("MACs", "G"),
    ("forward", "images/s"),
    ("spread", ""),
    ("from files", "images/s"),
    ("peak memory", "MB"),
    ("paper, V100", "images/s"),
    ("here/paper", "row 1 = 1"),
)


def speed(archs: tuple[str, ...] = _TABLE_1, /, *, config: ThroughputConfig, output: JsonOutput) -> int:
    """Measure throughput, parameters, MACs and peak memory of backbones.

    Weights are random. Throughput is measured for forward passes alone, and from JPEG files to features.

    Args:
        archs: Architectures, by name.
        config: Options of the measurement.
        output: The file of the measurements.
    """
    from dinoeval.environment import describe_machine
    from dinoeval.paper.rows import printed_values
    from dinoeval.throughput import measure

    output.check()
    measured, machine = measure(archs, config), describe_machine()
    output.write({"machine": machine, "rows": [dataclasses.asdict(one) for one in measured]})
    first = measured[0]
    print(f"{first.device}, {first.precision}, {first.batch_size} images per forward pass, random weights, on {machine['processor']}")
    print(f"from files: {first.files}\n")
    print(_table(measured, printed_values("speed", "images_per_second")))
    print("\nThe paper used another machine, so compare only the ratios between rows in the last column.")
    return 0


def _table(measured: Sequence[Throughput], printed: Mapping[str, float]) -> str:
    """Format the measurements next to the printed values, in images per second by architecture."""
    first = measured[0]
    lines = [f"{'':<30}" + "".join(f"{word:>12}" for word in words) for words in zip(*_HEADINGS, strict=True)]
    for one in measured:
        paper, ratio = "-", "-"
        if one.arch in printed:
            paper = f"{printed[one.arch]:.0f}"
            if first.arch in printed:
                ratio = f"{(one.forward / first.forward) / (printed[one.arch] / printed[first.arch]):.2f}"
        cells = (
            f"{one.parameters / 1e6:.2f}",
            f"{one.macs / 1e9:.2f}",
            f"{one.forward:.1f}",
            f"{one.spread:.0%}",
            f"{one.from_files:.1f}",
            f"{one.peak_bytes / 1e6:.0f}",
            paper,
            ratio,
        )
        lines.append(f"{one.arch:<30}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)
