from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from factories import TINY, class_folders, synthetic_images
from hypothesis import given
from hypothesis import strategies as st
from paper_results import missing_facts, reasons
from PIL import Image
from safetensors.torch import load_file
from timm.data.auto_augment import RandAugment
from timm.data.distributed_sampler import RepeatAugSampler
from timm.scheduler.cosine_lr import CosineLRScheduler

import dinoeval
from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_splits
from dinoeval.data.transforms import CenterCrop, normalize_images
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.models.architectures import parse_architecture
from dinoeval.models.vit import VisionTransformer
from dinoeval.session import SessionConfig
from dinoeval.training.finetune import run as finetune_run
from dinoeval.training.finetune.batches import AugmentedImages, Mixing, RepeatedOrder, augmentation, deal
from dinoeval.training.finetune.recipes import PRESETS, FinetuneRecipe, get_finetune_recipe

SMALL = dataclasses.replace(PRESETS["short"], epochs=3, warmup_epochs=1, train_batch_size=8, mixed_together=4, repeats=3, lr=0.02)
TRANSFORM = CenterCrop(16, 16)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Matrices this small lose by threads, and sums of two threads have other bits than those of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def trainer_of(recipe: FinetuneRecipe, *, forward_images: int = 100, classes: int = 3) -> finetune_run.FinetuneTrainer:
    torch.manual_seed(0)
    model = finetune_run.Classifier(VisionTransformer(parse_architecture(TINY)), 96, classes, recipe.head_scale)
    return finetune_run.FinetuneTrainer(model, recipe, CPU, "fp32", forward_images)


def test_the_learning_rate_is_that_of_deits_loop():
    recipe = FinetuneRecipe(epochs=20, train_batch_size=1024)  # peak 0.0005 x 1024 / 512
    trainer = trainer_of(recipe)
    found = [trainer.begin(epoch) for epoch in range(20)]
    # main.py trains an epoch, then calls step with that epoch's number.
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-3)
    schedule = CosineLRScheduler(optimizer, t_initial=20, lr_min=1e-5, warmup_t=5, warmup_lr_init=1e-6)
    for epoch in range(20):
        assert found[epoch] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        schedule.step(epoch)
    assert found[:4] == pytest.approx([1e-6, 1e-6, 1e-6 + 0.000999 / 5, 1e-6 + 0.000999 * 2 / 5])
    assert found[6] == pytest.approx(1e-5 + 0.00099 * (1 + math.cos(math.pi / 4)) / 2)  # the cosine has run since epoch 0
    assert found[11] == pytest.approx((1e-3 + 1e-5) / 2)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {found[-1]}


def test_vectors_and_tokens_are_not_decayed():
    trainer = trainer_of(FinetuneRecipe(weight_decay=0.3))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(decay) == set(names.values())
    assert {name for name in decay if not decay[name]} == {
        name for name in decay if name.endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight", "cls_token", "pos_embed"))
    }
    assert set(decay.values()) == {0, 0.3}
    sgd = trainer_of(PRESETS["cars"]).optimizer
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"]) == (0.9, True)


def test_the_head_begins_small_and_the_network_as_it_was(backbone):
    network = finetune_run.trainable_copy(backbone, drop_path=0.25)
    model = finetune_run.Classifier(network, 96, 50, 0.001)
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.1)
    assert not model.head.bias.any()
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert [block.drop_path.rate for block in network.blocks] == pytest.approx([0, 0.25 / 3, 0.5 / 3, 0.25])
    assert tensor_digest(network.state_dict()) == backbone.digest
    # A backbone in bfloat16 has rounded matrices; training begins from those in the file.
    short = dinoeval.load(weights=backbone.provenance.name, precision="bf16")
    assert tensor_digest(finetune_run.trainable_copy(short, 0.0).state_dict()) == backbone.digest
    with torch.no_grad():
        network.norm.weight.add_(1)
    assert tensor_digest(backbone.network.state_dict()) == backbone.digest, "a copy is trained, not the backbone"


def test_a_step_is_the_optimizers_on_the_mean_cross_entropy_whatever_the_chunks():
    recipe = dataclasses.replace(PRESETS["cars"], lr=1.0, train_batch_size=8, ema_decay=0.9)  # Adam's steps magnify rounding
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    targets = torch.rand(8, 3, generator=torch.Generator().manual_seed(2)).softmax(1)
    plain = trainer_of(recipe).model
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
                p.sub_(8 / 512 * (g + 0.9 * v))  # Nesterov's step
    for forward_images in (3, 100):
        trainer = trainer_of(recipe, forward_images=forward_images)
        trainer.begin(6)  # past the warm-up; 1000 epochs are so many that the cosine has hardly begun
        found = [trainer.step(images, targets) for _ in range(2)]
        assert found == pytest.approx(losses, rel=1e-4)
        for name, tensor in trainer.model.state_dict().items():
            torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=2e-5)
        head, average = (module.state_dict()["head.weight"] - start["head.weight"] for module in (trainer.model, trainer.average.module))
        assert head.abs().max() > 1e-3
        assert 0 < average.norm() < 0.3 * head.norm()  # of the weights w after the steps: 0.09 w1 + 0.1 w2


