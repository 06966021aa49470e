"""Run the released code beside dinoeval on the same made-up weights and pictures, and say how far apart they are.

    python benchmarks/parity.py /path/to/a/checkout/of/facebookresearch/dino

Networks: [CLS], patch tokens and the last block's attention for each architecture and image size. Training: 20 steps on
fixed crops. Writes benchmarks/results/parity.json, and with --golden the values that tests/golden/released.json holds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "benchmarks"))
import released as released_code  # noqa: E402
from factories import synthetic_state  # noqa: E402

from dinoeval.models.architectures import parse_architecture  # noqa: E402
from dinoeval.models.vit import VisionTransformer  # noqa: E402
from dinoeval.training.pretrain.presets import Recipe  # noqa: E402
from dinoeval.training.pretrain.trainer import DinoTrainer  # noqa: E402

ARCHITECTURES = {"vit_ti16": ("vit_tiny", 16), "vit_s16": ("vit_small", 16), "vit_s8": ("vit_small", 8), "vit_b16": ("vit_base", 16)}
SIZES = [(224, 224), (96, 96), (320, 320), (250, 333), (480, 832)]
STEPS = 20
TRAINED = dict(  # as small as a run can be in which every rule of the recipe acts
    epochs=4, batch_size=4, lr=0.02, warmup_epochs=1, clip_grad=0.3, freeze_last_layer=1, out_dim=512, norm_last_layer=False,
    momentum_teacher=0.9, warmup_teacher_temp=0.04, teacher_temp=0.07, warmup_teacher_temp_epochs=3, local_crops=2, drop_path=0.1,
)  # fmt: skip


def picture(height: int, width: int) -> torch.Tensor:
    """Noise like that of a normalised photograph, (1, 3, height, width)."""
    return torch.from_numpy(np.random.default_rng((height, width)).standard_normal((1, 3, height, width), dtype=np.float32))


def networks(released) -> tuple[list[dict], dict]:
    rows, golden = [], {}
    for arch, (factory, patch) in ARCHITECTURES.items():
        theirs = getattr(released, factory)(patch_size=patch).eval()
        ours = VisionTransformer(parse_architecture(arch)).eval()
        state = synthetic_state(arch, spread=0.03)
        theirs.load_state_dict(state, strict=True)
        ours.load_state_dict(state, strict=True)
        for height, width in SIZES:
            image = picture(height, width)
            with torch.inference_mode():
                expected, found = theirs.get_intermediate_layers(image, 4), ours.tokens(image, 4)
                cls = theirs(image)
                row = {
                    "arch": arch, "size": f"{height}x{width}",
                    "cls": (cls - ours(image)).abs().max().item(),
                    "tokens of 4 blocks": max((a - b).abs().max().item() for a, b in zip(expected, found, strict=True)),
                    "attention": (theirs.get_last_selfattention(image) - ours.last_attention(image)).abs().max().item(),
                    "largest value": expected[-1].abs().max().item(),
                }  # fmt: skip
            rows.append(row)
            print("  ".join(f"{key} {value:.1e}" if isinstance(value, float) else f"{value:>8}" for key, value in row.items()), flush=True)
            if arch == "vit_ti16":
                golden[row["size"]] = {"cls": cls[0, :16].tolist(), "patch sums": expected[0][0, 1:, :4].sum(0).tolist()}
    return rows, golden


def training(released) -> tuple[dict, dict]:
    """The released loop's own pieces, put together as train_one_epoch does, but on a CPU and in one process."""
    import main_dino
    import utils

    recipe = Recipe(**TRAINED)
    steps = STEPS // recipe.epochs
    torch.manual_seed(3)
    ours = DinoTrainer("vit_ti16", recipe, steps, torch.device("cpu"))
    student = utils.MultiCropWrapper(
        released.vit_tiny(patch_size=16, drop_path_rate=recipe.drop_path),
        released.DINOHead(192, recipe.out_dim, norm_last_layer=recipe.norm_last_layer),
    )
    teacher = utils.MultiCropWrapper(released.vit_tiny(patch_size=16), released.DINOHead(192, recipe.out_dim))
    student.load_state_dict(ours.student.state_dict(), strict=True)
    teacher.load_state_dict(ours.teacher.state_dict(), strict=True)
    for parameter in teacher.parameters():
        parameter.requires_grad = False
    loss = main_dino.DINOLoss(
        recipe.out_dim, recipe.local_crops + 2, recipe.warmup_teacher_temp, recipe.teacher_temp,
        recipe.warmup_teacher_temp_epochs, recipe.epochs,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    lr = utils.cosine_scheduler(recipe.lr * recipe.batch_size / 256, recipe.min_lr, recipe.epochs, steps, recipe.warmup_epochs)
    decay = utils.cosine_scheduler(recipe.weight_decay, recipe.weight_decay_end, recipe.epochs, steps)
    momentum = utils.cosine_scheduler(recipe.momentum_teacher, 1, recipe.epochs, steps)
    losses: dict[str, list[float]] = {"released": [], "ours": []}
    for iteration in range(STEPS):
        draw = np.random.default_rng(iteration)
        crops = [
            torch.from_numpy(draw.standard_normal((recipe.batch_size, 3, size, size), dtype=np.float32))
            for size in (recipe.global_crop,) * 2 + (recipe.local_crop,) * recipe.local_crops
        ]
        torch.manual_seed(100 + iteration)  # stochastic depth
        for index, group in enumerate(optimizer.param_groups):
            group["lr"] = lr[iteration]
            if index == 0:
                group["weight_decay"] = decay[iteration]
        value = loss(student(crops), teacher(crops[:2]), iteration // steps)
        optimizer.zero_grad()
        value.backward()
        utils.clip_gradients(student, recipe.clip_grad)
        utils.cancel_gradients_last_layer(iteration // steps, student, recipe.freeze_last_layer)
        optimizer.step()
        with torch.no_grad():
            for fast, slow in zip(student.parameters(), teacher.parameters(), strict=True):
                slow.data.mul_(momentum[iteration]).add_((1 - momentum[iteration]) * fast.detach().data)
        losses["released"].append(value.item())
        torch.manual_seed(100 + iteration)
        losses["ours"].append(ours.step(crops, iteration)["loss"])
    pairs = zip(teacher.parameters(), ours.teacher.parameters(), strict=True)
    row = {
        "steps": STEPS,
        "loss, relative": max(abs(a - b) / abs(a) for a, b in zip(losses["released"], losses["ours"], strict=True)),
        "teacher weights": max((a - b).abs().max().item() for a, b in pairs),
        "first loss": losses["released"][0],
        "last loss": losses["released"][-1],
        "center": (loss.center - ours.loss.center).abs().max().item(),
    }
    print("  ".join(f"{key} {value:.6g}" for key, value in row.items()), flush=True)
    return row, {"recipe": TRAINED, "losses": losses["released"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("released", type=Path, help="a checkout of facebookresearch/dino")
    parser.add_argument("--golden", type=Path, help="write the released code's values here")
    args = parser.parse_args()
    released_code.use(args.released)
    import vision_transformer as released

    rows, golden = networks(released)
    trajectory, losses = training(released)
    facts = {"released": "facebookresearch/dino 7c446df", "torch": torch.__version__, "command": "python benchmarks/parity.py CHECKOUT"}
    (ROOT / "benchmarks/results/parity.json").write_text(json.dumps({**facts, "networks": rows, "training": trajectory}, indent=1) + "\n")
    if args.golden:
        args.golden.write_text(json.dumps({**facts, "vit_ti16": golden, "training": losses}) + "\n")


if __name__ == "__main__":
    main()
