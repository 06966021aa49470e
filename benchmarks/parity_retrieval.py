"""Retrieval and copy detection against the released code and the evaluation of the revisited benchmark.

    python benchmarks/parity_retrieval.py CHECKOUT REVISITOP IMAGES FRAMES

CHECKOUT is a checkout of facebookresearch/dino, REVISITOP one of filipradenovic/revisitop, IMAGES a folder of images, FRAMES a
folder with one subfolder of frames per video, such as JPEGImages/480p of DAVIS. Four comparisons:

1. Scores of random rankings by both evaluations, also of queries without positives and with much junk.
2. Descriptors of images at one scale and at several, as eval_image_retrieval.py computes them.
3. GeM, whitening and average precision of Copydays.
4. eval_image_retrieval.py and eval_copy_detection.py by their command lines, on synthetic datasets and ViT-Ti/32 with random
   weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import released
import torch
from measurement import Options, run_dinoeval, write_record
from PIL import Image

import dinoeval
from dinoeval.data.images import from_files
from dinoeval.data.transforms import MULTISCALE, Thumbnail
from dinoeval.features.forward import forward
from dinoeval.features.readout import Cls, ClsGem
from dinoeval.maths.ranks import positive_ranks, score_ranks, trapezoid_precision
from dinoeval.maths.whitening import learn_whitening
from dinoeval.testing import tiny_state

COMMAND = "python benchmarks/parity_retrieval.py CHECKOUT REVISITOP IMAGES FRAMES"
KS = [1, 5, 10]
ARCH, RELEASED_ARCH = "vit_ti32", ["--arch", "vit_tiny", "--patch_size", "32"]
SCALES = {"single_scale": (1.0,), "multi_scale": MULTISCALE}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is compared."""

    rankings: int = 200
    """Random sets of rankings."""
    descriptors: int = 40
    """Images."""
    queries: int = 14
    others: int = 100
    """Database images that are not frames."""
    scenes: int = 157
    """Originals of Copydays; the released code requires 157."""
    strong: int = 229
    whitening: int = 200
    """Number of the first image of the whitening; images between the scenes and this one are distractors."""


TINY = Sizes(rankings=5, descriptors=2, queries=4, others=4, scenes=4, strong=6, whitening=20)


