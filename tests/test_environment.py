"""Machines without a home directory, without a network, and with files of other programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

import dinoeval
from dinoeval.environment import cache_folder, offline, weights_folder
from dinoeval.testing import tiny_images


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
@pytest.mark.parametrize("name", ["DINOEVAL_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_is_switched_on_by_either_variable(name, value, monkeypatch):
    monkeypatch.setenv("DINOEVAL_OFFLINE", "0")
    monkeypatch.setenv(name, value)
    assert offline() == name
    with pytest.raises(dinoeval.DinoevalError, match=name):
        dinoeval.load("vit_s16")
    with pytest.raises(dinoeval.DinoevalError, match=name):
        dinoeval.load("timm/vit_tiny_patch16_224")


@pytest.mark.parametrize("value", ["", "0", "false", "No", "off"])
def test_offline_is_switched_off_by_any_spelling(value, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    monkeypatch.setenv("DINOEVAL_OFFLINE", value)
    assert offline() is None


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """Weights of a timm model in the cache of huggingface_hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = timm.get_pretrained_cfg("test_vit").hf_hub_id.replace("/", "--")
    snapshot = tmp_path / "hub" / f"models--{repository}" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    snapshot.mkdir(parents=True)
    state = {name: tensor.contiguous() for name, tensor in timm.create_model("test_vit").state_dict().items()}
    save_file(state, snapshot / "model.safetensors", metadata={"format": "pt"})
    return snapshot / "model.safetensors"


def test_stored_weights_are_used_offline(stored):
    images = tiny_images(2, (40, 40))
    state = {name: tensor for name, tensor in load_file(stored).items() if not name.startswith("head.")}
    network = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    network.load_state_dict(state)
    loaded = dinoeval.load("timm/test_vit", device="cpu")
    batch = torch.rand(2, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch).cls, network.eval()(batch), rtol=0, atol=0)
    assert dinoeval.embed(loaded, images).shape == (2, 64)


def test_corrupted_stored_weights_are_named(stored):
    stored.write_bytes(stored.read_bytes()[:1000])
    with pytest.raises(dinoeval.DinoevalError, match=f"rm {re.escape(str(stored))}"):
        dinoeval.load("timm/test_vit", device="cpu")


def test_relative_cache_variable_is_ignored(tmp_path, monkeypatch):
    monkeypatch.delenv("DINOEVAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder().is_absolute()


@pytest.mark.slow
@pytest.mark.parametrize("home", ["missing", "read-only"])
def test_commands_work_without_a_usable_home(home, tmp_path):
    """A user without a passwd entry, as in containers; the process may read everything, and write almost nothing."""
    become = ["setpriv", "--reuid", "54321", "--regid", "54321", "--clear-groups"]
    become += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    if not shutil.which("setpriv") or subprocess.run([*become, "true"], capture_output=True, check=False).returncode:
        pytest.skip("the user of a process cannot be changed here")
    unset = {"HOME", "XDG_CACHE_HOME", "DINOEVAL_CACHE", "DINOEVAL_WEIGHTS"}
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    (tmp_path / "temporary").mkdir()
    (tmp_path / "temporary").chmod(0o777)
    environment |= {"TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(Path(dinoeval.__file__).parents[1])}
    if home == "read-only":
        environment["HOME"] = str(tmp_path)
    out = tmp_path / "temporary" / "features.npy"
    tiny_images(1)[0].save(tmp_path / "image.png")
    command = [sys.executable, "-m", "dinoeval", "embed", str(tmp_path / "image.png"), "--device", "cpu", "--out", str(out)]
    done = subprocess.run([*become, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, "DINOEVAL_CACHE" in done.stderr) == (0, True), done.stderr
    assert np.load(out).shape == (1, 96)
    assert [path.name for path in (tmp_path / "temporary").glob("dinoeval-*")] == ["dinoeval-54321"]


def test_weights_of_a_read_only_home_are_read(tmp_path, monkeypatch):
    monkeypatch.delenv("DINOEVAL_WEIGHTS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "dinoeval" / "weights").mkdir(parents=True)
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert weights_folder() == tmp_path / "dinoeval" / "weights"
