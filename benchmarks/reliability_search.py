"""Kill builds of an index at random moments, run the same command again, and compare with an undisturbed build.

    python benchmarks/reliability_search.py [--runs 10]

Each run is a process of its own over 400 made-up pictures, a new index in turn with one that 100 pictures more are added to;
SIGKILL falls anywhere between its start and its end. An index that was there must answer after the kill, before anything is
repaired, as the old one or as the new one. After the same command its rows and lists of images must be those of the
undisturbed index byte for byte, its answers equal, and no file of the killed build left.
Writes benchmarks/results/reliability_search.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from factories import TINY, synthetic_images, synthetic_state  # noqa: E402

import dinoeval  # noqa: E402
from dinoeval import search  # noqa: E402
from dinoeval.environment import describe_machine  # noqa: E402
from dinoeval.models.checkpoints import save_backbone  # noqa: E402
from dinoeval.search.store import LOCK, MANIFEST  # noqa: E402

OLD, ADDED = 400, 100


def pictures(folder: Path, first: int, last: int) -> None:
    folder.mkdir(exist_ok=True)
    for number, picture in enumerate(synthetic_images(last)[first:], first):
        picture.save(folder / f"{number:03}.png")


def parts(index: Path) -> dict[str, bytes]:
    """The bytes of an index's files by what they hold; the manifest has the time of the build and is left out."""
    manifest = json.loads((index / MANIFEST).read_bytes().rpartition(b"\n")[0])
    names = {part: facts["name"] for part, facts in manifest["files"].items()}
    assert {path.name for path in index.iterdir()} - {LOCK} == {MANIFEST, *names.values()}, "a file of the killed build is left"
    return {part: (index / name).read_bytes() for part, name in names.items()}


def answers(index: Path, backbone: dinoeval.Backbone) -> list[list]:
    """Cosines and rows of the ten nearest of every seventh image."""
    library = search.open(index, backbone)
    return [part.tolist() for part in library.nearest(library.vectors()[::7], 10)]


def added(index: Path, before: set[str]) -> set[str]:
    """The files of an index that were not there before."""
    return {path.name for path in index.iterdir()} - before - {LOCK, MANIFEST} if index.is_dir() else set()


def begun(phase: int, index: Path, cache: Path, before: set[str]) -> bool:
    return bool(list(cache.glob("*.partial/journal")) if phase == 1 else added(index, before))


def killed_at(index: Path, cache: Path, before: set[str]) -> str:
    """How far a killed build had come on disk; `before`: the files of the index that was there."""
    new = added(index, before)
    journals = list(cache.glob("*.partial/journal"))
    if journals:
        return f"{int((np.fromfile(journals[0], '<u8') > 0).sum())} rows"
    if not new:
        return "no row, or all and no file"
    whole = (index / MANIFEST).exists() and all(name in (index / MANIFEST).read_text(errors="replace") for name in new)
    return "new index there" if whole else f"files begun: {len(new)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    args = parser.parse_args()
    dice = random.Random(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    moments, equal = [], 0
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        save_backbone(work / "weights.safetensors", synthetic_state(TINY), arch=TINY)
        backbone = dinoeval.load(weights=work / "weights.safetensors")

        def build(kind: str, index: Path, cache: Path) -> list[str]:
            return [sys.executable, "-m", "dinoeval", "search", "build", str(work / kind), "--out", str(index), "--cache", str(cache),
                    "--weights", str(work / "weights.safetensors"), "--batch-size", "1", "--index", "hnsw"]  # fmt: skip

        def run(*words: object) -> float:
            began = time.monotonic()
            subprocess.run(build(*words), check=True, capture_output=True, env=environment)
            return time.monotonic() - began

        pictures(work / "new", 0, OLD)
        pictures(work / "grown", 0, OLD)
        run("grown", work / "old", work / "old cache")
        pictures(work / "grown", OLD, OLD + ADDED)
        shutil.copytree(work / "old", work / "whole grown")
        seconds = {kind: run(kind, work / f"whole {kind}", work / f"whole {kind} cache") for kind in ("new", "grown")}
        for number in range(args.runs):
            kind, cache, index = ("new", "grown")[number % 2], work / f"cache{number}", work / f"index{number}"
            if kind == "grown":
                shutil.copytree(work / "old", index)
            before = {path.name for path in index.iterdir()} if index.is_dir() else set()
            process = subprocess.Popen(build(kind, index, cache), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
            # Most of a short build is the start of Python: of three pairs one waits for rows, one for a file of the index to come.
            phase = number // 2 % 3
            while process.poll() is None and not (phase == 0 or begun(phase, index, cache, before)):
                time.sleep(0.001)
            time.sleep(dice.uniform(0, (seconds[kind], 1.0, 0.1)[phase]))
            process.send_signal(signal.SIGKILL)
            process.wait()
            moments.append(f"{kind}: {killed_at(index, cache, before)}")
            truth = answers(work / f"whole {kind}", backbone)
            if kind == "grown":
                assert answers(index, backbone) in (answers(work / "old", backbone), truth), "the index that was there no longer answers"
            run(kind, index, cache)
            equal += parts(index) == parts(work / f"whole {kind}") and answers(index, backbone) == truth
            print(f"{number}: killed with {moments[-1]}; equal so far: {equal} of {number + 1}", flush=True)
    facts = {"runs": args.runs, "equal to an undisturbed build": equal, "on disk when killed": moments, "machine": describe_machine(),
             "command": f"python benchmarks/reliability_search.py --runs {args.runs}"}  # fmt: skip
    (ROOT / "benchmarks/results/reliability_search.json").write_text(json.dumps(facts, indent=1) + "\n")
    assert equal == args.runs


if __name__ == "__main__":
    main()
