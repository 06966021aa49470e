"""JPEG files to [CLS] vectors of ViT-S/16, images a second end to end: dinoeval against the released eval_knn.py.

    python benchmarks/speed/extraction.py CHECKOUT FOLDER-OF-JPEGS [--rounds 5]

Both read the same files with the same number of worker processes, in turn in one process; ours writes its cache entry as
well. The speed of bf16 is measured only on a processor with bf16 instructions, its closeness to fp32 on any.
Writes benchmarks/results/speed_extraction.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.opening import open_images  # noqa: E402
from dinoeval.data.transforms import DINO_TRANSFORM  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.features.cache import FeatureCache  # noqa: E402
from dinoeval.features.extract import ExtractOptions, extract  # noqa: E402
from dinoeval.features.readout import Cls  # noqa: E402
from dinoeval.models.architectures import parse_architecture  # noqa: E402


def multiply_adds(arch: str) -> int:
    """Of the whole network for one image; ours leaves out what [CLS] does not need of the last block."""
    config = parse_architecture(arch)
    tokens, dim = 1 + config.grid**2, config.dim
    block = 12 * dim**2 * tokens + 2 * tokens**2 * dim
    return config.depth * block + config.grid**2 * 3 * config.patch_size**2 * dim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    released.use(args.checkout)
    import eval_knn
    import vision_transformer
    from torchvision import datasets, transforms

    workers = os.cpu_count() or 1
    state = synthetic_state("vit_s16", spread=0.03)
    network = vision_transformer.vit_small(patch_size=16)
    network.load_state_dict(state)
    network.eval()
    normalise = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    transform = transforms.Compose([transforms.Resize(256, interpolation=3), transforms.CenterCrop(224), transforms.ToTensor(), normalise])

    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        torch.save(state, work / "weights.pth")
        (work / "data/all").mkdir(parents=True)
        for image in sorted(args.images.iterdir()):
            (work / "data/all" / image.name).symlink_to(image.resolve())

        class Indexed(datasets.ImageFolder):
            def __getitem__(self, index):
                return super().__getitem__(index)[0], index

        def theirs() -> np.ndarray:
            loader = torch.utils.data.DataLoader(Indexed(str(work / "data"), transform=transform), batch_size=128, num_workers=workers)
            with contextlib.redirect_stdout(io.StringIO()):
                return eval_knn.extract_features(network, loader, use_cuda=False).numpy()

        def ours(precision: str) -> np.ndarray:
            backbone = dinoeval.load("vit_s16", weights=work / "weights.pth", precision=precision)
            with tempfile.TemporaryDirectory() as cache:
                options = ExtractOptions(workers=workers)
                return extract(backbone, open_images(work / "data"), Cls(), DINO_TRANSFORM, FeatureCache(cache), options=options).numpy()

        flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        has_bf16 = "avx512_bf16" in flags or "amx_bf16" in flags
        runs = {"theirs": theirs, "ours fp32": lambda: ours("fp32")} | ({"ours bf16": lambda: ours("bf16")} if has_bf16 else {})
        rates: dict[str, list[float]] = {one: [] for one in runs}
        rows = {"ours bf16": ours("bf16")}
        rows |= {one: run() for one, run in runs.items()}  # one round to warm up, and to compare what comes out
        for _ in range(args.rounds):
            for one, run in runs.items():
                began = time.monotonic()
                run()
                rates[one].append(len(rows[one]) / (time.monotonic() - began))
            print({one: round(values[-1], 2) for one, values in rates.items()}, flush=True)
    medians = {one: statistics.median(values) for one, values in rates.items()}
    full, low = rows["ours fp32"], rows["ours bf16"]
    least = float(((full * low).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(low, axis=1)).min())
    facts = {
        "what": f"{len(rows['theirs'])} JPEG files to [CLS] of ViT-S/16, {workers} workers", "images a second": medians,
        "ratio fp32": medians["ours fp32"] / medians["theirs"],
        "ratio bf16": medians["ours bf16"] / medians["theirs"] if has_bf16 else "not measured: this processor has no bf16 instructions",
        "least cosine of bf16 to fp32": least,
        "largest difference to the released features": float(np.abs(rows["theirs"] - rows["ours fp32"]).max()),
        "multiply-adds an image": multiply_adds("vit_s16"),
        "GFLOP a second of ours fp32": 2e-9 * multiply_adds("vit_s16") * medians["ours fp32"],
        "rates": rates, "machine": describe_machine(), "command": "python benchmarks/speed/extraction.py CHECKOUT FOLDER",
    }  # fmt: skip
    (ROOT / "benchmarks/results/speed_extraction.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key != "machine"}, indent=1))


if __name__ == "__main__":
    main()