def random_rankings(sets: int) -> list[tuple[np.ndarray, list[dict]]]:
    """Draw rankings (Q, N) and the positives and junk of each query."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(sets):
        images, queries = int(random.integers(1, 400)), int(random.integers(1, 12))
        order = np.stack([random.permutation(images) for _ in range(queries)])
        ground_truth = []
        for query in range(queries):
            shares = [(0.02, 0.1), (0.5, 0.5), (0, 0.3), (0.1, 0.0), (0.2, 0.9)][int(random.integers(5))]
            positives = np.flatnonzero(random.random(images) < shares[0])
            if query == 0 and not len(positives):  # The old code divides by the number of queries with positives.
                positives = np.array([int(random.integers(images))])
            junk = np.setdiff1d(np.flatnonzero(random.random(images) < shares[1]), positives)
            ground_truth.append({"ok": positives, "junk": junk})
        found.append((order, ground_truth))
    return found


def compare_scores(rankings: list[tuple[np.ndarray, list[dict]]], compute_map: Callable | None) -> float | None:
    """Return the largest difference of mAP, of mP@k, and of the values of each query, as fractions."""
    largest = 0.0
    for order, ground_truth in rankings:
        ranks = [positive_ranks(order[query], one["ok"], one["junk"]) for query, one in enumerate(ground_truth)]
        precisions, at_k = score_ranks(ranks, [len(one["ok"]) for one in ground_truth], KS)
        if compute_map is None:
            continue
        with np.errstate(all="ignore"):
            mean, expected, mean_at_k, expected_at_k = compute_map(order.T, ground_truth, KS)
        assert np.array_equal(np.isnan(precisions), np.isnan(expected))
        differences = [
            np.nanmean(precisions) - mean,
            np.nanmax(abs(precisions - expected)),
            *(np.nanmean(at_k, axis=0) - mean_at_k),
            np.nanmax(abs(at_k - expected_at_k)),
        ]
        largest = max(largest, *map(abs, differences))
    return None if compute_map is None else largest


def compare_descriptors(weights: Path, paths: list[Path], compare: bool) -> dict[str, float]:
    """Return the largest difference of features; dinoeval forms batches of equal size, the released code has batches of one."""
    images = from_files("images", "all", paths[0].parent, [path.name for path in paths])
    backbone = dinoeval.load(ARCH, weights=weights)
    features = {name: forward(backbone, images, Cls(), Thumbnail(224, scales)) for name, scales in SCALES.items()}
    if not compare:
        return {}
    import utils
    import vision_transformer
    from torchvision import transforms

    model = vision_transformer.vit_tiny(patch_size=32, num_classes=0).eval()
    model.load_state_dict(tiny_state(ARCH))
    prepare = transforms.Compose([transforms.ToTensor(), transforms.Normalize(released.MEAN, released.STD)])
    found = {}
    for name, scales in SCALES.items():
        largest = 0.0
        for path, vector in zip(paths, features[name], strict=True):
            with Image.open(path) as opened:
                image = opened.convert("RGB")
            image.thumbnail((224, 224), Image.ANTIALIAS)  # type: ignore[attr-defined]
            batch = prepare(image)[None]
            with torch.no_grad():
                expected = utils.multi_scale(batch, model) if len(scales) > 1 else model(batch)
            largest = max(largest, float(np.abs(expected[0].numpy() - vector).max()))
        found[name] = largest
    return found


def compare_copy_detection() -> dict[str, float]:
    """Compare GeM of tokens, cosines after whitening, and average precision of lists of the first 20."""
    import eval_copy_detection
    import utils

    random = np.random.default_rng(1)
    tokens = torch.from_numpy(random.standard_normal((4, 6, 5, 48)).astype(np.float32))
    pooled = torch.nn.functional.avg_pool2d(tokens.clamp(min=1e-6).permute(0, 3, 1, 2).pow(4), (6, 5)).pow(1 / 4).reshape(4, -1)
    gem = ClsGem()(dinoeval.Tokens(cls=torch.zeros(4, 48), patches=tokens))[:, 48:]
    features, others = random.standard_normal((60, 24)) + 0.5, random.standard_normal((300, 24)) * np.linspace(0.001, 3, 24) + 1
    pca = utils.PCA(dim=24, whit=0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        pca.train_pca(others.T @ others / len(others))
    sides = []
    for whitened in (pca.apply(features - others.mean(0)), learn_whitening([others[:100], others[100:]])(features).astype(np.float64)):
        unit = whitened / np.linalg.norm(whitened, axis=1, keepdims=True)
        sides.append(unit @ unit.T)
    differences = []
    for _ in range(500):
        ranks = np.sort(random.choice(60, int(random.integers(1, 5)), replace=False))
        expected = eval_copy_detection.score_ap_from_ranks_1([rank for rank in ranks if rank < 20], len(ranks))
        differences.append(abs(expected - trapezoid_precision(ranks[ranks < 20], len(ranks))))
    return {
        "gem": float((gem - pooled).abs().max()),
        "whitened_cosines": float(np.abs(sides[0] - sides[1]).max()),
        "average_precision": max(differences),
    }


class CommandLines:
    """The command lines of both sides on the same synthetic datasets."""

    def __init__(self, work: Path, sizes: Sizes, images: list[Path], frames: Path, checkout: Path | None) -> None:
        self.work, self.checkout, self.sizes = work, checkout, sizes
        videos = inputs.frames_below(frames)
        database = sum(map(len, videos.values())) + sizes.others
        inputs.revisited_set(work / "revisited", videos, queries=sizes.queries, database=database, others=images)
        inputs.copydays_tree(work / "copydays", images, scenes=sizes.scenes, strong=sizes.strong, blocks=sizes == Sizes())
        self.distractors = inputs.link_images(images[sizes.scenes : sizes.whitening], work / "distractors", ".jpg")
        self.whitening = inputs.link_images(images[sizes.whitening :], work / "whitening", ".jpg")

    def compare(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the metrics in percent, by dataset and side."""
        found = {}
        for name, multiscale in (("retrieval, single scale", False), ("retrieval, multi-scale", True)):
            found[name] = self._sides(self._retrieval(multiscale), self._released_retrieval(multiscale))
        copies = self._copydays()
        found["copydays"] = self._sides(copies, self._released_copydays())
        return found

    def _sides(self, metrics: dict[str, float], expected: dict[str, float]) -> dict[str, dict[str, float]]:
        names = expected or [name for name in metrics if name.startswith("mAP_")]
        sides = {"dinoeval": metrics} | ({"released": expected} if expected else {})
        return {name: {side: values[name] for side, values in sides.items()} for name in names}

    def _run(self, *words: object) -> dict[str, float]:
        options = ["--weights", self.work / "weights.safetensors", "--cache", self.work / "cache"]
        return run_dinoeval(*words, *options, stderr=subprocess.DEVNULL)["metrics"]

    def _run_released(self, script: str, *words: object) -> str:
        options = ["--pretrained_weights", self.work / "weights.pth", "--num_workers", "2", *RELEASED_ARCH]
        return released.run_script(self.checkout, script, *words, *options) if self.checkout else ""

    def _retrieval(self, multiscale: bool) -> dict[str, float]:
        flag = ["--multiscale"] if multiscale else []
        return self._run("retrieval", "--data", self.work / "revisited", "--image-size", 224, *flag)

    def _released_retrieval(self, multiscale: bool) -> dict[str, float]:
        words = ["--data_path", self.work / "revisited", "--imsize", 224, "--multiscale", multiscale]
        output = self._run_released("eval_image_retrieval.py", *words)
        numbers = [float(number) for line in re.findall(r"mAP M: .*", output) for number in re.findall(r"\d+\.\d+", line)]
        return dict(zip(("mAP_medium", "mAP_hard"), numbers, strict=False))

    def _copydays(self) -> dict[str, float]:
        words = ["--data", self.work / "copydays", "--image-size", 64, "--distractors", self.distractors, "--whitening", self.whitening]
        return self._run("copydays", *words)

    def _released_copydays(self) -> dict[str, float]:
        if self.sizes != Sizes():
            return {}
        words = ["--data_path", self.work / "copydays", "--imsize", 64, "--distractors_path", self.distractors]
        output = self._run_released("eval_copy_detection.py", *words, "--whitening_path", self.whitening)
        return {f"mAP_{block}": 100 * float(value) for block, value in re.findall(r"eval on (\S+) mAP=([\d.]+)", output)}


