"""`dinoeval speed`."""

from __future__ import annotations

import dataclasses
import json as json_format
from typing import Annotated, Literal

import tyro

from dinoeval.files import check_writable, write_whole


def speed(
    archs: Annotated[tuple[str, ...], tyro.conf.Positional] = ("resnet50", "vit_s16", "vit_s8", "vit_b16", "vit_b8"),
    /,
    images: str | None = None,
    batch_size: int = 128,
    rounds: int = 5,
    device: str = "auto",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    workers: int | None = None,
    json: str | None = None,
) -> int:
    """Measure backbones: images a second (forward only, and from JPEG files), parameters, multiply-adds, peak memory.

    Args:
        archs: Architectures; by default the rows of the paper's Table 1.
        images: A folder of pictures to read; by default made-up JPEG files.
        batch_size: Images a forward pass; the paper's is 128.
        rounds: Forward passes whose median is told, after one that warms up.
        device: auto, cpu, cuda, mps.
        precision: fp32, bf16 or fp16.
        workers: Processes that decode; by default one a core, none for small sets.
        json: Write the numbers to this file.
    """
    from dinoeval.environment import describe_machine
    from dinoeval.throughput import measure

    if json:
        check_writable(json)
    rows = measure(list(archs), images=images, batch=batch_size, rounds=rounds, device=device, precision=precision, workers=workers)
    machine = describe_machine()
    if json:
        content = {"machine": machine, "rows": [dataclasses.asdict(row) for row in rows]}
        write_whole(json, lambda target: target.write_text(json_format.dumps(content, indent=1) + "\n"))
    first = rows[0]
    print(f"{first.device}, {first.precision}, {first.batch} images a forward pass, random weights, on {machine['processor']}")
    print(f"from files: {first.files}\n")
    columns = [("parameters", "M"), ("multiply-", "adds, G"), ("images/s", "forward"), ("", "spread"), ("images/s", "from files"),
               ("peak", "MB"), ("V100", "in paper"), ("here/paper", "row 1 = 1")]  # fmt: skip
    for line in zip(*columns, strict=True):
        print(f"{'':<30}" + "".join(f"{word:>12}" for word in line))
    for row in rows:
        ratio = "-"
        if row.published and first.published:
            ratio = f"{(row.forward / first.forward) / (row.published / first.published):.2f}"
        cells = [f"{row.parameters / 1e6:.2f}", f"{row.multiply_adds / 1e9:.2f}", f"{row.forward:.1f}", f"{row.spread:.0%}",
                 f"{row.from_files:.1f}", f"{row.peak_bytes / 1e6:.0f}", str(row.published or "-"), ratio]  # fmt: skip
        print(f"{row.arch:<30}" + "".join(f"{cell:>12}" for cell in cells))
    print("\nThe paper's column is of another machine: only ratios between its rows can be compared, which the last column does.")
    return 0
