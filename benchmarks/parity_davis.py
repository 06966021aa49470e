"""DAVIS label propagation: the released code and dinoeval beside each other, on real frames with the same weights.

    python benchmarks/parity_davis.py CHECKOUT DAVIS --weights FILE [--frames 8] [--few 3]

CHECKOUT is facebookresearch/dino, DAVIS a tree with FirstFrames2017/480p/<sequence>/00000.png, first masks of several objects.
The released functions run on a CPU, with their palette made here instead of downloaded; frames, masks and propagation are
theirs. Patch 16: ViT-Ti/16 with made-up weights, 480 pixels; two more videos there are the first one upright, and the first one
with an object of one pixel, which is lost. The network of --weights (patch 8): the first few frames.
Told for every object: the least IoU of our mask and the released one over all frames but the first, as our OpenCV
reading has it; then what PIL's and torchvision's readings change.
Writes benchmarks/results/parity_davis.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.masks import palette, read_mask, write_mask  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.maths.segmentation import region_similarity  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402

SEQUENCES = ("kite-surf", "horsejump-high", "motocross-jump")  # three, two and two objects
UPRIGHT, SPECK = "exif_transpose", "speck"  # the first of them turned by a quarter, and with a fourth object of one pixel
BACKENDS = ("opencv", "pil", "torchvision")


def take(davis: Path, tree: Path, frames: int) -> None:
    """The first frames of the sequences, and first masks where the released code looks for them."""
    for name in SEQUENCES:
        pictures, masks = tree / "JPEGImages/480p" / name, tree / "Annotations/480p" / name
        pictures.mkdir(parents=True)
        masks.mkdir(parents=True)
        for path in sorted((davis / "JPEGImages/480p" / name).glob("*.jpg"))[:frames]:
            (pictures / path.name).symlink_to(path.resolve())
        (masks / "00000.png").symlink_to((davis / "FirstFrames2017/480p" / name / "00000.png").resolve())


def take_odd(tree: Path, frames: int = 3) -> None:
    """Videos made of the first one."""
    source = SEQUENCES[0]
    for name in (UPRIGHT, SPECK):
        for kind in ("JPEGImages/480p", "Annotations/480p"):
            (tree / kind / name).mkdir()
        for path in sorted((tree / "JPEGImages/480p" / source).iterdir())[:frames]:
            with Image.open(path) as picture:
                turned = picture.transpose(Image.Transpose.ROTATE_90) if name == UPRIGHT else picture
                turned.save(tree / "JPEGImages/480p" / name / path.name, quality=95)
        mask = read_mask(tree / "Annotations/480p" / source / "00000.png")
        if name == SPECK:
            mask[1, 1] = mask.max() + 1
        write_mask(tree / "Annotations/480p" / name / "00000.png", np.rot90(mask).copy() if name == UPRIGHT else mask)


def sequences(tree: Path) -> list[str]:
    return sorted(path.name for path in (tree / "JPEGImages/480p").iterdir())


def run_released(checkout: Path, tree: Path, weights: Path, out: Path) -> None:
    """Propagate with the functions of eval_video_segmentation.py; to be run in a process of its own."""
    released.use(checkout)
    import eval_video_segmentation as script
    import vision_transformer

    backbone = dinoeval.load(weights=weights, device="cpu")
    config = backbone.config
    norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
    model = vision_transformer.VisionTransformer(
        img_size=[config.image_size], patch_size=config.patch_size, embed_dim=config.dim, depth=config.depth, num_heads=config.num_heads,
        qkv_bias=True, norm_layer=norm,
    )  # fmt: skip
    model.load_state_dict(backbone.network.state_dict())
    model.eval()
    args = types.SimpleNamespace(output_dir=str(out), n_last_frames=7, size_mask_neighborhood=12, topk=5, patch_size=config.patch_size)
    script.args = args
    for name in sequences(tree):
        frames = script.read_frame_list(str(tree / "JPEGImages/480p" / name))
        path = frames[0].replace("JPEGImages", "Annotations").replace("jpg", "png")
        first, whole = script.read_seg(path, config.patch_size)
        script.eval_video_tracking_davis(args, model, frames, str(tree / name), first, whole, palette())


def compare(ours: Path, theirs: Path) -> list[dict]:
    """A row an object."""
    rows = []
    for name in sorted(path.name for path in theirs.iterdir()):
        paths = sorted((theirs / name).glob("*.png"))
        objects = int(read_mask(paths[0]).max())
        pairs = [(read_mask(ours / name / path.name), read_mask(path)) for path in paths[1:]]
        for label in range(1, objects + 1):
            overlaps = [region_similarity(two == label, one == label) for one, two in pairs]
            pixels = int(sum((two == label).sum() for _, two in pairs))
            rows.append({"sequence": name, "object": label, "frames": len(pairs), "released pixels": pixels,
                         "least IoU": min(overlaps), "mean IoU": float(np.mean(overlaps))})  # fmt: skip
    return rows


def beside(checkout: Path, tree: Path, weights: Path, work: Path) -> dict:
    command = [sys.executable, __file__, "--as-released", str(checkout), str(tree), str(weights), str(work / "released")]
    (work / "released").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    subprocess.run(command, check=True, env={**os.environ, "MASTER_PORT": port})
    facts: dict = {}
    for backend in BACKENDS:
        command = [sys.executable, "-m", "dinoeval", "davis", "--data", str(tree), "--sequences", *sequences(tree), "--device", "cpu"]
        command += ["--weights", str(weights), "--resize-backend", backend]
        command += ["--out", str(work / backend), "--json", str(work / "result.json")]
        subprocess.run(command, check=True, capture_output=True)
        rows = compare(work / backend, work / "released")
        facts[backend] = {
            "least IoU": min(row["least IoU"] for row in rows), "mean IoU": float(np.mean([row["mean IoU"] for row in rows])),
            "objects": rows,
        }  # fmt: skip
        print(weights.name, backend, facts[backend], flush=True)
    return {**facts, "notes": json.loads((work / "result.json").read_text())["notes"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("davis", type=Path)
    parser.add_argument("--weights", type=Path, required=True, help="a file that names its architecture, of patch 8")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--few", type=int, default=3, help="frames at patch 8, where the released code takes gigabytes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        made_up = work / "vit_ti16, made-up weights.safetensors"
        save_backbone(made_up, synthetic_state("vit_ti16"), arch="vit_ti16")
        runs = []
        for number, (weights, frames) in enumerate(((made_up, args.frames), (args.weights, args.few))):
            take(args.davis, work / f"tree{number}", frames)
            if not number:
                take_odd(work / f"tree{number}")
            about = {"arch": dinoeval.load(weights=weights, device="cpu").arch, "weights": weights.stem, "frames": frames}
            runs.append({**about, **beside(args.checkout, work / f"tree{number}", weights, work / f"run{number}")})
    facts = {"runs": runs, "command": "python benchmarks/parity_davis.py CHECKOUT DAVIS --weights FILE", "machine": describe_machine()}
    (ROOT / "benchmarks/results/parity_davis.json").write_text(json.dumps(facts, indent=1) + "\n")
    least = min(run["opencv"]["least IoU"] for run in runs)
    print(f"least IoU of all objects and frames, OpenCV backend: {least:.6f}")
    sys.exit(0 if least >= 0.995 else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--as-released"]:
        run_released(*map(Path, sys.argv[2:6]))
    else:
        main()
