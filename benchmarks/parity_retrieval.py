"""Retrieval and copy detection: the released code, and the revisited benchmark's own evaluation, beside dinoeval.

    python benchmarks/parity_retrieval.py CHECKOUT REVISITOP PICTURES FRAMES

CHECKOUT is facebookresearch/dino, REVISITOP filipradenovic/revisitop, PICTURES a folder of images, FRAMES one with a folder
of frames a video. 1: both scores of random rankings, with queries without positives and with junk everywhere. 2: multi-scale
descriptors of pictures as eval_image_retrieval.py makes them. 3: GeM, whitening and Copydays' score. 4: eval_image_retrieval.py
and eval_copy_detection.py by their own command lines, on made-up sets and ViT-S/16 or ViT-Ti/32 with made-up weights.
np.in1d and Image.ANTIALIAS, which are gone, are given back to the old code under their old names.
Writes benchmarks/results/parity_retrieval.json.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]
import released  # noqa: E402
from factories import synthetic_state  # noqa: E402
from set_factories import copydays_tree, frames_below, revisited_set  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval.data.images import from_files  # noqa: E402
from dinoeval.data.transforms import MULTISCALE, Thumbnail  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.features.forward import forward  # noqa: E402
from dinoeval.features.readout import Cls, ClsGem  # noqa: E402
from dinoeval.maths.ranks import positive_ranks, score_ranks, trapezoid_precision  # noqa: E402
from dinoeval.maths.whitening import learn_whitening  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402

KS = [1, 5, 10]
ARCH, WORDS = "vit_ti32", ["--arch", "vit_tiny", "--patch_size", "32"]


def give_back() -> None:
    """What NumPy and Pillow took away."""
    np.in1d = np.isin  # type: ignore[attr-defined]
    Image.ANTIALIAS = Image.Resampling.LANCZOS  # type: ignore[attr-defined]


def module_at(path: Path, name: str):
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def random_rankings(compute_map, sets: int = 200) -> float:
    """The largest difference of mAP, mP@k, and every query's own, in fractions."""
    random, worst = np.random.default_rng(0), 0.0
    for _ in range(sets):
        rows, queries = int(random.integers(1, 400)), int(random.integers(1, 12))
        order = np.stack([random.permutation(rows) for _ in range(queries)])
        truth = []
        for query in range(queries):
            shares = [(0.02, 0.1), (0.5, 0.5), (0, 0.3), (0.1, 0.0), (0.2, 0.9)][int(random.integers(5))]
            right = np.flatnonzero(random.random(rows) < shares[0])
            if query == 0 and not len(right):
                right = np.array([int(random.integers(rows))])  # the old code divides by the number of queries that have any
            junk = np.setdiff1d(np.flatnonzero(random.random(rows) < shares[1]), right)
            truth.append({"ok": right, "junk": junk})
        with np.errstate(all="ignore"):
            means, each, at, at_each = compute_map(order.T, truth, KS)
        ranks = [positive_ranks(order[query], one["ok"], one["junk"]) for query, one in enumerate(truth)]
        ours, ours_at = score_ranks(ranks, [len(one["ok"]) for one in truth], KS)
        assert np.array_equal(np.isnan(ours), np.isnan(each))
        gaps = [
            np.nanmean(ours) - means,
            np.nanmax(abs(ours - each)),
            *(np.nanmean(ours_at, axis=0) - at),
            np.nanmax(abs(ours_at - at_each)),
        ]
        worst = max(worst, *map(abs, gaps))
    return worst


def descriptors(utils, vits, weights: Path, pictures: list[Path]) -> dict[str, float]:
    """The largest difference of features, at one scale and at several, of pictures in batches of equal size against one by one."""
    from torchvision import transforms

    model = vits.vit_tiny(patch_size=32, num_classes=0).eval()
    model.load_state_dict(synthetic_state(ARCH))
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    images = from_files("pictures", "all", pictures[0].parent, [path.name for path in pictures])
    backbone, found = dinoeval.load(ARCH, weights=weights), {}
    for name, scales in (("one scale", (1.0,)), ("several scales", MULTISCALE)):
        ours, gap = forward(backbone, images, Cls(), Thumbnail(224, scales)), 0.0
        for path, row in zip(pictures, ours, strict=True):
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            picture.thumbnail((224, 224), Image.ANTIALIAS)  # type: ignore[attr-defined]
            batch = prepare(picture)[None]
            with torch.no_grad():
                theirs = utils.multi_scale(batch, model) if len(scales) > 1 else model(batch)
            gap = max(gap, float(np.abs(theirs[0].numpy() - row).max()))
        found[name] = gap
    return found


