"""Pretraining on several processes under torchrun equals one process with the whole batch, but for rounding."""

from __future__ import annotations

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

from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.training.checkpointing import CHECKPOINT, LOG
from dinoeval.training.pretrain.loop import BACKBONE

pytestmark = pytest.mark.slow
PROGRAM = """
import json, sys
import torch
from dinoeval import distributed
from dinoeval.training.pretrain.recipe import Recipe
from dinoeval.training.pretrain.trainer import Trainer

torch.set_num_threads(1)
arch, out, variants = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
rank, world, batch = distributed.rank(), distributed.world_size(), 8
common = dict(epochs=2, batch_size=batch, warmup_epochs=0, lr=0.05, out_dim=24, hidden_dim=16, bottleneck_dim=8, global_crop=16)
common |= dict(local_crop=8, local_crops=1, drop_path=0.3, queue_size=40, freeze_last_layer=0, clip_grad=0.5, optimizer="sgd")
own = slice(rank * batch // world, (rank + 1) * batch // world)
found = {}
for name, changes in variants.items():
    torch.manual_seed(3)
    trainer = Trainer(arch, Recipe(**common | changes), steps=2, device=torch.device("cpu"))
    losses = []
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        crops = [torch.randn(batch, 3, size, size, generator=draw)[own] for size in (16, 16, 8)]
        torch.manual_seed(100 + step)
        losses.append(trainer.step(crops, step))
        if step == 0:
            state = trainer.state(0)
            first = {part: {n: t.clone() for n, t in state[part].items()} for part in ("student", "teacher", "dino_loss")}
    found[name] = {"losses": losses, **first}
if rank == 0:
    torch.save(found, out)
"""
EMBEDDING = {"out_dim": 0, "target": "none", "head_batch_norm": True, "head_activation": "relu"}
VARIANTS = {
    "center": {},
    "softmax_batch": {"target": "softmax_batch"},
    "sinkhorn": {"target": "sinkhorn", "teacher": "copy"},
    "hard": {"target": "hard"},
    "batch norm": {"head_batch_norm": True},
    "infonce": {"objective": "infonce", **EMBEDDING},
    "byol": {"objective": "mse", "predictor_dim": 12, **EMBEDDING},
    "lars": {"optimizer": "lars"},
}


def launch(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def steps(tmp_path_factory) -> dict[int, dict]:
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "program.py").write_text(PROGRAM)
    for processes in (1, 2, 4):
        launch(processes, folder / "program.py", TINY, folder / f"{processes}.pt", json.dumps(VARIANTS))
    return {processes: torch.load(folder / f"{processes}.pt", weights_only=True) for processes in (1, 2, 4)}


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", VARIANTS)
def test_step_does_not_depend_on_the_number_of_processes(steps, processes, name):
    one, several = steps[1][name], steps[processes][name]
    assert several["losses"][0]["loss"] == pytest.approx(one["losses"][0]["loss"], rel=1e-6)
    for part in ("student", "teacher", "dino_loss"):
        for key, expected in one[part].items():
            torch.testing.assert_close(several[part][key], expected, rtol=1e-5, atol=1e-6, msg=f"{part} {key}")
    assert [row["loss"] for row in several["losses"]] == pytest.approx([row["loss"] for row in one["losses"]], rel=1e-4)


def command(data: Path, out: Path, *more: object) -> list[str]:
    options = {
        **{"data": data, "arch": TINY, "out": out, "epochs": 6, "batch-size": 4, "warmup-epochs": 1, "lr": 0.01, "workers": 1},
        **{"out-dim": 32, "hidden-dim": 16, "bottleneck-dim": 16, "global-crop": 16, "local-crop": 8, "local-crops": 2},
        **{"knn-every": 3, "save-every": 0},
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["-m", "dinoeval", "train", *words, *map(str, more)]


def read_log(out: Path) -> list[dict]:
    return [{name: value for name, value in json.loads(line).items() if name != "images_per_second"} for line in (out / LOG).open()]


def test_command_under_torchrun_writes_the_numbers_of_one_process(tmp_path):
    data = class_folders(tmp_path / "set")
    launch(1, *command(data, tmp_path / "one"))
    done = launch(2, *command(data, tmp_path / "two"))
    assert done.stdout.count("to evaluate it") == 1
    for one, two in zip(read_log(tmp_path / "one"), read_log(tmp_path / "two"), strict=True):
        assert {name: value for name, value in two.items() if name != "knn_teacher"} == pytest.approx(
            {name: value for name, value in one.items() if name != "knn_teacher"}, rel=1e-3
        )
        assert ("knn_teacher" in two) == ("knn_teacher" in one)


def test_batch_that_processes_cannot_share_is_rejected(tmp_path):
    data = class_folders(tmp_path / "set")
    with pytest.raises(subprocess.CalledProcessError) as raised:
        launch(2, *command(data, tmp_path / "run", "--batch-size", 5))
    assert "--batch-size 5 is not a multiple of the 2 processes" in " ".join(raised.value.stderr.split())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("everyone", [False, True], ids=["process", "process group"])
def test_sigterm_saves_within_an_epoch_and_resumes_with_equal_bits(tmp_path, everyone):
    """SLURM sends SIGTERM to all processes of a job before it kills them."""
    data, environment = class_folders(tmp_path / "set"), {**os.environ, "OMP_NUM_THREADS": "1"}
    launch(1, *command(data, tmp_path / "a", "--epochs", 12))
    words = [sys.executable, *command(data, tmp_path / "b", "--epochs", 12)]
    stops = []
    for _ in range(2):
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        before = len(read_log(tmp_path / "b")) if (tmp_path / "b" / LOG).exists() else 0
        while process.poll() is None and not ((tmp_path / "b" / LOG).exists() and len(read_log(tmp_path / "b")) > before):
            time.sleep(0.005)
        time.sleep(0.03)
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        stops.append("stops as requested" in errors)
    assert any(stops), "it ended before it could be stopped"
    state = torch.load(tmp_path / "b" / CHECKPOINT, weights_only=True)
    assert 0 < state["step"] < 8
    launch(1, *command(data, tmp_path / "b", "--epochs", 12))
    digests = [tensor_digest(open_checkpoint(tmp_path / run / BACKBONE).state) for run in ("a", "b")]
    assert digests[0] == digests[1]
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")
