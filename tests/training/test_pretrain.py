"""Pretraining: steps, crops and recipes. What equals main_dino.py is in tests/paper/test_pretraining.py."""

from __future__ import annotations

import pytest
import torch
from factories import TINY, synthetic_images

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.images import in_memory
from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.training.pretrain.augment import MultiCropAugmentation, SeededCrops
from dinoeval.training.pretrain.presets import get_recipe
from dinoeval.training.pretrain.recipe import Recipe
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


def test_step_raises_when_the_loss_is_not_finite():
    trainer = Trainer(TINY, SMALL, steps=2, device=CPU)
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


def test_presets_of_small_datasets_equal_the_list():
    """The bundled weights were trained with the digits preset."""
    common = {"batch_size": 64, "lr": 0.004, "drop_path": 0.0, "clip_grad": 0.0, "momentum_teacher": 0.99, "local_crops": 0}
    assert get_recipe("cifar10") == Recipe(
        **common,
        epochs=20,
        warmup_epochs=2,
        out_dim=1024,
        hidden_dim=512,
        queue_size=4096,
        weight_decay_end=0.1,
        global_crop=32,
        local_crop=16,
        global_scale=(0.3, 1.0),
        blur_radius=(0.1, 0.6),
    )
    assert get_recipe("digits") == Recipe(
        **common,
        epochs=300,
        warmup_epochs=10,
        out_dim=512,
        hidden_dim=256,
        queue_size=1024,
        weight_decay_end=0.04,
        global_crop=16,
        local_crop=8,
        global_scale=(0.5, 1.0),
        blur_radius=(0.1, 0.5),
        flip=False,
        solarize=False,
    )


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
