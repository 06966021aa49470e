"""Measure the CUDA paths: agreement with the CPU, forward pass, extraction, k-NN, label propagation, training steps.

    python benchmarks/gpu/speed.py --images FOLDER --video FOLDER --released CHECKOUT --workers 16
    python benchmarks/gpu/speed.py --tiny --out speed.json           # seconds on a CPU, synthetic images, no released code

FOLDER holds JPEG files, or the frames of a video at 480p. CHECKOUT is facebookresearch/dino, whose k-NN classifier and label
propagation are timed on the same inputs; without it they are left out. Weights are random, so nothing is scored.
Writes benchmarks/results/gpu_speed.json.

N images, Q queries, k neighbors, D dimensions.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from device_augment import DeviceMultiCrop, render
from device_trainer import DeviceTrainer, compile_blocks, use_fastest_attention
from nearest import nearest_in_blocks, nearest_in_groups, vote
from torch import Tensor
from train_cifar10 import ARCH, RECIPE, TINY_RECIPE, crops_of_epoch

from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.data.frames import read_frame
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import DINO_TRANSFORM, normalize_images
from dinoeval.features.cache import FeatureCache
from dinoeval.features.extract import ExtractOptions, extract
from dinoeval.features.forward import Extractor
from dinoeval.features.readout import Cls
from dinoeval.maths import propagation as maths
from dinoeval.models.backbone import Backbone
from dinoeval.models.loading import load
from dinoeval.testing import TINY_ARCH, tiny_images
from dinoeval.video import Propagation, PropagationConfig

ROOT = Path(__file__).resolve().parent.parent.parent
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
PRECISIONS = ("fp32", "bf16", "fp16")
BANK, QUERIES, DIM, CLASSES, K = 1_281_167, 50_000, 384, 1000, 20
TILES = (10, 20, 30)  # tokens of a tile's side; the package uses the first
CONTEXT = 8  # frames of context: the first and the last seven
RULE = {"radius": 12, "top_k": 5, "temperature": 0.1}  # of label propagation
Options = argparse.Namespace
Record = dict[str, Any]


def wait() -> None:
    """Wait until the GPU has finished."""
    if CUDA:
        torch.cuda.synchronize()


def timed(function: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Time a function.

    Args:
        function: Called `repeats` times on a GPU, once on a CPU.
        repeats: Number of calls.

    Returns:
        Median seconds of a call, and the result of the last one.
    """
    seconds, result = [], None
    for _ in range(repeats if CUDA else 1):
        wait()
        started = time.perf_counter()
        result = function()
        wait()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def memory_added(function: Callable[[], Any]) -> float | None:
    """Measure the GPU memory that a call adds.

    Args:
        function: Called once.

    Returns:
        Peak in GiB; None on a CPU.
    """
    if not CUDA:
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def random_backbone(options: Options, arch: str, precision: str, device: torch.device = DEVICE) -> Backbone:
    """Load random weights.

    Args:
        options: A small architecture replaces `arch` if `tiny` is set.
        arch: Architecture.
        precision: fp32, bf16 or fp16.
        device: Where the network runs.

    Returns:
        The backbone.
    """
    small = "vit_xs8_32" if arch.endswith("8") else "vit_xs32_32"
    return load(small if options.tiny else arch, weights="random", device=str(device), precision=precision)  # type: ignore[arg-type]


def released_module(checkout: Path, name: str) -> Any:
    """Import a module of the released code.

    Args:
        checkout: Its folder.
        name: Name of the module.

    Returns:
        The module.
    """
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    return importlib.import_module(name)


def agreement(options: Options) -> Record:
    """Return how far [CLS] and patch tokens on the GPU are from float32 on the CPU."""
    images = open_images(options.images)
    count = min(4 if options.tiny else 32, len(images))
    batch = normalize_images(torch.stack([DINO_TRANSFORM(images.open(row)) for row in range(count)]))
    reference = random_backbone(options, "vit_s16", "fp32", torch.device("cpu"))(batch)
    record: Record = {}
    for precision in PRECISIONS:
        tokens = random_backbone(options, "vit_s16", precision)(batch)
        assert tokens.patches is not None
        assert reference.patches is not None
        for name, found, expected in (("[CLS]", tokens.cls, reference.cls), ("patches", tokens.patches, reference.patches)):
            found, expected = found.cpu().double(), expected.double()
            record[f"{precision}, {name}"] = {
                "largest difference": (found - expected).abs().max().item(),
                "relative error": ((found - expected).norm() / expected.norm()).item(),
                "1 - smallest cosine": 1 - F.cosine_similarity(found, expected, dim=-1).min().item(),
            }
    return record


def forward(options: Options) -> Record:
    """Return images per second of the forward pass to [CLS], for images that are on the GPU."""
    record: Record = {}
    for (arch, batch), precision in itertools.product((("vit_s16", 512), ("vit_s8", 128)), PRECISIONS):
        images = torch.randn(2, 3, 64, 64) if options.tiny else torch.randn(batch, 3, 224, 224, device=DEVICE)
        backbone = random_backbone(options, arch, precision)

        def run(backbone: Backbone = backbone, images: Tensor = images) -> object:
            return backbone(images, patches=False)

        for _ in range(3 if CUDA else 0):
            run()
        record[f"{arch}, {precision}, images/s"] = len(images) / timed(run, 10)[0]
    return record


