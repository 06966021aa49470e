"""Ground-truth pickles of Revisited Oxford: damaged, with values of other types, or hostile."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.retrieval import open_retrieval
from hostile.changes import changed, choose
from hostile.programs import PROGRAMS, START, code, edited, text

ODD = (
    *(
        2**70,
        -1,
        "x",
        None,
        [],
        {},
        1e400,
        float("nan"),
        "a" * 5000,
        "\udcff",
        "../x",
        "\0",
        b"x",
        [[[]]],
        (1,),
        True,
        [2**70],
        [0.5],
        [None],
    ),
    *("q0\n", "\x1b[2J", 1j, np.zeros((2, 2)), np.array(["a"]), np.zeros(0), np.float64(1e300)),
)


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write FOLDER/roxford5k, with the images that a correct file names."""
    (folder / "roxford5k/jpg").mkdir(parents=True)
    for name in ("i0", "i1", "i2", "i3", "q0", "q1"):
        Image.new("RGB", (16, 16)).save(folder / f"roxford5k/jpg/{name}.jpg")
    kind, content = _content(generator)
    (folder / "roxford5k/gnd_roxford5k.pkl").write_bytes(content)
    return kind, folder


def _content(generator: np.random.Generator) -> tuple[str, bytes]:
    queries = [
        {"easy": [0, 1], "hard": [2], "junk": np.array([3]), "bbx": [0, 0, 8, 8]},
        {"easy": [], "hard": [1], "junk": [], "bbx": [0, 0, 9, 9]},
    ]
    truth = {"imlist": [f"i{number}" for number in range(4)], "qimlist": ["q0", "q1"], "gnd": queries}
    protocol = int(generator.integers(2, 6))
    match generator.integers(5):
        case 0:
            return "changed", changed(generator, pickle.dumps(truth, protocol))
        case 1:
            return "edited", edited(generator, pickle.dumps(truth, protocol))
        case 2:
            odd = choose(generator, (*ODD, code(generator)))
            place = choose(generator, (truth, truth["imlist"], truth["qimlist"], queries, queries[0]))
            place[choose(generator, list(place)) if isinstance(place, dict) else 0] = odd
            return f"value {type(odd).__name__}", pickle.dumps(truth, choose(generator, (0, protocol)) if not isinstance(odd, str) else 0)
        case _:
            kind = choose(generator, list(PROGRAMS))
            program = PROGRAMS[kind](generator)
            if generator.random() < 0.5:  # inside a plausible file
                lists = b"".join(text(name) + b"]" + text(entry) + b"a" for name, entry in (("imlist", "i0"), ("qimlist", "q0")))
                inner = program.removeprefix(START)[:-1]
                program = (
                    START + b"}(" + lists + text("gnd") + b"]}(" + text("easy") + inner + text("hard") + b"]" + text("junk") + b"]uau."
                )
            return kind, program


def readers(home: Path) -> dict[str, Callable[[Path], object]]:
    """Return the reader of ground truth, which checks the boxes of queries too."""

    def retrieval(folder: Path) -> str:
        found = open_retrieval(folder, "roxford5k")
        found.cropped()
        return repr(found.ground_truth)

    return {"retrieval": retrieval}
