"""Label propagation at 480p, patch 8 (60 x 104 tokens, 8 context frames), a frame: dinoeval against eval_video_segmentation.py.

    OMP_NUM_THREADS=2 python benchmarks/speed/propagation.py CHECKOUT DAVIS [--rounds 3]

Each runs in processes of its own and in turn, on real frames with ViT-S/8 and made-up weights: the propagation by itself,
from the same tokens, with its peak memory above what was there before; and the whole frame from its file to its mask. The
released code needs OpenCV. Writes benchmarks/results/speed_propagation.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]
ARCH, CONTEXT, CHANNELS = "vit_s8", 8, 3


def megabytes(name: str) -> float:
    """Of this process: VmRSS now, VmHWM at the peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1e3


def released_code(checkout: Path):
    import released as bridge

    bridge.use(checkout)
    import eval_video_segmentation as code

    code.args = argparse.Namespace(patch_size=8, n_last_frames=7, size_mask_neighborhood=12, topk=5)
    return code


def network_of(folder: Path):
    import vision_transformer

    network = vision_transformer.vit_small(patch_size=8)
    network.load_state_dict(torch.load(folder / "weights.pth"))
    return network.eval()


def propagation(way: str, checkout: Path, folder: Path) -> dict[str, float]:
    """The second of two, from tokens in a file; the result goes to a file, too."""
    given = torch.load(folder / "given.pth")
    *sources, target = given["tokens"]  # 8 times (60, 104, D), and once
    maps = given["maps"]  # 8 times (C, 60, 104)
    if way == "ours":
        from dinoeval.maths.propagation import propagate

        sources, target = [F.normalize(one, dim=-1) for one in sources], F.normalize(target, dim=-1)
        before = megabytes("VmRSS")
        propagate(target, sources, maps)  # the second one is timed
        began = time.monotonic()
        soft = propagate(target, sources, maps)
    else:
        code = released_code(checkout)
        code.extract_feature = lambda *_, **__: (target.flatten(0, 1), 60, 104)
        sources, maps = [one.flatten(0, 1).T for one in sources], [one[None] for one in maps]
        before = megabytes("VmRSS")
        near = code.restrict_neighborhood(60, 104).unsqueeze(0).repeat(CONTEXT, 1, 1)  # once a video: its memory counts, its time not
        code.label_propagation(code.args, None, None, sources, maps, near)
        began = time.monotonic()
        soft = code.label_propagation(code.args, None, None, sources, maps, near)[0][0]
    seconds, peak = time.monotonic() - began, megabytes("VmHWM") - before
    torch.save(soft, folder / f"{way}.pth")
    return {"seconds, propagation": seconds, "MB, propagation": peak}


def frame(way: str, checkout: Path, folder: Path, frames: list[Path]) -> dict[str, float]:
    """One whole frame that has as many before it as there ever are."""
    if way == "ours":
        import numpy as np

        import dinoeval
        from dinoeval.data.frame_transforms import FrameTransform
        from dinoeval.data.frames import read_frame
        from dinoeval.data.masks import write_mask
        from dinoeval.video import Propagation, PropagationConfig

        first = np.zeros(read_frame(frames[0]).size[::-1], np.uint8)
        first[100:200, 100:300], first[250:400, 300:600] = 1, 2
        video = Propagation(dinoeval.load(ARCH, weights=folder / "weights.pth"), first, FrameTransform(patch=8), PropagationConfig())
        masks = video.masks([path.name for path in frames], map(read_frame, frames))
        for _ in itertools.islice(masks, CONTEXT):
            pass
        began = time.monotonic()
        write_mask(folder / "0.png", next(masks))
        return {"seconds, whole frame": time.monotonic() - began}
    code, network = released_code(checkout), network_of(folder)
    given = torch.load(folder / "given.pth")
    sources = [one.flatten(0, 1).T for one in given["tokens"][:CONTEXT]]
    maps = [one[None] for one in given["maps"]]
    near = code.restrict_neighborhood(60, 104).unsqueeze(0).repeat(CONTEXT, 1, 1)
    code.label_propagation(code.args, network, code.read_frame(str(frames[-2]))[0], sources, maps, near)
    began = time.monotonic()
    picture, tall, wide = code.read_frame(str(frames[-1]))
    soft = code.label_propagation(code.args, network, picture, sources, maps, near)[0]
    soft = F.interpolate(soft, scale_factor=8, mode="bilinear", align_corners=False, recompute_scale_factor=False)[0]
    labels = torch.max(code.norm_mask(soft), dim=0)[1]
    labels = code.Image.fromarray(labels.numpy().astype("uint8")).resize((wide, tall), 0)
    code.imwrite_indexed(f"{folder}/0.png", code.np.array(labels), code.np.zeros((256, 3), "uint8"))
    return {"seconds, whole frame": time.monotonic() - began}


