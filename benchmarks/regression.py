"""Record every number that dinoeval computes on small fixed inputs, or compare it with an earlier record bit by bit.

    python benchmarks/regression.py --out numbers.json         # write a record
    python benchmarks/regression.py --against numbers.json     # print every difference; exit code 1 if there is one

The inputs are made from seeds in a temporary folder, everything runs on one thread, and nothing that depends on time, paths
or cache keys is recorded. Two records are equal only if they come from the same kind of processor and the same versions of
the libraries. `--only AREA` runs a part, `--tiny` the cheapest parts; the comparison is then limited to these areas.

The areas are the functions in `regression_areas/`. Each one imports what it uses from dinoeval in its first lines.
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
    """Use one thread everywhere, and the dinoeval that lies beside this script; must run before NumPy and PyTorch are imported."""
    os.environ.update(dict.fromkeys(THREADS, "1"), TQDM_DISABLE="1", MPLBACKEND="agg")
    for variable in LAUNCHER:
        os.environ.pop(variable, None)
    sys.path.insert(0, str(ROOT))
    logging.disable(logging.CRITICAL)


def limit_threads() -> None:
    """Tell the libraries that are already imported to use one thread."""
    import torch

    import dinoeval
    from dinoeval.maths.neighbors import load_faiss

    print(f"dinoeval in {Path(dinoeval.__file__).parent}", file=sys.stderr)
    torch.set_num_threads(1)
    load_faiss().omp_set_num_threads(1)


def isolate(folder: Path) -> None:
    """Give an area a cache and a weights folder of its own, no data folder, no network, and fresh random generators."""
    import numpy as np
    import torch

    os.environ.update(DINOEVAL_CACHE=str(folder / "cache"), DINOEVAL_WEIGHTS=str(folder / "weights"), DINOEVAL_OFFLINE="1")
    os.environ.pop("DINOEVAL_DATA", None)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def record(areas: Sequence[str]) -> tuple[dict[str, object], list[str]]:
    """Run areas and return their numbers by name, and the areas that ended with an error."""
    from regression_areas import AREAS, CannotRun
    from regression_areas.recording import Book

    numbers: dict[str, object] = {}
    failed = []
    for name in areas:
        book, began = Book(name), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            isolate(Path(folder))
            try:
                AREAS[name](book, Path(folder))
            except CannotRun as reason:
                print(f"{name:<18} left out: {reason}", file=sys.stderr)
                continue
            except Exception:  # noqa: BLE001  the other areas are still worth knowing
                traceback.print_exc()
                failed.append(name)
        numbers |= book.numbers
        print(f"{name:<18} {len(book.numbers):>5} numbers {time.monotonic() - began:>6.1f} s", file=sys.stderr, flush=True)
    return numbers, failed


def main(argv: Sequence[str] | None = None) -> int:
    prepare()
    from regression_areas import AREAS, TINY
    from regression_areas.recording import differences, read, write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the numbers to this file")
    parser.add_argument("--against", type=Path, help="compare with the numbers in this file")
    parser.add_argument("--only", nargs="+", choices=list(AREAS), metavar="AREA", help=f"run some areas: {', '.join(AREAS)}")
    parser.add_argument("--tiny", action="store_true", help=f"run only {', '.join(TINY)}")
    args = parser.parse_args(argv)
    earlier = read(args.against) if args.against else None
    limit_threads()
    numbers, failed = record(args.only or (TINY if args.tiny else tuple(AREAS)))
    if failed:
        print(f"ended with an error: {', '.join(failed)}")
    elif args.out:
        write(args.out, numbers)
        print(f"{len(numbers):,} numbers written to {args.out}")
    if earlier is None:
        return 1 if failed else 0
    ran = {*failed, *(name.partition("/")[0] for name in numbers)}
    found = differences({name: value for name, value in earlier.items() if name.partition("/")[0] in ran}, numbers)
    for line in found:
        print(line)
    counted = {0: "no difference", 1: "1 difference"}.get(len(found), f"{len(found):,} differences")
    print(f"{len(numbers):,} numbers, {counted}")
    return 1 if found or failed else 0


if __name__ == "__main__":
    sys.exit(main())
