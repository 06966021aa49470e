"""Kill linear probes and fine-tunings at random moments, resume each, and compare all numbers with an undisturbed run's.

    python benchmarks/reliability_training.py [--runs 10]

Each run is a process of its own on 300 made-up pictures; SIGKILL falls anywhere between its start and its end. The linear
probe saves its state every fifth of a second here (every five minutes by default), so that kills inside an epoch are resumed
from inside it. Writes benchmarks/results/reliability_training.json.
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

BEGIN = "import dinoeval.training.probe.sweep as p; p.SAVE_SECONDS = 0.2; from dinoeval.cli import main; main()"
OPTIONS = {
    "linear": ["--readouts", "cls", "last2", "--lrs", "0.1", "1", "--epochs", "12", "--train-batch-size", "16"],
    "finetune": ["--preset", "short", "--epochs", "8", "--train-batch-size", "32", "--warmup-epochs", "1"],
}
STATE = {"linear": "state.pth", "finetune": "checkpoint.pth"}


def where(path: Path) -> str:
    """How far a killed run had come on disk."""
    if not path.exists():
        return "nothing saved"
    state = torch.load(path, weights_only=True, map_location="cpu")
    return f"epoch {state['epoch']}" + (f", step {state['step']}" if state.get("step") else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    dice = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    facts: dict = {"runs": args.runs}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = class_folders(work / "data", train=100, val=33)
        save_backbone(work / "weights.safetensors", synthetic_state(TINY), arch=TINY)
        for protocol, options in OPTIONS.items():
            command = [sys.executable, "-c", BEGIN, protocol, "--weights", str(work / "weights.safetensors"), "--data", str(data),
                       "--cache", str(work / "cache"), *options]  # fmt: skip

            def run(label: str, command=command, protocol=protocol) -> list[str]:
                return [*command, "--out", str(work / f"{protocol}-{label}"), "--json", str(work / f"{protocol}-{label}.json")]

            def numbers(label: str, protocol=protocol) -> tuple:
                result = json.loads((work / f"{protocol}-{label}.json").read_text())
                return result["metrics"], result["table"], result["samples"]

            began = time.monotonic()
            subprocess.run(run("whole"), check=True, capture_output=True, env=environment)
            seconds = time.monotonic() - began
            moments, equal = [], 0
            for number in range(args.runs):
                label = str(number)
                process = subprocess.Popen(run(label), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
                state = work / f"{protocol}-{label}" / STATE[protocol]
                # Most of a short run is the start of Python: four of five kills wait until something was saved.
                while number % 5 and process.poll() is None and not state.exists():
                    time.sleep(0.002)
                time.sleep(dice.uniform(0, 0.4 * seconds))
                process.send_signal(signal.SIGKILL)
                process.wait()
                moments.append(where(state))
                subprocess.run(run(label), check=True, capture_output=True, env=environment)
                equal += numbers(label) == numbers("whole")
                print(f"{protocol} {number}: killed at {moments[-1]}; equal so far: {equal} of {number + 1}", flush=True)
            facts[protocol] = {"equal to an undisturbed run": equal, "saved when killed": moments}
    facts |= {"machine": describe_machine(), "command": f"python benchmarks/reliability_training.py --runs {args.runs}"}
    (ROOT / "benchmarks/results/reliability_training.json").write_text(json.dumps(facts, indent=1) + "\n")
    assert all(facts[protocol]["equal to an undisturbed run"] == args.runs for protocol in OPTIONS)


if __name__ == "__main__":
    main()
