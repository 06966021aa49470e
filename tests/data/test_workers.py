"""Batches of images from worker processes, also if these fail."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from dinoeval.data.dataset import ImageDataset
from dinoeval.data.opening import open_images
from dinoeval.data.transforms import CenterCrop
from dinoeval.data.workers import BatchLoader
from dinoeval.distributed import num_workers
from dinoeval.errors import DataError
from dinoeval.guard import Guard
from dinoeval.testing import tiny_images

CPU = torch.device("cpu")


class _Killed(torch.utils.data.Dataset):
    """Samples of which one ends the process that reads it, as the system does if memory runs out."""

    def __init__(self, number: int):
        self.number = number

    def __len__(self):
        return 8

    def __getitem__(self, item):
        if item == 3:
            os.kill(os.getpid(), self.number)
        return torch.zeros(3)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_an_error(number):
    loader = BatchLoader(_Killed(number), torch.stack, workers=2, device=CPU, batch_size=1)
    with pytest.raises(DataError, match="--workers 0"), Guard():
        list(loader)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_batches_do_not_depend_on_how_workers_start(method, tmp_path):
    for number, image in enumerate(tiny_images(6)):
        image.save(tmp_path / f"{number}.png")
    images = ImageDataset(open_images(tmp_path), _Crop())
    context = multiprocessing.get_context(method)
    loaders = [BatchLoader(images, torch.stack, workers=0, device=CPU, batch_size=2)]
    loaders += [BatchLoader(images, torch.stack, workers=2, device=CPU, batch_size=2, multiprocessing_context=context)]
    alone, shared = (torch.cat(list(loader)) for loader in loaders)
    assert torch.equal(alone, shared)


class _Crop:
    def __call__(self, image, item):
        return CenterCrop(16, 16)(image)


def test_a_daemonic_process_gets_no_workers(monkeypatch):
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    assert (num_workers(None, 100, small=False), num_workers(4, 100, small=False)) == (0, 0)


def test_loaders_leave_the_random_state_alone():
    before = torch.get_rng_state()
    list(BatchLoader([1, 2, 3], torch.tensor, workers=0, device=CPU))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "256k"])
def test_a_small_shared_memory_gives_the_same_features(size, tmp_path):
    """4 KB do not suffice for the locks of worker processes; 256 KB do, but not for their batches."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace can be made here")
    for number, image in enumerate(tiny_images(64, (64, 64))):
        image.save(tmp_path / f"{number:02d}.bmp")
    command = [sys.executable, "-m", "dinoeval", "embed", str(tmp_path), "--arch", "vit_xs16_64", "--weights", "random", "--device", "cpu"]
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    found = []
    for workers, inside in ((0, []), (2, ["unshare", "-m", "sh", "-c", mount, "sh"])):
        out, cache = tmp_path / f"{workers}.npz", tmp_path / f"cache{workers}"
        options = ["--workers", str(workers), "--cache", str(cache), "--out", str(out)]
        done = subprocess.run([*inside, *command, *options], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        found.append(np.load(out)["features"])
    assert "/dev/shm" in done.stderr or "main process" in done.stderr
    np.testing.assert_array_equal(*found)
