from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# One thread per process, also in the processes that tests start: more slow such small matrices down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from factories import TINY, class_folders, synthetic_state

from dinoeval.cli import main
from dinoeval.models.checkpoints import save_backbone


@pytest.fixture
def call(capsys) -> Callable[..., tuple[int, str, str]]:
    """A function that runs one command in this process and returns its exit code, stdout and stderr."""

    def run(*words: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def golden() -> dict:
    """Outputs of the released code, written by `benchmarks/parity.py CHECKOUT --golden`."""
    return json.loads((Path(__file__).parent / "golden/released.json").read_text())


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory) -> Path:
    """Random weights of the smallest network, in a safetensors file."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_backbone(path, synthetic_state(TINY), arch=TINY)
    return path


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """A folder of three classes, each with 8 training and 3 validation images."""
    return class_folders(tmp_path_factory.mktemp("images"))
