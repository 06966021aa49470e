"""Area of several processes: the protocols under torchrun, in two processes on this machine.

`processes` starts this file as a module in each of the processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import dinoeval
from dinoeval.results import Result
from regression_areas.datasets import davis_set, masked_folder, revisited_set, video
from regression_areas.inputs import PATCH16, TINY, class_folders, image_folder, network
from regression_areas.recording import Recorder

BUNDLED = "bundled"
BENCHMARKS = Path(__file__).resolve().parent.parent


def _runs(folder: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the architecture and the options of each protocol."""
    data = {"data": str(folder / "classes")}
    return {
        "knn": (TINY, {**data, "k": (5, 20)}),
        "logistic": (TINY, {**data, "solver": "sklearn"}),
        "linear": (TINY, {**data, "epochs": 2, "train_batch_size": 16, "lrs": (0.1, 1.0), "held_out": 0.2}),
        "finetune": (BUNDLED, {"data": "digits", "epochs": 1, "warmup_epochs": 0, "drop_path": 0.0, "out": str(folder / "tuned")}),
        "retrieval": (PATCH16, {"data": str(folder / "sets"), "distractors": str(folder / "distractors")}),
        "davis": (PATCH16, {"data": str(folder / "davis"), "image_size": 64, "out": str(folder / "masks")}),
        "segment": (PATCH16, {"data": str(folder / "masked"), "image_size": 64}),
    }


def processes(record: Recorder, folder: Path) -> None:
    """Results of two processes that share the work."""
    class_folders(folder / "classes", classes=5)
    revisited_set(folder / "sets", "roxford5k")
    image_folder(folder / "distractors", 9, (60, 50), seed=91)
    davis_set(folder / "davis", {name: video(4, (96, 64), 2, seed=seed) for seed, name in enumerate(("first", "second", "third"))})
    masked_folder(folder / "masked", 5)
    for arch in (PATCH16, TINY):
        network(folder, arch)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", __name__, str(folder)]
    paths = [str(BENCHMARKS.parent), str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    for name in _runs(folder):
        record.add_result(name, Result.load(folder / f"{name}.json"))
    record.add_state("finetune/head", load_file(folder / "tuned/head.safetensors"))


def work(folder: Path) -> None:
    """Run every protocol as one of the processes; the first process writes the Results."""
    torch.set_num_threads(1)
    for name, (arch, options) in _runs(folder).items():
        backbone = dinoeval.load(device="cpu") if arch == BUNDLED else network(folder, arch)
        result = dinoeval.evaluate(name, backbone, **options)
        if os.environ["RANK"] == "0":
            result.save(folder / f"{name}.json")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
