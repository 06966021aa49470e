"""Linear probes: the sweep of heads, and the features of training images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dinoeval
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import CenterCrop, RandomResizedCrop
from dinoeval.errors import DataError, DinoevalError
from dinoeval.features.readout import Cls, ClsAvg, LastCls
from dinoeval.training.loading import derive_seed
from dinoeval.training.probe.sources import Augmented, AugmentedSettings, Cached
from dinoeval.training.probe.sweep import EvalSet, Head, Sweep, SweepSettings
from dinoeval.training.probe.train import STATE, run_folder, train_heads

CPU = torch.device("cpu")
TRANSFORM = CenterCrop(16, 16)


class InMemory:
    """Features that a run would take from the cache."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.take = vectors.__getitem__


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights, device="cpu")


@pytest.fixture
def images(image_folder):
    return open_splits(str(image_folder))[0]


@pytest.fixture
def problem() -> tuple[np.ndarray, np.ndarray]:
    """Features (50, 6) and labels of 4 classes."""
    random = np.random.default_rng(0)
    return random.standard_normal((50, 6), dtype=np.float32), random.integers(0, 4, 50)


def make_sweep(labels: np.ndarray, *lrs: float, epochs: int = 3) -> Sweep:
    heads = [Head(readout="cls", lr=lr, weight_decay=0.0) for lr in lrs]
    return Sweep(heads, {"cls": 6}, labels, 4, SweepSettings(epochs=epochs, batch_size=16, device=CPU))


