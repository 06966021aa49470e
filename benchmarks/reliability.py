"""Kill extractions at random times, resume each, and compare every byte with an uninterrupted one.

    python benchmarks/reliability.py [--runs 30]

Each run is a new process that extracts the features of 400 synthetic images. SIGKILL comes at any time between its start and
its end.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
from pathlib import Path

import inputs
import numpy as np
from measurement import ONE_THREAD, Options, kill, kill_times, seconds_of, write_record

from dinoeval.testing import TINY_ARCH, tiny_image_folder


def read_entry(cache: Path) -> bytes:
    """Return the bytes of the only entry of a cache, which must be complete."""
    assert not list(cache.glob("*.partial"))
    return next(cache.glob("*/features.faiss")).read_bytes()


def rows_on_disk(cache: Path) -> int:
    """Return how many rows a killed run has stored; -1 if it has not begun or has stored all."""
    journals = list(cache.glob("*.partial/journal"))
    return int((np.fromfile(journals[0], "<u8") > 0).sum()) if journals else -1


def main() -> None:
    options = Options(__file__, "reliability", __doc__)
    options.add_argument("--runs", type=int, help="killed runs (default: 30)")
    args = options.parse()
    runs = args.runs or (1 if args.tiny else 30)
    generator, killed, identical, resumed = kill_times(), [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = tiny_image_folder(work / "data") if args.tiny else tiny_image_folder(work / "data", train=100, val=33)
        weights = inputs.save_weights(work / "weights.safetensors", TINY_ARCH)
        words = [data, "--weights", weights, "--batch-size", 1, "--out", work / "out.npy", "--cache"]
        command = [sys.executable, "-m", "dinoeval", "embed", *map(str, words)]
        run = functools.partial(subprocess.run, check=True, capture_output=True, text=True, env=ONE_THREAD)
        seconds = seconds_of(lambda: run([*command, str(work / "uninterrupted")]))
        for number in range(runs):
            cache = work / f"cache{number}"
            process = subprocess.Popen([*command, str(cache)], stderr=subprocess.DEVNULL, env=ONE_THREAD)
            if number % 3:
                kill(process, generator.uniform(0, 1.2), ready=lambda cache=cache: list(cache.glob("*.partial/journal")))
            else:
                kill(process, generator.uniform(0, seconds))
            killed.append(rows_on_disk(cache))
            resumed += "resuming" in run([*command, str(cache)]).stderr
            identical += read_entry(cache) == read_entry(work / "uninterrupted")
            print(f"{number}: killed after {killed[-1]} rows; {identical} of {number + 1} identical so far", flush=True)
    record = {"runs": runs, "bit_identical": identical, "resumed": resumed, "rows_when_killed": killed}
    write_record(args, f"python benchmarks/reliability.py --runs {runs}", record)
    if identical != runs:
        raise SystemExit("a resumed extraction differs from the uninterrupted one")


if __name__ == "__main__":
    main()
