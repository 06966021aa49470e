"""Read odd, corrupted and hostile files with every command that takes such a file, and count what happens.

    python benchmarks/reliability_inputs.py [--inputs 5000] [--only images] [--jobs 2]

The areas are the modules of `hostile/`: images, masks, tables, Results and other records, checkpoints and ground-truth pickles.
Each input is made from its number, so that one input can be repeated with `--only AREA --first NUMBER --inputs 1`. It is read
in a child process with a time and a memory limit. Allowed are a value and a DinoevalError. All commands that read the same file
must agree: equal values, or an error in each.

Counted as faults:

    traceback   an exception that is not a DinoevalError
    different   two commands read the same file differently
    hang        no answer in --seconds
    crash       the process died, for example because it asked for more than 4 GB
    executed    code of the file ran
    reached     a process was started or a connection opened
"""

from __future__ import annotations

import collections
import concurrent.futures
import importlib
import logging
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", TQDM_DISABLE="1")

import numpy as np
from hostile import AREAS, CANARY, SELF_CHECK, UNEQUAL
from measurement import Options, write_record

from dinoeval.errors import DinoevalError

MEMORY = 4 << 30
FAULTS = ("traceback", "different", "hang", "crash", "executed", "reached")
REACHING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect", "socket.getaddrinfo")
"""Audit events of processes and connections."""


def serve(area: str, pipe: Connection, home: str) -> None:
    """Read the inputs whose numbers arrive, in a child process, and send back what happened."""
    reached: list[str] = []
    os.environ.update(HOME=home, DINOEVAL_CACHE=f"{home}/cache", DINOEVAL_WEIGHTS=f"{home}/weights", DINOEVAL_OFFLINE="1")
    os.chdir(home)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    module = importlib.import_module(f"hostile.{area}")
    readers = module.readers(Path(home))
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    sys.addaudithook(lambda event, _: reached.append(event) if event.startswith(REACHING) else None)
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        with tempfile.TemporaryDirectory(dir=home) as folder:
            generator = np.random.default_rng([zlib.crc32(area.encode()), number])
            kind, target = module.write(generator, Path(folder))
            reached.clear()
            outcome, detail = read(readers, target, agree=area not in UNEQUAL)
            if (Path(home) / CANARY).exists():
                (Path(home) / CANARY).unlink()
                outcome, detail = "executed", ""
            elif reached:
                outcome, detail = "reached", " ".join(sorted(set(reached)))
        pipe.send((kind, outcome, detail))


def read(readers: Mapping[str, Any], target: Path, agree: bool) -> tuple[str, str]:
    """Read one input with every reader; `agree` asks that all of them accept or reject it.

    Returns:
        `accepted`, `rejected` or a fault, and details of a fault.
    """
    values, errors = {}, {}
    for name, reader in readers.items():
        try:
            values[name] = reader(target)
        except DinoevalError as error:
            errors[name] = str(error)
        except BaseException as error:  # noqa: BLE001  a fault is counted, whatever it is
            frame = traceback.extract_tb(error.__traceback__)[-1]
            return "traceback", f"{name}: {type(error).__name__}: {str(error)[:200]} ({Path(frame.filename).name}:{frame.lineno})"
    if not values:
        return "rejected", ""
    first = next(iter(values))
    unequal = [name for name, value in values.items() if not _equal(value, values[first])]
    if unequal or (errors and agree):
        others = [*(f"{name}: another value" for name in unequal), *(f"{name}: {error[:200]}" for name, error in errors.items())]
        return "different", f"{first}: read; {'; '.join(others)}"
    return "accepted", ""


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        return isinstance(other, np.ndarray) and one.shape == other.shape and bool((one == other).all())
    return one == other


class Child:
    """A child process that reads inputs; it is restarted after a hang or a crash."""

    def __init__(self, area: str, home: str, seconds: float) -> None:
        self.area, self.home, self.seconds = area, home, seconds
        self.start()

    def start(self) -> None:
        """Start the process and wait until it has imported everything."""
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(self.area, other, self.home), daemon=True)
        self.process.start()
        other.close()
        assert self.pipe.recv() == "ready"

    def run(self, number: int) -> tuple[str, str, str]:
        """Read one input.

        Returns:
            Kind of the input, outcome, details.
        """
        try:
            self.pipe.send(number)
            if self.pipe.poll(self.seconds):
                return self.pipe.recv()
            outcome = "hang"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            outcome = "crash"
        self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.start()
        return "unknown", outcome, f"exit code {code}" if outcome == "crash" else f"no answer in {self.seconds:g} s"


def run_area(area: str, numbers: Sequence[int], seconds: float) -> list[tuple[int, str, str, str]]:
    """Read inputs of an area in one child process."""
    found = []
    with tempfile.TemporaryDirectory() as home:
        child = Child(area, home, seconds)
        for number in numbers:
            kind, outcome, detail = child.run(number)
            found.append((number, kind, outcome, detail))
            if outcome in FAULTS:
                print(f"{area} {number} {kind}: {outcome}: {detail}", flush=True)
        child.pipe.send(None)
        child.process.join(10)
    return found


def main() -> None:
    options = Options(__file__, "reliability_inputs", __doc__)
    options.add_argument("--inputs", type=int, help="number of inputs (default: 5000)")
    options.add_argument("--first", type=int, default=0, help="number of the first input of each area")
    options.add_argument("--only", choices=[*sorted(AREAS), SELF_CHECK], help=f"one area; {SELF_CHECK} checks that each fault is noticed")
    options.add_argument("--seconds", type=float, default=30, help="time limit of an input")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = options.parse()
    count = args.inputs or (4 * len(AREAS) if args.tiny else 5000)
    areas = [args.only] if args.only else sorted(AREAS)
    weights = {area: AREAS.get(area, 1) for area in areas}
    started = time.monotonic()
    jobs = []
    for area, weight in weights.items():
        numbers = range(args.first, args.first + max(1, round(count * weight / sum(weights.values()))))
        jobs += [(area, part) for start in range(args.jobs) if (part := numbers[start :: args.jobs])]
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        parts = pool.map(lambda job: run_area(*job, args.seconds), jobs)
        found = [(area, *outcome) for (area, _), part in zip(jobs, parts, strict=True) for outcome in part]
    rows = [{"area": area, **collections.Counter(outcome for name, _, _, outcome, _ in found if name == area)} for area in areas]
    faults = [f"{area} {number} {kind}: {outcome}: {detail}" for area, number, kind, outcome, detail in sorted(found) if outcome in FAULTS]
    record = {
        "inputs": len(found),
        "kinds": len({(area, kind) for area, _, kind, _, _ in found}),
        "seconds": round(time.monotonic() - started),
        "areas": rows,
        **{fault: sum(outcome == fault for *_, outcome, _ in found) for fault in FAULTS},
        "faults": faults,
    }
    write_record(args, f"python benchmarks/reliability_inputs.py --inputs {count}", record)
    if faults:
        raise SystemExit(f"{len(faults)} faults")


if __name__ == "__main__":
    main()
