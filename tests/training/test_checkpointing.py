"""Stopping and resuming a training run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from dinoeval.errors import ConfigError, DinoevalError
from dinoeval.training.checkpointing import CHECKPOINT, LOG, RunFolder

SETTINGS = {"seed": 0, "recipe": {"lr": 0.1, "epochs": 3}}


def test_resume_returns_what_save_wrote(tmp_path):
    run = RunFolder(tmp_path / "new/run", SETTINGS)
    assert run.resume(epochs=3) is None
    assert list(run.path.iterdir()) == []
    run.save({"epoch": 2, "weight": torch.arange(3)})
    state = RunFolder(tmp_path / "new/run", SETTINGS).resume(epochs=3)
    assert (state["epoch"], state["weight"].tolist(), state["args"]) == (2, [0, 1, 2], SETTINGS)


def test_resume_logs_path_and_progress(tmp_path, caplog):
    run = RunFolder(tmp_path, SETTINGS)
    run.save({"epoch": 2, "step": 7})
    with caplog.at_level("INFO", logger="dinoeval"):
        run.resume(epochs=3)
    for part in (str(tmp_path / CHECKPOINT), "2 of 3 epochs", "7 steps"):
        assert part in caplog.text


def test_resume_names_every_difference(tmp_path):
    RunFolder(tmp_path, {**SETTINGS, "arch": "vit_s16"}).save({"epoch": 1})
    other = {"seed": 1, "recipe": {"lr": 0.2, "epochs": 3}, "arch": "vit_s8"}
    with pytest.raises(ConfigError) as error:
        RunFolder(tmp_path, other).resume(epochs=3)
    for part in (str(tmp_path / CHECKPOINT), "seed was 0 and is 1", "lr was 0.1 and is 0.2", "arch was vit_s16 and is vit_s8", "--out"):
        assert part in str(error.value)
    assert "epochs" not in str(error.value)


@pytest.mark.parametrize("content", [{"student": {}}, {"args": {"seed": 0}}, {"args": "vit_s16"}, {"args": SETTINGS, "epoch": "2"}, [1]])
def test_resume_rejects_checkpoints_of_other_programs(tmp_path, content):
    torch.save(content, tmp_path / CHECKPOINT)
    with pytest.raises(ConfigError, match=rf"{CHECKPOINT} was not written by this command.*--out"):
        RunFolder(tmp_path, SETTINGS).resume(epochs=3)


def test_resume_rejects_corrupted_checkpoints(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    run.save({"epoch": 1})
    run.checkpoint.write_bytes(run.checkpoint.read_bytes()[:100])
    with pytest.raises(ConfigError, match=rf"{CHECKPOINT}.*--out"):
        run.resume(epochs=3)


def test_resume_raises_when_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DinoevalError, match=f"{tmp_path / 'file'} cannot be written"):
        RunFolder(tmp_path / "file", SETTINGS).resume(epochs=3)


def test_save_keeps_every_nth_checkpoint(tmp_path):
    run = RunFolder(tmp_path, SETTINGS, keep_every=2)
    for number in range(5):
        run.save({"epoch": number}, number)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["checkpoint.pth", *(f"checkpoint{n:04}.pth" for n in (0, 2, 4))]
    assert torch.load(tmp_path / "checkpoint0002.pth", weights_only=True)["epoch"] == 2


def test_save_uses_given_file_and_settings_key(tmp_path):
    run = RunFolder(tmp_path, SETTINGS, checkpoint="state.pth", settings_key="recipe")
    run.save({"epoch": 1})
    assert torch.load(tmp_path / "state.pth", weights_only=True) == {"recipe": SETTINGS, "epoch": 1}
    assert run.resume(epochs=3)["epoch"] == 1


def test_log_has_one_json_line_per_epoch(tmp_path):
    run = RunFolder(tmp_path, SETTINGS)
    rows = [{"epoch": 0, "loss": 2.5}, {"epoch": 1, "loss": 1.5}]
    run.write_log(rows)
    assert [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()] == rows
    assert run.read_log(epochs=2) == rows


def test_read_log_drops_later_epochs_and_broken_lines(tmp_path, caplog):
    run = RunFolder(tmp_path, SETTINGS)
    assert run.read_log(epochs=2) == []
    (tmp_path / LOG).write_bytes(b'{"epoch": 0}\n{"epoch": 1}\n{"epoch": 2}\n3\n\xff\n{"epoch": "1"}\n{"epo')
    assert run.read_log(epochs=2) == [{"epoch": 0}, {"epoch": 1}]
    assert f"{tmp_path / LOG}: left out lines that are no row of a log: 4, 5, 6, 7" in caplog.text


@pytest.mark.slow
def test_resume_raises_when_processes_see_different_files(tmp_path):
    run = RunFolder(tmp_path / "0", SETTINGS)
    run.resume(epochs=3)
    run.save({"epoch": 1})
    code = (
        "import sys, os\n"
        "from dinoeval.errors import ConfigError\n"
        "from dinoeval.training.checkpointing import RunFolder\n"
        "try: RunFolder(os.path.join(sys.argv[1], os.environ['RANK']), {'seed': 0, 'recipe': {}}).resume(3)\n"
        "except ConfigError as error: print(error, flush=True)\n"
    )
    (tmp_path / "script.py").write_text(code)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.stdout.count("processes do not see the same") == 2
