"""Pretraining equals main_dino.py of facebookresearch/dino at 7c446df: defaults, schedules, loss, head, order of a step.

Issues are those of the same repository, answered by the authors.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TINY, synthetic_images
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision import transforms

from dinoeval.training.pretrain import schedules
from dinoeval.training.pretrain.augment import MultiCropAugmentation
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.head import ProjectionHead
from dinoeval.training.pretrain.networks import build_pair
from dinoeval.training.pretrain.optimizers import clip_grad_per_tensor, parameter_groups
from dinoeval.training.pretrain.presets import get_recipe
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.teachers import update_ema
from dinoeval.training.pretrain.trainer import Trainer

SMALL = Recipe(
    epochs=3,
    batch_size=4,
    warmup_epochs=1,
    out_dim=32,
    hidden_dim=16,
    global_crop=16,
    local_crop=8,
    local_crops=2,
    lr=0.01,
    drop_path=0.1,
)
CPU = torch.device("cpu")


def random_crops(seed: int, batch: int = 4) -> list[Tensor]:
    """Make normalized crops for SMALL: two global and two local ones per image."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, 3, size, size, generator=generator) for size in (16, 16, 8, 8)]


def test_default_recipe_equals_main_dino():
    """The defaults of get_args_parser, and of what is not an option there: student temperature, center momentum, blur."""
    assert dataclasses.asdict(Recipe()) == {
        "epochs": 100,
        "batch_size": 64,
        "lr": 0.0005,
        "min_lr": 1e-6,
        "warmup_epochs": 10,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "clip_grad": 3.0,
        "freeze_last_layer": 1,
        "drop_path": 0.1,
        "optimizer": "adamw",
        "objective": "ce",
        "queue_size": 65536,
        "target": "center",
        "sinkhorn_iterations": 3,
        "teacher": "ema",
        "head_layers": 3,
        "bottleneck_dim": 256,
        "head_activation": "gelu",
        "head_batch_norm": False,
        "predictor_dim": 0,
        "momentum_teacher_end": 1.0,
        "out_dim": 65536,
        "hidden_dim": 2048,
        "norm_last_layer": True,
        "momentum_teacher": 0.996,
        "student_temp": 0.1,
        "warmup_teacher_temp": 0.04,
        "teacher_temp": 0.04,
        "warmup_teacher_temp_epochs": 0,
        "center_momentum": 0.9,
        "global_crop": 224,
        "local_crop": 96,
        "local_crops": 8,
        "global_scale": (0.4, 1.0),
        "local_scale": (0.05, 0.4),
        "flip": True,
        "jitter": 0.8,
        "solarize": True,
        "blur_radius": (0.1, 2.0),
    }
    assert get_recipe("released") == Recipe()


def test_boosted_recipe_equals_the_readme():
    """README, "boosting DINO performance": 300 epochs, 16 x 64 images, temperature 0.07 after 30 epochs, free lengths."""
    assert get_recipe("boosted") == Recipe(
        epochs=300, batch_size=1024, teacher_temp=0.07, warmup_teacher_temp_epochs=30, norm_last_layer=False
    )


def reference_view(image: Image.Image, size: int, scale: tuple[float, float], blur: float, solarize: float) -> Image.Image:
    """Draw one view as DataAugmentationDINO does, with a draw for solarization in every view."""
    flip_and_color_jitter = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(p=0.5),
            transforms.RandomApply([transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
        ]
    )
    crop = transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC)
    view = flip_and_color_jitter(crop(image))
    if random.random() <= blur:
        view = view.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))
    return ImageOps.solarize(view, 128) if random.random() < solarize else view


def test_augmentation_equals_the_released_one_bit_for_bit():
    """DataAugmentationDINO: blur in 100, 10 and 50 % of the views, solarization in 20 % of the second global ones."""
    augmentation = MultiCropAugmentation(dataclasses.replace(Recipe(), global_crop=24, local_crop=12, local_crops=3))
    views = [(24, (0.4, 1.0), 1.0, 0.0), (24, (0.4, 1.0), 0.1, 0.2), *[(12, (0.05, 0.4), 0.5, 0.0)] * 3]
    for seed, image in enumerate(synthetic_images(40, (40, 30))):
        torch.manual_seed(seed)
        random.seed(seed)
        expected = [np.asarray(reference_view(image, *view)) for view in views]
        torch.manual_seed(seed)
        random.seed(seed)
        for found, pixels in zip(augmentation(image), expected, strict=True):
            np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), pixels)


