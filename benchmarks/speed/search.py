"""A database of 1,000,000 x 384 on this CPU: build, open, and ask it, each in a process of its own.

    python benchmarks/speed/search.py [--rows 1000000] [--hnsw-rows 1000000] [--folder TMP] [--kinds exact ivf pq hnsw]

Made-up clustered rows stand for features; no picture is read. Rows are made in blocks, and written as `dinoeval search
build` writes them. Measured: seconds to write and to check every byte; exact queries, one and 100 at a time; IVF, product
quantisation and HNSW with the effort that reaches recall@10 of 0.95 against exact on 1,000 of the rows. Queries are other
rows of the same clusters. Memory is what a process holds at most, of which the mapped file's pages are told apart: the system
takes those back when it needs to. Writes benchmarks/results/speed_search.json; kinds that are not asked for stay in it as they
were.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = ("exact", "ivf", "pq", "hnsw")
DIM, LATENT, CLUSTERS, QUERIES, BLOCK = 384, 32, 1_000, 1_000, 50_000


def made_up(count: int, seed: int) -> Iterator[np.ndarray]:
    """Overlapping clusters in LATENT dims, lifted to DIM with a little noise: features of images, too, fill few of their dims."""
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    centres, lift = fixed.standard_normal((CLUSTERS, LATENT), np.float32), fixed.standard_normal((LATENT, DIM), np.float32) / LATENT**0.5
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        places = centres[random.integers(0, CLUSTERS, size)] + 0.6 * random.standard_normal((size, LATENT), np.float32)
        rows = places @ lift + 0.1 * random.standard_normal((size, DIM), np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def status(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


class Memory:
    """The largest private memory (heap) and the largest resident size (with pages of mapped files) within a block, MB."""

    def __enter__(self) -> Memory:
        self.before, self.private, self.resident, self._stop = status("RssAnon"), 0.0, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.private, self.resident = max(self.private, status("RssAnon")), max(self.resident, status("VmRSS"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def told(self) -> dict[str, float]:
        return {"MB added": self.private - self.before, "MB resident, mapped pages and libraries too": self.resident}


def write(folder: Path, rows: int) -> dict:
    from dinoeval.search.store import checksums
    from dinoeval.search.vectors import write_vectors

    began = time.monotonic()
    write_vectors(folder / f"{rows}.rows.faiss", made_up(rows, 1), rows, DIM)
    written = time.monotonic() - began
    began = time.monotonic()
    checksums(folder / f"{rows}.rows.faiss")
    return {"seconds to make and write": written, "seconds to check every byte": time.monotonic() - began, "MB": rows * DIM * 4 / 2**20}


def exact(folder: Path, rows: int) -> dict:
    from dinoeval.maths.neighbors import load_faiss, nearest
    from dinoeval.search.vectors import VectorFile

    load_faiss()
    opened = VectorFile(folder / f"{rows}.rows.faiss", rows, DIM)
    queries = next(made_up(QUERIES, 2))
    told = {}
    for count in (1, 100, QUERIES):
        with Memory() as memory:
            began = time.monotonic()
            found = nearest(queries[:count], opened.blocks(), 10, normalized=True)
            seconds = time.monotonic() - began
        told[f"{count} at a time"] = {"queries a second": count / seconds, "seconds": seconds, **memory.told()}
    np.savez(folder / f"{rows}.truth.npz", cosines=found[0], rows=found[1])
    return told


def make(folder: Path, rows: int, kind: str) -> dict:
    from dinoeval.search import approximate
    from dinoeval.search.vectors import VectorFile

    opened = VectorFile(folder / f"{rows}.rows.faiss", rows, DIM)
    path = folder / f"{rows}.{kind}.faiss"
    with Memory() as memory:
        began = time.monotonic()
        index = approximate.train_index(kind, opened)
        approximate.write_index(index, path)
        built = time.monotonic() - began
        began = time.monotonic()
        tuned, recall = approximate.tune(kind, index, opened)
    parameters = {"effort": tuned.effort, "rerank": tuned.rerank}
    (folder / f"{rows}.{kind}.json").write_text(json.dumps(parameters))
    return {"seconds to build": built, "seconds to tune": time.monotonic() - began, "parameters": tuned.parameters(), "told recall": recall,
            "MB on disk": path.stat().st_size / 2**20, **memory.told()}  # fmt: skip


def ask(folder: Path, rows: int, kind: str) -> dict:
    from dinoeval.search import approximate
    from dinoeval.search.vectors import VectorFile

    index = approximate.read_index(folder / f"{rows}.{kind}.faiss")
    opened = VectorFile(folder / f"{rows}.rows.faiss", rows, DIM)
    library = approximate.ApproximateIndex(kind, index, opened, **json.loads((folder / f"{rows}.{kind}.json").read_text()))
    queries, truth = next(made_up(QUERIES, 2)), np.load(folder / f"{rows}.truth.npz")
    library.search(queries, 10)  # brings the file's pages in, as the exact search's were
    told = {}
    for count in (1, 100):
        with Memory() as memory:
            began, done = time.monotonic(), 0
            while done < QUERIES and time.monotonic() - began < 20:
                library.search(queries[done : done + count], 10)
                done += count
            seconds = time.monotonic() - began
        told[f"{count} at a time"] = {"queries a second": done / seconds, **memory.told()}
    cosines, _ = library.search(queries, 10)
    told["recall@10 of other queries"] = float((cosines >= truth["cosines"][:, -1:] - 1e-6).mean())
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--hnsw-rows", type=int, default=1_000_000, help="two cores build HNSW of a million in ten minutes")
    parser.add_argument("--folder", type=Path, help="where 4 GB may be written for a while; by default the system's temporary folder")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        name, count, *kind = args.one
        print(json.dumps(globals()[name](args.folder, int(count), *kind)))
        return
    from dinoeval.environment import describe_machine

    target = ROOT / "benchmarks/results/speed_search.json"
    facts: dict = json.loads(target.read_text()) if set(args.kinds) != set(KINDS) else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:

        def run(*words: object) -> dict:
            command = [sys.executable, __file__, "--folder", folder, "--one", *map(str, words)]
            told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
            print(*words, json.dumps(told), flush=True)
            return told

        wanted: dict[int, list[str]] = {}
        for kind in args.kinds:
            wanted.setdefault(args.hnsw_rows if kind == "hnsw" else args.rows, []).append(kind)
        for rows, kinds in wanted.items():
            found = facts.setdefault(f"{rows} x {DIM}", {})
            basis = {"write": run("write", rows), "exact": run("exact", rows)}  # what the others are compared with
            if "exact" in kinds:
                found |= basis
            for kind in kinds:
                if kind != "exact":
                    load = os.getloadavg()[0]
                    found[kind] = {"build": run("make", rows, kind), "query": run("ask", rows, kind), "load average": round(load, 1)}
    facts["machine"] = describe_machine()
    facts["command"] = f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python benchmarks/speed/search.py"
    target.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
