"""Label propagation at 480p and patch 8 (60 x 104 tokens, 8 context frames) per frame: dinoeval against the released code.

    OMP_NUM_THREADS=2 python benchmarks/speed/propagation.py CHECKOUT DAVIS [--rounds 3]

CHECKOUT is a checkout of facebookresearch/dino, whose eval_video_segmentation.py requires OpenCV (pip install
opencv-python-headless). DAVIS is a folder with JPEGImages/480p. In turn, each in a new process, on real frames with ViT-S/8 and
random weights: the propagation alone, from the same tokens, with the peak memory that it adds; and a frame from its file to
its mask.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import inputs
import released
from measurement import Options, in_turn, load_average, memory_kib, run_worker, write_record

import dinoeval
from dinoeval.data.frame_transforms import FrameTransform
from dinoeval.data.frames import read_frame
from dinoeval.data.masks import write_mask
from dinoeval.maths.propagation import propagate
from dinoeval.models.architectures import parse_architecture
from dinoeval.video import Propagation, PropagationConfig

COMMAND = "OMP_NUM_THREADS=2 python benchmarks/speed/propagation.py CHECKOUT DAVIS"
CONTEXT, CHANNELS, RADIUS = 8, 3, 12


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem."""

    arch: str = "vit_s8"
    patch: int = 8
    side: int = 480
    """Short side of the frames in the network, in pixels."""
    released_factory: str = "vit_small"


TINY = Sizes("vit_ti16", 16, 96, "vit_tiny")


def prepare(folder: Path, frames: list[Path], sizes: Sizes) -> None:
    """Write weights, the tokens of all frames and random soft maps of the context."""
    inputs.save_weights(folder / "weights.safetensors", sizes.arch, spread=0.03)
    backbone, transform = dinoeval.load(weights=folder / "weights.safetensors"), FrameTransform(side=sizes.side, patch=sizes.patch)
    torch.save(backbone.network.state_dict(), folder / "weights.pth")
    with torch.no_grad():
        tokens = [backbone(transform(read_frame(path))[None]).patches[0] for path in frames]
    torch.save({"tokens": tokens, "maps": list(torch.rand(CONTEXT, CHANNELS, *tokens[0].shape[:2]))}, folder / "given.pth")


