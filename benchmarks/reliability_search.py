"""Kill builds of an index at random times, run the same command again, and compare with an uninterrupted build.

    python benchmarks/reliability_search.py [--runs 10]

Each run is a new process over 400 synthetic images. It builds a new index, or adds 100 images to an index, in turn. SIGKILL
comes at any time between its start and its end. An existing index must answer queries after the kill as the old one or as
the new one. After the same command has run again, vectors, lists of images and answers must equal those of the
uninterrupted build byte for byte, and no file of the killed build may remain.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import inputs
import numpy as np
from measurement import ONE_THREAD, Options, kill, kill_times, seconds_of, write_record

import dinoeval
from dinoeval import search
from dinoeval.search.store import LOCK, MANIFEST
from dinoeval.testing import TINY_ARCH

KINDS = ("new", "extended")
WAITS = (None, 1.0, 0.1)
"""Longest wait in seconds before a kill: from the start (None: the time of a build), from the first row, from the first file."""


@dataclasses.dataclass(frozen=True)
class Build:
    """The build of one index in a new process."""

    work: Path
    kind: str
    name: str

    @property
    def index(self) -> Path:
        """Folder of the index."""
        return self.work / f"{self.name} index"

    @property
    def cache(self) -> Path:
        """Folder of the feature cache."""
        return self.work / f"{self.name} cache"

    def start(self) -> subprocess.Popen:
        """Start the build, or run it again."""
        words = [self.work / self.kind, "--out", self.index, "--cache", self.cache, "--weights", self.work / "weights.safetensors"]
        command = [sys.executable, "-m", "dinoeval", "search", "build", *map(str, words), "--batch-size", "1", "--index", "hnsw"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ONE_THREAD)

    def finish(self) -> None:
        """Run the build to its end."""
        if self.start().wait():
            raise SystemExit(f"{self.name} failed")

    def new_files(self, before: set[str]) -> set[str]:
        """Return the files of the index that are not in `before`."""
        return self.files() - before - {LOCK, MANIFEST}

    def files(self) -> set[str]:
        """Return the names of the files of the index."""
        return {path.name for path in self.index.iterdir()} if self.index.is_dir() else set()

    def progress(self, before: set[str]) -> str:
        """Return what a killed build has stored; `before` are the files that existed."""
        new, journals = self.new_files(before), list(self.cache.glob("*.partial/journal"))
        if journals:
            return f"{int((np.fromfile(journals[0], '<u8') > 0).sum())} rows"
        if not new:
            return "no rows, or all rows and no file"
        manifest = self.index / MANIFEST
        complete = manifest.exists() and all(name in manifest.read_text(errors="replace") for name in new)
        return "the new index" if complete else f"{len(new)} incomplete files"

    def content(self) -> dict[str, bytes]:
        """Return the bytes of the files by their purpose; the manifest holds the time of the build and is left out."""
        manifest = json.loads((self.index / MANIFEST).read_bytes().rpartition(b"\n")[0])
        names = {part: metadata["name"] for part, metadata in manifest["files"].items()}
        assert self.files() - {LOCK} == {MANIFEST, *names.values()}, "a file of the killed build remains"
        return {part: (self.index / name).read_bytes() for part, name in names.items()}

    def answers(self, backbone: dinoeval.Backbone) -> list[list]:
        """Return cosines and rows of the ten nearest images of every seventh image."""
        index = search.open(self.index, backbone)
        return [part.tolist() for part in index.nearest(index.vectors()[::7], 10)]


def main() -> None:
    options = Options(__file__, "reliability_search", __doc__)
    options.add_argument("--runs", type=int, help="killed builds (default: 10)")
    args = options.parse()
    runs, images, added = (args.runs or 1, 30, 10) if args.tiny else (args.runs or 10, 400, 100)
    generator, killed, equal = kill_times(), [], 0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        backbone = dinoeval.load(weights=inputs.save_weights(work / "weights.safetensors", TINY_ARCH))
        for kind in KINDS:
            inputs.save_images(work / kind, images, (20, 24), suffix=".png")
        old = Build(work, "extended", "old")
        old.finish()
        inputs.save_images(work / "extended", added, (20, 24), first=images, suffix=".png")
        uninterrupted = {kind: Build(work, kind, f"uninterrupted {kind}") for kind in KINDS}
        shutil.copytree(old.index, uninterrupted["extended"].index)
        seconds = {kind: seconds_of(build.finish) for kind, build in uninterrupted.items()}
        for number in range(runs):
            build = Build(work, KINDS[number % 2], str(number))
            if build.kind == "extended":
                shutil.copytree(old.index, build.index)
            before, phase = build.files(), number // 2 % 3
            ready = (
                None,
                lambda build=build: list(build.cache.glob("*.partial/journal")),
                lambda build=build, before=before: build.new_files(before),
            )[phase]
            kill(build.start(), generator.uniform(0, WAITS[phase] or seconds[build.kind]), ready)
            killed.append(f"{build.kind}: {build.progress(before)}")
            expected = uninterrupted[build.kind]
            answers = expected.answers(backbone)
            if build.kind == "extended":
                assert build.answers(backbone) in (old.answers(backbone), answers), "the old index does not answer"
            build.finish()
            equal += build.content() == expected.content() and build.answers(backbone) == answers
            print(f"{number}: killed with {killed[-1]}; {equal} of {number + 1} equal so far", flush=True)
    record = {"runs": runs, "equal_to_uninterrupted": equal, "on_disk_when_killed": killed}
    write_record(args, f"python benchmarks/reliability_search.py --runs {runs}", record)
    if equal != runs:
        raise SystemExit("a build that was run again differs from the uninterrupted one")


if __name__ == "__main__":
    main()
