from __future__ import annotations

import dataclasses
import json
import math
import os
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

import dinoeval
from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_images
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.training.pretrain import loop, schedules
from dinoeval.training.pretrain.augment import Crops, MultiCropAugmentation
from dinoeval.training.pretrain.head import DinoHead
from dinoeval.training.pretrain.objectives import DinoLoss
from dinoeval.training.pretrain.presets import PRESETS, Recipe
from dinoeval.training.pretrain.teacher import build_pair, clip_grad_per_tensor, parameter_groups, update_ema

SMALL = Recipe(
    epochs=3, batch_size=4, warmup_epochs=1, out_dim=32, hidden_dim=16, global_crop=16, local_crop=8, local_crops=2, lr=0.01, drop_path=0.1
)  # fmt: skip


def test_schedules_equal_a_public_runs_log():
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
    assert schedules.teacher_temperature(0.04, 0.07, 4, 6).tolist() == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])


def test_a_run_of_twenty_steps_follows_the_released_one(golden):
    """Losses that main_dino.py's own pieces gave on the same weights and crops; see benchmarks/parity.py."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from parity import TRAINED

    recipe, steps = Recipe(**TRAINED), 5
    torch.manual_seed(3)
    trainer = loop.DinoTrainer("vit_ti16", recipe, steps, torch.device("cpu"))
    losses = []
    for iteration in range(4):  # all twenty take a minute; benchmarks/parity.py compares them and the teacher's weights
        draw = np.random.default_rng(iteration)
        sizes = (recipe.global_crop,) * 2 + (recipe.local_crop,) * recipe.local_crops
        crops = [torch.from_numpy(draw.standard_normal((recipe.batch_size, 3, size, size), dtype=np.float32)) for size in sizes]
        torch.manual_seed(100 + iteration)
        losses.append(trainer.step(crops, iteration)["loss"])
    np.testing.assert_allclose(losses, golden["training"]["losses"][:4], rtol=1e-4)


def test_the_loss_by_its_formula():
    """Mean over pairs of unequal views of the cross-entropy between sharpened centred targets and the student."""
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
    np.testing.assert_allclose(loss.center.numpy(), 0.9 * center + 0.1 * teacher.mean(0), rtol=1e-5)  # moved after, from raw logits


def test_at_collapse_the_loss_is_ln_k():
    assert DinoLoss(64)(torch.ones(6, 64), torch.ones(4, 64), 0.04).value.item() == pytest.approx(math.log(64))


def test_the_head_is_cosines_when_prototypes_are_normalised():
    torch.manual_seed(0)
    head = DinoHead(12, 20, hidden_dim=16)
    assert not head.last_layer.weight_g.requires_grad
    assert set(head.state_dict()) == {f"mlp.{n}.{k}" for n in (0, 2, 4) for k in ("weight", "bias")} | {
        "last_layer.weight_g",
        "last_layer.weight_v",
    }
    x = torch.randn(7, 12)
    expected = F.normalize(head.mlp(x), dim=-1) @ F.normalize(head.last_layer.weight_v, dim=-1).T
    torch.testing.assert_close(head(x), expected)
    assert head.last_layer.weight_v.abs().max() <= 1 / 16  # nn.Linear's own draw for 256 inputs
    assert DinoHead(12, 20, norm_last_layer=False).last_layer.weight_g.requires_grad


def test_the_released_head_has_as_many_parameters_as_counted():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in DinoHead(384, 65536).parameters()) == 22_352_128


def test_groups_clipping_and_following():
    student, teacher = build_pair(dinoeval.models.architectures.parse_architecture(TINY), dataclasses.replace(SMALL, norm_last_layer=False))
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    decayed, plain = ({names[id(parameter)] for parameter in group["params"]} for group in parameter_groups(student))
    assert {"backbone.cls_token", "backbone.pos_embed", "head.last_layer.weight_g", "head.mlp.0.weight"} <= decayed
    assert {"backbone.norm.weight", "head.mlp.0.bias", "backbone.blocks.0.norm1.bias"} <= plain
    assert decayed | plain == set(names.values())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.backbone.blocks[-1].drop_path.rate == 0 < student.backbone.blocks[-1].drop_path.rate
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    student.backbone.cls_token.grad.mul_(1e-3)
    clip_grad_per_tensor(student, 0.5)
    norms = {name: parameter.grad.norm().item() for name, parameter in student.named_parameters()}
    for name in ("backbone.pos_embed", "head.mlp.0.weight"):  # each by itself
        assert norms[name] == pytest.approx(0.5, rel=1e-3)
    assert norms["backbone.cls_token"] == pytest.approx(1e-3 * 96**0.5)
    with torch.no_grad():
        student.head.last_layer.weight_g.fill_(3.0)
    update_ema(teacher, student, 0.75)
    assert teacher.head.last_layer.weight_g.unique().tolist() == [1.5]  # 0.75 * 1 + 0.25 * 3


def test_the_last_layer_is_frozen_without_decay_in_the_first_epochs():
    trainer = loop.DinoTrainer(TINY, dataclasses.replace(SMALL, norm_last_layer=False), 2, torch.device("cpu"))
    crops = [torch.randn(4, 3, size, size) for size in (16, 16, 8, 8)]
    before = trainer.student.head.last_layer.weight_v.detach().clone()
    trainer.step(crops, 1)
    assert torch.equal(trainer.student.head.last_layer.weight_v, before)
    trainer.step(crops, 2)
    assert not torch.equal(trainer.student.head.last_layer.weight_v, before)


def test_crops_depend_on_seed_epoch_and_row_alone():
    images = in_memory(synthetic_images(4, (40, 30)))
    one, other = (Crops(images, MultiCropAugmentation(SMALL), seed=1) for _ in range(2))
    first = [one[row] for row in range(4)]
    assert [crop.shape for crop in first[0]] == [(3, 16, 16)] * 2 + [(3, 8, 8)] * 2
    assert all(torch.equal(a, b) for a, b in zip(first[2], other[2], strict=True))
    other.epoch = 1
    assert not all(torch.equal(a, b) for a, b in zip(first[2], other[2], strict=True))
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one[0]
    assert torch.equal(torch.rand(1), expected)


def words(folder, out) -> list[str]:
    recipe = {"epochs": 6, "batch-size": 4, "warmup-epochs": 1, "out-dim": 32, "hidden-dim": 16, "global-crop": 16, "local-crop": 8,
              "local-crops": 2, "lr": 0.01, "save-every": 0, "knn-every": 3, "workers": 0}  # fmt: skip
    options = [word for name, value in recipe.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "dinoeval", "train", "--data", str(folder), "--arch", TINY, "--out", str(out), *options]


def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_undisturbed_one(tmp_path):
    folder = class_folders(tmp_path / "set")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(words(folder, tmp_path / "a"), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(words(folder, tmp_path / "b"), env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "b" / loop.CHECKPOINT).exists():
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / loop.BACKBONE).exists(), "it ended before it could be killed"
    done = subprocess.run(words(folder, tmp_path / "b"), env=environment, check=True, capture_output=True, text=True)
    assert "going on from" in done.stderr
    digests = [tensor_digest(open_checkpoint(tmp_path / run / loop.BACKBONE).state) for run in ("a", "b")]
    assert digests[0] == digests[1]
    log = [json.loads(line) for line in (tmp_path / "b" / loop.LOG).read_text().splitlines()]
    assert [row["epoch"] for row in log] == sorted({row["epoch"] for row in log})
    assert {"train_loss", "train_teacher_entropy", "train_kl", "train_lr", "knn_teacher"} <= set(log[-1])
    # The full checkpoint opens like a released one, and the backbone scores without naming its architecture.
    full = open_checkpoint(tmp_path / "b" / loop.CHECKPOINT)
    assert (full.key, tensor_digest(full.state)) == ("teacher", digests[0])
    student = torch.load(tmp_path / "b" / loop.CHECKPOINT, weights_only=True)["student"]
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in student)
    result = dinoeval.evaluate("knn", dinoeval.load(weights=tmp_path / "b" / loop.BACKBONE), data=str(folder), k=(20,))
    assert result.metrics["top1@20"] == pytest.approx(log[-1]["knn_teacher"])
    other = subprocess.run([*words(folder, tmp_path / "b"), "--seed", "1"], check=False, capture_output=True, text=True)
    assert (other.returncode, "is of another run (seed was 0 and is 1)" in other.stderr) == (2, True)


def test_mistakes_are_explained(tmp_path, image_folder):
    with pytest.raises(ConfigError, match="33 images make no batch of 64"):
        loop.train(open_images(image_folder), TINY, tmp_path, dataclasses.replace(SMALL, batch_size=64))
    with pytest.raises(ConfigError, match="warmup_epochs = 10 does not fit into 3 epochs"):
        Recipe(epochs=3)
    with pytest.raises(ConfigError, match="local_scale must be two shares"):
        Recipe(local_scale=(0.4, 0.05))
    trainer = loop.DinoTrainer(TINY, SMALL, 2, torch.device("cpu"))
    with pytest.raises(DinoevalError, match=r"the loss became (nan|inf)"):
        trainer.step([torch.full((4, 3, 16, 16), float("nan"))] * 2, 0)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_text("text")
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^a\.png cannot be read.*goes on\.$"):
            loop.train(open_images(tmp_path / "set"), TINY, tmp_path / "run", dataclasses.replace(SMALL, batch_size=1), workers=workers)
    for wrong in ({"clip_grad": -1}, {"student_temp": 0}, {"drop_path": 1}, {"blur_radius": (2, 1)}):
        with pytest.raises(ConfigError):
            dataclasses.replace(SMALL, **wrong)
    with pytest.raises(ConfigError, match="smaller than a patch"):
        loop.train(open_images(image_folder), "vit_xs16_32", tmp_path / "run", SMALL)
    (tmp_path / "other").mkdir()
    torch.save({"student": {}}, tmp_path / "other" / loop.CHECKPOINT)
    with pytest.raises(ConfigError, match="was not written by this program"):
        loop.train(open_images(image_folder), TINY, tmp_path / "other", SMALL)
    (tmp_path / "file").write_text("")
    with pytest.raises(DinoevalError, match="cannot be written"):
        loop.train(open_images(image_folder), TINY, tmp_path / "file", SMALL)


def test_recipes_that_have_a_name_are_valid_and_the_default_is_the_released_one():
    assert PRESETS["released"] == Recipe()
    assert (Recipe().out_dim, Recipe().teacher_temp, Recipe().local_crops, Recipe().clip_grad) == (65536, 0.04, 8, 3.0)
