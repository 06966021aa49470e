"""Record every number that dinoeval computes on small fixed inputs, or compare it with an earlier record bit by bit.

    python benchmarks/regression.py --out benchmarks/results/regression.json      # write a record
    python benchmarks/regression.py --against benchmarks/results/regression.json  # print every difference

The exit code is 0 if nothing changed, 1 if a value changed or an area failed, and 2 if the record cannot be compared. A record
holds the versions of the libraries and the processor that it was made on. The last bits of a value depend on both, so it is
compared only if they are equal.

The inputs are made from seeds in a temporary folder, and everything runs on one thread. Times, paths and cache keys are not
recorded. `--only AREA` runs a part, `--tiny` the cheapest parts; the comparison is then limited to these areas, which are the
functions of `regression_areas/`.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
LAUNCHER = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "LOCAL_RANK")


def prepare() -> None:
    """Use one thread, and the dinoeval next to this script; must run before NumPy and PyTorch are imported."""
    os.environ.update(dict.fromkeys(THREADS, "1"), TQDM_DISABLE="1", MPLBACKEND="agg")
    for variable in LAUNCHER:
        os.environ.pop(variable, None)
    sys.path.insert(0, str(ROOT))
    logging.disable(logging.CRITICAL)


def limit_threads() -> None:
    """Set the libraries that are already imported to one thread."""
    import torch

    from dinoeval.maths.neighbors import load_faiss

    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)


def isolate(folder: Path) -> None:
    """Give an area its own cache and weights folder, no data folder, no network, and fresh random generators."""
    import numpy as np
    import torch

    os.environ.update(DINOEVAL_CACHE=str(folder / "cache"), DINOEVAL_WEIGHTS=str(folder / "weights"), DINOEVAL_OFFLINE="1")
    os.environ.pop("DINOEVAL_DATA", None)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def measure(areas: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Run areas and return their values by name, and the areas that failed."""
    from regression_areas import AREAS
    from regression_areas.recording import CannotRunError, Recorder

    values: dict[str, object] = {}
    failed = []
    for name in areas:
        recorder, started = Recorder(name), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            isolate(Path(folder))
            try:
                AREAS[name](recorder, Path(folder))
            except CannotRunError as reason:
                print(f"{name:<18} left out: {reason}", file=sys.stderr)
                continue
            except Exception:  # noqa: BLE001  the other areas are still measured
                traceback.print_exc()
                failed.append(name)
        values |= recorder.values
        print(f"{name:<18} {len(recorder.values):>5} values {time.monotonic() - started:>6.1f} s", file=sys.stderr, flush=True)
    return values, failed


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, measure, write or compare; return the exit code."""
    prepare()
    from regression_areas import AREAS, TINY
    from regression_areas.recording import differences, machine, read, write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write a record to this file")
    parser.add_argument("--against", type=Path, help="compare with the record in this file")
    parser.add_argument("--only", nargs="+", choices=list(AREAS), metavar="AREA", help=f"run some areas: {', '.join(AREAS)}")
    parser.add_argument("--tiny", action="store_true", help=f"run only {', '.join(TINY)}")
    args = parser.parse_args(argv)
    earlier_machine, earlier = read(args.against) if args.against else ({}, {})
    limit_threads()
    values, failed = measure(args.only or (TINY if args.tiny else tuple(AREAS)))
    print(f"{len(values):,} values")
    if failed:
        print(f"failed: {', '.join(failed)}")
        return 1
    if args.out:
        write(args.out, values)
    if not args.against:
        return 0
    if other := differences(earlier_machine, machine()):
        print(f"not compared, because {args.against} was made on another machine:", *other, sep="\n")
        return 2
    measured = {name.partition("/")[0] for name in values}
    found = differences({name: value for name, value in earlier.items() if name.partition("/")[0] in measured}, values)
    print(*found, f"{len(found):,} differences", sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
