"""An index of 1,000,000 x 384 vectors on this CPU: build, open and query, each in a new process.

    python benchmarks/speed/search.py [--vectors 1000000] [--hnsw-vectors 1000000] [--folder TMP] [--kinds exact ivf pq hnsw]

The vectors are synthetic clusters; no image is read. They are drawn in blocks and written as `dinoeval search build` writes them.
Measured are the seconds to write and to check every byte; exact queries, one, 100 and 1,000 at a time; and IVF, product
quantization and HNSW, with the effort that reaches recall@10 of 0.95 against exact search on 1,000 of the vectors. Queries are
other vectors of the same clusters. Memory is the peak of a process. Pages of mapped files are counted separately, because the
system reclaims them when it needs to. Kinds that are not passed keep their earlier values in the record.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measurement import Options, load_average, memory_kib, run_worker, seconds_of, write_record

KINDS = ("exact", "ivf", "pq", "hnsw")
DIM, LATENT, BLOCK = 384, 32, 50_000
SECONDS = 20
"""Longest time of one measurement of queries."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The problem, besides the number of vectors."""

    clusters: int = 1_000
    queries: int = 1_000


TINY = Sizes(20, 100)


def synthetic_vectors(count: int, seed: int, sizes: Sizes) -> Iterator[np.ndarray]:
    """Yield blocks of overlapping clusters in LATENT dims, mapped to DIM with a little noise.

    The features of images, too, fill few of their dims.
    """
    fixed, random = np.random.default_rng(0), np.random.default_rng(seed)
    centers = fixed.standard_normal((sizes.clusters, LATENT), np.float32)
    lift = fixed.standard_normal((LATENT, DIM), np.float32) / LATENT**0.5
    for start in range(0, count, BLOCK):
        size = min(BLOCK, count - start)
        latent = centers[random.integers(0, sizes.clusters, size)] + 0.6 * random.standard_normal((size, LATENT), np.float32)
        vectors = latent @ lift + 0.1 * random.standard_normal((size, DIM), np.float32)
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Memory:
    """The peak of private memory and of resident memory within a block."""

    def __enter__(self) -> Memory:
        self.private, self.resident = memory_kib("RssAnon"), memory_kib("VmRSS")
        self.before, self._stop = self.private, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.005):
            self.private, self.resident = max(self.private, memory_kib("RssAnon")), max(self.resident, memory_kib("VmRSS"))

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def record(self) -> dict[str, float]:
        """Return MB; `resident_mb` includes pages of mapped files and libraries."""
        return {"added_mb": (self.private - self.before) / 1024, "resident_mb": self.resident / 1024}


