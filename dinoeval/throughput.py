"""Throughput of backbones: images per second, parameters, MACs and peak memory (Table 1, appendix D).

Throughput depends on the machine, so the measurements are not a Result. The paper measured on one V100 with 128 images per
forward pass, and does not state precision and warm-up: compare ratios between networks, not absolute values.
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
from collections.abc import Sequence
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
from dinoeval.features.forward import BadImages
from dinoeval.features.readout import Cls
from dinoeval.guard import entry_point
from dinoeval.models.backbone import RANDOM, Backbone, Precision
from dinoeval.models.build import build_network
from dinoeval.models.loading import load
from dinoeval.progress import track

NUM_JPEGS = 256
JPEG_SIZE = (500, 375)
"""Width and height in pixels: the most frequent size in ImageNet."""
_MAX_EXTRACTIONS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThroughputConfig:
    """Options of a measurement."""

    images: str | None = None
    """Folder of images that are read (default: 256 synthetic JPEG files of 500 x 375 pixels)."""
    batch_size: int = 128
    """Images per forward pass. The paper uses 128."""
    repeats: int = 5
    """Timed forward passes after one warm-up; the median is reported."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""
    precision: Precision = "fp32"
    """Forward-pass precision."""
    workers: int | None = None
    """Data-loading processes (default: one per core)."""
    bad_images: BadImages = "error"
    """Handling of unreadable images. error: stop and list them. skip: leave them out."""

    def __post_init__(self) -> None:
        for name, value, minimum in (("batch-size", self.batch_size, 1), ("repeats", self.repeats, 1), ("workers", self.workers, 0)):
            if value is not None and value < minimum:
                raise ConfigError(f"--{name} must be at least {minimum}, got {value}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Throughput:
    """The measurements of one backbone."""

    arch: str
    parameters: int
    macs: int
    """Multiply-accumulate operations of one image of the size of the network, for [CLS]."""
    forward: float
    """Images per second, median of the repeats, with images that are already on the device."""
    spread: float
    """Difference between the fastest and the slowest repeat, as a fraction of the median."""
    from_files: float
    """Images per second from JPEG files to features in the cache."""
    peak_bytes: int
    """Memory that loading and running the network added; on a GPU, the peak of its allocator."""
    batch_size: int
    device: str
    precision: str
    files: str
    """What `from_files` read."""


@entry_point
def measure(archs: Sequence[str], config: ThroughputConfig = ThroughputConfig()) -> list[Throughput]:
    """Measure backbones with random weights.

    Each is measured in its own process, so that its memory is counted separately.

    Args:
        archs: Names of architectures.
        config: Options.

    Returns:
        The measurements, in the order of `archs`.

    Raises:
        ConfigError: If an architecture is unknown. All names are checked before the first measurement.
        DataError: If the images cannot be opened.
    """
    if config.images is not None:
        open_images(config.images)
    for arch in archs:
        build_network(arch)
    with tempfile.TemporaryDirectory() as folder:
        images = config.images or str(_write_synthetic_jpegs(Path(folder) / "jpegs"))
        spawn = multiprocessing.get_context("spawn")
        measured = []
        for arch in track(archs, "networks", len(archs), "networks"):
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
                measured.append(pool.submit(_measure, arch, config, images, folder).result())
        return measured


def count_macs(arch: str) -> int:
    """Count the multiply-accumulate operations of the forward pass of one image.

    The count is that of the FLOP counter of PyTorch. Nothing is computed.

    Args:
        arch: Name of an architecture.

    Returns:
        The number of operations.

    Examples:
        >>> count_macs("resnet50")
        4087136256
    """
    with torch.device("meta"):
        network = build_network(arch).eval()
        image = torch.empty(1, 3, network.config.image_size, network.config.image_size)  # type: ignore[union-attr,arg-type]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(image)
    return counter.get_total_flops() // 2


def _measure(arch: str, config: ThroughputConfig, images: str, folder: str) -> Throughput:
    """Measure one backbone, in its own process. `folder` is for temporary files."""
    memory_before = _start_memory_count()
    backbone = load(arch, weights=RANDOM, device=config.device, precision=config.precision)
    size = backbone.config.image_size
    batch = torch.randn(config.batch_size, 3, size, size, device=backbone.device)
    backbone(batch, patches=False)  # Warm-up: kernels are chosen, memory is allocated.
    rates = []
    for _ in range(config.repeats):
        _synchronize(backbone)
        started = time.perf_counter()
        backbone(batch, patches=False)
        _synchronize(backbone)
        rates.append(config.batch_size / (time.perf_counter() - started))
    peak_bytes = _added_bytes(backbone.device, memory_before)
    median = statistics.median(rates)
    synthetic = f"{NUM_JPEGS} synthetic JPEG files of {JPEG_SIZE[0]} x {JPEG_SIZE[1]} pixels"
    return Throughput(
        arch=arch,
        parameters=sum(parameter.numel() for parameter in backbone.network.parameters()),
        macs=count_macs(arch),
        forward=median,
        spread=(max(rates) - min(rates)) / median,
        from_files=_measure_from_files(backbone, open_images(images), config, folder),
        peak_bytes=peak_bytes,
        batch_size=config.batch_size,
        device=str(backbone.device),
        precision=config.precision,
        files=f"the images in {config.images}" if config.images else synthetic,
    )


def _measure_from_files(backbone: Backbone, images: ImageSet, config: ThroughputConfig, folder: str) -> float:
    """Return the images per second of an extraction, from files to the cache."""
    transform = parse_transform("auto", backbone.config.image_size, backbone.config.preprocessing)
    workers = distributed.num_workers(config.workers, 8, small=False)
    # Several forward passes per worker, so that decoding and computing overlap as in a long run.
    enough = 4 * max(1, workers) * backbone.fast_batch(transform.crop)
    images = images.subset(np.arange(max(enough, len(images))) % len(images))
    rates = []
    for _ in range(min(config.repeats, _MAX_EXTRACTIONS)):
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            options = ExtractOptions(workers=workers, bad_images=config.bad_images)
            features = extract(backbone, images, Cls(), transform, FeatureCache(cache), options=options)
            rates.append(len(features) / features.seconds)
    return statistics.median(rates)


def _synchronize(backbone: Backbone) -> None:
    """Wait until the device has finished."""
    if backbone.device.type == "cuda":
        torch.cuda.synchronize(backbone.device)
    elif backbone.device.type == "mps":
        torch.mps.synchronize()


def _start_memory_count() -> int:
    """Reset the peak memory if the system can (Linux); return what this process holds now, in bytes."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def _peak_bytes() -> int:
    """Return the peak memory of this process, or 0 if the system does not report it."""
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


def _write_synthetic_jpegs(folder: Path) -> Path:
    """Write images of smooth color noise, which decode about as fast as photographs."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(NUM_JPEGS):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        coarse.resize(JPEG_SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:04d}.jpg", quality=90)
    return folder