def import_file(path: Path, name: str) -> Any:
    """Import a Python file that is not part of a package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    options = Options(__file__, "parity_retrieval", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_input("revisitop", "a checkout of filipradenovic/revisitop")
    options.add_input("images", "a folder of images")
    options.add_input("frames", "a folder with one subfolder of frames per video")
    args = options.parse()
    sizes, reason = TINY if args.tiny else Sizes(), released.why_left_out(args.checkout)
    evaluations: dict[str, Any] = {"revisitop": None, "released": None}
    if not reason:
        released.use(args.checkout)
        import utils

        evaluations["released"] = utils.compute_map
    if args.revisitop:
        released.restore_removed_names()
        evaluations["revisitop"] = import_file(args.revisitop / "python/evaluate.py", "revisitop_evaluate").compute_map
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.tiny:
            args.images, args.frames = work / "images", work / "frames"
            inputs.save_images(args.images, 40, (160, 128))
            inputs.synthetic_videos(args.frames, videos=2, frames=12, size=(160, 128))
        paths = inputs.image_files(args.images)
        inputs.save_weights(work / "weights.safetensors", ARCH)
        inputs.save_full_checkpoint(work / "weights.pth", tiny_state(ARCH), prefix="backbone.")
        rankings = random_rankings(sizes.rankings)
        described = sorted(args.images.glob("*.JPEG")) or paths
        record = {
            "random_rankings": {name: compare_scores(rankings, compute_map) for name, compute_map in evaluations.items()},
            "descriptors": compare_descriptors(work / "weights.safetensors", described[: sizes.descriptors], not reason),
            "copy_detection": {} if reason else compare_copy_detection(),
            "datasets": CommandLines(work, sizes, paths, args.frames, args.checkout).compare(),
        }
    no_revisitop = released.why_left_out(args.revisitop, name="REVISITOP", source="filipradenovic/revisitop")
    write_record(args, COMMAND, record, [reason, no_revisitop])


if __name__ == "__main__":
    main()