@dataclasses.dataclass(frozen=True)
class Index:
    """The files of one index, and what is measured of them."""

    folder: Path
    count: int
    """Number of vectors."""
    sizes: Sizes

    def vectors(self):
        """Open the vectors."""
        from dinoeval.search.vectors import VectorFile

        return VectorFile(self.folder / f"{self.count}.vectors.faiss", self.count, DIM)

    def queries(self) -> np.ndarray:
        """Return the queries."""
        return next(synthetic_vectors(self.sizes.queries, 2, self.sizes))

    def write(self) -> dict[str, Any]:
        """Write the vectors and check every byte."""
        from dinoeval.search.store import checksums
        from dinoeval.search.vectors import write_vectors

        path = self.folder / f"{self.count}.vectors.faiss"
        written = seconds_of(lambda: write_vectors(path, synthetic_vectors(self.count, 1, self.sizes), self.count, DIM))
        checked = seconds_of(lambda: checksums(path))
        return {"seconds_to_draw_and_write": written, "seconds_to_check_every_byte": checked, "mb": self.count * DIM * 4 / 2**20}

    def exact(self) -> dict[str, Any]:
        """Search exactly, and keep the answers."""
        from dinoeval.maths.neighbors import load_faiss, nearest

        load_faiss()
        vectors, queries, record = self.vectors(), self.queries(), {}
        for count in (1, 100, self.sizes.queries):
            with Memory() as memory:
                started = time.monotonic()
                cosines, rows = nearest(queries[:count], vectors.blocks(), 10, normalized=True)
                seconds = time.monotonic() - started
            record[f"{count}_at_a_time"] = {"queries_per_second": count / seconds, "seconds": seconds, **memory.record()}
        np.savez(self.folder / f"{self.count}.answers.npz", cosines=cosines, rows=rows)
        return record

    def build(self, kind: str) -> dict[str, Any]:
        """Build an approximate index and tune its effort."""
        from dinoeval.search import approximate

        vectors, path = self.vectors(), self.folder / f"{self.count}.{kind}.faiss"
        with Memory() as memory:
            started = time.monotonic()
            index = approximate.train_index(kind, vectors)  # type: ignore[arg-type]
            approximate.write_index(index, path)
            built = time.monotonic() - started
            started = time.monotonic()
            tuned, recall = approximate.tune(kind, index, vectors)  # type: ignore[arg-type]
            seconds = time.monotonic() - started
        (self.folder / f"{self.count}.{kind}.json").write_text(json.dumps({"effort": tuned.effort, "rerank": tuned.rerank}))
        return {
            "seconds_to_build": built,
            "seconds_to_tune": seconds,
            "parameters": tuned.parameters(),
            "reported_recall": recall,
            "mb_on_disk": path.stat().st_size / 2**20,
            **memory.record(),
        }

    def query(self, kind: str) -> dict[str, Any]:
        """Query an approximate index."""
        from dinoeval.search import approximate

        stored = approximate.read_index(self.folder / f"{self.count}.{kind}.faiss")
        parameters = json.loads((self.folder / f"{self.count}.{kind}.json").read_text())
        index = approximate.ApproximateIndex(kind, stored, self.vectors(), **parameters)  # type: ignore[arg-type]
        queries, answers, total = self.queries(), np.load(self.folder / f"{self.count}.answers.npz"), self.sizes.queries
        index.search(queries, 10)  # It reads the pages of the file, which the exact search has read, too.
        record: dict[str, Any] = {}
        for count in (1, 100):
            with Memory() as memory:
                started, done = time.monotonic(), 0
                while done < total and time.monotonic() - started < SECONDS:
                    index.search(queries[done : done + count], 10)
                    done += count
                seconds = time.monotonic() - started
            record[f"{count}_at_a_time"] = {"queries_per_second": done / seconds, **memory.record()}
        cosines, _ = index.search(queries, 10)
        record["recall@10_of_other_queries"] = float((cosines >= answers["cosines"][:, -1:] - 1e-6).mean())
        return record


def measure(run: Callable[..., Any], kinds: list[str], count: int) -> dict[str, Any]:
    """Measure kinds of indexes of the same vectors; `run` starts a worker."""
    basis = {"write": run("write", count), "exact": run("exact", count)}  # The other kinds are compared with it.
    found = basis if "exact" in kinds else {}
    for kind in kinds:
        if kind != "exact":
            load = load_average()
            found[kind] = {"build": run("build", count, kind), "query": run("query", count, kind), "load_average": load}
    return found


def main() -> None:
    options = Options(__file__, "speed_search", __doc__)
    options.add_argument("--vectors", type=int, default=1_000_000, help="vectors of exact, ivf and pq (default: 1,000,000)")
    options.add_argument("--hnsw-vectors", type=int, default=1_000_000, help="vectors of hnsw (default: 1,000,000, ten minutes)")
    options.add_argument("--folder", type=Path, help="folder for 4 GB of temporary files (default: the temporary folder of the system)")
    options.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="indexes to measure (default: all)")
    args = options.parse()
    sizes = TINY if args.tiny else Sizes()
    if args.worker:
        folder, task, count, *kind = args.worker
        options.answer(getattr(Index(Path(folder), int(count), sizes), task)(*kind))
    if args.tiny:
        args.vectors = args.hnsw_vectors = 2_000
    record: dict[str, Any] = json.loads(args.out.read_text()) if set(args.kinds) != set(KINDS) and args.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:

        def run(*words: object) -> Any:
            found = run_worker(__file__, args, folder, *words)
            print(*words, json.dumps(found), flush=True)
            return found

        counts: dict[int, list[str]] = {}
        for kind in args.kinds:
            counts.setdefault(args.hnsw_vectors if kind == "hnsw" else args.vectors, []).append(kind)
        for count, kinds in counts.items():
            record.setdefault("vectors", {}).setdefault(f"{count} x {DIM}", {}).update(measure(run, kinds, count))
    write_record(args, f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '')} python benchmarks/speed/search.py", record)


if __name__ == "__main__":
    main()
