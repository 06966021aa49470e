"""Networks and training of the released code and of dinoeval, on the same random weights and inputs.

    python benchmarks/parity.py CHECKOUT

CHECKOUT is a checkout of facebookresearch/dino. Networks: [CLS], patch tokens and attention of the last block, for each
architecture and image size. Training: 20 steps on fixed crops. The record holds the largest absolute differences. With
--golden, the values of the released code are written to the file that is tests/golden/released.json.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import released
import torch
from measurement import Options, write_record

from dinoeval.models.architectures import parse_architecture
from dinoeval.models.vit import VisionTransformer
from dinoeval.testing import tiny_state
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer

COMMAND = "python benchmarks/parity.py CHECKOUT"
VERSION = "facebookresearch/dino 7c446df"
FACTORIES = {"vit_ti16": ("vit_tiny", 16), "vit_s16": ("vit_small", 16), "vit_s8": ("vit_small", 8), "vit_b16": ("vit_base", 16)}
GOLDEN_ARCH = "vit_ti16"
# The smallest recipe in which every rule of training has an effect.
RECIPE: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "lr": 0.02,
    "warmup_epochs": 1,
    "clip_grad": 0.3,
    "freeze_last_layer": 1,
    "out_dim": 512,
    "norm_last_layer": False,
    "momentum_teacher": 0.9,
    "warmup_teacher_temp": 0.04,
    "teacher_temp": 0.07,
    "warmup_teacher_temp_epochs": 3,
    "local_crops": 2,
    "drop_path": 0.1,
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is compared."""

    architectures: tuple[str, ...] = tuple(FACTORIES)
    images: tuple[tuple[int, int], ...] = ((224, 224), (96, 96), (320, 320), (250, 333), (480, 832))
    """Height and width in pixels."""
    steps: int = 20
    recipe: dict[str, Any] = dataclasses.field(default_factory=lambda: RECIPE)


TINY = Sizes(("vit_ti16",), ((64, 80),), 4, RECIPE | {"global_crop": 64, "local_crop": 32})


def noise(height: int, width: int) -> torch.Tensor:
    """Return noise like a normalized photograph, (1, 3, height, width)."""
    return torch.from_numpy(np.random.default_rng((height, width)).standard_normal((1, 3, height, width), dtype=np.float32))


def compare_networks(sizes: Sizes, vits: ModuleType | None) -> tuple[list[dict], dict]:
    """Return a row per architecture and image size, and the golden values of the released code."""
    rows, golden = [], {}
    for arch in sizes.architectures:
        network = VisionTransformer(parse_architecture(arch)).eval()
        state = tiny_state(arch, spread=0.03)
        network.load_state_dict(state, strict=True)
        factory, patch = FACTORIES[arch]
        expected_network = getattr(vits, factory)(patch_size=patch).eval() if vits else None
        if expected_network:
            expected_network.load_state_dict(state, strict=True)
        for height, width in sizes.images:
            row: dict[str, Any] = {"arch": arch, "size": f"{height}x{width}"}
            image = noise(height, width)
            with torch.inference_mode():
                tokens = network.tokens(image, 4)
                if expected_network:
                    expected, cls = expected_network.get_intermediate_layers(image, 4), expected_network(image)
                    attention = expected_network.get_last_selfattention(image) - network.last_attention(image)
                    row["cls"] = (cls - network(image)).abs().max().item()
                    row["tokens_of_last_4_blocks"] = max((a - b).abs().max().item() for a, b in zip(expected, tokens, strict=True))
                    row["attention"] = attention.abs().max().item()
                    if arch == GOLDEN_ARCH:
                        golden[row["size"]] = {"cls": cls[0, :16].tolist(), "patch sums": expected[0][0, 1:, :4].sum(0).tolist()}
            row["largest_value"] = tokens[-1].abs().max().item()
            rows.append(row)
            print(row, flush=True)
    return rows, golden


