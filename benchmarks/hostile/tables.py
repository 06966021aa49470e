"""Tables of images in every dialect, damaged, or with odd names and labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from dinoeval.data.opening import open_images, open_splits
from hostile.changes import choose

PATHS = ("path", "Path", "file", "filename", "image", "image_path", "file_name", "img")
LABELS = ("label", "class", "target", "labels", "category", "Label ", "y")
SPLITS = ("split", "set", "subset", "partition")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32")
ODD_NAMES = (
    "absent.png",
    "../x0.png",
    "",
    " ",
    "x0.png ",
    "/etc/passwd",
    "x\0.png",
    "a" * 5000,
    "sub",
    "é.png",
    "e\u0301.png",
    "~/x0.png",
    "x0.png\n",
)
ODD_LABELS = ("", " ", "NaN", "1e400", "-1", "=cmd|' /C calc'!A0", "a;b", ";", "é", "None", "0" * 3000, "\ud7ff")


def _cell(generator: np.random.Generator, text: str, delimiter: str) -> str:
    if generator.random() < 0.2 or delimiter in text:
        return '"' + text.replace('"', '""') + '"'
    return text


def write(generator: np.random.Generator, folder: Path) -> tuple[str, Path]:
    """Write one table next to four images."""
    for number in range(4):
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(folder / f"x{number}.png")
    (folder / "sub").mkdir()
    delimiter, end = choose(generator, (",", ";", "\t", "|", " ")), choose(generator, ("\n", "\r\n", "\r"))
    heading = [choose(generator, PATHS), choose(generator, LABELS), choose(generator, SPLITS)]
    rows = []
    for number in range(generator.integers(0, 12)):
        name = choose(generator, ODD_NAMES) if generator.random() < 0.1 else f"x{number % 4}.png"
        name = name.replace("/", "\\") if generator.random() < 0.05 else name
        label = choose(generator, ODD_LABELS) if generator.random() < 0.1 else choose(generator, ("cat", "dog"))
        rows.append([name, label, choose(generator, ("train", "val", "train", "val", "test", ""))])
        if generator.random() < 0.05:
            rows[-1] = rows[-1][: generator.integers(4)] + ["more"] * generator.integers(3)
    if generator.random() < 0.1:
        heading, rows = ["", *heading], [[str(number), *row] for number, row in enumerate(rows)]
    if generator.random() < 0.1:
        heading = heading[::-1]
    text = end.join(delimiter.join(_cell(generator, cell, delimiter) for cell in row) for row in [heading, *rows]) + end
    encoding = choose(generator, ENCODINGS)
    content = text.encode(encoding, errors="replace")
    kind = f"{delimiter!r} {encoding}"
    if generator.random() < 0.4 and content:
        kind = "changed"
        data = bytearray(content)
        for place in generator.integers(0, len(data), generator.integers(1, 20)):
            data[place] = choose(generator, (0, 10, 13, 34, 44, 59, 255, int(generator.integers(256))))
        content = bytes(data[: generator.integers(1, len(data) + 1)] if generator.random() < 0.3 else data)
    path = folder / choose(generator, ("table.csv", "table.tsv", "table.CSV", "table.txt"))
    path.write_bytes(content)
    return kind, path


def readers(home: Path) -> dict[str, Callable[[Path], object]]:
    """Return `knn` and `embed`, as far as they read a table; what they accept differs, so neither returns a value."""

    def read(opened: Callable[[str], object], path: Path) -> None:
        opened(str(path))

    return {"knn": functools.partial(read, open_splits), "embed": functools.partial(read, open_images)}
