"""JSON files of dinoeval with changed values, some with a valid checksum: Results, cache entries, indexes and weights.lock."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dinoeval.cli import main
from dinoeval.errors import DinoevalError
from dinoeval.models.download import ensure_weights
from dinoeval.models.zoo import Weights
from dinoeval.testing import TINY_ARCH, tiny_image_folder
from hostile.changes import changed, choose

EXTREMES = (
    *(None, True, 0, -1, 2**31, 2**63 - 1, 2**63, -(2**63), 10**30, 10**400, 0.5, 1e308, -1e308, 1e-320, float("nan"), float("inf")),
    *("", "abc", "\0", "\ud800", "\udcff", "../../etc/passwd", "/dev/zero", "x" * 10**5, "%s{}", "\x1b[2J\n"),
    *([], {}, [None], [[]], {"": None}, [1, "a"], {"a": {"b": []}}),
)
NETWORK = ("--arch", TINY_ARCH, "--weights", "random", "--workers", "0")
LOCKED = Weights(name="some", arch="vit_s16", url="http://127.0.0.1:9/w.pth")


def run(*words: str | Path) -> int:
    """Run a command line in this process and return its exit code."""
    try:
        main(list(map(str, words)))
    except SystemExit as stop:
        return int(stop.code or 0)
    raise AssertionError("main returns by SystemExit")


@functools.cache
def originals(home: Path) -> Path:
    """Make a folder with intact records: r.json, cache/ and index/."""
    folder = home / "originals"
    images = tiny_image_folder(folder / "images")
    cache = ("--cache", folder / "cache")
    assert run("knn", "--data", images, "--k", "1", "--json", folder / "r.json", *cache, *NETWORK) == 0
    assert run("search", "build", images / "train", "--out", folder / "index", *cache, *NETWORK) == 0
    return folder


def _places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from _places(value, (*path, name))


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _changed_values(generator: np.random.Generator, tree: Any) -> Any:
    """Replace, remove or add one to three values of a JSON tree."""
    tree = copy.deepcopy(tree)
    for _ in range(generator.integers(1, 4)):
        places = [path for path in _places(tree) if path]
        short = [path for path in places if len(path) <= 2]  # so that long lists do not take all changes
        if not places:
            return choose(generator, EXTREMES)
        *above, last = choose(generator, short if short and generator.random() < 0.6 else places)
        holder = functools.reduce(lambda inner, name: inner[name], above, tree)
        match generator.integers(8):
            case 0:
                del holder[last]
            case 1 if isinstance(holder, dict):
                holder[choose(generator, ("extra", "", "schema", "a\nb"))] = choose(generator, EXTREMES)
            case 2:
                holder[last] = _nested(choose(generator, (60, 70, 200)))
            case 3 if isinstance(holder[last], (str, list)):
                holder[last] = holder[last][: len(holder[last]) // 2]
            case _:
                holder[last] = copy.deepcopy(choose(generator, EXTREMES))
    return tree


def _changed_json(generator: np.random.Generator, content: bytes, sealed: bool = False) -> bytes:
    """Change the bytes or the values of a JSON file; a sealed one mostly gets a valid checksum."""
    body = content.rpartition(b"\n")[0] if sealed else content
    of_values = generator.random() < 0.7
    body = json.dumps(_changed_values(generator, json.loads(body))).encode() if of_values else changed(generator, body)
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() if sealed else body


KINDS = ("Result", "entry", "features", "index", "images", "lock")


def write(generator: np.random.Generator, folder: Path) -> tuple[str, tuple[str, Path]]:
    """Write one record of a kind; the kind is part of the target, because each has commands of its own."""
    source, kind = originals(folder.parent), choose(generator, KINDS)
    if kind == "Result":
        shutil.copy(source / "r.json", folder / "good.json")
        (folder / "r.json").write_bytes(_changed_json(generator, (source / "r.json").read_bytes()))
    elif kind == "lock":
        (folder / "w.pth").write_bytes(b"weights")
        lock = {"some": {"url": LOCKED.url, "sha256": hashlib.sha256(b"weights").hexdigest(), "size": 7}}
        (folder / "weights.lock").write_bytes(_changed_json(generator, json.dumps(lock).encode()))
    else:
        part = "cache" if kind in ("entry", "features") else "index"
        shutil.copytree(source / part, folder / part)
        name = {"entry": "*/manifest.json", "features": "*/features.faiss", "index": "manifest.json", "images": "*images.json"}[kind]
        path = sorted((folder / part).glob(name))[0]
        content = path.read_bytes()
        path.write_bytes(_changed_json(generator, content, sealed=True) if name.endswith("manifest.json") else changed(generator, content))
    return kind, (kind, folder)


def readers(home: Path) -> dict[str, Callable[[tuple[str, Path]], None]]:
    """Return the commands that read records; they exit with a status, and none of them may end in a traceback."""
    images = originals(home) / "images"

    def run_all(*commands: tuple[str | Path, ...]) -> None:
        if 2 in [run(*words) for words in commands]:
            raise DinoevalError("a command rejected the record")

    def check(folder: Path) -> None:
        result, good = folder / "r.json", folder / "good.json"
        run_all(("check", result), ("check", result, "--against", good), ("check", good, "--against", result))

    def cache(folder: Path) -> None:
        option = ("--cache", folder / "cache")
        embed = ("embed", images / "train", "--out", folder / "o.npy", *option, *NETWORK)
        run_all(("cache", "list", *option), ("cache", "verify", *option), embed)

    def search(folder: Path) -> None:
        query = ("search", "query", images / "val", "--index", folder / "index")
        run_all(query, ("search", "duplicates", folder / "index", "--threshold", "0.99"))

    def fetch(folder: Path) -> None:
        os.environ["DINOEVAL_WEIGHTS"] = str(folder)
        ensure_weights(LOCKED)

    commands = {"Result": check, "entry": cache, "features": cache, "index": search, "images": search, "lock": fetch}
    return {"command": lambda target: commands[target[0]](target[1])}
