"""Kill training runs at random times, resume them, and compare all numbers with an uninterrupted run.

    python benchmarks/reliability_training.py [--runs 10]

Each run is a process of its own on 300 synthetic images. SIGKILL comes at any time between its start and its end. Here the
linear probe and pretraining save their state every 0.2 seconds (every few minutes by default), so that runs that are killed
inside an epoch also resume inside it.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import inputs
import torch
from measurement import ONE_THREAD, Options, kill, kill_times, seconds_of, write_record

from dinoeval.models.checkpoints import open_checkpoint, tensor_digest
from dinoeval.testing import TINY_ARCH, tiny_image_folder
from dinoeval.training.checkpointing import CHECKPOINT, LOG
from dinoeval.training.pretrain.loop import BACKBONE
from dinoeval.training.probe.train import STATE

PROGRAM = "import dinoeval.training.probe.train as train; train.SAVE_SECONDS = 0.2; from dinoeval.cli import main; main()"
OPTIONS = {
    "linear": ["--readouts", "cls", "last2", "--lrs", "0.1", "1", "--epochs", "12", "--train-batch-size", "16"],
    "finetune": ["--preset", "short", "--epochs", "8", "--train-batch-size", "32", "--warmup-epochs", "1"],
}
TRAIN = {
    **{"--epochs": 6, "--batch-size": 8, "--warmup-epochs": 1, "--lr": 0.02, "--out-dim": 64, "--hidden-dim": 32, "--bottleneck-dim": 16},
    **{"--global-crop": 16, "--local-crop": 8, "--local-crops": 2, "--save-minutes": 0.2 / 60, "--knn-every": 0, "--workers": 1},
}
OPTIONS["train"] = [str(word) for pair in TRAIN.items() for word in pair]
STATES = {"linear": STATE, "finetune": CHECKPOINT, "train": CHECKPOINT}
TINY_OPTIONS = {
    "linear": ["--readouts", "cls", "--lrs", "0.1", "--epochs", "3", "--train-batch-size", "16"],
    "finetune": ["--preset", "short", "--epochs", "3", "--train-batch-size", "8", "--warmup-epochs", "1"],
}
TINY_OPTIONS["train"] = [*OPTIONS["train"], "--epochs", "2"]
EQUAL, SAVED = "equal_to_uninterrupted", "on_disk_when_killed"


class Runs:
    """Runs of one protocol on the same data and weights, each with a folder and a Result of its own."""

    def __init__(self, work: Path, protocol: str, options: list[str]) -> None:
        self.work, self.protocol = work, protocol
        if protocol == "train":
            self.command = [sys.executable, "-m", "dinoeval", "train", "--data", str(work / "data"), "--arch", TINY_ARCH, *options]
            return
        words = ["--weights", work / "weights.safetensors", "--data", work / "data", "--cache", work / "cache", *options]
        self.command = [sys.executable, "-c", PROGRAM, protocol, *map(str, words)]

    def start(self, name: str) -> subprocess.Popen:
        """Start a run, or resume it."""
        command = [*self.command, "--out", str(self._path(name))]
        if self.protocol != "train":
            command += ["--json", str(self._path(name).with_suffix(".json"))]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD)

    def finish(self, name: str) -> None:
        """Run to the end."""
        if self.start(name).wait():
            raise SystemExit(f"{self.protocol} {name} failed")

    def numbers(self, name: str) -> tuple:
        """Return all numbers of a finished run: of its Result, or its log and its weights."""
        if self.protocol == "train":
            rows = [json.loads(line) for line in (self._path(name) / LOG).read_text().splitlines()]
            digest = tensor_digest(open_checkpoint(self._path(name) / BACKBONE).state)
            return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows], digest
        result = json.loads(self._path(name).with_suffix(".json").read_text())
        return result["metrics"], result["table"], result["samples"]

    def kill(self, name: str, delay: float, after_first_state: bool) -> str:
        """Start a run, kill it, and return its progress on disk."""
        state = self._path(name) / STATES[self.protocol]
        kill(self.start(name), delay, state.exists if after_first_state else None)
        return progress(state)

    def _path(self, name: str) -> Path:
        return self.work / f"{self.protocol}-{name}"


def progress(state: Path) -> str:
    """Return how far a killed run had come on disk."""
    if not state.exists():
        return "nothing saved"
    content = torch.load(state, weights_only=True, map_location="cpu")
    return f"epoch {content['epoch']}" + (f", step {content['step']}" if content.get("step") else "")


def measure(runs: Runs, count: int, generator: random.Random) -> dict:
    """Kill and resume `count` runs, and compare each with an uninterrupted one."""
    seconds = seconds_of(lambda: runs.finish("uninterrupted"))
    expected = runs.numbers("uninterrupted")
    saved, equal = [], 0
    for number in range(count):
        # Most of a short run is the start of Python, so four of five kills wait until a state is saved.
        saved.append(runs.kill(str(number), generator.uniform(0, 0.4 * seconds), after_first_state=number % 5 > 0))
        runs.finish(str(number))
        equal += runs.numbers(str(number)) == expected
        print(f"{runs.protocol} {number}: killed at {saved[-1]}; {equal} of {number + 1} equal so far", flush=True)
    return {EQUAL: equal, SAVED: saved}


def main() -> None:
    options = Options(__file__, "reliability_training", __doc__)
    options.add_argument("--runs", type=int, help="killed runs per protocol (default: 10; of pretraining 15)")
    args = options.parse()
    count, words = args.runs or (1 if args.tiny else 10), TINY_OPTIONS if args.tiny else OPTIONS
    generator = kill_times()
    record: dict = {"runs": count}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if args.tiny:
            tiny_image_folder(work / "data")
        else:
            tiny_image_folder(work / "data", train=100, val=33)
        inputs.save_weights(work / "weights.safetensors", TINY_ARCH)
        for protocol in words:
            killed = args.runs or (15 if protocol == "train" and not args.tiny else count)
            record[protocol] = measure(Runs(work, protocol, words[protocol]), killed, generator)
    command = f"python benchmarks/reliability_training.py{f' --runs {args.runs}' if args.runs else ''}"
    write_record(args, command, record)
    if any(record[protocol][EQUAL] != len(record[protocol][SAVED]) for protocol in words):
        raise SystemExit("a resumed run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
