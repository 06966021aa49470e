"""Kill extractions at random moments, resume each, and compare every byte with an undisturbed one.

    python benchmarks/reliability.py [--runs 30]

Each run is a process of its own over 400 made-up pictures; SIGKILL falls anywhere between its start and its end. Writes
benchmarks/results/reliability.json.
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

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from factories import TINY, class_folders, synthetic_state  # noqa: E402

from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=30)
    args = parser.parse_args()
    dice = random.Random(0)
    moments, identical, resumed = [], 0, 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        data = class_folders(work / "data", train=100, val=33)
        save_backbone(work / "weights.safetensors", synthetic_state(TINY), arch=TINY)
        command = [sys.executable, "-m", "dinoeval", "embed", str(data), "--weights", str(work / "weights.safetensors"),
                   "--batch-size", "1", "--out", str(work / "out.npy"), "--cache"]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}

        def entry(cache: Path) -> bytes:
            assert not list(cache.glob("*.partial"))
            return next(cache.glob("*/features.faiss")).read_bytes()

        began = time.monotonic()
        subprocess.run([*command, str(work / "whole")], check=True, capture_output=True, env=environment)
        whole_seconds = time.monotonic() - began
        for number in range(args.runs):
            cache = work / f"cache{number}"
            process = subprocess.Popen([*command, str(cache)], stderr=subprocess.DEVNULL, env=environment)
            # Most of a short run is the start of Python: two of three kills wait until rows are being written.
            while number % 3 and process.poll() is None and not list(cache.glob("*.partial/journal")):
                time.sleep(0.002)
            time.sleep(dice.uniform(0, 1.2) if number % 3 else dice.uniform(0, whole_seconds))
            process.send_signal(signal.SIGKILL)
            process.wait()
            journals = list(cache.glob("*.partial/journal"))
            moments.append(int((np.fromfile(journals[0], "<u8") > 0).sum()) if journals else -1)
            done = subprocess.run([*command, str(cache)], check=True, capture_output=True, text=True, env=environment)
            resumed += "resuming" in done.stderr
            identical += entry(cache) == entry(work / "whole")
            print(f"{number}: killed after {moments[-1]} rows; identical so far: {identical} of {number + 1}", flush=True)
    facts = {"runs": args.runs, "bit-identical": identical, "resumed from rows of the killed run": resumed,
             "rows done when killed (-1: none begun, or all done)": moments, "machine": describe_machine(),
             "command": f"python benchmarks/reliability.py --runs {args.runs}"}  # fmt: skip
    (ROOT / "benchmarks/results/reliability.json").write_text(json.dumps(facts) + "\n")
    assert identical == args.runs


if __name__ == "__main__":
    main()
