"""The scripts of benchmarks/gpu on the CPU: batched crops against torchvision, the loss and steps against the bundled trainer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv

from dinoeval.data.transforms import MEAN, STD
from dinoeval.testing import TINY_ARCH
from dinoeval.training.pretrain.augment import MultiCropAugmentation
from dinoeval.training.pretrain.criterion import Criterion
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks/gpu"))
from device_augment import DeviceMultiCrop, Draws, blur_weights, crop_boxes, draw, render, resampling_weights
from device_trainer import DeviceTrainer, cross_entropy
from nearest import nearest_in_blocks, nearest_in_groups
from train_cifar10 import TINY_RECIPE

SCRIPTS = Path(__file__).parents[2] / "benchmarks/gpu"
MEANS, DEVIATIONS = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth_images(count: int, size: tuple[int, int] = (32, 32)) -> Tensor:
    """Smooth colored noise with the contrast of photographs, (N, 3, H, W) uint8."""
    coarse = torch.rand((count, 3, 5, 5), generator=generator(0))
    smooth = F.interpolate(coarse, size, mode="bicubic") + 0.03 * torch.randn((count, 3, *size), generator=generator(1))
    return (255 * smooth.clamp(0, 1)).to(torch.uint8)


def no_change(count: int, source: tuple[int, int] = (32, 32), size: int = 32) -> Draws:
    """Draws that resize the whole image and change nothing else."""
    start = torch.zeros(count)
    return Draws(
        rows=resampling_weights(start, start + source[0], source[0], size),
        columns=resampling_weights(start, start + source[1], source[1], size),
        factors=torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(count, 1),
        order=torch.arange(4).repeat(count, 1),
        gray=torch.zeros(count, dtype=torch.bool),
        blur=torch.eye(size).repeat(count, 1, 1),
        solarize=torch.zeros(count, dtype=torch.bool),
    )


def pixels_of(images: Tensor, draws: Draws) -> Tensor:
    """Render without normalization: values in [0, 1]."""
    return render(images, draws) * DEVIATIONS + MEANS


def assert_near(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("source", "size"), [((32, 32), 16), ((50, 37), 24), ((20, 31), 40)])
def test_crops_equal_resized_crop_of_torchvision(source, size):
    images, boxes = smooth_images(6, source), crop_boxes(6, source, (0.1, 1.0), generator())
    rows, columns = (resampling_weights(boxes[:, n], boxes[:, n + 2], source[n], size) for n in (0, 1))
    crops = pixels_of(images, no_change(6, source, size)._replace(rows=rows, columns=columns))
    for image, box, crop in zip(images, boxes.int().tolist(), crops, strict=True):
        expected = tv.resized_crop(image.float() / 255, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        assert_near(crop, expected)


@pytest.mark.parametrize("scale", [(0.05, 0.4), (0.9, 1.0)])
def test_crop_boxes_are_distributed_as_in_torchvision(scale):
    count, source = 2000, (24, 60)
    boxes = crop_boxes(count, source, scale, generator(1))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= torch.tensor(source)).all()
    torch.manual_seed(2)
    expected = torch.tensor([RandomResizedCrop.get_params(torch.empty(3, *source), list(scale), [3 / 4, 4 / 3]) for _ in range(count)])
    error = ((boxes.var(0) + expected.float().var(0)) / count).sqrt()
    assert ((boxes.mean(0) - expected.float().mean(0)).abs() <= 4.5 * error + 1e-6).all()


def test_crop_box_is_central_when_no_box_fits():
    boxes = crop_boxes(3, (10, 100), (1.0, 1.0), generator())
    assert boxes.tolist() == [[0, 43, 10, 13]] * 3  # 10 * 4/3 is 13 wide


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1), (1, 3, 0, 2)])
def test_jitter_equals_torchvision_in_any_order(order):
    images = smooth_images(6)
    factors = torch.rand((6, 4), generator=generator()) * torch.tensor([0.8, 0.8, 0.4, 0.2]) + torch.tensor([0.6, 0.6, 0.8, -0.1])
    found = pixels_of(images, no_change(6)._replace(factors=factors, order=torch.tensor([order] * 6)))
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for image, factor, one in zip(images, factors.tolist(), found, strict=True):
        expected = image.float() / 255
        for step in order:
            expected = steps[step](expected, factor[step])
        assert_near(one, expected)


def test_views_use_their_own_draws():
    images = smooth_images(8)
    draws = no_change(8)._replace(
        factors=torch.rand((8, 4), generator=generator()) + torch.tensor([0.5, 0.5, 0.5, -0.5]), order=torch.rand(8, 4).argsort(1)
    )
    alone = [pixels_of(images[row : row + 1], Draws(*(field[row : row + 1] for field in draws))) for row in range(8)]
    assert_near(pixels_of(images, draws), torch.cat(alone), 1e-6)


def test_gray_solarized_and_flipped_views_equal_torchvision():
    images, draws, chosen = smooth_images(4), no_change(4), torch.tensor([True, False, True, False])
    x = images.float() / 255
    for name, expected in (("gray", tv.rgb_to_grayscale(x, 3)), ("solarize", tv.solarize(x, 0.5))):
        assert_near(pixels_of(images, draws._replace(**{name: chosen})), torch.where(chosen[:, None, None, None], expected, x), 1e-6)
    assert_near(pixels_of(images, draws._replace(columns=draws.columns.flip(1))), x.flip(-1), 1e-6)


@pytest.mark.parametrize("radius", [0.3, 0.6, 2.0])
def test_blur_is_a_gaussian_with_repeated_borders(radius):
    images = smooth_images(3)
    found = pixels_of(images, no_change(3)._replace(blur=blur_weights(torch.full((3,), radius), 32, reach=8)))
    kernel = (-0.5 * (torch.arange(-8, 9).float() / radius) ** 2).exp()
    kernel = (kernel / kernel.sum()).repeat(3, 1, 1)
    x = F.pad(images.float() / 255, (8, 8, 8, 8), mode="replicate")
    assert_near(found, F.conv2d(F.conv2d(x, kernel[:, :, None], groups=3), kernel[..., None], groups=3), 1e-4)
    assert torch.equal(blur_weights(torch.zeros(2), 16, reach=3), torch.eye(16).repeat(2, 1, 1))


def test_probabilities_are_those_of_the_released_code():
    count = 20_000
    chances = {"blur": torch.full((count,), 0.1), "solarize": torch.full((count,), 0.2)}
    draws = draw(TINY_RECIPE, 4, (4, 4), (1.0, 1.0), **chances, generator=generator(3))
    jittered = (draws.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    found = {
        "gray": draws.gray,
        "solarize": draws.solarize,
        "jitter": jittered,
        "flip": draws.columns.argmax(2)[:, 0] > 0,
        "hue first": draws.order[:, 0] == 3,
    }
    expected = {"gray": 0.2, "solarize": 0.2, "jitter": 0.8, "flip": 0.5, "hue first": 0.25}
    assert {name: mask.float().mean().item() for name, mask in found.items()} == pytest.approx(expected, abs=0.015)
    assert (draws.blur != torch.eye(4)).flatten(1).any(1).float().mean().item() == pytest.approx(0.09, abs=0.03)  # tiny radii: no change
    factors = draws.factors[jittered]
    assert factors.amin(0).tolist() == pytest.approx([0.6, 0.6, 0.8, -0.1], abs=0.002)
    assert factors.amax(0).tolist() == pytest.approx([1.4, 1.4, 1.2, 0.1], abs=0.002)
    assert (draws.order.sort(1).values == torch.arange(4)).all()


@pytest.mark.slow
def test_views_have_the_statistics_of_the_pil_augmentation():
    count = 200
    images = smooth_images(count)
    views = DeviceMultiCrop(TINY_RECIPE)(images, generator(5))
    one_by_one = MultiCropAugmentation(TINY_RECIPE)
    random.seed(0)
    torch.manual_seed(0)
    crops = [one_by_one(Image.fromarray(image.permute(1, 2, 0).numpy())) for image in images]

    def statistics(x: Tensor) -> np.ndarray:
        """Mean, contrast, colorfulness and gradients of each view."""
        gradients = (x.diff(dim=dim).abs().mean((1, 2, 3)) for dim in (-1, -2))
        return torch.stack((x.mean((1, 2, 3)), x.std((1, 2, 3)), x.std(1).mean((1, 2)), *gradients)).numpy()

    assert [tuple(view.shape[1:]) for view in views] == [tuple(crop.shape) for crop in crops[0]]
    for number, view in enumerate(views):
        found, expected = statistics(view * DEVIATIONS + MEANS), statistics(torch.stack([crop[number] for crop in crops]).float() / 255)
        error = np.sqrt((found.var(1) + expected.var(1)) / count)
        assert (np.abs(found.mean(1) - expected.mean(1)) < 4 * error + 0.002).all()
        assert np.allclose(found.std(1), expected.std(1), rtol=0.2)


def test_views_depend_on_the_generator_only():
    images, augment = smooth_images(4), DeviceMultiCrop(TINY_RECIPE)
    first, again, other = (augment(images, generator(seed)) for seed in (7, 7, 8))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("views", [2, 3, 10])
def test_cross_entropy_equals_dino_loss(views):
    torch.manual_seed(0)
    student, teacher = torch.randn(views * 3, 7, requires_grad=True), torch.randn(6, 7)
    loss = Criterion(Recipe(out_dim=7))
    loss.center = center = torch.randn(1, 7)
    expected = loss(student, teacher, 0.05)
    value, entropy = cross_entropy(student, teacher, center, torch.tensor(0.05), 0.1)
    torch.testing.assert_close(value, expected.value)
    assert entropy.item() == pytest.approx(expected.watched["teacher_entropy"].item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(value, student), torch.autograd.grad(expected.value, student))


def test_device_trainer_steps_equal_the_bundled_trainer():
    trainers = []
    for kind in (Trainer, DeviceTrainer):
        torch.manual_seed(1)
        trainers.append(kind(TINY_ARCH, TINY_RECIPE, 2, torch.device("cpu"), "fp32"))
    bundled, device = trainers
    for iteration in range(4):  # The last layer is frozen in the first two.
        crops = [torch.randn(4, 3, size, size, generator=generator(iteration)) for size in (16, 16, 8, 8)]
        expected = bundled.step(crops, iteration)
        assert device.advance(crops, iteration).tolist() == pytest.approx([expected["loss"], expected["teacher_entropy"]], rel=1e-5)
    for name in ("student", "teacher"):
        for a, b in zip(getattr(bundled, name).parameters(), getattr(device, name).parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(bundled.loss.center, device.loss.center, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("find", [nearest_in_blocks, nearest_in_groups])
def test_nearest_on_gpu_equals_a_full_sort(find, monkeypatch):
    monkeypatch.setattr("nearest._BLOCK", 200)
    queries, bank = (F.normalize(torch.randn(count, 8, generator=generator(count)), dim=1) for count in (5, 500))
    expected = (queries @ bank.T).topk(3, dim=1)
    cosines, indices = find(queries, bank, 3)
    torch.testing.assert_close(cosines, expected.values)
    assert torch.equal(indices, expected.indices)


@pytest.mark.slow
def test_killed_training_resumes_with_equal_bits(tmp_path):
    def start(out: str) -> subprocess.Popen:
        command = [sys.executable, SCRIPTS / "train_cifar10.py", "--tiny", "--save-every", "1", "--out", tmp_path / out]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start("whole").wait() == 0
    process = start("killed")
    while not (tmp_path / "killed/checkpoint.pth").exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert start("killed").wait() == 0
    for name in ("teacher", "student"):
        whole, killed = (load_file(tmp_path / out / f"{name}.safetensors") for out in ("whole", "killed"))
        assert whole.keys() == killed.keys()
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    record = json.loads((tmp_path / "whole/record.json").read_text())
    assert record["curve"][-1].keys() >= {"knn_teacher", "knn_student", "train_kl"}


@pytest.mark.slow
def test_speed_measures_every_section_when_tiny(tmp_path):
    out = tmp_path / "speed.json"
    subprocess.run([sys.executable, SCRIPTS / "speed.py", "--tiny", "--out", out], check=True, stdout=subprocess.DEVNULL)
    record = json.loads(out.read_text())
    recorded = json.loads((SCRIPTS.parent / "results/gpu_speed.json").read_text())
    assert record["knn"]["equal cosines of blocks and groups"]
    assert record["training"].keys() >= {"arch", "views", "precision"}
    for section in ("agreement", "forward", "extraction", "knn", "propagation"):
        required = {name for name in recorded[section] if "released" not in name and "soft maps" not in name}
        assert required <= record[section].keys()
