"""Fine-tuning: batches, mixing and recipes. What equals DeiT is in tests/paper/test_finetuning.py."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TINY, synthetic_images, synthetic_state
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from timm.data.auto_augment import RandAugment
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import RandomResizedCrop

import dinoeval
from dinoeval.data.images import ImageSet, in_memory
from dinoeval.data.transforms import CenterCrop, normalize_images
from dinoeval.errors import ConfigError, DataError
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.checkpoints import tensor_digest
from dinoeval.models.vit import VisionTransformer
from dinoeval.training.finetune.batches import (
    Mixing,
    RepeatedOrder,
    assign_mixup_groups,
    augmented_images,
    build_augmentation,
    collate,
    cropped_images,
)
from dinoeval.training.finetune.classifier import Classifier, trainable_copy
from dinoeval.training.finetune.recipes import PRESETS, FinetuneRecipe, get_finetune_recipe
from dinoeval.training.finetune.run import check_fits, topk_scores
from dinoeval.training.finetune.trainer import FinetuneTrainer
from dinoeval.training.loading import random_resized_crop, seeded
from dinoeval.training.precision import MixedPrecision

SMALL = dataclasses.replace(PRESETS["short"], epochs=3, warmup_epochs=1, train_batch_size=8, mixed_together=4, repeats=3, lr=0.02)
TRANSFORM = CenterCrop(16, 16)
CPU = torch.device("cpu")


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def make_trainer(recipe: FinetuneRecipe, *, forward_images: int = 100, classes: int = 3) -> FinetuneTrainer:
    torch.manual_seed(0)
    model = Classifier(VisionTransformer(parse_architecture(TINY)), 96, classes, recipe.head_scale)
    return FinetuneTrainer(model, recipe, CPU, "fp32", forward_images)


def labeled_images(count: int = 6, size: tuple[int, int] = (40, 30)) -> ImageSet:
    return dataclasses.replace(in_memory(synthetic_images(count, size)), labels=np.arange(count) % 3, classes=("a", "b", "c"))


def test_trainable_copy_has_the_weights_in_float32(backbone):
    network = trainable_copy(backbone, drop_path=0.25)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in network.parameters())
    assert [block.drop_path.rate for block in network.blocks] == pytest.approx([0, 0.25 / 3, 0.5 / 3, 0.25])
    assert tensor_digest(network.state_dict()) == backbone.digest
    with torch.no_grad():
        network.norm.weight.add_(1)
    assert tensor_digest(backbone.network.state_dict()) == backbone.digest, "the backbone does not change"


def test_trainable_copy_rereads_float32_weights_of_bf16(backbone):
    rounded = dinoeval.load(weights=backbone.provenance.name, precision="bf16")
    assert tensor_digest(trainable_copy(rounded, 0.0).state_dict()) == backbone.digest


def test_trainable_copy_rereads_the_student_of_a_checkpoint(tmp_path):
    networks = {key: synthetic_state(TINY, seed=seed) for seed, key in enumerate(("teacher", "student"))}
    torch.save(networks, tmp_path / "full.pth")
    loads = [dinoeval.load(TINY, weights=tmp_path / "full.pth", key="student", precision=precision) for precision in ("fp32", "bf16")]
    assert tensor_digest(trainable_copy(loads[1], 0.0).state_dict()) == loads[0].digest


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_uses_the_precision_of_its_name(precision, dtype):
    mixed = MixedPrecision(CPU, precision)
    with mixed.autocast():
        assert torch.get_autocast_dtype("cpu") == dtype
        assert torch.is_autocast_enabled("cpu")
    with MixedPrecision(CPU, "fp32").autocast():
        assert not torch.is_autocast_enabled("cpu")


def test_head_starts_with_scaled_weights_and_zero_bias(backbone):
    model = Classifier(trainable_copy(backbone, drop_path=0.25), 96, 50, 0.001)
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.1)
    assert not model.head.bias.any()
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("forward_images", [3, 100])
def test_step_is_independent_of_the_forward_passes(forward_images):
    """Against Nesterov's steps on the mean cross-entropy, written out."""
    recipe = dataclasses.replace(PRESETS["cars"], lr=1.0, train_batch_size=8, ema_decay=0.9)  # AdamW would magnify rounding
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    targets = torch.rand(8, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    plain = make_trainer(recipe).model
    start = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    kept = ("cls_token", "pos_embed")
    decay = [1e-4 if p.ndim > 1 and not name.endswith(kept) else 0.0 for name, p in plain.named_parameters()]
    velocities = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    losses = []
    for _ in range(2):
        loss = -(targets * plain(images).log_softmax(1)).sum(1).mean()
        losses.append(loss.item())
        with torch.no_grad():
            for p, g, v, d in zip(plain.parameters(), torch.autograd.grad(loss, list(plain.parameters())), velocities, decay, strict=True):
                g = g + d * p
                v.mul_(0.9).add_(g)
                p.sub_(8 / 512 * (g + 0.9 * v))
    trainer = make_trainer(recipe, forward_images=forward_images)
    trainer.begin(6)  # after the warm-up; with 1,000 epochs the cosine is still near its peak
    found = [trainer.step(images, targets) for _ in range(2)]
    assert found == pytest.approx(losses, rel=1e-4)
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=2e-5)
    head, average = (module.state_dict()["head.weight"] - start["head.weight"] for module in (trainer.model, trainer.average.module))
    assert head.abs().max() > 1e-3
    assert 0 < average.norm() < 0.3 * head.norm()  # of the weights w after the steps: 0.09 w1 + 0.1 w2