def test_epoch_equals_torch_sgd_in_the_released_order(problem):
    """Order: the permutation of the released DistributedSampler, by seed + epoch; a smaller last batch; a cosine per epoch."""
    features, labels = problem
    sweep = make_sweep(labels, 1.0)
    layer = torch.nn.Linear(6, 4)
    layer.weight.data.copy_(sweep.groups["cls"].weight[0])
    layer.bias.data.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), 1.0 * 16 / 256, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=0)
    for epoch in range(3):
        order = torch.randperm(50, generator=torch.Generator().manual_seed(epoch))
        losses = []
        for rows in order.split(16):
            loss = torch.nn.functional.cross_entropy(layer(torch.from_numpy(features[rows])), torch.from_numpy(labels[rows]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
        steps = sweep.steps(np.arange(50))
        for batch, rows in Cached({"cls": InMemory(features)}, np.arange(50)).batches(epoch, steps):
            sweep.learn(batch, labels[rows])
        assert sweep.close_epoch({}, len(steps))["loss"][0] == pytest.approx(np.mean(losses), rel=1e-5)
    torch.testing.assert_close(sweep.groups["cls"].weight[0], layer.weight.data)


def test_sweep_remembers_the_best_head_of_each_set(problem):
    features, labels = problem
    sweep = make_sweep(labels, 0.001, 3e39, 8.0)
    steps = sweep.steps(np.arange(50))
    for rows in steps:
        sweep.learn({"cls": torch.from_numpy(features[rows])}, labels[rows])
    row = sweep.close_epoch({"val": EvalSet(features={"cls": features}, labels=labels)}, len(steps))
    assert [score is None for score in row["val"]] == [False, True, False]
    assert sweep.alive().tolist() == [True, False, True]
    best = sweep.best["val"]
    assert (best["score"], best["head"], best["epoch"]) == (max(row["val"][0], row["val"][2]), 2, 0)
    logits = features @ best["weight"].numpy().T + best["bias"].numpy()
    assert 100 * (logits.argmax(1) == labels).mean() == pytest.approx(best["score"])


def test_sweep_raises_when_all_heads_diverge(problem):
    features, labels = problem
    sweep = make_sweep(labels, 3e39)
    for rows in sweep.steps(np.arange(50)):
        sweep.learn({"cls": torch.from_numpy(features[rows])}, labels[rows])
    with pytest.raises(DinoevalError, match=r"epoch 0.*--lrs"):
        sweep.close_epoch({}, 4)


class InterruptedSource:
    """Cached features whose user presses Ctrl-C after some batches."""

    def __init__(self, source: Cached, batches: int) -> None:
        self.source, self.left, self.bad = source, batches, {}

    def batches(self, epoch, steps):
        for batch in self.source.batches(epoch, steps):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("batches", [3, 4, 6, 11])
def test_interrupted_sweep_resumes_with_equal_numbers(problem, tmp_path, monkeypatch, batches):
    """4 steps per epoch: interruptions before, at and after the end of an epoch."""
    monkeypatch.setattr("dinoeval.training.probe.train.SAVE_SECONDS", 0)
    features, labels = problem
    eval_sets = {"val": EvalSet(features={"cls": features}, labels=labels)}
    source = Cached({"cls": InMemory(features)}, np.arange(50))

    def train(source, name: str) -> Sweep:
        sweep = make_sweep(labels, 0.1, 2.0)
        train_heads(sweep, source, np.arange(50), eval_sets, run_folder(tmp_path / name, {"seed": 0}, wait=False))
        return sweep

    whole = train(source, "whole")
    with pytest.raises(KeyboardInterrupt):
        train(InterruptedSource(source, batches), "interrupted")
    saved = torch.load(tmp_path / "interrupted" / STATE, weights_only=True)
    assert 4 * saved["epoch"] + saved["step"] == batches
    resumed = train(source, "interrupted")
    assert resumed.history == whole.history
    assert all(torch.equal(resumed.weights(head)["weight"], whole.weights(head)["weight"]) for head in range(2))


def test_random_crop_equals_torchvision_with_bilinear(images):
    from torchvision import transforms

    image = images.open(0)
    reference = transforms.Compose([transforms.RandomResizedCrop(16), transforms.RandomHorizontalFlip()])
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        expected = torch.from_numpy(np.array(reference(image))).permute(2, 0, 1)
        found = RandomResizedCrop(16)(image, seed)
        assert torch.equal(found, expected)
        seen.add(found.numpy().tobytes())
    assert len(seen) == 6


def test_random_crop_does_not_change_the_torch_generator(images):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    RandomResizedCrop(16)(images.open(0), 5)
    assert torch.equal(torch.rand(3), expected)


def test_augmented_features_are_independent_of_workers(backbone, images):
    readouts = [Cls(), LastCls(2), ClsAvg()]
    steps = [np.arange(10), np.array([23, 11, 12]), np.array([], np.int64)]
    runs = []
    for workers, batch_size in ((0, 32), (2, 4)):
        source = Augmented(backbone, images, readouts, TRANSFORM, AugmentedSettings(workers=workers, batch_size=batch_size))
        runs.append(list(source.batches(1, steps)))
    for (one, rows), (other, again), step in zip(*runs, steps, strict=True):
        assert np.array_equal(rows, step)
        assert np.array_equal(rows, again)
        assert set(one) == {"cls", "last2", "clsavg"}
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-5)
    first = runs[0][0][0]
    torch.testing.assert_close(first["cls"], first["last2"][:, 96:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(first["cls"], first["clsavg"][:, ::2], rtol=1e-5, atol=1e-5)


def test_augmented_crops_depend_on_seed_epoch_and_row(backbone, images):
    source = Augmented(backbone, images, [Cls()], TRANSFORM, AugmentedSettings(seed=3, workers=0))
    ((found, rows),) = source.batches(2, [np.array([5, 1])])
    crops = torch.stack([RandomResizedCrop(16)(images.open(row), derive_seed(3, 2, row)) for row in (5, 1)])
    assert rows.tolist() == [5, 1]
    torch.testing.assert_close(found["cls"], source.features(crops)["cls"])


def test_augmented_error_names_the_image_when_features_are_nan(images):
    backbone = dinoeval.load("vit_xs4_16", weights="random", device="cpu")
    backbone.network.norm.bias[0] = float("nan")
    source = Augmented(backbone, images, [Cls()], TRANSFORM)
    with pytest.raises(DataError, match=r"class0/0\.png .*NaN"):
        list(source.batches(0, [np.arange(4)]))