def test_schedules_equal_the_log_of_a_public_run():
    """cosine_scheduler in utils.py, with values of the log in issue 280: 8 x 64 images, 100 epochs, 2,502 steps."""
    steps = 2502
    lr = schedules.cosine(0.0005 * 512 / 256, 1e-6, 100, steps, 10).reshape(100, steps)
    decay = schedules.cosine(0.04, 0.4, 100, steps).reshape(100, steps)
    assert lr[0].mean() == pytest.approx(4.99820136696111e-05, rel=1e-12)
    assert lr[9].mean() == pytest.approx(0.001 * (25019 - 1250.5) / 25019, rel=1e-12)  # the middle of the last 2,502 of 25,020 points
    assert lr[10].mean() == pytest.approx(9.998986293786e-04, rel=1e-12)
    assert lr[50].mean() == pytest.approx(5.786384895696652e-04, rel=1e-12)
    assert decay[0].mean() == pytest.approx(0.04002958960483863, rel=1e-12)
    assert decay[50].mean() == pytest.approx(0.22282607096534862, rel=1e-12)
    assert schedules.cosine(0.996, 1, 100, steps)[50 * steps] == pytest.approx(0.998)
    assert lr.flatten()[10 * steps - 1] == lr.flatten()[10 * steps] == 0.001  # The peak occurs twice.


def test_teacher_temperature_is_linear_then_constant():
    """DINOLoss in main_dino.py: linspace over the warm-up epochs, both ends included, one value per epoch."""
    assert schedules.teacher_temperature(0.04, 0.07, 4, 6).tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


@pytest.mark.slow
def test_losses_equal_the_released_training(golden):
    """The golden file has recipe and losses of the pieces of main_dino.py; `benchmarks/parity.py CHECKOUT --golden` writes it."""
    recipe = Recipe(**golden["training"]["recipe"])
    torch.manual_seed(3)
    trainer = Trainer("vit_ti16", recipe, steps=5, device=CPU)
    losses = []
    for iteration in range(4):  # All 20 steps take a minute: the benchmark compares them and the weights of the teacher.
        generator = np.random.default_rng(iteration)
        sizes = (recipe.global_crop,) * 2 + (recipe.local_crop,) * recipe.local_crops
        crops = [torch.from_numpy(generator.standard_normal((recipe.batch_size, 3, size, size), dtype=np.float32)) for size in sizes]
        torch.manual_seed(100 + iteration)
        losses.append(trainer.step(crops, iteration)["loss"])
    np.testing.assert_allclose(losses, golden["training"]["losses"][:4], rtol=1e-4)


def test_loss_equals_its_formula():
    """DINOLoss in main_dino.py: the mean over pairs of different views; the center is subtracted, and updated afterwards."""
    random = np.random.default_rng(0)
    views, batch, prototypes = 4, 3, 5
    student, teacher = (random.standard_normal((n * batch, prototypes)) for n in (views, 2))
    center = random.standard_normal((1, prototypes))

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits - logits.max(-1, keepdims=True))
        return powers / powers.sum(-1, keepdims=True)

    p, q = softmax((teacher - center) / 0.05).reshape(2, batch, -1), softmax(student / 0.1).reshape(views, batch, -1)
    pairs = [(p[t] * -np.log(q[v])).sum(-1).mean() for t in range(2) for v in range(views) if v != t]
    assert len(pairs) == 2 * views - 2
    loss = Criterion(Recipe(out_dim=prototypes))
    loss.center = torch.tensor(center, dtype=torch.float32)
    found = loss(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32), 0.05)
    assert found.value.item() == pytest.approx(np.mean(pairs), rel=1e-5)
    assert found.watched["teacher_entropy"].item() == pytest.approx((p * -np.log(p)).sum(-1).mean(), rel=1e-4)
    assert found.numbers()["teacher_entropy"] + found.numbers()["kl"] == pytest.approx(found.value.item(), rel=1e-6)
    # The center is updated afterwards, from the raw logits.
    np.testing.assert_allclose(loss.center.numpy(), 0.9 * center + 0.1 * teacher.mean(0), rtol=1e-5)


def test_loss_is_ln_k_at_collapse():
    """Figure 7: with uniform outputs the loss is ln K."""
    assert Criterion(Recipe(out_dim=64))(torch.ones(6, 64), torch.ones(4, 64), 0.04).value.item() == pytest.approx(math.log(64))