def test_mixup_group_assignment_matches_example():
    assert [(group, part.tolist()) for group, part in assign_mixup_groups(8, 4, 0, 1)] == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7])]
    # Each of four processes has one pair, the outer or the inner one of a group.
    assert [assign_mixup_groups(8, 4, rank, 4)[0][1].tolist() for rank in range(4)] == [[0, 6], [2, 4], [1, 7], [3, 5]]
    assert [group for group, _ in assign_mixup_groups(1024, 64, 0, 1)] == list(range(16))
    assert [(group, len(part)) for group, part in assign_mixup_groups(1024, 64, 3, 16)] == [(3, 64)]  # as on DeiT's 16 GPUs


@pytest.mark.parametrize(("batch", "processes"), [(7, 1), (10, 2), (16, 3)])
def test_mixup_groups_reject_batches_without_pairs(batch, processes):
    with pytest.raises(ConfigError, match=rf"--train-batch-size .* {2 * processes}\b.* {batch}$"):
        assign_mixup_groups(batch, 4, 0, processes)


@given(st.integers(1, 60), st.integers(1, 100), st.integers(1, 6))
def test_mixup_pairs_stay_in_one_process(pairs, group_size, processes):
    batch = 2 * pairs * processes
    whole = dict(assign_mixup_groups(batch, group_size, 0, 1))
    assert sorted(np.concatenate(list(whole.values())).tolist()) == list(range(batch))
    partner = {int(a): int(b) for positions in whole.values() for a, b in zip(positions, positions[::-1], strict=True)}
    seen = []
    for rank in range(processes):
        parts = assign_mixup_groups(batch, group_size, rank, processes)
        assert sum(len(positions) for _, positions in parts) == 2 * pairs
        for group, positions in parts:
            assert set(positions) <= set(whole[group])
            assert [partner[int(a)] for a in positions] == positions[::-1].tolist()
            seen += positions.tolist()
    assert sorted(seen) == list(range(batch))