class ReleasedTraining:
    """The parts of the released training loop, put together as in train_one_epoch, on a CPU in one process."""

    def __init__(self, trainer: Trainer, recipe: Recipe, steps: int, vits: ModuleType) -> None:
        import main_dino
        import utils

        self.utils, self.recipe, self.steps = utils, recipe, steps
        heads = [vits.DINOHead(192, recipe.out_dim, norm_last_layer=last) for last in (recipe.norm_last_layer, True)]
        self.student = utils.MultiCropWrapper(vits.vit_tiny(patch_size=16, drop_path_rate=recipe.drop_path), heads[0])
        self.teacher = utils.MultiCropWrapper(vits.vit_tiny(patch_size=16), heads[1])
        self.student.load_state_dict(trainer.student.state_dict(), strict=True)
        self.teacher.load_state_dict(trainer.teacher.state_dict(), strict=True)
        for parameter in self.teacher.parameters():
            parameter.requires_grad = False
        temperatures = (recipe.warmup_teacher_temp, recipe.teacher_temp, recipe.warmup_teacher_temp_epochs)
        self.loss = main_dino.DINOLoss(recipe.out_dim, recipe.local_crops + 2, *temperatures, recipe.epochs)
        self.optimizer = torch.optim.AdamW(utils.get_params_groups(self.student))
        peak = recipe.lr * recipe.batch_size / 256
        self.lr = utils.cosine_scheduler(peak, recipe.min_lr, recipe.epochs, steps, recipe.warmup_epochs)
        self.decay = utils.cosine_scheduler(recipe.weight_decay, recipe.weight_decay_end, recipe.epochs, steps)
        self.momentum = utils.cosine_scheduler(recipe.momentum_teacher, 1, recipe.epochs, steps)

    def step(self, crops: list[torch.Tensor], iteration: int) -> float:
        """Make one step and return the loss."""
        epoch = iteration // self.steps
        for index, group in enumerate(self.optimizer.param_groups):
            group["lr"] = self.lr[iteration]
            if index == 0:
                group["weight_decay"] = self.decay[iteration]
        value = self.loss(self.student(crops), self.teacher(crops[:2]), epoch)
        self.optimizer.zero_grad()
        value.backward()
        self.utils.clip_gradients(self.student, self.recipe.clip_grad)
        self.utils.cancel_gradients_last_layer(epoch, self.student, self.recipe.freeze_last_layer)
        self.optimizer.step()
        momentum = self.momentum[iteration]
        with torch.no_grad():
            for student, teacher in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                teacher.data.mul_(momentum).add_((1 - momentum) * student.detach().data)
        return value.item()


def compare_training(sizes: Sizes, vits: ModuleType | None) -> tuple[dict, list[float]]:
    """Return the differences after all steps, and the losses of the released code."""
    recipe = Recipe(**sizes.recipe)
    steps = sizes.steps // recipe.epochs
    torch.manual_seed(3)
    trainer = Trainer("vit_ti16", recipe, steps, torch.device("cpu"))
    other = ReleasedTraining(trainer, recipe, steps, vits) if vits else None
    losses: list[float] = []
    expected: list[float] = []
    for iteration in range(sizes.steps):
        random = np.random.default_rng(iteration)
        crops = [
            torch.from_numpy(random.standard_normal((recipe.batch_size, 3, size, size), dtype=np.float32))
            for size in (recipe.global_crop,) * 2 + (recipe.local_crop,) * recipe.local_crops
        ]
        if other:
            torch.manual_seed(100 + iteration)  # Stochastic depth draws from this generator.
            expected.append(other.step(crops, iteration))
        torch.manual_seed(100 + iteration)
        losses.append(trainer.step(crops, iteration)["loss"])
    row: dict[str, Any] = {"steps": sizes.steps}
    if other:
        pairs = zip(other.teacher.parameters(), trainer.teacher.parameters(), strict=True)
        row["relative_loss"] = max(abs(a - b) / abs(a) for a, b in zip(expected, losses, strict=True))
        row["teacher_weights"] = max((a - b).abs().max().item() for a, b in pairs)
        row["center"] = (other.loss.center - trainer.loss.center).abs().max().item()
    row |= {"first_loss": (expected or losses)[0], "last_loss": (expected or losses)[-1]}
    return row, expected


def main() -> None:
    options = Options(__file__, "parity", __doc__)
    options.add_input("checkout", "a checkout of facebookresearch/dino")
    options.add_argument("--golden", type=Path, help="also write the values of the released code to this file")
    args = options.parse()
    sizes, reason, vits = TINY if args.tiny else Sizes(), released.why_left_out(args.checkout), None
    if reason and args.golden:
        options.error("--golden requires CHECKOUT")
    if not reason:
        released.use(args.checkout)
        import vision_transformer as vits

    rows, golden = compare_networks(sizes, vits)
    training, losses = compare_training(sizes, vits)
    about = {"released": VERSION, "torch": torch.__version__}
    write_record(args, COMMAND, about | {"networks": rows, "training": training}, [reason])
    if args.golden:
        values = {"command": COMMAND, GOLDEN_ARCH: golden, "training": {"recipe": sizes.recipe, "losses": losses}}
        args.golden.write_text(json.dumps(about | values) + "\n")


if __name__ == "__main__":
    main()