def test_head_logits_are_cosines_with_normalized_prototypes():
    """DINOHead in vision_transformer.py: the last layer is made after the initialization, so it keeps that of nn.Linear."""
    torch.manual_seed(0)
    head = ProjectionHead(12, Recipe(out_dim=20, hidden_dim=16))
    assert not head.last_layer.weight_g.requires_grad
    x = torch.randn(7, 12)
    expected = F.normalize(head.mlp(x), dim=-1) @ F.normalize(head.last_layer.weight_v, dim=-1).T
    torch.testing.assert_close(head(x), expected)
    assert head.last_layer.weight_v.abs().max() <= 1 / 16  # nn.Linear's own draw for 256 inputs
    assert ProjectionHead(12, Recipe(out_dim=20, norm_last_layer=False)).last_layer.weight_g.requires_grad


def test_head_has_the_released_state_dict_keys():
    """Full checkpoints of the README."""
    mlp = {f"mlp.{number}.{kind}" for number in (0, 2, 4) for kind in ("weight", "bias")}
    assert set(ProjectionHead(12, Recipe(out_dim=20, hidden_dim=16)).state_dict()) == mlp | {"last_layer.weight_g", "last_layer.weight_v"}


def test_head_parameter_count_equals_the_released_head():
    """DINOHead for 384 inputs and 65,536 outputs."""
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in ProjectionHead(384, Recipe()).parameters()) == 22_352_128


@pytest.fixture
def pair():
    return build_pair(TINY, dataclasses.replace(SMALL, norm_last_layer=False))


