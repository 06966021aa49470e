"""Images per second from JPEG files to [CLS] vectors of ViT-S/16: dinoeval against eval_knn.py of the released code.

    python benchmarks/speed/extraction.py CHECKOUT IMAGES [--rounds 5]

CHECKOUT is a checkout of facebookresearch/dino, IMAGES a folder of JPEG files. Both read the same files with the same number of
worker processes, in turn in one process. dinoeval also writes its cache entry. bf16 is timed only on a processor with bf16
instructions; its features are compared with those of fp32 on any processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs
import released
from measurement import Options, in_turn, medians, seconds_of, write_record

import dinoeval
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import DINO_TRANSFORM
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.readout import Cls
from dinoeval.models.architectures import parse_architecture
from dinoeval.testing import tiny_state

COMMAND = "python benchmarks/speed/extraction.py CHECKOUT IMAGES"


@dataclasses.dataclass(frozen=True)
class Extraction:
    """One extraction of the same files by either side."""

    arch: str
    data: Path
    weights: Path
    workers: int

    def with_dinoeval(self, precision: str) -> np.ndarray:
        """Extract the features to an empty cache."""
        backbone = dinoeval.load(self.arch, weights=self.weights, precision=precision)
        with tempfile.TemporaryDirectory() as cache:
            options = ExtractOptions(workers=self.workers)
            return extract(backbone, open_images(self.data), Cls(), DINO_TRANSFORM, FeatureCache(cache), options=options).numpy()

    def with_released(self, network: torch.nn.Module) -> np.ndarray:
        """Extract the features with extract_features of eval_knn.py."""
        import eval_knn
        from torchvision import datasets

        class Indexed(datasets.ImageFolder):
            def __getitem__(self, index):
                return super().__getitem__(index)[0], index

        images = Indexed(str(self.data), transform=released.evaluation_transform())
        loader = torch.utils.data.DataLoader(images, batch_size=128, num_workers=self.workers)
        with contextlib.redirect_stdout(io.StringIO()):
            return eval_knn.extract_features(network, loader, use_cuda=False).numpy()


def released_network(weights: Path) -> torch.nn.Module:
    """Return ViT-S/16 of the released code."""
    import vision_transformer

    network = vision_transformer.vit_small(patch_size=16)
    network.load_state_dict(torch.load(weights))
    return network.eval()


def macs_per_image(arch: str) -> int:
    """Return the MACs of the whole network for one image; dinoeval omits what [CLS] does not need of the last block."""
    config = parse_architecture(arch)
    tokens, dim = 1 + config.grid**2, config.dim
    block = 12 * dim**2 * tokens + 2 * tokens**2 * dim
    return config.depth * block + config.grid**2 * 3 * config.patch_size**2 * dim


def has_bf16() -> bool:
    """Return whether the processor has bf16 instructions."""
    information = Path("/proc/cpuinfo")
    flags = information.read_text() if information.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


def smallest_cosine(one: np.ndarray, other: np.ndarray) -> float:
    """Return the smallest cosine between vectors of the same image."""
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min())


def measure(extraction: Extraction, checkout: Path | None, rounds: int) -> dict[str, Any]:
    """Time every way in turn, after one round that warms up and compares the features."""
    ways: dict[str, Callable[[], np.ndarray]] = {"dinoeval_fp32": functools.partial(extraction.with_dinoeval, "fp32")}
    if checkout:
        released.use(checkout)
        ways["released"] = functools.partial(extraction.with_released, released_network(extraction.weights))
    if has_bf16():
        ways["dinoeval_bf16"] = functools.partial(extraction.with_dinoeval, "bf16")
    features = {"dinoeval_bf16": extraction.with_dinoeval("bf16"), **{name: run() for name, run in ways.items()}}
    count = len(features["dinoeval_fp32"])
    times = in_turn({name: functools.partial(seconds_of, run) for name, run in ways.items()}, rounds)
    rates = {name: [count / seconds for seconds in found] for name, found in times.items()}
    typical = medians(rates)
    macs = macs_per_image(extraction.arch)
    record: dict[str, Any] = {
        "problem": f"{count} JPEG files to [CLS] of {extraction.arch}, {extraction.workers} workers",
        "images_per_second": typical,
        "smallest_cosine_bf16_fp32": smallest_cosine(features["dinoeval_fp32"], features["dinoeval_bf16"]),
        "macs_per_image": macs,
        "gflops_fp32": 2e-9 * macs * typical["dinoeval_fp32"],
        "rates": rates,
    }
    if checkout:
        record["speedup"] = {name: rate / typical["released"] for name, rate in typical.items() if name != "released"}
        record["difference_to_released"] = float(np.abs(features["released"] - features["dinoeval_fp32"]).max())
    return record


def main() -> None:
    options = Options(__file__, "speed_extraction", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("images", "a folder of JPEG files")
    options.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    args = options.parse()
    arch = "vit_s16" if args.checkout or not args.tiny else "vit_xs16_224"
    reason = released.why_left_out(args.checkout)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = inputs.save_images(work / "images", 4) if args.tiny else sorted(args.images.iterdir())
        inputs.link_images(files, work / "data/all")
        torch.save(tiny_state(arch, spread=0.03), work / "weights.pth")
        extraction = Extraction(arch, work / "data", work / "weights.pth", 0 if args.tiny else os.cpu_count() or 1)
        record = measure(extraction, args.checkout, 1 if args.tiny else args.rounds)
    no_bf16 = None if has_bf16() else "the time of bf16: this processor has no bf16 instructions"
    write_record(args, COMMAND, record, [reason, no_bf16])


if __name__ == "__main__":
    main()