def test_cards_are_dealt_by_hand():
    assert [(group, hand.tolist()) for group, hand in deal(8, 4, 0, 1)] == [(0, [0, 2, 4, 6]), (1, [1, 3, 5, 7])]
    # Four processes: each has one pair, the outer or the inner one of a group.
    assert [deal(8, 4, rank, 4)[0][1].tolist() for rank in range(4)] == [[0, 6], [2, 4], [1, 7], [3, 5]]
    assert [group for group, _ in deal(1024, 64, 0, 1)] == list(range(16))
    assert [(group, len(hand)) for group, hand in deal(1024, 64, 3, 16)] == [(3, 64)]  # as on DeiT's 16 GPUs
    for batch, world in ((7, 1), (10, 2), (16, 3)):
        with pytest.raises(ConfigError, match=rf"must be a multiple of {2 * world}.*not {batch}"):
            deal(batch, 4, 0, world)


@given(st.integers(1, 60), st.integers(1, 100), st.integers(1, 6))
def test_processes_share_a_batch_without_parting_pairs(pairs, together, world):
    batch = 2 * pairs * world
    whole = {group: hand for group, hand in deal(batch, together, 0, 1)}
    assert sorted(np.concatenate(list(whole.values())).tolist()) == list(range(batch))
    partner = {int(a): int(b) for hand in whole.values() for a, b in zip(hand, hand[::-1], strict=True)}
    seen = []
    for rank in range(world):
        parts = deal(batch, together, rank, world)
        assert sum(len(hand) for _, hand in parts) == 2 * pairs
        for group, hand in parts:
            assert set(hand) <= set(whole[group])
            assert [partner[int(a)] for a in hand] == hand[::-1].tolist()
            seen += hand.tolist()
    assert sorted(seen) == list(range(batch))


def test_the_order_is_that_of_repeated_augmentation():
    """Against timm's sampler on 4 GPUs of 6 images, whose own order is replaced by ours."""
    recipe = dataclasses.replace(SMALL, train_batch_size=24, mixed_together=6)
    parts = deal(24, 6, 0, 1)
    sampler = RepeatedOrder(100, recipe, np.concatenate([hand for _, hand in parts]), seed=5)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 4  # 100 // 24
    order = np.random.default_rng((5, 0)).permutation(100)
    for gpu in range(4):
        theirs = order[list(RepeatAugSampler(range(100), 4, gpu, shuffle=False, num_repeats=3, selected_round=0))]
        for step, batch in enumerate(batches):
            assert [row for _, row, _ in batch[6 * gpu : 6 * gpu + 6]] == theirs[6 * step : 6 * step + 6].tolist()
    items = [item for batch in batches for item in batch]
    assert len(set(items)) == 96
    assert {repeat for _, _, repeat in items} == {0, 1, 2}
    assert list(sampler) == batches
    sampler.epoch = 1
    assert list(sampler) != batches
    once = RepeatedOrder(100, dataclasses.replace(recipe, repeats=1), np.arange(24), seed=5)
    assert len({row for batch in once for _, row, _ in batch}) == 96


def labelled(count: int = 6, size: tuple[int, int] = (40, 30)):
    return dataclasses.replace(in_memory(synthetic_images(count, size)), labels=np.arange(count) % 3, classes=("a", "b", "c"))


def test_pictures_depend_on_seed_epoch_row_and_repeat_alone():
    recipe = dataclasses.replace(SMALL, erase=0.5)
    one, other = (AugmentedImages(labelled(), recipe, TRANSFORM, seed=1) for _ in range(2))
    items = [(epoch, row, repeat) for epoch in range(2) for row in range(3) for repeat in range(2)]
    first = {item: one[item] for item in items}
    assert (first[0, 1, 0][0].shape, first[0, 1, 0][0].dtype, first[0, 1, 0][1]) == ((3, 16, 16), torch.float32, 1)
    random.seed(0)
    np.random.seed(0)
    for item in reversed(items):
        assert torch.equal(other[item][0], first[item][0])
    for a, b in (((0, 1, 0), (1, 1, 0)), ((0, 1, 0), (0, 1, 1))):
        assert not torch.equal(first[a][0], first[b][0])
    assert not torch.equal(AugmentedImages(labelled(), recipe, TRANSFORM, seed=2)[0, 1, 0][0], first[0, 1, 0][0])
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one[0, 0, 0]
    assert torch.equal(torch.rand(1), expected), "stochastic depth's generator is left alone"


