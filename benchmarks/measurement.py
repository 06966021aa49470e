"""What the scripts share: their options, the record that they write, new processes, timing and memory."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
T = TypeVar("T")


class Options(argparse.ArgumentParser):
    """The options of a script: its inputs, `--tiny` and `--out`.

    Args:
        script: The file of the script.
        name: Name of the record, a file of benchmarks/results/.
        description: The docstring of the script.
    """

    def __init__(self, script: str, name: str, description: str | None) -> None:
        super().__init__(Path(script).name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self._record = RESULTS / f"{name}.json"
        self._inputs: list[str] = []
        self.add_argument("--tiny", action="store_true", help="run in seconds on small synthetic inputs; requires --out")
        self.add_argument("--out", type=Path, help=f"JSON file to write (default: benchmarks/results/{name}.json)")
        self.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)

    def add_input(self, name: str, text: str, *, many: bool = False, of: Callable[[str], Any] = Path) -> None:
        """Add a positional argument that is required without --tiny.

        Args:
            name: Name of the argument.
            text: Its help.
            many: Whether it takes one value or more.
            of: Type of the values.
        """
        self._inputs.append(name)
        self.add_argument(name, type=of, nargs="*" if many else "?", metavar=name.upper(), help=f"{text}; not required with --tiny")

    def parse(self) -> argparse.Namespace:
        """Parse the command line, and exit if an input is missing.

        Returns:
            The options; `out` is set, except in a worker.
        """
        args = self.parse_intermixed_args()
        if args.worker:
            return args
        if args.tiny and args.out is None:
            self.error("--tiny requires --out FILE: it does not replace the recorded results")
        missing = [name.upper() for name in self._inputs if not getattr(args, name)]
        if missing and not args.tiny:
            self.error(f"missing {', '.join(missing)}: pass them, or --tiny")
        args.out = args.out or self._record
        return args

    @staticmethod
    def answer(value: object) -> NoReturn:
        """Print what a worker returns to `run_worker`, and exit."""
        print(json.dumps(value))
        raise SystemExit


def write_record(args: argparse.Namespace, command: str, record: Mapping[str, Any], left_out: Sequence[str | None] = ()) -> None:
    """Write the record of a script, with its command and the machine, and print it.

    Args:
        args: The options of the script.
        command: The command, without the options that change nothing.
        record: What the script measured.
        left_out: What was left out and why; None stands for nothing.
    """
    from dinoeval.environment import describe_machine

    reasons = [reason for reason in left_out if reason]
    content = {**record, "command": command, "machine": describe_machine()}
    if args.tiny:
        content["tiny"] = True
    if reasons:
        content["left_out"] = reasons
    args.out.write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))
    for reason in reasons:
        print(f"left out: {reason}")


def run_dinoeval(*words: object, **options: Any) -> dict[str, Any]:
    """Run a protocol by its command line.

    Args:
        words: The command line, without `dinoeval`.
        options: Options of subprocess.run.

    Returns:
        The Result as JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "result.json"
        command = [sys.executable, "-m", "dinoeval", *map(str, words), "--json", str(target)]
        subprocess.run(command, **{"check": True, "stdout": subprocess.DEVNULL} | options)
        return json.loads(target.read_text())


def run_worker(script: str, args: argparse.Namespace, *words: object) -> Any:
    """Run a script in a new process, with `--worker WORDS`.

    Args:
        script: The file of the script.
        args: Its options, of which --tiny is passed on.
        words: What the worker does.

    Returns:
        The last line that the process prints, parsed as JSON; None if it prints nothing.
    """
    command = [sys.executable, script, *(["--tiny"] if args.tiny else []), "--worker", *map(str, words)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(lines[-1]) if lines else None


def in_turn(ways: Mapping[str, Callable[[], T]], rounds: int, *, once: Collection[str] = ()) -> dict[str, list[T]]:
    """Run several ways of doing the same in turn, so that a change of the machine's load affects all of them.

    Args:
        ways: The functions to run, by name.
        rounds: How often each one runs.
        once: Names of those that run in the first round only.

    Returns:
        What they returned, by name.
    """
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, run in ways.items():
            if number == 0 or name not in once:
                found[name].append(run())
                print(number, name, found[name][-1], flush=True)
    return found


def medians(runs: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median of each list of numbers."""
    return {name: statistics.median(values) for name, values in runs.items()}


def seconds_of(run: Callable[[], object]) -> float:
    """Run a function and return its wall-clock time in seconds."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def memory_kib(field: str) -> float:
    """Read the memory of this process from /proc/self/status.

    Args:
        field: VmRSS for the resident size, VmHWM for its peak, RssAnon for memory without mapped files. (ru_maxrss is
            not used, because a process inherits it from the one that started it.)

    Returns:
        KiB; NaN on systems without /proc.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) if found else float("nan")


def load_average() -> float:
    """Return the load average of the last minute."""
    return round(os.getloadavg()[0], 1)


def free_port() -> str:
    """Return a free TCP port for a process group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def kill(process: subprocess.Popen, seconds: float, ready: Callable[[], object] | None = None) -> None:
    """Kill a process with SIGKILL; if it has a session of its own, with all processes that it started.

    Args:
        process: A running process.
        seconds: When to kill it, after its start or after `ready`.
        ready: A condition to wait for. Most of a short run is the start of Python, so that few kills would come later.
    """
    while ready and process.poll() is None and not ready():
        time.sleep(0.001)
    time.sleep(seconds)
    if process.poll() is None and os.name == "posix" and os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
"""Environment of processes that are killed, so that their results do not depend on the number of threads."""


def kill_times(seed: int = 0) -> random.Random:
    """Return the generator of the times at which processes are killed."""
    return random.Random(seed)