def copy_parts(utils, copies) -> dict[str, float]:
    """GeM of tokens, the whitened cosines, and Copydays' score of lists of the first 20."""
    random = np.random.default_rng(1)
    tokens = torch.from_numpy(random.standard_normal((4, 6, 5, 48)).astype(np.float32))
    pooled = torch.nn.functional.avg_pool2d(tokens.clamp(min=1e-6).permute(0, 3, 1, 2).pow(4), (6, 5)).pow(1 / 4).reshape(4, -1)
    ours = ClsGem()(dinoeval.Tokens(cls=torch.zeros(4, 48), patches=tokens))[:, 48:]
    rows, others = random.standard_normal((60, 24)) + 0.5, random.standard_normal((300, 24)) * np.linspace(0.001, 3, 24) + 1
    pca = utils.PCA(dim=24, whit=0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        pca.train_pca(others.T @ others / len(others))
    sides = []
    for whitened in (pca.apply(rows - others.mean(0)), learn_whitening([others[:100], others[100:]])(rows).astype(np.float64)):
        unit = whitened / np.linalg.norm(whitened, axis=1, keepdims=True)
        sides.append(unit @ unit.T)
    gaps = []
    for _ in range(500):
        right = np.sort(random.choice(60, int(random.integers(1, 5)), replace=False))
        told = copies.score_ap_from_ranks_1([rank for rank in right if rank < 20], len(right))
        gaps.append(abs(told - trapezoid_precision(right[right < 20], len(right))))
    return {
        "GeM": float((ours - pooled).abs().max()),
        "whitened cosines": float(np.abs(sides[0] - sides[1]).max()),
        "Copydays' AP": max(gaps),
    }


def whole_sets(args: argparse.Namespace, work: Path) -> dict[str, dict[str, list[float]]]:
    """mAP of both command lines, ours first, percent."""
    pictures = sorted(path for path in args.pictures.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    videos = frames_below(args.frames)
    revisited_set(work / "revisited", videos, queries=14, database=sum(map(len, videos.values())) + 100, others=pictures)
    copydays_tree(work / "copydays", pictures)
    for name, some in (("distractors", pictures[157:200]), ("whitening", pictures[200:])):
        (work / name).mkdir()
        for path in some:
            (work / name / f"{path.stem}.jpg").symlink_to(path.resolve())
    weights = ["--weights", str(work / "weights.safetensors")]
    found = {}
    for several in (False, True):
        ours = run_ours(work, ["retrieval", "--data", str(work / "revisited"), "--image-size", "224", *weights,
                               *(["--multiscale"] if several else [])])  # fmt: skip
        told = run_theirs(args, "eval_image_retrieval.py", ["--data_path", str(work / "revisited"), "--imsize", "224", "--multiscale",
                                                            str(several), *theirs(work)])  # fmt: skip
        numbers = [float(number) for line in re.findall(r"mAP M: .*", told) for number in re.findall(r"\d+\.\d+", line)]
        pairs = zip(("mAP_medium", "mAP_hard"), numbers, strict=True)
        found["retrieval, " + ("several scales" if several else "one scale")] = {name: [ours[name], number] for name, number in pairs}
    ours = run_ours(work, ["copydays", "--data", str(work / "copydays"), "--image-size", "64", *weights, "--distractors",
                           str(work / "distractors"), "--whitening", str(work / "whitening")])  # fmt: skip
    told = run_theirs(args, "eval_copy_detection.py", ["--data_path", str(work / "copydays"), "--imsize", "64", "--distractors_path",
                      str(work / "distractors"), "--whitening_path", str(work / "whitening"), *theirs(work)])  # fmt: skip
    blocks = {f"mAP_{block}": 100 * float(value) for block, value in re.findall(r"eval on (\S+) mAP=([\d.]+)", told)}
    found["copydays"] = {name: [ours[name], value] for name, value in blocks.items()}
    return found


def theirs(work: Path) -> list[str]:
    return ["--pretrained_weights", str(work / "weights.pth"), "--num_workers", "2", *WORDS]


def run_ours(work: Path, words: list[str]) -> dict[str, float]:
    target = work / "result.json"
    subprocess.run([sys.executable, "-m", "dinoeval", *words, "--cache", str(work / "cache"), "--json", str(target)],
                   check=True, capture_output=True)  # fmt: skip
    return json.loads(target.read_text())["metrics"]


def run_theirs(args: argparse.Namespace, script: str, words: list[str]) -> str:
    """The script's output; Copydays' mAP with all its digits, of which it prints three of a fraction."""
    code = (
        "import sys, runpy; sys.path[:0] = [sys.argv[1]]; import parity_retrieval, released; from pathlib import Path\n"
        "parity_retrieval.give_back(); released.use(Path(sys.argv[2])); import utils\n"
        "utils.init_distributed_mode = lambda args: None\n"
        "checkout, script = sys.argv[2:4]; sys.argv = [script, *sys.argv[4:]]\n"
        "source = Path(checkout, script).read_text().replace('mAP=%.3f', 'mAP=%.9f')\n"
        "exec(compile(source, script, 'exec'), {'__name__': '__main__'})\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks"), str(args.checkout), script, *words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "MASTER_PORT": port})
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkout", "revisitop", "pictures", "frames"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args()
    give_back()
    released.use(args.checkout)
    import eval_copy_detection
    import utils
    import vision_transformer

    benchmark = module_at(args.revisitop / "python/evaluate.py", "revisitop_evaluate")
    with tempfile.TemporaryDirectory() as folder:
        work, state = Path(folder), synthetic_state(ARCH)
        save_backbone(work / "weights.safetensors", state, arch=ARCH)
        torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in state.items()}}, work / "weights.pth")
        facts = {
            "random rankings, fractions": {
                "revisitop": random_rankings(benchmark.compute_map),
                "released": random_rankings(utils.compute_map),
            },
            "descriptors": descriptors(utils, vision_transformer, work / "weights.safetensors", sorted(args.pictures.glob("*.JPEG"))[:40]),
            "copy detection": copy_parts(utils, eval_copy_detection),
            "whole sets, percent (ours, released)": whole_sets(args, work),
            "command": "python benchmarks/parity_retrieval.py CHECKOUT REVISITOP PICTURES FRAMES",
            "machine": describe_machine(),
        }
    (ROOT / "benchmarks/results/parity_retrieval.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
