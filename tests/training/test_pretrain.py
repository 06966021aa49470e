"""Pretraining: schedules, loss, head, teacher, augmentation and one step."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TINY, synthetic_images

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import in_memory
from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.models.architectures import parse_architecture
from dinoeval.training.pretrain import schedules
from dinoeval.training.pretrain.augment import MultiCropAugmentation, SeededCrops
from dinoeval.training.pretrain.head import DinoHead
from dinoeval.training.pretrain.objectives import DinoLoss
from dinoeval.training.pretrain.presets import PRESETS, Recipe, get_recipe
from dinoeval.training.pretrain.teacher import build_pair, clip_grad_per_tensor, parameter_groups, update_ema
from dinoeval.training.pretrain.trainer import DinoTrainer

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


def test_schedules_equal_the_log_of_a_public_run():
    """8 x 64 images, 100 epochs, 2,502 steps: the values quoted in issue 280 of the released code."""
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
    assert lr.flatten()[10 * steps - 1] == lr.flatten()[10 * steps] == 0.001  # the peak comes twice


def test_teacher_temperature_is_linear_then_constant():
    assert schedules.teacher_temperature(0.04, 0.07, 4, 6).tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


@pytest.mark.slow
def test_losses_equal_the_released_training(golden):
    """The golden file has recipe and losses of the pieces of main_dino.py; `benchmarks/parity.py CHECKOUT --golden` writes it."""
    recipe = Recipe(**golden["training"]["recipe"])
    torch.manual_seed(3)
    trainer = DinoTrainer("vit_ti16", recipe, steps=5, device=CPU)
    losses = []
    for iteration in range(4):  # all 20 steps take a minute; the benchmark compares them and the teacher's weights
        generator = np.random.default_rng(iteration)
        sizes = (recipe.global_crop,) * 2 + (recipe.local_crop,) * recipe.local_crops
        crops = [torch.from_numpy(generator.standard_normal((recipe.batch_size, 3, size, size), dtype=np.float32)) for size in sizes]
        torch.manual_seed(100 + iteration)
        losses.append(trainer.step(crops, iteration)["loss"])
    np.testing.assert_allclose(losses, golden["training"]["losses"][:4], rtol=1e-4)


def test_loss_equals_its_formula():
    """Mean over pairs of different views of the cross-entropy between sharpened, centered targets and the student."""
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
    loss = DinoLoss(prototypes)
    loss.center = torch.tensor(center, dtype=torch.float32)
    found = loss(torch.tensor(student, dtype=torch.float32), torch.tensor(teacher, dtype=torch.float32), 0.05)
    assert found.value.item() == pytest.approx(np.mean(pairs), rel=1e-5)
    assert found.teacher_entropy == pytest.approx((p * -np.log(p)).sum(-1).mean(), rel=1e-4)
    assert found.teacher_entropy + found.kl == pytest.approx(found.value.item(), rel=1e-6)
    # The center is updated afterwards, from the raw logits.
    np.testing.assert_allclose(loss.center.numpy(), 0.9 * center + 0.1 * teacher.mean(0), rtol=1e-5)


def test_loss_is_ln_k_at_collapse():
    assert DinoLoss(64)(torch.ones(6, 64), torch.ones(4, 64), 0.04).value.item() == pytest.approx(math.log(64))


def test_head_logits_are_cosines_with_normalized_prototypes():
    torch.manual_seed(0)
    head = DinoHead(12, 20, hidden_dim=16)
    assert not head.last_layer.weight_g.requires_grad
    x = torch.randn(7, 12)
    expected = F.normalize(head.mlp(x), dim=-1) @ F.normalize(head.last_layer.weight_v, dim=-1).T
    torch.testing.assert_close(head(x), expected)
    assert head.last_layer.weight_v.abs().max() <= 1 / 16  # nn.Linear's own draw for 256 inputs
    assert DinoHead(12, 20, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_head_has_the_released_state_dict_keys():
    mlp = {f"mlp.{number}.{kind}" for number in (0, 2, 4) for kind in ("weight", "bias")}
    assert set(DinoHead(12, 20, hidden_dim=16).state_dict()) == mlp | {"last_layer.weight_g", "last_layer.weight_v"}


def test_head_parameter_count_equals_the_released_head():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DinoHead(384, 65536).parameters()) == 22_352_128


@pytest.fixture
def pair():
    return build_pair(parse_architecture(TINY), dataclasses.replace(SMALL, norm_last_layer=False))


def test_only_biases_and_vectors_are_not_decayed(pair):
    names = {id(parameter): name for name, parameter in pair[0].named_parameters()}
    decayed, plain = ({names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(pair[0]))
    assert {"backbone.cls_token", "backbone.pos_embed", "head.last_layer.weight_g", "head.mlp.0.weight"} <= decayed
    assert {"backbone.norm.weight", "head.mlp.0.bias", "backbone.blocks.0.norm1.bias"} <= plain
    assert decayed | plain == set(names.values())
    assert not decayed & plain


def test_teacher_has_no_gradient_and_no_stochastic_depth(pair):
    student, teacher = pair
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.backbone.blocks[-1].drop_path.rate == 0 < student.backbone.blocks[-1].drop_path.rate
    assert all(torch.equal(tensor, teacher.state_dict()[name]) for name, tensor in student.state_dict().items())


def test_clipping_limits_each_tensor_by_itself(pair):
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
    student, teacher = pair
    with torch.no_grad():
        student.head.last_layer.weight_g.fill_(3.0)
    update_ema(teacher, student, 0.75)
    assert teacher.head.last_layer.weight_g.unique().tolist() == [1.5]  # 0.75 * 1 + 0.25 * 3


def test_last_layer_is_frozen_without_decay_in_first_epochs():
    trainer = DinoTrainer(TINY, dataclasses.replace(SMALL, norm_last_layer=False), steps=2, device=CPU)
    crops = [torch.randn(4, 3, size, size) for size in (16, 16, 8, 8)]
    before = trainer.student.head.last_layer.weight_v.detach().clone()
    trainer.step(crops, 1)
    assert torch.equal(trainer.student.head.last_layer.weight_v, before)
    trainer.step(crops, 2)
    assert not torch.equal(trainer.student.head.last_layer.weight_v, before)


def test_step_raises_when_the_loss_is_not_finite():
    trainer = DinoTrainer(TINY, SMALL, steps=2, device=CPU)
    with pytest.raises(DinoevalError, match=r"(nan|inf) in epoch 0.*--lr"):
        trainer.step([torch.full((4, 3, 16, 16), float("nan"))] * 2, 0)


def dataset(seed: int, epoch: int) -> ImageDataset:
    return ImageDataset(in_memory(synthetic_images(4, (40, 30))), SeededCrops(MultiCropAugmentation(SMALL), seed, epoch))


def test_crops_depend_on_seed_epoch_and_row_only():
    crops = [dataset(1, 0)[row] for row in range(4)]
    assert [crop.shape for crop in crops[0]] == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 2

    def equal(other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(crops[2], other, strict=True))

    assert equal(dataset(1, 0)[2])
    assert not equal(dataset(1, 1)[2])
    assert not equal(dataset(2, 0)[2])
    assert not equal(crops[1])


def test_crops_do_not_change_the_torch_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    dataset(1, 0)[0]
    assert torch.equal(torch.rand(1), expected)


def test_default_recipe_is_the_released_one():
    assert get_recipe("released") == PRESETS["released"] == Recipe()
    assert (Recipe().out_dim, Recipe().teacher_temp, Recipe().local_crops, Recipe().clip_grad) == (65536, 0.04, 8, 3.0)


def test_get_recipe_suggests_the_nearest_preset():
    with pytest.raises(ConfigError, match="digits"):
        get_recipe("digit")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epochs": 3}, "--warmup-epochs .*--epochs 3, got 10"),
        ({"epochs": 0}, "--epochs .* 0"),
        ({"batch_size": 0}, "--batch-size .* 0"),
        ({"local_scale": (0.4, 0.05)}, r"--local-scale .* 0\.4 0\.05"),
        ({"global_scale": (0.0, 1.0)}, r"--global-scale .* 0 1"),
        ({"clip_grad": -1}, "--clip-grad .* -1"),
        ({"student_temp": 0}, "--student-temp .* 0"),
        ({"drop_path": 1}, "--drop-path .* 1"),
        ({"momentum_teacher": 1.5}, r"--momentum-teacher .* 1\.5"),
        ({"blur_radius": (2, 1)}, "--blur-radius .* 2 1"),
    ],
)
def test_recipe_rejects_invalid_values(values, named):
    with pytest.raises(ConfigError, match=named):
        Recipe(**values)