def test_without_chance_the_picture_is_that_of_the_evaluation():
    recipe = dataclasses.replace(SMALL, crop_scale=(1.0, 1.0), randaugment="", flip=False, erase=0.0)
    images = labelled(size=(16, 16))
    picture, _ = AugmentedImages(images, recipe, TRANSFORM, seed=0)[0, 2, 0]
    torch.testing.assert_close(picture, normalize_images(TRANSFORM(images.open(2))[None])[0])


def test_randaugment_survives_its_largest_magnitude():
    """timm asks Pillow for 0 bits where a magnitude drawn around 9 reaches 10, which Pillow 13 refuses."""
    policy = next(part for part in augmentation(SMALL, TRANSFORM).transforms if isinstance(part, RandAugment))
    operation = next(operation for operation in policy.ops if operation.name == "PosterizeIncreasing")
    operation.prob, operation.magnitude, operation.magnitude_std = 1.0, 10, 0
    picture = Image.new("RGB", (4, 4), (200, 100, 50))
    assert operation(picture).getextrema() == ((0, 0),) * 3
    operation.magnitude = 8  # int(0.8 * 4) = 3 of 4 bits go: the highest stays
    assert operation(picture).getpixel((0, 0)) == (128, 0, 0)
    random.seed(0)
    np.random.seed(0)
    for _ in range(300):
        assert policy(picture).size == (4, 4)


def test_mixing_is_that_of_its_group_on_any_number_of_processes():
    recipe = dataclasses.replace(SMALL, train_batch_size=16, mixed_together=8, smoothing=0.3)
    images = torch.rand(16, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(16) % 3
    kinds = set()
    for step in range(6):
        results = {}
        for world in (1, 2, 4, 8):
            rows = {}
            for rank in range(world):
                parts = deal(16, 8, rank, world)
                positions = np.concatenate([hand for _, hand in parts])
                mixed, targets = Mixing(recipe, 3, parts, seed=7)(images[positions].clone(), labels[positions], 2, step)
                rows |= {int(p): (m, t) for p, m, t in zip(positions, mixed, targets, strict=True)}
            results[world] = [torch.stack([rows[p][part] for p in range(16)]) for part in (0, 1)]
        for world in (2, 4, 8):
            assert all(torch.equal(a, b) for a, b in zip(results[1], results[world], strict=True))
        mixed, targets = results[1]
        smooth = 0.7 * F.one_hot(labels, 3) + 0.3 / 3
        for _, hand in deal(16, 8, 0, 1):
            x, y, z, t = images[hand], images[hand[::-1].copy()], mixed[hand], targets[hand]
            pasted = (z == y).all(1).all(0) & ~(z == x).all(1).all(0)  # (12, 12): the same box in each picture
            share = 1 - pasted.float().mean() if (z == x).any() else ((z - y) / (x - y)).median()
            kinds.add("cutmix" if (z == x).any() else "mixup")
            if (z == x).any():
                assert torch.equal(z, torch.where(pasted, y, x))
            else:
                torch.testing.assert_close(z, share * x + (1 - share) * y, rtol=0, atol=1e-5)
            torch.testing.assert_close(t, share * smooth[hand] + (1 - share) * smooth[hand[::-1].copy()], rtol=0, atol=1e-5)
    assert kinds == {"mixup", "cutmix"}
    none = Mixing(dataclasses.replace(recipe, mixup=0.0, cutmix=0.0), 3, deal(16, 8, 0, 1), seed=7)
    same, targets = none(images.clone(), labels, 0, 0)
    assert torch.equal(same, images)
    torch.testing.assert_close(targets, smooth)
    torch.testing.assert_close(
        -(targets * images[:, 0, 0, :3].log_softmax(1)).sum(1).mean(),
        F.cross_entropy(images[:, 0, 0, :3], labels, label_smoothing=0.3),
    )  # fmt: skip


def test_the_papers_recipes():
    assert get_finetune_recipe("auto", "/data/ImageNet-1k/") == ("imagenet", FinetuneRecipe())
    for data, preset in {
        "~/inat2018": "inat18",
        "CIFAR-10": "cifar10",
        "flowers102": "flowers",
        "a/stanford_cars.csv": "cars",
        "digits": "digits",
    }.items():
        assert get_finetune_recipe("auto", data)[0] == preset
    assert get_finetune_recipe("cars", "/data/wings")[0] == "cars"
    with pytest.raises(ConfigError, match=r"no preset goes with the data set '/data/wings'.*Known: cifar10.*short"):
        get_finetune_recipe("auto", "/data/wings")
    with pytest.raises(ConfigError, match="Did you mean imagenet"):
        get_finetune_recipe("imagnet", "x")
    peaks = {name: recipe.peak_lr for name, recipe in PRESETS.items()}
    assert peaks["imagenet"] == 0.001  # issue 31: "effective learning rate of 0.001"
    assert peaks["cifar10"] == peaks["cifar100"] == pytest.approx(7.5e-6)
    assert peaks["inat18"] == pytest.approx(1e-4)
    assert all(recipe.train_batch_size % recipe.mixed_together == 0 for recipe in PRESETS.values())
    assert {name: (recipe.optimizer, recipe.drop_path, recipe.erase) for name, recipe in PRESETS.items() if name not in ("short", "digits")} == {
        "cifar10": ("adamw", 0.1, 0), "cifar100": ("adamw", 0.1, 0), "inat18": ("adamw", 0.1, 0.25), "inat19": ("adamw", 0.1, 0.25),
        "flowers": ("sgd", 0, 0), "cars": ("sgd", 0, 0), "imagenet": ("adamw", 0.1, 0.25),
    }  # fmt: skip


OPTIONS = {"preset": "short", "epochs": 8, "warmup_epochs": 1, "train_batch_size": 8, "lr": 0.05}


def run(backbone, folder, session=None, **config):
    return dinoeval.evaluate("finetune", backbone, session=session or SessionConfig(workers=0), data=str(folder), **{**OPTIONS, **config})


def command(weights: Path, folder: Path, out: Path, **config) -> list[str]:
    options = {**OPTIONS, "data": folder, "weights": weights, "out": out, "workers": 0, **config}
    return [
        "-m",
        "dinoeval",
        "finetune",
        *(word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))),
    ]