def extraction(options: Options) -> Record:
    """Return images per second from JPEG files to [CLS] in the feature cache, and of decoding alone."""
    images = open_images(options.images)
    record: Record = {"mean file size, bytes": float(images.sizes.mean()), "workers": options.workers}
    images = images.subset(np.arange(8 if options.tiny else 6144) % len(images))
    chunks = [range(start, min(start + 256, len(images))) for start in range(0, len(images), 256)]
    for precision in ("fp32", "bf16"):
        backbone = random_backbone(options, "vit_s16", precision)
        backbone(torch.zeros(2, 3, 224, 224))
        if precision == "fp32":
            extractor = Extractor(backbone, images, Cls(), DINO_TRANSFORM)
            seconds = timed(lambda extractor=extractor: sum(1 for _ in extractor.decode(chunks, options.workers)))[0]
            record["decoding alone, images/s"] = len(images) / seconds
        with tempfile.TemporaryDirectory() as cache:
            settings = ExtractOptions(workers=options.workers)
            features = extract(backbone, images, Cls(), DINO_TRANSFORM, FeatureCache(cache), options=settings)
        record[f"vit_s16, {precision}, images/s"] = len(images) / features.seconds
    return record


def knn(options: Options) -> Record:
    """Return seconds of k-NN at the size of ImageNet: random features, all queries, k = 20."""
    scale = 200 if options.tiny else 1
    generator = torch.Generator(DEVICE).manual_seed(0)
    bank, queries = (F.normalize(torch.randn(n // scale, DIM, device=DEVICE, generator=generator), dim=1) for n in (BANK, QUERIES))
    labels, targets = (torch.randint(0, CLASSES, (len(rows),), device=DEVICE, generator=generator) for rows in (bank, queries))
    record: Record = {"bank": len(bank), "queries": len(queries), "dimensions": DIM, "k": K}
    ways, found = {"blocks": nearest_in_blocks, "groups": nearest_in_groups}, {}
    for name, nearest in ways.items():
        nearest(queries[:4096], bank, K)
        record[f"{name}, fp32, s"], found[name] = timed(lambda nearest=nearest: nearest(queries, bank, K))
        cosines, neighbors = found[name]
        record[f"{name}, fp32, top-1"] = 100 * (vote(cosines, neighbors, labels, CLASSES) == targets).float().mean().item()
    record["equal cosines of blocks and groups"] = torch.equal(found["blocks"][0], found["groups"][0])
    record["equal neighbors of blocks and groups, share"] = (found["blocks"][1] == found["groups"][1]).float().mean().item()
    torch.set_float32_matmul_precision("high")
    record["groups, TF32, s"], tf32 = timed(lambda: nearest_in_groups(queries, bank, K))
    torch.set_float32_matmul_precision("highest")
    record["equal neighbors of TF32 and fp32, share"] = (tf32[1] == found["groups"][1]).float().mean().item()
    half_bank, half_queries = bank.bfloat16(), queries.bfloat16()
    record["groups, bf16, s"], _ = timed(lambda: nearest_in_groups(half_queries, half_bank, K))
    if options.released:
        classifier = released_module(options.released, "eval_knn").knn_classifier
        classifier(bank, labels, queries[:5000], targets[:5000], K, 0.07)
        record["released, fp32, s"], scores = timed(lambda: classifier(bank, labels, queries, targets, K, 0.07))
        record["released, fp32, top-1"] = scores[0]
    return record


def propagation(options: Options) -> Record:
    """Return seconds per frame of label propagation at 480p with patches of 8 pixels."""
    paths = sorted(Path(options.video).iterdir())[: 4 if options.tiny else 26]
    frames = [read_frame(path) for path in paths]
    height, width = frames[0].height, frames[0].width
    first = np.zeros((height, width), np.uint8)
    first[height // 5 : height // 2, : width // 3], first[height // 2 :, width // 2 :] = 1, 2
    transform = FrameTransform(side=64 if options.tiny else 480, patch=8)
    record: Record = {"frames": len(paths), "reading and resizing, s": timed(lambda: transform(read_frame(paths[1])), 5)[0]}
    for precision in ("fp32", "bf16"):
        backbone = random_backbone(options, "vit_s8", precision)
        masks = Propagation(backbone, first, transform, PropagationConfig()).masks([path.name for path in paths], map(read_frame, paths))
        seconds = [timed(lambda masks=masks: next(masks))[0] for _ in paths]
        record[f"vit_s8, {precision}, frame, s"] = statistics.median(seconds[min(CONTEXT + 1, len(seconds) - 1) :])
        image = transform(frames[1])[None].to(DEVICE)
        record[f"vit_s8, {precision}, forward, s"] = timed(lambda backbone=backbone, image=image: backbone(image), 5)[0]
    patches = [backbone(transform(frame)[None]).patches for frame in frames[: CONTEXT + 1]]
    tokens = [F.normalize(one[0], dim=-1) for one in patches if one is not None]
    return record | propagation_alone(options, tokens[-1], [tokens[number % (len(tokens) - 1)] for number in range(CONTEXT)])


def propagation_alone(options: Options, target: Tensor, context: list[Tensor]) -> Record:
    """Return seconds and memory of one frame without its forward pass, by tile size, and those of the released code."""
    height, width, _ = target.shape
    maps = list(torch.rand(CONTEXT, 3, height, width, device=DEVICE))

    def run() -> Tensor:
        return maths.propagate(target, context, maps, **RULE)

    record: Record = {}
    for tile in reversed(TILES):  # the tile of the package last, so that it stays
        maths._TILE = tile
        run()
        record[f"tiles of {tile}, s"], soft = timed(run, 5)
    record["tiles of 10, memory added, GiB"] = memory_added(run)
    if options.released:
        code = released_module(options.released, "eval_video_segmentation")
        code.args = argparse.Namespace(patch_size=8, n_last_frames=CONTEXT - 1, size_mask_neighborhood=RULE["radius"], topk=RULE["top_k"])
        code.extract_feature = lambda *_, **__: (target.flatten(0, 1), height, width)
        sources = [frame.flatten(0, 1).T for frame in context]
        grid = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")).flatten(1).to(DEVICE)
        # The mask that restrict_neighborhood makes by loops.
        near = ((grid[:, :, None] - grid[:, None]).abs().amax(0) <= RULE["radius"]).float().repeat(CONTEXT, 1, 1)

        def run_released() -> Any:
            return code.label_propagation(code.args, None, None, sources, [one[None] for one in maps], near)

        record["released, memory added, GiB"] = memory_added(run_released)
        record["released, s"], released = timed(run_released, 5)
        record["largest difference of the soft maps"] = (released[0][0] - soft).abs().max().item()
    return record


@torch.enable_grad()
def training(options: Options) -> Record:
    """Return images per second of DINO steps on crops of random images, for each way to run them."""
    use_fastest_attention()
    record: Record = {"arch": ARCH, "views": "2 x 32 and 8 x 16 pixels", "precision": "bf16"}
    for batch, way in ((512, "eager"), (512, "compiled"), (256, "compiled and recorded")) if CUDA else ((8, "eager"),):
        if way == "compiled":
            compile_blocks()
        recipe = dataclasses.replace(TINY_RECIPE if options.tiny else RECIPE, batch_size=batch)
        steps = 4 if options.tiny else 48
        images = torch.randint(0, 256, (batch * steps, 3, 32, 32), dtype=torch.uint8, device=DEVICE)
        trainer = DeviceTrainer(TINY_ARCH if options.tiny else ARCH, recipe, steps, DEVICE, compiled=way != "eager")
        augment = DeviceMultiCrop(recipe, render if way == "eager" else torch.compile(render, dynamic=False))

        def epoch() -> Iterator[list[Tensor]]:
            return crops_of_epoch(images, augment, trainer, 0, 0)  # noqa: B023

        if way == "compiled and recorded":
            trainer.record(next(epoch()))
        trainer.advance(next(epoch()), 0)
        seconds, _ = timed(lambda: [trainer.advance(crops, 0) for crops in epoch()])  # noqa: B023
        record[f"batch {batch}, {way}, images/s"] = steps * batch / seconds
    return record


SECTIONS = {section.__name__: section for section in (agreement, forward, extraction, knn, propagation, training)}


def write_tiny_inputs(folder: Path) -> Path:
    """Write eight synthetic JPEG files, which serve as images and as frames.

    Args:
        folder: An empty folder.

    Returns:
        The folder.
    """
    for number, image in enumerate(tiny_images(8, (112, 64))):
        image.save(folder / f"{number:05}.jpg")
    return folder


def main() -> None:
    """Parse the options, measure, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of JPEG files; required without --tiny")
    parser.add_argument("--video", type=Path, help="folder of frames; required without --tiny")
    parser.add_argument("--released", type=Path, help="checkout of facebookresearch/dino (default: left out)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="what to measure (default: everything)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that decode images (default: one per core)")
    parser.add_argument("--tiny", action="store_true", help="run in seconds on small synthetic inputs; requires --out")
    parser.add_argument("--out", type=Path, help="JSON file to write (default: benchmarks/results/gpu_speed.json)")
    options = parser.parse_args()
    if options.tiny and not options.out:
        parser.error("--tiny requires --out FILE: it does not replace the recorded results")
    if not options.tiny and not (options.images and options.video):
        parser.error("missing --images or --video: pass them, or --tiny")
    record: Record = {"card": torch.cuda.get_device_name() if CUDA else "CPU", "torch": torch.__version__}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if options.tiny:
            options.images = options.video = write_tiny_inputs(Path(folder))
            options.released, options.workers = None, 0
        for name in options.only:
            record[name] = SECTIONS[name](options)
            print(name, json.dumps(record[name], indent=1), flush=True)
    (options.out or ROOT / "benchmarks/results/gpu_speed.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