def test_repeated_order_equals_timms_sampler():
    """On 4 GPUs of 6 images; timm's own order is replaced by ours."""
    recipe = dataclasses.replace(SMALL, train_batch_size=24, mixed_together=6)
    parts = assign_mixup_groups(24, 6, 0, 1)
    sampler = RepeatedOrder(100, recipe, np.concatenate([positions for _, positions in parts]), seed=5)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4  # 100 // 24
    order = np.random.default_rng((5, 0)).permutation(100)
    for gpu in range(4):
        expected = order[list(RepeatAugSampler(range(100), 4, gpu, shuffle=False, num_repeats=3, selected_round=0))]
        for step, batch in enumerate(batches):
            assert [row for _, row, _ in batch[6 * gpu : 6 * gpu + 6]] == expected[6 * step : 6 * step + 6].tolist()


def test_repeated_order_repeats_images_and_changes_per_epoch():
    recipe = dataclasses.replace(SMALL, train_batch_size=24)
    sampler = RepeatedOrder(100, recipe, np.arange(24), seed=5)
    batches = list(sampler)
    items = [item for batch in batches for item in batch]
    assert len(set(items)) == 96
    assert {repeat for _, _, repeat in items} == {0, 1, 2}
    assert list(sampler) == batches
    sampler.epoch = 1
    assert list(sampler) != batches
    once = RepeatedOrder(100, dataclasses.replace(recipe, repeats=1), np.arange(24), seed=5)
    assert len({row for batch in once for _, row, _ in batch}) == 96


def test_augmentation_depends_on_seed_epoch_row_and_repeat():
    recipe = dataclasses.replace(SMALL, erase=0.5)
    one, other = (augmented_images(labeled_images(), recipe, TRANSFORM, seed=1) for _ in range(2))
    items = [(epoch, row, repeat) for epoch in range(2) for row in range(3) for repeat in range(2)]
    first = {item: one[item] for item in items}
    assert (first[0, 1, 0][0].shape, first[0, 1, 0][0].dtype, first[0, 1, 0][1]) == ((3, 16, 16), torch.float32, 1)
    random.seed(0)
    np.random.seed(0)
    for item in reversed(items):
        assert torch.equal(other[item][0], first[item][0])
    for a, b in (((0, 1, 0), (1, 1, 0)), ((0, 1, 0), (0, 1, 1))):
        assert not torch.equal(first[a][0], first[b][0])
    assert not torch.equal(augmented_images(labeled_images(), recipe, TRANSFORM, seed=2)[0, 1, 0][0], first[0, 1, 0][0])