def prepare(folder: Path, frames: list[Path]) -> None:
    from factories import synthetic_state

    import dinoeval
    from dinoeval.data.frame_transforms import FrameTransform
    from dinoeval.data.frames import read_frame

    torch.save(synthetic_state(ARCH, spread=0.03), folder / "weights.pth")
    backbone, transform = dinoeval.load(ARCH, weights=folder / "weights.pth"), FrameTransform(patch=8)
    tokens = [backbone(transform(read_frame(path))[None]).patches[0] for path in frames]
    torch.save({"tokens": tokens, "maps": list(torch.rand(CONTEXT, CHANNELS, 60, 104))}, folder / "given.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("davis", type=Path)
    parser.add_argument("--sequence", default="blackswan")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    frames = sorted((args.davis / "JPEGImages/480p" / args.sequence).iterdir())[: CONTEXT + 1]
    if args.one:
        what, way, folder = args.one
        with torch.no_grad():
            if what == "prepare":
                prepare(Path(folder), frames)
            elif what == "propagation":
                print(json.dumps(propagation(way, args.checkout, Path(folder))))
            else:
                print(json.dumps(frame(way, args.checkout, Path(folder), frames)))
        return
    from dinoeval.environment import describe_machine

    runs: dict[str, list[dict[str, float]]] = {"ours": [], "released": []}
    loads = []
    with TemporaryDirectory() as folder:

        def run(*words: str) -> dict[str, float]:
            loads.append(round(os.getloadavg()[0], 1))
            command = [sys.executable, __file__, str(args.checkout), str(args.davis), "--sequence", args.sequence, "--one", *words, folder]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            return json.loads(out.splitlines()[-1]) if out else {}

        run("prepare", "")
        for _ in range(args.rounds):
            for way, results in runs.items():
                results.append(run("propagation", way) | run("frame", way))
                print(way, results[-1], flush=True)
        results = [torch.load(Path(folder) / f"{way}.pth") for way in runs]
        away = (results[0] - results[1]).abs().amax(0)  # of each token
    medians = {way: {what: statistics.median(run[what] for run in found) for what in found[0]} for way, found in runs.items()}
    multiply_adds = CONTEXT * 60 * 104 * 25 * 25 * 384
    facts = {
        "what": f"a frame of 60 x 104 tokens of ViT-S/8, {CONTEXT} context frames, {CHANNELS} labels", "medians": medians,
        "released / ours": {what: medians["released"][what] / medians["ours"][what] for what in medians["ours"]},
        "soft maps": {
            "largest difference": float(away.max()), "median difference": float(away.median()),
            "tokens that differ by more than 1e-4": int((away > 1e-4).sum()), "tokens": away.numel(),
        },
        "multiply-adds within the radius": multiply_adds,
        "GFLOP a second within the radius": 2e-9 * multiply_adds / medians["ours"]["seconds, propagation"],
        "runs": runs, "load average": loads, "threads": os.environ.get("OMP_NUM_THREADS"), "machine": describe_machine(),
        "command": "OMP_NUM_THREADS=2 python benchmarks/speed/propagation.py CHECKOUT DAVIS",
    }  # fmt: skip
    (ROOT / "benchmarks/results/speed_propagation.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps({key: value for key, value in facts.items() if key not in ("runs", "machine")}, indent=1))


if __name__ == "__main__":
    main()
