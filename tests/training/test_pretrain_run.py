"""Pretraining runs: folders, resumption and mistakes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from factories import TINY, class_folders

import dinoeval
from dinoeval.data.opening import open_images
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.training.checkpointing import CHECKPOINT, LOG
from dinoeval.training.pretrain.loop import BACKBONE, Stopped, train
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.settings import PretrainSettings

RECIPE = Recipe(
    epochs=3,
    batch_size=4,
    warmup_epochs=1,
    out_dim=32,
    hidden_dim=16,
    global_crop=16,
    local_crop=8,
    local_crops=2,
    lr=0.01,
)


def command(data: Path, out: Path, *more: str) -> list[str]:
    options = {
        "data": data,
        "arch": TINY,
        "out": out,
        "epochs": 6,
        "batch-size": 4,
        "warmup-epochs": 1,
        "out-dim": 32,
        "hidden-dim": 16,
        "global-crop": 16,
        "local-crop": 8,
        "local-crops": 2,
        "lr": 0.01,
        "save-every": 0,
        "knn-every": 3,
        "workers": 0,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "dinoeval", "train", *words, *more]


def read_log(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.slow
def test_killed_run_ends_like_an_uninterrupted_one(tmp_path):
    data = class_folders(tmp_path / "set")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(data, tmp_path / "a"), env=environment, check=True, capture_output=True)
    process = subprocess.Popen(command(data, tmp_path / "b"), env=environment, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / "b" / CHECKPOINT).exists():
        time.sleep(0.002)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / BACKBONE).exists(), "it ended before it could be killed"
    done = subprocess.run(command(data, tmp_path / "b"), env=environment, check=True, capture_output=True, text=True)
    assert f"resuming from {tmp_path / 'b' / CHECKPOINT}" in done.stderr
    digests = [tensor_digest(open_checkpoint(tmp_path / run / BACKBONE).state) for run in ("a", "b")]
    assert digests[0] == digests[1]
    log = read_log(tmp_path / "b")
    assert [row["epoch"] for row in log] == sorted({row["epoch"] for row in log})
    assert {"train_loss", "train_teacher_entropy", "train_kl", "train_lr", "knn_teacher"} <= set(log[-1])
    # The full checkpoint opens like a released one, and the backbone can be scored without naming its architecture.
    full = open_checkpoint(tmp_path / "b" / CHECKPOINT)
    assert (full.key, tensor_digest(full.state)) == ("teacher", digests[0])
    result = dinoeval.evaluate("knn", dinoeval.load(weights=tmp_path / "b" / BACKBONE), data=str(data), k=(20,))
    assert result.metrics["top1@20"] == pytest.approx(log[-1]["knn_teacher"])
    other = subprocess.run(command(data, tmp_path / "b", "--seed", "1"), check=False, capture_output=True, text=True)
    assert (other.returncode, "seed was 0 and is 1" in " ".join(other.stderr.split())) == (2, True)


def test_defaults_of_a_run():
    values = dataclasses.asdict(PretrainSettings(out="run"))
    assert {name: values[name] for name in ("precision", "seed", "save_every", "knn_every", "exif_transpose")} == {
        "precision": "fp32",
        "seed": 0,
        "save_every": 20,
        "knn_every": 10,
        "exif_transpose": False,
    }


def test_interrupted_run_resumes_with_equal_numbers(tmp_path, image_folder):
    images, calls = open_images(image_folder), []

    def interrupt_second(_) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 50.0

    whole = train(images, TINY, RECIPE, PretrainSettings(out=tmp_path / "a", workers=0))
    settings = PretrainSettings(out=tmp_path / "b", workers=0, knn_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(images, TINY, RECIPE, settings, interrupt_second)
    assert [row["epoch"] for row in read_log(tmp_path / "b")] == [0]
    resumed = train(images, TINY, RECIPE, dataclasses.replace(settings, workers=1))
    assert tensor_digest(open_checkpoint(resumed).state) == tensor_digest(open_checkpoint(whole).state)
    rows = [{name: value for name, value in row.items() if name != "knn_teacher"} for row in read_log(tmp_path / "b")]
    assert rows == read_log(tmp_path / "a")


@pytest.mark.parametrize("stop_after", [1, 3])
def test_stopped_run_resumes_within_the_epoch(tmp_path, image_folder, stop_after):
    images, steps = open_images(image_folder), []

    def stop() -> bool:
        steps.append(1)
        return len(steps) == stop_after

    recipe = dataclasses.replace(RECIPE, drop_path=0.5)
    whole = train(images, TINY, recipe, PretrainSettings(out=tmp_path / "a", workers=0))
    settings = PretrainSettings(out=tmp_path / "b", workers=0)
    with pytest.raises(Stopped, match=f"after {stop_after} of 8 steps of epoch 0"):
        train(images, TINY, recipe, settings, stop=stop)
    state = torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)
    assert (state["epoch"], state["step"]) == (0, stop_after)
    resumed = train(images, TINY, recipe, settings)
    assert tensor_digest(open_checkpoint(resumed).state) == tensor_digest(open_checkpoint(whole).state)
    assert read_log(tmp_path / "b") == read_log(tmp_path / "a")


def test_state_is_saved_every_few_minutes(tmp_path, image_folder):
    found = []

    def look() -> bool:
        path = tmp_path / "run" / CHECKPOINT
        found.append(torch.load(path, weights_only=True).get("step") if path.exists() else None)
        return False

    recipe = dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0)
    train(open_images(image_folder), TINY, recipe, PretrainSettings(out=tmp_path / "run", workers=0, save_minutes=1e-9), stop=look)
    assert found == [None, 1, 2, 3, 4, 5, 6]


def test_checkpoint_has_the_released_layout(tmp_path, image_folder):
    train(open_images(image_folder), TINY, RECIPE, PretrainSettings(out=tmp_path, workers=0, save_every=2, seed=7))
    names = [".lock", "checkpoint.pth", "checkpoint0000.pth", "checkpoint0002.pth", "log.txt", "teacher.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert set(state) == {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"}
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in state["student"])
    assert all(name.startswith(("backbone.", "head.")) for name in state["teacher"])
    assert (state["epoch"], state["args"]["arch"], state["args"]["seed"], state["args"]["patch_size"]) == (3, TINY, 7, 4)
    assert state["args"]["recipe"]["local_scale"] == [0.05, 0.4]
    assert state["dino_loss"]["center"].shape == (1, 32)


def test_log_states_the_speed(tmp_path, image_folder):
    started = time.monotonic()
    train(
        open_images(image_folder), TINY, dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0), PretrainSettings(out=tmp_path, workers=0)
    )
    seconds = time.monotonic() - started
    (row,) = [json.loads(line) for line in (tmp_path / LOG).open()]
    assert row["images_per_second"] * seconds >= 32  # 8 steps of 4 images took a part of the time


def test_knn_eval_follows_every_nth_and_the_last_epoch(tmp_path, image_folder):
    train(open_images(image_folder), TINY, RECIPE, PretrainSettings(out=tmp_path, workers=0, knn_every=2), lambda network: 40.0)
    assert [row.get("knn_teacher") for row in read_log(tmp_path)] == [None, 40.0, 40.0]


def test_collapse_is_reported_once_with_a_remedy(tmp_path, image_folder, caplog):
    recipe = dataclasses.replace(RECIPE, teacher_temp=50.0, warmup_teacher_temp=50.0, student_temp=50.0)
    train(open_images(image_folder), TINY, recipe, PretrainSettings(out=tmp_path, workers=0))
    assert caplog.text.count("collapsed") == 1
    assert "collapsed in epoch 1" in caplog.text
    assert "reduce --teacher-temp" in caplog.text


def test_few_prototypes_are_named(tmp_path, image_folder, caplog):
    recipe = dataclasses.replace(RECIPE, epochs=1, warmup_epochs=0)
    train(open_images(image_folder), TINY, recipe, PretrainSettings(out=tmp_path / "a", workers=0))
    assert "32 prototypes are fewer than the 256 dimensions" in caplog.text
    caplog.clear()
    train(open_images(image_folder), TINY, dataclasses.replace(recipe, bottleneck_dim=32), PretrainSettings(out=tmp_path / "b", workers=0))
    assert "prototypes" not in caplog.text


@pytest.mark.parametrize(
    ("arch", "changes", "named"),
    [
        (TINY, {"batch_size": 64}, "33 training images .* 64: .*--batch-size"),
        ("vit_xs16_32", {}, "--local-crop 8 .* vit_xs16_32: .* 16"),
        ("vit_xs16_32", {"local_crops": 0, "global_crop": 8}, "--global-crop 8 .* vit_xs16_32"),
    ],
)
def test_train_rejects_recipes_that_do_not_fit(tmp_path, image_folder, arch, changes, named):
    with pytest.raises(ConfigError, match=named):
        train(open_images(image_folder), arch, dataclasses.replace(RECIPE, **changes), PretrainSettings(out=tmp_path))


@pytest.mark.parametrize("workers", [0, 1])
def test_train_names_unreadable_images(tmp_path, workers):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.png").write_text("text")
    recipe = dataclasses.replace(RECIPE, batch_size=1)
    with pytest.raises(DataError, match=r"a\.png .*rerun the command"):
        train(open_images(tmp_path / "set"), TINY, recipe, PretrainSettings(out=tmp_path / "run", workers=workers))


def test_train_rejects_folders_it_cannot_use(tmp_path, image_folder):
    images = open_images(image_folder)
    (tmp_path / "other").mkdir()
    torch.save({"student": {}}, tmp_path / "other" / CHECKPOINT)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'other' / CHECKPOINT} was not written by this command"):
        train(images, TINY, RECIPE, PretrainSettings(out=tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DinoevalError, match=f"{tmp_path / 'file'} cannot be written"):
        train(images, TINY, RECIPE, PretrainSettings(out=tmp_path / "file"))


@pytest.mark.parametrize(("field", "option"), [("seed", "--seed"), ("workers", "--workers"), ("save_every", "--save-every")])
def test_settings_reject_negative_values(tmp_path, field, option):
    with pytest.raises(ConfigError, match=f"{option} .* -1"):
        PretrainSettings(out=tmp_path, **{field: -1})