def test_only_biases_and_vectors_are_not_decayed(pair):
    """get_params_groups in utils.py: [CLS], positions and prototype lengths are decayed."""
    names = {id(parameter): name for name, parameter in pair[0].named_parameters()}
    decayed, plain = ({names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(pair[0]))
    assert {"backbone.cls_token", "backbone.pos_embed", "head.last_layer.weight_g", "head.mlp.0.weight"} <= decayed
    assert {"backbone.norm.weight", "head.mlp.0.bias", "backbone.blocks.0.norm1.bias"} <= plain
    assert decayed | plain == set(names.values())
    assert not decayed & plain


def test_teacher_has_no_gradient_and_no_stochastic_depth(pair):
    """main_dino.py: both start with equal weights, and only the student has stochastic depth."""
    student, teacher = pair
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.backbone.blocks[-1].drop_path.rate == 0 < student.backbone.blocks[-1].drop_path.rate
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_clipping_limits_each_tensor_by_itself(pair):
    """clip_gradients in utils.py: the norm of each tensor, not of all."""
    student, _ = pair
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    student.backbone.cls_token.grad.mul_(1e-3)
    clip_grad_per_tensor(student, 0.5)
    norms = {name: parameter.grad.norm().item() for name, parameter in student.named_parameters()}
    for name in ("backbone.pos_embed", "head.mlp.0.weight"):
        assert norms[name] == pytest.approx(0.5, rel=1e-3)
    assert norms["backbone.cls_token"] == pytest.approx(1e-3 * 96**0.5)


def test_ema_includes_the_prototype_lengths(pair):
    """train_one_epoch in main_dino.py: all parameters, also those of the head."""
    student, teacher = pair
    with torch.no_grad():
        student.head.last_layer.weight_g.fill_(3.0)
    update_ema(teacher, student, 0.75)
    assert teacher.head.last_layer.weight_g.unique().tolist() == [1.5]  # 0.75 * 1 + 0.25 * 3


def test_last_layer_is_frozen_without_decay_in_first_epochs():
    """cancel_gradients_last_layer in utils.py: the gradient is None, so that weight decay does not apply either."""
    trainer = Trainer(TINY, dataclasses.replace(SMALL, norm_last_layer=False), steps=2, device=CPU)
    crops = [torch.randn(4, 3, size, size) for size in (16, 16, 8, 8)]
    before = trainer.student.head.last_layer.weight_v.detach().clone()
    trainer.step(crops, 1)
    assert torch.equal(trainer.student.head.last_layer.weight_v, before)
    trainer.step(crops, 2)
    assert not torch.equal(trainer.student.head.last_layer.weight_v, before)


def test_trainer_schedules_equal_main_dino():
    """main_dino.py: the peak is lr * batch / 256; the end, the weight decay and the momentum are not scaled."""
    trainer = Trainer(TINY, dataclasses.replace(SMALL, batch_size=512), steps=5, device=CPU)
    np.testing.assert_array_equal(trainer.lr, schedules.cosine(0.01 * 512 / 256, 1e-6, 3, 5, 1))
    np.testing.assert_array_equal(trainer.weight_decay, schedules.cosine(0.04, 0.4, 3, 5))
    np.testing.assert_array_equal(trainer.momentum, schedules.cosine(0.996, 1.0, 3, 5))
    assert trainer.temperature.tolist() == [0.04] * 3
    assert (trainer.optimizer.defaults["betas"], trainer.optimizer.defaults["eps"]) == ((0.9, 0.999), 1e-8)


def test_teacher_sees_global_crops_and_student_all():
    """MultiCropWrapper in utils.py: crops of one size pass the backbone together, all pass the head together."""
    trainer = Trainer(TINY, SMALL, steps=2, device=CPU)
    seen: dict[str, list[tuple[int, ...]]] = {}
    for name, network in (("teacher", trainer.teacher), ("student", trainer.student)):
        for part in ("backbone", "head"):
            calls = seen.setdefault(f"{name}.{part}", [])
            getattr(network, part).register_forward_pre_hook(lambda _, inputs, calls=calls: calls.append(tuple(inputs[0].shape)))
    trainer.step(random_crops(0), 0)
    assert seen == {
        "teacher.backbone": [(8, 3, 16, 16)],
        "teacher.head": [(8, 96)],
        "student.backbone": [(8, 3, 16, 16), (8, 3, 8, 8)],
        "student.head": [(16, 96)],
    }
    assert trainer.teacher.training, "the released teacher stays in training mode"


def test_steps_equal_the_written_out_iteration():
    """train_one_epoch: rates of the step, loss with the old center, clip, freeze, AdamW, then the moving average.

    One step per epoch, so that the first is in the frozen epoch and the temperature changes with every step.
    """
    recipe = dataclasses.replace(
        SMALL, lr=1.0, drop_path=0.0, clip_grad=0.02, momentum_teacher=0.5, norm_last_layer=False, teacher_temp=0.07, weight_decay_end=0.9
    )
    recipe = dataclasses.replace(recipe, warmup_teacher_temp_epochs=2, freeze_last_layer=2)
    torch.manual_seed(0)
    trainer = Trainer(TINY, recipe, steps=1, device=CPU)
    student, teacher = copy.deepcopy(trainer.student), copy.deepcopy(trainer.teacher)
    named = dict(student.named_parameters())
    plain = [name for name, parameter in named.items() if name.endswith(".bias") or parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": [named[name] for name in named if name not in plain]}, {"params": [named[name] for name in plain], "weight_decay": 0}]
    )
    center = torch.zeros(1, 32)
    lr = [0.0, 4 / 256, 1e-6 + (4 / 256 - 1e-6) / 2]
    decay = [0.04, 0.9 - 0.86 * 0.75, 0.9 - 0.86 * 0.25]
    momentum = [0.5, 1 - 0.5 * 0.75, 1 - 0.5 * 0.25]
    for step, temperature in enumerate((0.04, 0.07, 0.07)):
        crops = random_crops(step)
        for group in optimizer.param_groups:
            group["lr"] = lr[step]
        optimizer.param_groups[0]["weight_decay"] = decay[step]
        target = teacher(crops[:2]).detach()
        q, p = ((target - center) / temperature).softmax(-1).split(4), (student(crops) / 0.1).log_softmax(-1).split(4)
        loss = torch.stack([-(q[t] * p[v]).sum(-1).mean() for t in range(2) for v in range(4) if v != t]).mean()
        center = 0.9 * center + 0.1 * target.mean(0, keepdim=True)
        optimizer.zero_grad()
        loss.backward()
        for name, parameter in named.items():
            parameter.grad *= min(1.0, 0.02 / (parameter.grad.norm().item() + 1e-6))
            if step < 2 and name.startswith("head.last_layer"):
                parameter.grad = None
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.copy_(momentum[step] * slow + (1 - momentum[step]) * fast)
        assert trainer.step(crops, step)["loss"] == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(trainer.loss.center, center)
        for made, expected in ((trainer.student, student), (trainer.teacher, teacher)):
            for name, tensor in made.state_dict().items():
                if not name.endswith("attn.qkv.bias"):  # The gradient of the keys is zero, and AdamW magnifies its rounding.
                    torch.testing.assert_close(tensor, expected.state_dict()[name], rtol=1e-4, atol=1e-5, msg=name)