def test_augmentation_does_not_change_the_torch_generator():
    images = augmented_images(labeled_images(), SMALL, TRANSFORM, seed=1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    images[0, 0, 0]
    assert torch.equal(torch.rand(1), expected), "stochastic depth draws from it"


def test_augmentation_without_chance_equals_the_evaluation():
    recipe = dataclasses.replace(SMALL, crop_scale=(1.0, 1.0), randaugment="", flip=False, erase=0.0)
    images = labeled_images(size=(16, 16))
    image, _ = augmented_images(images, recipe, TRANSFORM, seed=0)[0, 2, 0]
    torch.testing.assert_close(image, normalize_images(TRANSFORM(images.open(2))[None])[0])


@pytest.mark.parametrize("kind", [RandomResizedCrop, RandomResizedCropAndInterpolation])
def test_random_crops_do_not_obey_the_limit_of_pillow(kind, monkeypatch):
    """With the default limit of Pillow, crops of more than 179 megapixels are an error, and smaller ones a warning."""
    images, crop = synthetic_images(8, (40, 30)), kind(16)
    with seeded(0):
        expected = [np.asarray(crop(image)) for image in images]
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with seeded(0):
        np.testing.assert_array_equal([np.asarray(random_resized_crop(crop, image)) for image in images], expected)
    recipe = dataclasses.replace(SMALL, randaugment="")
    assert augmented_images(labeled_images(size=(40, 30)), recipe, TRANSFORM, seed=0)[0, 0, 0][0].shape == (3, 16, 16)


def test_cropped_images_return_the_evaluation_crop_and_row():
    images = labeled_images()
    crops, rows = collate([cropped_images(images, TRANSFORM)[row] for row in (2, 0)])
    assert rows.tolist() == [2, 0]
    assert torch.equal(crops[0], TRANSFORM(images.open(2)))


def test_posterize_of_zero_bits_is_black():
    """timm asks Pillow for 0 bits if a magnitude drawn around 9 reaches 10, which Pillow 13 refuses."""
    policy = next(part for part in build_augmentation(SMALL, TRANSFORM).transforms if isinstance(part, RandAugment))
    operation = next(operation for operation in policy.ops if operation.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert operation(image).getextrema() == ((0, 0),) * 3
    operation.magnitude = 8  # int(0.8 * 4) = 3 of 4 bits are removed: the highest stays
    assert operation(image).getpixel((0, 0)) == (128, 0, 0)
    random.seed(0)
    np.random.seed(0)
    for _ in range(300):
        assert policy(image).size == (4, 4)


def test_mixing_is_independent_of_the_number_of_processes():
    recipe = dataclasses.replace(SMALL, train_batch_size=16, mixed_together=8, smoothing=0.3)
    images = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 3
    kinds = set()
    for step in range(6):
        results = {}
        for processes in (1, 2, 4, 8):
            rows = {}
            for rank in range(processes):
                parts = assign_mixup_groups(16, 8, rank, processes)
                positions = np.concatenate([part for _, part in parts])
                mixed, targets = Mixing(recipe, 3, parts, seed=7)(images[positions].clone(), labels[positions], 2, step)
                rows |= {int(p): (m, t) for p, m, t in zip(positions, mixed, targets, strict=True)}
            results[processes] = [torch.stack([rows[p][part] for p in range(16)]) for part in (0, 1)]
        for processes in (2, 4, 8):
            assert all(torch.equal(a, b) for a, b in zip(results[1], results[processes], strict=True))
        mixed, targets = results[1]
        smooth = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
        for _, part in assign_mixup_groups(16, 8, 0, 1):
            x, y, z, t = images[part], images[part[::-1].copy()], mixed[part], targets[part]
            pasted = (z == y).all(1).all(0) & ~(z == x).all(1).all(0)  # (12, 12): the same box in each image
            ratio = 1 - pasted.float().mean() if (z == x).any() else ((z - y) / (x - y)).median()
            kinds.add("cutmix" if (z == x).any() else "mixup")
            if (z == x).any():
                assert torch.equal(z, torch.where(pasted, y, x))
            else:
                torch.testing.assert_close(z, ratio * x + (1 - ratio) * y, rtol=0, atol=1e-5)
            torch.testing.assert_close(t, ratio * smooth[part] + (1 - ratio) * smooth[part[::-1].copy()], rtol=0, atol=1e-5)
    assert kinds == {"mixup", "cutmix"}


def test_mixing_turned_off_only_smooths_labels():
    recipe = dataclasses.replace(SMALL, train_batch_size=16, mixed_together=8, smoothing=0.3)
    images = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 3
    none = Mixing(dataclasses.replace(recipe, mixup=0.0, cutmix=0.0), 3, assign_mixup_groups(16, 8, 0, 1), seed=7)
    same, targets = none(images.clone(), labels, 0, 0)
    assert torch.equal(same, images)
    torch.testing.assert_close(targets, 0.7 * F.one_hot(labels, 3) + 0.3 / 3)
    torch.testing.assert_close(
        -(targets * images[:, 0, 0, :3].log_softmax(1)).sum(1).mean(),
        F.cross_entropy(images[:, 0, 0, :3], labels, label_smoothing=0.3),
    )


def test_mixing_does_not_change_the_numpy_generator():
    recipe = dataclasses.replace(SMALL, train_batch_size=16, mixed_together=8)
    np.random.seed(0)
    expected = np.random.rand()
    np.random.seed(0)
    Mixing(recipe, 3, assign_mixup_groups(16, 8, 0, 1), seed=7)(torch.rand(16, 3, 4, 4), torch.arange(16) % 3, 0, 0)
    assert np.random.rand() == expected


def test_auto_preset_is_found_by_the_dataset_name():
    assert get_finetune_recipe("auto", "/data/ImageNet-1k/") == ("imagenet", FinetuneRecipe())
    names = {
        "~/inat2018": "inat18",
        "iNaturalist-2019": "inat19",
        "CIFAR-10": "cifar10",
        "cifar100": "cifar100",
        "flowers102": "flowers",
        "a/stanford_cars.csv": "cars",
        "digits": "digits",
    }
    assert {data: get_finetune_recipe("auto", data)[0] for data in names} == names
    assert get_finetune_recipe("cars", "/data/wings")[0] == "cars"


def test_presets_of_small_datasets_equal_the_list():
    """Not from the paper: for small datasets and machines."""
    short = FinetuneRecipe(epochs=30, train_batch_size=64, lr=1e-3, warmup_epochs=3, min_lr=1e-6, ema_decay=0.999, repeats=1, erase=0.0)
    assert PRESETS["short"] == short
    assert PRESETS["digits"] == dataclasses.replace(
        short, epochs=20, lr=4e-3, mixup=0.0, cutmix=0.0, crop_scale=(0.5, 1.0), randaugment="", flip=False
    )


def test_unknown_presets_list_the_known_ones():
    with pytest.raises(ConfigError, match=r"'/data/wings'.*--preset.*cifar10.*short"):
        get_finetune_recipe("auto", "/data/wings")
    with pytest.raises(ConfigError, match=r"'imagnet'.*imagenet"):
        get_finetune_recipe("imagnet", "x")


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epochs": 4, "warmup_epochs": 3}, "--epochs 4 .*--warmup-epochs 3: .* 5 "),
        ({"epochs": 0}, "--epochs .* 0"),
        ({"drop_path": 1.0}, r"--drop-path .* 1\.0"),
        ({"lr": -1.0}, r"--lr .* -1\.0"),
        ({"lr": math.nan}, "--lr .* nan"),
        ({"crop_scale": (0.5, 0.1)}, r"--crop-scale .* 0\.5 0\.1"),
        ({"warmup_epochs": -1}, "--warmup-epochs .* -1"),
    ],
)
def test_recipe_rejects_invalid_values(values, named):
    with pytest.raises(ConfigError, match=named):
        FinetuneRecipe(**values)


