"""Fine-tuning runs: what they learn, save and resume, and what they reject."""

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
from factories import class_folders, synthetic_images
from paper_results import missing_facts, reasons
from safetensors.torch import load_file

import dinoeval
from dinoeval.data.images import in_memory
from dinoeval.data.opening import open_splits
from dinoeval.errors import ConfigError, DataError, DinoevalError
from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.protocols import finetune
from dinoeval.session import SessionConfig
from dinoeval.training.checkpointing import CHECKPOINT, LOG
from dinoeval.training.finetune.run import BACKBONE, HEAD, Outcome

OPTIONS = {"preset": "short", "epochs": 8, "warmup_epochs": 1, "train_batch_size": 8, "lr": 0.05}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    """Threads slow such small matrices down, and sums of two threads have other bits than those of one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def backbone(tiny_weights):
    return dinoeval.load(weights=tiny_weights)


def run(backbone, folder, session=None, **config):
    return dinoeval.evaluate("finetune", backbone, session=session or SessionConfig(workers=0), data=str(folder), **{**OPTIONS, **config})


def command(weights: Path, folder: Path, out: Path, **config) -> list[str]:
    options = {**OPTIONS, "data": folder, "weights": weights, "out": out, "workers": 0, **config}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    return ["-m", "dinoeval", "finetune", *words]


def read_log(out: Path) -> list[dict]:
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.fixture
def digits(tmp_path) -> Path:
    """Handwritten digits: 25 training and 10 validation images of each."""
    train, val = open_splits("digits")
    root = tmp_path / "digits"
    for images, name, count in ((train, "train", 25), (val, "val", 10)):
        assert images.labels is not None
        for label in range(10):
            (root / name / str(label)).mkdir(parents=True)
            for row in np.flatnonzero(images.labels == label)[:count]:
                images.open(row).save(root / name / str(label) / f"{row}.png")
    return root


def test_scores_are_top1_and_top5_of_the_last_epoch():
    """Ten images of ten classes: six first predictions are correct, two more are among the first five."""
    val = dataclasses.replace(in_memory(synthetic_images(10)), labels=np.arange(10), classes=tuple("abcdefghij"))
    predictions = (np.arange(10)[:, None] + np.arange(5)) % 10
    predictions[6:8] = predictions[6:8, ::-1]
    predictions[8:] = (predictions[8:] + 1) % 10
    history = [{"epoch": 0, "top1": 70.0}, {"epoch": 1, "top1": 60.0}]
    scores = finetune._scores(Outcome(predictions, history), val)
    assert scores.metrics == {"top1": 60.0, "top5": 80.0}
    assert scores.standard_errors["top1"] == pytest.approx(100 * math.sqrt(0.6 * 0.4 / 10))
    assert scores.samples["top1"] == [1] * 6 + [0] * 4
    assert scores.samples["top5"] == [1] * 8 + [0] * 2
    assert scores.samples["prediction"] == predictions[:, 0].tolist()
    (note,) = finetune._notes("imagenet", Outcome(predictions, history))
    assert "2 epochs" in note
    assert "1 with top1 70.00" in note
    assert len(finetune._notes("cars", Outcome(predictions, history))) == 2


@pytest.mark.slow
def test_run_learns_and_saves_what_it_scored(tmp_path, digits):
    backbone = dinoeval.load()
    config = {"preset": "digits", "lr": 0.03, "train_batch_size": 10, "epochs": 5, "out": str(tmp_path / "run"), "save_every": 4}
    result = run(backbone, digits, **config)
    log = read_log(tmp_path / "run")
    assert result.metrics["top1"] == log[-1]["top1"] > 90 > 80 > log[0]["top1"]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    best = max(row["top1"] for row in log)
    assert f"last of 5 epochs; the best epoch was {[row['top1'] for row in log].index(best) + 1} with top1 {best:.2f}" in result.notes[0]
    assert (result.config["epochs"], result.config["mixup"], result.config["preset"], result.config["out"]) == (5, 0.0, "digits", None)
    assert result.metrics["top1"] < result.metrics["top5"] <= 100
    assert "config.preset: digits" in reasons(result)
    assert missing_facts(result) == set()
    # Backbone and head, as a user would combine them.
    trained = dinoeval.load(weights=tmp_path / "run" / BACKBONE)
    head = load_file(tmp_path / "run" / HEAD)
    features = torch.from_numpy(dinoeval.embed(trained, digits / "val", cache=False))
    assert (features @ head["weight"].T + head["bias"]).argmax(1).tolist() == result.samples["prediction"]
    correct = np.array(result.samples["prediction"]) == np.array(result.samples["label"])
    assert correct.astype(int).tolist() == result.samples["top1"]
    assert 100 * correct.mean() == result.metrics["top1"]
    assert result.standard_errors["top1"] == pytest.approx(100 * math.sqrt(correct.mean() * (1 - correct.mean()) / 100))
    assert tensor_digest(open_checkpoint(tmp_path / "run" / CHECKPOINT, ema=False).state) == trained.digest != backbone.digest
    assert (tmp_path / "run/checkpoint0004.pth").exists()
    # The same command again trains nothing and gives the same Result.
    again = run(backbone, digits, **config)
    assert (again.metrics, again.samples) == (result.metrics, result.samples)
    with pytest.raises(ConfigError, match=rf"{CHECKPOINT} .*seed was 0 and is 1; lr was 0\.03 and is 0\.2"):
        run(backbone, digits, **{**config, "lr": 0.2, "seed": 1})


def test_checkpoint_resumes_after_its_log_line_is_lost(backbone, image_folder, tmp_path):
    out = tmp_path / "run"
    result = run(backbone, image_folder, out=str(out), epochs=3)
    log = read_log(out)
    state = torch.load(out / CHECKPOINT, weights_only=True)
    assert set(state) == {"model", "model_ema", "optimizer", "scaler", "epoch", "history", "args"}
    assert (state["epoch"], len(state["history"])) == (3, 3)
    for name in (LOG, BACKBONE, HEAD):
        (out / name).unlink()
    assert run(backbone, image_folder, out=str(out), epochs=3).samples == result.samples
    assert read_log(out) == log
    assert (out / HEAD).exists()


@pytest.mark.slow
def test_killed_run_ends_like_an_uninterrupted_one(backbone, tiny_weights, image_folder, tmp_path):
    session = SessionConfig(workers=1)  # a worker that lives through all epochs, and starts again on resumption
    uninterrupted = run(backbone, image_folder, session, out=str(tmp_path / "a"))
    words = command(tiny_weights, image_folder, tmp_path / "b", workers=1)
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (tmp_path / "b" / LOG).exists():
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "b" / BACKBONE).exists(), "it ended before it could be killed"
    resumed = run(backbone, image_folder, session, out=str(tmp_path / "b"))
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")
    assert (resumed.metrics, resumed.samples) == (uninterrupted.metrics, uninterrupted.samples)
    states = [torch.load(tmp_path / folder / CHECKPOINT, weights_only=True) for folder in "ab"]
    for part in ("model", "model_ema"):
        assert tensor_digest(states[0][part]) == tensor_digest(states[1][part])


def test_results_are_independent_of_workers(backbone, image_folder):
    one, other = (run(backbone, image_folder, SessionConfig(workers=workers), epochs=3) for workers in (0, 1))
    assert (one.samples, one.metrics) == (other.samples, other.metrics)


@pytest.mark.slow
def test_two_processes_equal_one(backbone, tiny_weights, image_folder, tmp_path):
    config = {"epochs": 3, "drop_path": 0.0}
    one = run(backbone, image_folder, out=str(tmp_path / "one"), **config)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = command(tiny_weights, image_folder, tmp_path / "two", json=tmp_path / "two.json", **config)
    done = subprocess.run([*launcher, *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two = dinoeval.results.Result.load(tmp_path / "two.json")
    assert two.samples == one.samples
    assert (one.details["processes"], two.details["processes"]) == (1, 2)
    for a, b in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    states = [torch.load(tmp_path / folder / CHECKPOINT, weights_only=True)["model"] for folder in ("one", "two")]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"train_batch_size": 64}, "24 training images .* 64: .*--train-batch-size"),
        ({"train_batch_size": 7}, r"--train-batch-size .* 2\b.* 7"),
        ({"epochs": 4, "warmup_epochs": 3}, "--epochs 4 .*--warmup-epochs 3"),
        ({"preset": "auto"}, "--preset"),
        ({"drop_path": 1.0}, "--drop-path"),
        ({"lr": -1.0}, "--lr"),
        ({"lr": math.nan}, "--lr"),
        ({"epochs": 0}, "--epochs"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_run_rejects_invalid_options(backbone, image_folder, config, named):
    with pytest.raises(ConfigError, match=named):
        run(backbone, image_folder, **config)


def test_crop_must_hold_a_patch(backbone, image_folder):
    with pytest.raises(ConfigError, match=r"\b3 pixels.*\b4 pixels.*--transform"):
        run(backbone, image_folder, SessionConfig(workers=0, transform="dino:3/3"))
    result = run(backbone, image_folder, SessionConfig(workers=0, transform="dino:4/4"), epochs=1, warmup_epochs=0)
    assert result.transform == "dino@1:4/4"


def test_run_raises_when_training_diverges(backbone, image_folder):
    with pytest.raises(DinoevalError, match=r"diverged.*--lr"):
        run(backbone, image_folder, lr=1e20, epochs=4)


def test_run_rejects_a_single_class(backbone, tmp_path):
    with pytest.raises(DataError, match=r"one class \(class0\)"):
        run(backbone, class_folders(tmp_path / "one", classes=1))


def test_run_does_not_skip_bad_images(backbone, image_folder):
    with pytest.raises(ConfigError, match="--bad-images skip"):
        run(backbone, image_folder, SessionConfig(bad_images="skip"))


@pytest.mark.parametrize("workers", [0, 1])
def test_run_names_all_unreadable_images_of_a_batch(backbone, tmp_path, workers):
    bad = class_folders(tmp_path / "bad")
    for name in ("train/class0/1.png", "train/class2/5.png"):
        (bad / name).write_text("text")
    with pytest.raises(DataError, match=r"class0/1\.png \(.+\), class2/5\.png \(.+\)"):
        run(backbone, bad, SessionConfig(workers=workers), train_batch_size=24, preset="digits")


def test_run_rejects_folders_it_cannot_use(backbone, image_folder, tmp_path):
    (tmp_path / "other").mkdir()
    torch.save({"student": {}}, tmp_path / "other" / CHECKPOINT)
    with pytest.raises(ConfigError, match=f"{tmp_path / 'other' / CHECKPOINT} was not written by this command"):
        run(backbone, image_folder, out=str(tmp_path / "other"))
    (tmp_path / "file").write_text("")
    with pytest.raises(DinoevalError, match=f"{tmp_path / 'file'} cannot be written"):
        run(backbone, image_folder, out=str(tmp_path / "file"))
