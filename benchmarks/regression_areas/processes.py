"""Area of several processes: the protocols under torchrun, two processes on this machine.

Run as a module by `processes`, this file is what each of the processes does.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from regression_areas.inputs import class_folders, flat_folder, network
from regression_areas.recording import Book
from regression_areas.scenes import davis_set, masked_folder, revisited_set, video

PATCH16, TINY, BUNDLED = "vit_xs16", "vit_xs4_16", "bundled"
HERE = Path(__file__).resolve().parent


def _runs(folder: Path) -> dict[str, tuple[str, str, dict[str, object]]]:
    """Protocol, architecture and options by name."""
    data = {"data": str(folder / "classes")}
    tuned = {"data": "digits", "epochs": 1, "warmup_epochs": 0, "drop_path": 0.0, "out": str(folder / "tuned")}
    return {
        "knn": ("knn", TINY, {**data, "k": (5, 20)}),
        "logistic": ("logistic", TINY, {**data, "solver": "sklearn"}),
        "linear": ("linear", TINY, {**data, "epochs": 2, "train_batch_size": 16, "lrs": (0.1, 1.0), "held_out": 0.2}),
        "finetune": ("finetune", BUNDLED, tuned),
        "retrieval": ("retrieval", PATCH16, {"data": str(folder / "sets"), "distractors": str(folder / "distractors")}),
        "davis": ("davis", PATCH16, {"data": str(folder / "davis"), "image_size": 64, "out": str(folder / "masks")}),
        "segment": ("segment", PATCH16, {"data": str(folder / "masked"), "image_size": 64}),
    }


def processes(book: Book, folder: Path) -> None:
    """Results of two processes that share the work."""
    from safetensors.torch import load_file

    from dinoeval.results import Result

    class_folders(folder / "classes", classes=5)
    revisited_set(folder / "sets", "roxford5k")
    flat_folder(folder / "distractors", 9, (60, 50), seed=91)
    davis_set(folder / "davis", {name: video(4, (96, 64), 2, seed=seed) for seed, name in enumerate(("first", "second", "third"))})
    masked_folder(folder / "masked", 5)
    for arch in (PATCH16, TINY):
        network(folder, arch)
    module = "regression_areas.processes"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module, str(folder)]
    paths = [str(HERE.parent.parent), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONSAFEPATH": "1"}  # not the current folder's
    done = subprocess.run(launch, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    for name in _runs(folder):
        book.result(name, Result.load(folder / f"{name}.json"))
    book.state("finetune/head", load_file(folder / "tuned/head.safetensors"))


def work(folder: Path) -> None:
    """Run every protocol as one of the processes; the first one writes the Results."""
    import torch

    import dinoeval

    torch.set_num_threads(1)
    for name, (protocol, arch, options) in _runs(folder).items():
        backbone = dinoeval.load(device="cpu") if arch == BUNDLED else network(folder, arch)
        result = dinoeval.evaluate(protocol, backbone, **options)
        if os.environ["RANK"] == "0":
            result.save(folder / f"{name}.json")


if __name__ == "__main__":
    work(Path(sys.argv[1]))