def log_of(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / finetune_run.LOG).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def some_digits(root: Path) -> Path:
    """Real handwriting: 25 pictures of each digit to learn from, 10 to be scored on."""
    train, val = open_splits("digits")
    for half, name, count in ((train, "train", 25), (val, "val", 10)):
        assert half.labels is not None
        for label in range(10):
            (root / name / str(label)).mkdir(parents=True)
            for row in np.flatnonzero(half.labels == label)[:count]:
                half.open(row).save(root / name / str(label) / f"{row}.png")
    return root


def test_a_network_learns_and_what_is_written_gives_the_same_predictions(tmp_path):
    backbone, folder = dinoeval.load(), some_digits(tmp_path / "set")
    config = {"preset": "digits", "lr": 0.03, "train_batch_size": 10, "epochs": 5, "out": str(tmp_path / "run"), "save_every": 4}
    result = run(backbone, folder, **config)
    log = log_of(tmp_path / "run")
    assert result.metrics["top1"] == log[-1]["top1"] > 90 > 80 > log[0]["top1"]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    best = max(row["top1"] for row in log)
    assert f"last of 5 epochs; the best epoch was {[row['top1'] for row in log].index(best) + 1} with top1 {best:.2f}" in result.notes[0]
    assert (result.config["epochs"], result.config["mixup"], result.config["preset"], result.config["out"]) == (5, 0.0, "digits", None)
    assert result.metrics["top1"] < result.metrics["top5"] <= 100
    assert "config.preset: digits" in reasons(result)
    assert missing_facts(result) == set()
    # Backbone and head, as a user would put them together.
    trained = dinoeval.load(weights=tmp_path / "run" / finetune_run.BACKBONE)
    head = load_file(tmp_path / "run" / finetune_run.HEAD)
    features = torch.from_numpy(dinoeval.embed(trained, folder / "val", cache=False))
    assert (features @ head["weight"].T + head["bias"]).argmax(1).tolist() == result.samples["prediction"]
    right = np.array(result.samples["prediction"]) == np.array(result.samples["label"])
    assert right.astype(int).tolist() == result.samples["top1"]
    assert 100 * right.mean() == result.metrics["top1"]
    assert result.standard_errors["top1"] == pytest.approx(100 * math.sqrt(right.mean() * (1 - right.mean()) / 100))
    assert tensor_digest(open_checkpoint(tmp_path / "run" / finetune_run.CHECKPOINT).state) == trained.digest != backbone.digest
    assert (tmp_path / "run/checkpoint0004.pth").exists()
    # The same command once more trains nothing, and says the same.
    again = run(backbone, folder, **config)
    assert (again.metrics, again.samples) == (result.metrics, result.samples)
    with pytest.raises(ConfigError, match=r"is of another run \(seed was 0 and is 1; lr was 0.03 and is 0.2\)"):
        run(backbone, folder, **{**config, "lr": 0.2, "seed": 1})