def test_check_fits_rejects_labels_it_cannot_learn():
    images = labeled_images(12)
    check_fits(images, images, SMALL)
    check_fits(labeled_images(SMALL.train_batch_size), images, SMALL)  # one batch is enough
    for labels, found in ((np.ones((12, 3), np.int8), "multi-label"), (None, "no labels")):
        with pytest.raises(DataError, match=rf"memory.*{found}"):
            check_fits(dataclasses.replace(images, labels=labels), images, SMALL)
        with pytest.raises(DataError, match=rf"memory.*{found}"):
            check_fits(images, dataclasses.replace(images, labels=labels), SMALL)
    with pytest.raises(DataError, match=r"one class \(a\)"):
        check_fits(dataclasses.replace(images, labels=np.zeros(12, int), classes=("a",)), images, SMALL)
    with pytest.raises(ConfigError, match=r"6 training images .* 8: .*--train-batch-size"):
        check_fits(labeled_images(6), images, SMALL)


@pytest.mark.parametrize(("classes", "width"), [(3, 3), (7, 5)])
def test_five_classes_are_predicted_if_there_are_as_many(classes, width):
    trainer = make_trainer(SMALL, classes=classes)
    trainer.model.eval()
    assert trainer.predict(torch.zeros(2, 3, 16, 16)).shape == (2, width)


def test_topk_scores_are_percentages():
    val = dataclasses.replace(labeled_images(4), labels=np.array([0, 1, 2, 0]))
    predictions = np.array([[0, 1], [2, 1], [0, 1], [0, 2]])
    assert topk_scores(predictions, val) == {"top1": 50.0, "top5": 75.0}
