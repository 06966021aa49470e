"""Seconds until `dinoeval --help` has answered, and until `dinoeval knn` has scored the digits with an empty cache.

    python benchmarks/speed/startup.py

Medians of five whole processes, after one to warm up. Writes benchmarks/results/speed_startup.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dinoeval.environment import describe_machine


def seconds(*words: str) -> float:
    times = []
    for _ in range(6):
        with tempfile.TemporaryDirectory() as cache:
            began = time.monotonic()
            command = [str(Path(sys.executable).parent / "dinoeval"), *words]
            subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DINOEVAL_CACHE": cache, "DINOEVAL_OFFLINE": "1"})
            times.append(time.monotonic() - began)
    return statistics.median(times[1:])


def main() -> None:
    facts = {
        "--help": seconds("--help"),
        "knn": seconds("knn"),
        "machine": describe_machine(),
        "command": "python benchmarks/speed/startup.py",
    }
    target = Path(__file__).resolve().parents[1] / "results/speed_startup.json"
    target.write_text(json.dumps(facts, indent=1) + "\n")
    print(facts)


if __name__ == "__main__":
    main()