def test_a_killed_run_resumes_and_ends_with_the_numbers_of_an_undisturbed_one(backbone, tiny_weights, image_folder, tmp_path):
    session = SessionConfig(workers=1)  # a worker that lives through all epochs, and is started anew on resumption
    whole = run(backbone, image_folder, session, out=str(tmp_path / "a"))
    assert run(backbone, image_folder).samples == whole.samples, "workers change nothing"
    words = command(tiny_weights, image_folder, tmp_path / "b", workers=1)
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (tmp_path / "b" / finetune_run.LOG).exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / finetune_run.BACKBONE).exists(), "it ended before it could be killed"
    resumed = run(backbone, image_folder, session, out=str(tmp_path / "b"))
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")
    assert (resumed.metrics, resumed.samples) == (whole.metrics, whole.samples)
    states = [torch.load(tmp_path / folder / finetune_run.CHECKPOINT, weights_only=True) for folder in "ab"]
    for part in ("model", "model_ema"):
        assert tensor_digest(states[0][part]) == tensor_digest(states[1][part])


def test_two_processes_give_what_one_gives(backbone, tiny_weights, image_folder, tmp_path):
    config = {"epochs": 3, "drop_path": 0.0}
    one = run(backbone, image_folder, out=str(tmp_path / "one"), **config)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = command(tiny_weights, image_folder, tmp_path / "two", json=tmp_path / "two.json", **config)
    done = subprocess.run([*launcher, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = dinoeval.results.Result.load(tmp_path / "two.json")
    assert two.samples == one.samples
    assert (one.details["processes"], two.details["processes"]) == (1, 2)
    for a, b in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    states = [torch.load(tmp_path / folder / finetune_run.CHECKPOINT, weights_only=True)["model"] for folder in ("one", "two")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=2e-4)


def test_mistakes_are_explained(backbone, image_folder, tmp_path):
    with pytest.raises(ConfigError, match="the 24 training images make no batch of 64: lower --train-batch-size"):
        run(backbone, image_folder, train_batch_size=64)
    with pytest.raises(ConfigError, match="mixed in pairs: --train-batch-size must be a multiple of 2, not 7"):
        run(backbone, image_folder, train_batch_size=7)
    with pytest.raises(ConfigError, match=r"4 epochs are over before the warm-up of 3 is.*Set --warmup-epochs lower"):
        run(backbone, image_folder, epochs=4, warmup_epochs=3)
    with pytest.raises(ConfigError, match="no preset goes with the data set"):
        run(backbone, image_folder, preset="auto")
    with pytest.raises(ConfigError, match="--bad-images skip"):
        run(backbone, image_folder, SessionConfig(bad_images="skip"))
    with pytest.raises(DinoevalError, match=r"training diverged.*Lower --lr"):
        run(backbone, image_folder, lr=1e20, epochs=4)
    with pytest.raises(DataError, match=r"one class only, class0"):
        run(backbone, class_folders(tmp_path / "one", classes=1))
    train, val = open_splits(str(image_folder))
    with pytest.raises(DataError, match="several labels an image; finetune takes one"):
        finetune_run.check_fits(dataclasses.replace(train, labels=np.ones((24, 3), np.int8)), val, SMALL)
    bad = class_folders(tmp_path / "bad")
    for name in ("train/class0/1.png", "train/class2/5.png"):
        (bad / name).write_text("text")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"cannot be read: class0/1.png \(unsupported.*, class2/5.png \(unsupported.*Mend or remove"):
            run(backbone, bad, SessionConfig(workers=workers), train_batch_size=24, preset="digits")
    (tmp_path / "other").mkdir()
    torch.save({"student": {}}, tmp_path / "other" / finetune_run.CHECKPOINT)
    with pytest.raises(ConfigError, match="was not written by finetune"):
        run(backbone, image_folder, out=str(tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DinoevalError, match="cannot be written"):
        run(backbone, image_folder, out=str(tmp_path / "file"))
    for wrong in ({"drop_path": 1.0}, {"lr": -1.0}, {"epochs": 0}, {"seed": -1}, {"lr": math.nan}):
        with pytest.raises(ConfigError):
            run(backbone, image_folder, **wrong)
