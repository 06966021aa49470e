"""Kill linear probes and fine-tuning runs at random times, resume them, and compare all numbers with an uninterrupted run.

    python benchmarks/reliability_training.py [--runs 10] [--out benchmarks/results/reliability_training.json]

Each run is a process of its own on 300 synthetic images. SIGKILL comes at any time between its start and its end. Here the
linear probe saves its state every 0.2 seconds (every five minutes by default), so that runs that are killed inside an epoch
also resume inside it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from factories import TINY, class_folders, synthetic_state  # noqa: E402

from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402
from dinoeval.training.checkpointing import CHECKPOINT  # noqa: E402
from dinoeval.training.probe.train import STATE  # noqa: E402

PROGRAM = "import dinoeval.training.probe.train as train; train.SAVE_SECONDS = 0.2; from dinoeval.cli import main; main()"
OPTIONS = {
    "linear": ["--readouts", "cls", "last2", "--lrs", "0.1", "1", "--epochs", "12", "--train-batch-size", "16"],
    "finetune": ["--preset", "short", "--epochs", "8", "--train-batch-size", "32", "--warmup-epochs", "1"],
}
STATES = {"linear": STATE, "finetune": CHECKPOINT}
EQUAL, SAVED = "equal to an uninterrupted run", "saved when killed"


class Runs:
    """Runs of one protocol on the same data and weights, each with a folder and a Result of its own."""

    def __init__(self, work: Path, data: Path, weights: Path, protocol: str) -> None:
        self.work, self.protocol = work, protocol
        words = [protocol, "--weights", str(weights), "--data", str(data), "--cache", str(work / "cache"), *OPTIONS[protocol]]
        self.command = [sys.executable, "-c", PROGRAM, *words]
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(self, name: str) -> subprocess.Popen:
        """Start a run, or resume it."""
        command = [*self.command, "--out", str(self._path(name)), "--json", str(self._path(name).with_suffix(".json"))]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=self.environment)

    def finish(self, name: str) -> tuple:
        """Run to the end and return all numbers of the Result."""
        if self.start(name).wait():
            raise SystemExit(f"{self.protocol} {name} failed")
        result = json.loads(self._path(name).with_suffix(".json").read_text())
        return result["metrics"], result["table"], result["samples"]

    def kill(self, name: str, delay: float, after_first_state: bool) -> str:
        """Start a run, kill it, and return its progress on disk."""
        state = self._path(name) / STATES[self.protocol]
        process = self.start(name)
        while after_first_state and process.poll() is None and not state.exists():
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
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
    started = time.monotonic()
    expected = runs.finish("whole")
    seconds = time.monotonic() - started
    saved, equal = [], 0
    for number in range(count):
        # Most of a short run is the start of Python, so four of five kills wait until a state is saved.
        saved.append(runs.kill(str(number), generator.uniform(0, 0.4 * seconds), after_first_state=number % 5 > 0))
        equal += runs.finish(str(number)) == expected
        print(f"{runs.protocol} {number}: killed at {saved[-1]}; {equal} of {number + 1} equal so far", flush=True)
    return {EQUAL: equal, SAVED: saved}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="killed runs per protocol")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/reliability_training.json", help="file to write")
    args = parser.parse_args()
    generator = random.Random(0)
    record: dict = {"runs": args.runs}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = class_folders(work / "data", train=100, val=33)
        save_backbone(work / "weights.safetensors", synthetic_state(TINY), arch=TINY)
        for protocol in OPTIONS:
            record[protocol] = measure(Runs(work, data, work / "weights.safetensors", protocol), args.runs, generator)
    record |= {"machine": describe_machine(), "command": f"python benchmarks/reliability_training.py --runs {args.runs}"}
    args.out.write_text(json.dumps(record, indent=1) + "\n")
    if any(record[protocol][EQUAL] != args.runs for protocol in OPTIONS):
        raise SystemExit("a resumed run differs from the uninterrupted one")


if __name__ == "__main__":
    main()
