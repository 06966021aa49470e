"""Throughput of backbones: images a second, parameters, multiply-adds, peak memory (Table 1, appendix D).

Speed depends on the machine, so nothing here is a Result: the published column is of one V100, 128 images a forward pass,
its precision and warm-up unstated; compare ratios between networks, not numbers.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from dinoeval import distributed
from dinoeval.data.images import ImageSet
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import parse_transform
from dinoeval.errors import ConfigError
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.readout import Cls
from dinoeval.models.backbone import RANDOM, Backbone, Precision
from dinoeval.models.build import build_network
from dinoeval.models.loading import load

PUBLISHED = {
    "resnet50": 1237, "vit_s16": 1007, "vit_s8": 180, "vit_b16": 312, "vit_b8": 63,  # Table 1
    "vit_s5": 44,  # Section 5.1, in the text
    "vit_s16_h8": 971, "vit_s16_h12": 927, "vit_s16_h16": 860,  # appendix D
}  # fmt: skip
"""Images a second on one V100."""
_JPEGS, _JPEG_SIZE = 256, (500, 375)  # ImageNet's commonest size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """What was measured of one backbone."""

    arch: str
    parameters: int
    multiply_adds: int
    """Of one image of the network's size, as [CLS] is computed here."""
    forward: float
    """Images a second, median of the rounds; pictures are on the device already."""
    spread: float
    """Between the fastest and the slowest round, as a share of the median."""
    from_files: float
    """Images a second from JPEG files to features in the cache."""
    peak_bytes: int
    """Memory that building and running the network added; on a GPU, its allocator's peak."""
    batch: int
    device: str
    precision: str
    files: str
    published: int | None


def measure(
    archs: list[str], *, images: str | None, batch: int, rounds: int, device: str, precision: Precision, workers: int | None
) -> list[Throughput]:
    """Measure backbones with random weights, each in a process of its own, so that one's memory is not another's.

    `images` is a folder of pictures, or None for made-up JPEG files. Raises ConfigError for what cannot be built.
    """
    if batch < 1 or rounds < 1 or (workers or 0) < 0:
        raise ConfigError("batch size and rounds must be 1 or more, workers 0 or more")
    if images is not None:
        open_images(images)
    for arch in archs:
        build_network(arch)  # finds what is misspelt before anything is measured
    with tempfile.TemporaryDirectory() as folder:
        where = images or str(_made_up_jpegs(Path(folder) / "jpegs"))
        files = f"the pictures of {images}" if images else f"{_JPEGS} made-up JPEG files of {_JPEG_SIZE[0]} x {_JPEG_SIZE[1]} pixels"
        spawn = multiprocessing.get_context("spawn")
        rows = []
        for arch in archs:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                rows.append(pool.submit(_measure, arch, where, files, batch, rounds, device, precision, workers, folder).result())
        return rows


def _measure(
    arch: str, where: str, files: str, batch: int, rounds: int, device: str, precision: Precision, workers: int | None, folder: str
) -> Throughput:
    before = _begin_counting()
    backbone = load(arch, weights=RANDOM, device=device, precision=precision)
    size = backbone.config.image_size
    pictures = torch.randn(batch, 3, size, size, device=backbone.device)
    backbone(pictures, patches=False)  # warms up: kernels are chosen, memory is allocated
    rates = []
    for _ in range(rounds):
        _wait(backbone)
        began = time.perf_counter()
        backbone(pictures, patches=False)
        _wait(backbone)
        rates.append(batch / (time.perf_counter() - began))
    peak = _added_bytes(backbone.device, before)
    end_to_end = _from_files(backbone, open_images(where), rounds, workers, folder)
    median = statistics.median(rates)
    return Throughput(
        arch=arch, parameters=sum(parameter.numel() for parameter in backbone.network.parameters()), multiply_adds=multiply_adds(arch),
        forward=median, spread=(max(rates) - min(rates)) / median, from_files=end_to_end, peak_bytes=peak, batch=batch,
        device=str(backbone.device), precision=precision, files=files, published=PUBLISHED.get(arch),
    )  # fmt: skip


def multiply_adds(arch: str) -> int:
    """Count the multiply-adds of the forward pass of one image, by PyTorch's own counter; nothing is computed."""
    with torch.device("meta"):
        network = build_network(arch).eval()
        image = torch.empty(1, 3, network.config.image_size, network.config.image_size)  # type: ignore[union-attr,arg-type]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


def _from_files(backbone: Backbone, images: ImageSet, rounds: int, workers: int | None, folder: str) -> float:
    transform = parse_transform("auto", backbone.config.image_size, backbone.config.preprocessing)
    workers = distributed.num_workers(workers, 8, small=False)
    # Several forward passes for each process that decodes, so that they overlap as in a long run.
    enough = 4 * max(1, workers) * backbone.fast_batch(transform.crop)
    images = images.subset(np.arange(max(enough, len(images))) % len(images))
    rates = []
    for _ in range(min(rounds, 3)):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            features = extract(backbone, images, Cls(), transform, FeatureCache(cache), options=ExtractOptions(workers=workers))
            rates.append(len(images) / features.seconds)
    return statistics.median(rates)


def _wait(backbone: Backbone) -> None:
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    elif backbone.device.type == "mps":
        torch.mps.synchronize()


def _begin_counting() -> int:
    """Forget the peak of memory so far where the system can (Linux); return what this process holds now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    """Peak memory of this process; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _added_bytes(device: torch.device, before: int) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    return max(0, _peak_bytes() - before)


def _made_up_jpegs(folder: Path) -> Path:
    """Smooth coloured noise, which decodes about as fast as photographs do."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(_JPEGS):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(_JPEG_SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)
    return folder
