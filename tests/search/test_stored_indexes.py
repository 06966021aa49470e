"""Indexes whose files were changed, with a new checksum: one error that names the fault."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from dinoeval.decoding import encode_sealed
from dinoeval.errors import DataError
from dinoeval.search.store import IMAGES, MANIFEST, VECTORS, FileRecord, IndexDraft, open_stored
from dinoeval.search.vectors import write_vectors

ABOUT = {
    "folder": "/photos",
    "images": 2,
    "dim": 2,
    "fingerprint": "f",
    "readout": "cls",
    "transform": "t",
    "precision": "fp32",
    "digest": "d",
    "network": {},
    "session": {"arch": "a", "weights": None, "key": "teacher", "precision": "fp32", "transform": "auto"},
    "kind": "exact",
    "parameters": {},
    "recall": None,
    "created": "now",
}
RECORDS = [FileRecord("a.png", 1, 2, 3), FileRecord("gr\udcfcn.png", 1, 2, 3)]


@pytest.fixture
def folder(tmp_path) -> Path:
    """An exact index of two images with the vectors (1, 0) and (0, 1)."""
    with IndexDraft(tmp_path) as draft:
        draft.write(VECTORS, lambda path: write_vectors(path, [np.eye(2)], 2, 2))
        draft.publish(ABOUT, RECORDS, [])
    return tmp_path


def forge(folder: Path, /, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_bytes().rpartition(b"\n")[0])
    (folder / MANIFEST).write_bytes(encode_sealed({**content, **changes}))


def forge_file(folder: Path, part: str, content: bytes) -> None:
    files = json.loads((folder / MANIFEST).read_bytes().rpartition(b"\n")[0])["files"]
    (folder / files[part]["name"]).write_bytes(content)
    forge(folder, files={**files, part: {**files[part], "bytes": len(content), "crc32": [zlib.crc32(content)] if content else []}})


def test_index_is_read_as_written(folder):
    stored = open_stored(folder)
    assert (stored.records, stored.bad) == (tuple(RECORDS), ())
    assert stored.vectors.take(slice(None)).tolist() == [[1, 0], [0, 1]]
    assert stored.paths[1] == "/photos/gr\udcfcn.png"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": 99}, "format 99"),
        ({"images": 3}, "3 images"),
        ({"images": 0}, "0 images"),
        ({"dim": 10**12}, "dimensions"),
        ({"dim": 10**18}, "dimensions"),
        ({"dim": 1}, "1 dimensions"),
        ({"readout": None}, "readout"),
        ({"session": {"arch": "a"}}, "session"),
        ({"kind": "tree"}, "tree"),
        ({"kind": "ivf"}, "parameters"),
        ({"kind": "ivf", "parameters": {"nprobe": 1, "trained_on": 2}}, "neighbours"),
        ({"kind": "ivf", "parameters": {"nprobe": 0}}, "nprobe"),
        ({"recall": 0.5}, "recall"),
        ({"files": {}}, "missing"),
        ({"folder": "a\0b"}, "null byte"),
    ],
)
def test_forged_manifest_is_one_error(folder, changes, named):
    forge(folder, **changes)
    with pytest.raises(DataError, match=f"{folder}.*{named}"):
        open_stored(folder)


def test_index_reads_only_files_of_its_folder(folder, tmp_path):
    files = json.loads((folder / MANIFEST).read_bytes().rpartition(b"\n")[0])["files"]
    name = os.path.relpath("/etc/hostname", folder)
    forge(folder, files={**files, IMAGES: {**files[IMAGES], "name": name}})
    with pytest.raises(DataError, match="hostname"):
        open_stored(folder)


@pytest.mark.parametrize(
    ("part", "content", "named"),
    [
        (IMAGES, b'{"images": [["a.png", 1, 2, 3, ""]], "bad": []}', "2 images"),
        (IMAGES, b'{"images": [["a.png", 1, 2], ["b.png", 1, 2, 3]], "bad": []}', r"images\.json"),
        (IMAGES, b'{"images": [["a.png", 1, 2, 3, ""], ["b\\u0000.png", 1, 2, 3, ""]], "bad": []}', "file name"),
        (IMAGES, b"[]", r"images\.json"),
        (VECTORS, bytes(100), "2 vectors"),
        (VECTORS, b"", "2 vectors"),
    ],
)
def test_forged_file_is_one_error(folder, part, content, named):
    forge_file(folder, part, content)
    with pytest.raises(DataError, match=f"{folder}.*{named}"):
        open_stored(folder)
