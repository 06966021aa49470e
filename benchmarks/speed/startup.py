"""Seconds until `dinoeval --help` ends, and until `dinoeval knn` has scored the digits with an empty cache.

    python benchmarks/speed/startup.py

Medians of five new processes, after one to warm up.
"""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measurement import Options, seconds_of, write_record

COMMAND = "python benchmarks/speed/startup.py"


def run(*words: str) -> None:
    """Run a command with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        command = [str(Path(sys.executable).parent / "dinoeval"), *words]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "DINOEVAL_CACHE": cache, "DINOEVAL_OFFLINE": "1"})


def main() -> None:
    args = Options(__file__, "speed_startup", __doc__).parse()
    runs = 1 if args.tiny else 6
    record = {}
    for name in ("--help", "knn"):
        times = [seconds_of(functools.partial(run, name)) for _ in range(runs)]
        record[name] = statistics.median(times[1:] or times)
    write_record(args, COMMAND, record)


if __name__ == "__main__":
    main()
