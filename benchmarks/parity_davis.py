"""DAVIS label propagation of the released code and of dinoeval, on real frames with the same weights.

    python benchmarks/parity_davis.py CHECKOUT DAVIS WEIGHTS [--frames 8] [--patch8-frames 3]

CHECKOUT is a checkout of facebookresearch/dino, DAVIS a folder with FirstFrames2017/480p/<sequence>/00000.png, first masks of
several objects. The released functions for frames, masks and propagation run on a CPU; only their palette is made here
instead of downloaded. They require OpenCV (pip install opencv-python-headless).

Patch 16: ViT-Ti/16 with random weights at 480 pixels, also on two variants of the first sequence: `rotated` by 90 degrees,
and `speck`, with an additional object of one pixel, which is lost. Patch 8: the network of WEIGHTS, a file that names its
architecture, on a few frames, because the released code needs gigabytes. The record holds, for each object, the least IoU of
the masks of both sides over all frames but the first, for each way of resizing frames. Exit code 1 if the least IoU with the
filter of OpenCV is below 0.995.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import inputs
import numpy as np
import released
import torch
from measurement import Options, run_dinoeval, run_worker, write_record
from PIL import Image

import dinoeval
from dinoeval.data.masks import palette, read_mask, write_mask
from dinoeval.maths.segmentation import region_similarity

COMMAND = "python benchmarks/parity_davis.py CHECKOUT DAVIS WEIGHTS"
SEQUENCES = ("kite-surf", "horsejump-high", "motocross-jump")  # Of three, two and two objects.
ROTATED, SPECK = "rotated", "speck"
BACKENDS = ("opencv", "pil", "torchvision")
MIN_IOU = 0.995


def link_sequences(davis: Path, target: Path, frames: int) -> None:
    """Link the first frames of the sequences, and first masks to the place where the released code reads them."""
    for name in SEQUENCES:
        inputs.link_images(sorted((davis / "JPEGImages/480p" / name).glob("*.jpg"))[:frames], target / "JPEGImages/480p" / name)
        inputs.link_images([davis / "FirstFrames2017/480p" / name / "00000.png"], target / "Annotations/480p" / name)


def add_variants(tree: Path, frames: int = 3) -> None:
    """Write the two variants of the first sequence."""
    source = SEQUENCES[0]
    for name in (ROTATED, SPECK):
        for kind in ("JPEGImages/480p", "Annotations/480p"):
            (tree / kind / name).mkdir()
        for path in sorted((tree / "JPEGImages/480p" / source).iterdir())[:frames]:
            with Image.open(path) as frame:
                changed = frame.transpose(Image.Transpose.ROTATE_90) if name == ROTATED else frame
                changed.save(tree / "JPEGImages/480p" / name / path.name, quality=95)
        mask = read_mask(tree / "Annotations/480p" / source / "00000.png")
        if name == SPECK:
            mask[1, 1] = mask.max() + 1
        write_mask(tree / "Annotations/480p" / name / "00000.png", np.rot90(mask).copy() if name == ROTATED else mask)


def sequences(tree: Path) -> list[str]:
    """Return the names of the sequences of a tree."""
    return sorted(path.name for path in (tree / "JPEGImages/480p").iterdir())


def run_released(checkout: Path, tree: Path, weights: Path, out: Path) -> None:
    """Propagate with the functions of eval_video_segmentation.py; they change globals, so they run in a new process."""
    released.use(checkout)
    import eval_video_segmentation as script
    import vision_transformer

    backbone = dinoeval.load(weights=weights, device="cpu")
    config = backbone.config
    model = vision_transformer.VisionTransformer(
        img_size=[config.image_size],
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        qkv_bias=True,
        norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
    )
    model.load_state_dict(backbone.network.state_dict())
    model.eval()
    args = types.SimpleNamespace(output_dir=str(out), n_last_frames=7, size_mask_neighborhood=12, topk=5, patch_size=config.patch_size)
    script.args = args
    for name in sequences(tree):
        frames = script.read_frame_list(str(tree / "JPEGImages/480p" / name))
        path = frames[0].replace("JPEGImages", "Annotations").replace("jpg", "png")
        first, original = script.read_seg(path, config.patch_size)
        script.eval_video_tracking_davis(args, model, frames, str(out / name), first, original, palette())


def compare_masks(found: Path, expected: Path) -> list[dict]:
    """Return a row per object."""
    rows = []
    for name in sorted(path.name for path in expected.iterdir()):
        paths = sorted((expected / name).glob("*.png"))
        objects = int(read_mask(paths[0]).max())
        pairs = [(read_mask(found / name / path.name), read_mask(path)) for path in paths[1:]]
        for label in range(1, objects + 1):
            overlaps = [region_similarity(two == label, one == label) for one, two in pairs]
            pixels = int(sum((two == label).sum() for _, two in pairs))
            row = {"sequence": name, "object": label, "frames": len(pairs), "released_pixels": pixels}
            rows.append(row | {"min_iou": min(overlaps), "mean_iou": float(np.mean(overlaps))})
    return rows


def compare(args, tree: Path, weights: Path, work: Path, compare_released: bool) -> dict:
    """Run both sides on the sequences of a tree."""
    if compare_released:
        (work / "released").mkdir(parents=True)
        run_worker(__file__, args, args.checkout, tree, weights, work / "released")
    record: dict = {}
    for backend in BACKENDS:
        words = ["--data", tree, "--sequences", *sequences(tree), "--device", "cpu", "--weights", weights, "--resize-backend", backend]
        size = ["--image-size", 64] if args.tiny and not compare_released else []  # The released code resizes to 480 pixels.
        result = run_dinoeval("davis", *words, *size, "--out", work / backend, stderr=subprocess.DEVNULL)
        record["notes"] = result["notes"]
        if compare_released:
            rows = compare_masks(work / backend, work / "released")
            means = {"min_iou": min(row["min_iou"] for row in rows), "mean_iou": float(np.mean([row["mean_iou"] for row in rows]))}
            record[backend] = means | {"objects": rows}
        print(weights.name, backend, record.get(backend), flush=True)
    return record


def main() -> None:
    options = Options(__file__, "parity_davis", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("davis", "a folder with JPEGImages/480p and FirstFrames2017/480p")
    options.add_input("weights", "a checkpoint of patch size 8 that names its architecture")
    options.add_argument("--frames", type=int, default=8, help="frames per sequence at patch 16 (default: 8)")
    options.add_argument("--patch8-frames", type=int, default=3, help="frames per sequence at patch 8 (default: 3)")
    args = options.parse()
    if args.worker:
        run_released(*map(Path, args.worker))
        options.answer(None)
    reason = released.why_left_out(args.checkout, requires=released.OPENCV)
    with tempfile.TemporaryDirectory() as folder:
        work, runs = Path(folder), []
        arch = "vit_xs16_64" if args.tiny else "vit_ti16"
        networks = [("random", inputs.save_weights(work / f"{arch}.safetensors", arch), args.frames)]
        if args.tiny:
            args.davis = inputs.tiny_davis(work / "davis", SEQUENCES, frames=3)
        else:
            networks.append(("checkpoint", args.weights, args.patch8_frames))
        for kind, weights, frames in networks:
            tree = work / f"{kind} tree"
            link_sequences(args.davis, tree, frames)
            if kind == "random":
                add_variants(tree)
            about = {"arch": dinoeval.load(weights=weights, device="cpu").arch, "weights": kind, "frames": frames}
            runs.append({**about, **compare(args, tree, weights, work / kind, not reason)})
    write_record(args, COMMAND, {"runs": runs}, [reason])
    if not reason:
        least = min(run["opencv"]["min_iou"] for run in runs)
        print(f"least IoU of all objects and frames, OpenCV backend: {least:.6f}")
        sys.exit(0 if least >= MIN_IOU else 1)


if __name__ == "__main__":
    main()