class Dinoeval:
    """The two measurements of dinoeval."""

    def __init__(self, folder: Path, sizes: Sizes, _checkout: Path | None) -> None:
        self.folder, self.sizes = folder, sizes

    def propagation(self) -> dict[str, float]:
        """Propagate twice and time the second time."""
        given = torch.load(self.folder / "given.pth")
        *sources, target = [F.normalize(tokens, dim=-1) for tokens in given["tokens"]]  # (h, w, D) each
        config = PropagationConfig()
        options = {"radius": config.radius, "top_k": config.top_k, "temperature": config.temperature}
        return measure(lambda: propagate(target, sources, given["maps"], **options), self.folder / "dinoeval.pth")

    def frame(self, frames: list[Path]) -> float:
        """Return the seconds of the last frame, which has a full context."""
        height, width = read_frame(frames[0]).size[::-1]
        first = np.zeros((height, width), np.uint8)
        for label, (top, bottom, left, right) in enumerate(((10, 20, 10, 30), (25, 40, 30, 60)), 1):
            first[top * height // 48 : bottom * height // 48, left * width // 85 : right * width // 85] = label
        transform = FrameTransform(side=self.sizes.side, patch=self.sizes.patch)
        video = Propagation(dinoeval.load(weights=self.folder / "weights.safetensors"), first, transform, PropagationConfig())
        masks = video.masks([path.name for path in frames], map(read_frame, frames))
        for _ in itertools.islice(masks, CONTEXT):
            pass
        started = time.monotonic()
        write_mask(self.folder / "0.png", next(masks))
        return time.monotonic() - started


class Released:
    """The two measurements of eval_video_segmentation.py."""

    def __init__(self, folder: Path, sizes: Sizes, checkout: Path | None) -> None:
        assert checkout
        released.use(checkout)
        import eval_video_segmentation

        self.code, self.folder, self.sizes = eval_video_segmentation, folder, sizes
        self.code.args = argparse.Namespace(patch_size=sizes.patch, n_last_frames=7, size_mask_neighborhood=RADIUS, topk=5)
        self.given = torch.load(folder / "given.pth")
        self.maps = [one[None] for one in self.given["maps"]]
        self.shape = self.given["tokens"][0].shape[:2]

    def _context(self) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return the tokens of the context and the window, which the code computes once per video."""
        sources = [tokens.flatten(0, 1).T for tokens in self.given["tokens"][:CONTEXT]]
        return sources, self.code.restrict_neighborhood(*self.shape).unsqueeze(0).repeat(CONTEXT, 1, 1)

    def propagation(self) -> dict[str, float]:
        """Propagate twice and time the second time. The memory of the window counts, its time does not."""
        target = self.given["tokens"][-1].flatten(0, 1)
        self.code.extract_feature = lambda *_, **__: (target, *self.shape)
        before = memory_kib("VmRSS")
        sources, near = self._context()
        run = self.code.label_propagation
        return measure(lambda: run(self.code.args, None, None, sources, self.maps, near)[0][0], self.folder / "released.pth", before)

    def frame(self, frames: list[Path]) -> float:
        """Return the seconds of the last frame, which has a full context."""
        import vision_transformer

        code = self.code
        network = getattr(vision_transformer, self.sizes.released_factory)(patch_size=self.sizes.patch)
        network.load_state_dict(torch.load(self.folder / "weights.pth"))
        network.eval()
        sources, near = self._context()
        size = [self.sizes.side]
        code.label_propagation(code.args, network, code.read_frame(str(frames[-2]), size)[0], sources, self.maps, near)
        started = time.monotonic()
        image, height, width = code.read_frame(str(frames[-1]), size)
        soft = code.label_propagation(code.args, network, image, sources, self.maps, near)[0]
        soft = F.interpolate(soft, scale_factor=self.sizes.patch, mode="bilinear", align_corners=False, recompute_scale_factor=False)[0]
        labels = torch.max(code.norm_mask(soft), dim=0)[1]
        resized = code.Image.fromarray(labels.numpy().astype("uint8")).resize((width, height), 0)
        code.imwrite_indexed(f"{self.folder}/0.png", code.np.array(resized), code.np.zeros((256, 3), "uint8"))
        return time.monotonic() - started


SIDES: dict[str, type[Dinoeval] | type[Released]] = {"dinoeval": Dinoeval, "released": Released}


def measure(run: Callable[[], torch.Tensor], out: Path, before: float | None = None) -> dict[str, float]:
    """Run twice, time the second time, and write the soft maps; `before` is the memory without what the caller has made."""
    before = memory_kib("VmRSS") if before is None else before
    run()
    started = time.monotonic()
    soft = run()
    seconds, peak = time.monotonic() - started, memory_kib("VmHWM") - before
    torch.save(soft, out)
    return {"propagation_seconds": seconds, "propagation_mb": peak / 1e3}


def work(args: argparse.Namespace, sizes: Sizes) -> dict[str, float] | None:
    """Do what a worker is started for."""
    task, folder, frames, *rest = args.worker
    paths = sorted(Path(frames).iterdir())[: CONTEXT + 1]
    if task == "prepare":
        return prepare(Path(folder), paths, sizes)
    name, *checkout = rest
    with torch.no_grad():
        side = SIDES[name](Path(folder), sizes, Path(checkout[0]) if checkout else None)
        return side.propagation() if task == "propagation" else {"frame_seconds": side.frame(paths)}


def compare_soft_maps(folder: Path) -> dict[str, float]:
    """Return the differences of the soft maps, by token."""
    one, other = (torch.load(folder / f"{name}.pth") for name in SIDES)
    difference = (one - other).abs().amax(0)
    return {
        "largest_difference": float(difference.max()),
        "median_difference": float(difference.median()),
        "differing_tokens": int((difference > 1e-4).sum()),
        "tokens": difference.numel(),
    }


def main() -> None:
    options = Options(__file__, "speed_propagation", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("davis", "a folder with JPEGImages/480p")
    options.add_argument("--sequence", default="blackswan", help="the sequence that is used (default: blackswan)")
    options.add_argument("--rounds", type=int, default=3, help="runs of each program (default: 3)")
    args = options.parse()
    sizes = TINY if args.tiny else Sizes()
    if args.worker:
        options.answer(work(args, sizes))
    reason = released.why_left_out(args.checkout, requires=released.OPENCV)
    loads: list[float] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        if args.tiny:
            args.davis = inputs.tiny_davis(folder / "davis", (args.sequence,), frames=CONTEXT + 1)
        frames = args.davis / "JPEGImages/480p" / args.sequence
        run_worker(__file__, args, "prepare", folder, frames)

        def run(side: str) -> dict[str, float]:
            loads.append(load_average())
            words = (folder, frames, side, args.checkout or "")
            return run_worker(__file__, args, "propagation", *words) | run_worker(__file__, args, "frame", *words)

        names = ["dinoeval"] if reason else list(SIDES)
        runs = in_turn({name: lambda name=name: run(name) for name in names}, 1 if args.tiny else args.rounds)
        height, width = torch.load(folder / "dinoeval.pth").shape[1:]
        soft_maps = {} if reason else compare_soft_maps(folder)
    medians = {name: {what: statistics.median(run[what] for run in found) for what in found[0]} for name, found in runs.items()}
    macs = CONTEXT * height * width * (2 * RADIUS + 1) ** 2 * parse_architecture(sizes.arch).dim
    record: dict[str, Any] = {
        "problem": f"a frame of {height} x {width} tokens of {sizes.arch}, {CONTEXT} context frames, {CHANNELS} labels",
        "medians": medians,
        "macs_within_radius": macs,
        "gflops_within_radius": 2e-9 * macs / medians["dinoeval"]["propagation_seconds"],
        "runs": runs,
        "load_average": loads,
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }
    if not reason:
        record["speedup"] = {what: medians["released"][what] / value for what, value in medians["dinoeval"].items()}
        record["soft_maps"] = soft_maps
    write_record(args, COMMAND, record, [reason])


if __name__ == "__main__":
    main()
