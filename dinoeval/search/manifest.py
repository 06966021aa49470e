"""The types of an index's manifest and of its list of images, which are checked before anything is opened by them."""

from __future__ import annotations

import re
from typing import Any, NotRequired, TypedDict, get_type_hints

from dinoeval.decoding import convert, decode, decode_sealed
from dinoeval.errors import DinoevalError
from dinoeval.search.approximate import IndexKind

INDEX_FILE = re.compile(r"[0-9a-f]{8}\.(rows\.faiss|images\.json|neighbours\.faiss)")
"""Names of the files of an index."""
_MAX_NUMBERS = 1 << 48  # so that sizes in bytes stay below 64 bits


class _File(TypedDict):
    name: str
    bytes: int
    crc32: list[int]


class _Recall(TypedDict):
    at: int
    recall: float
    sample: int


class _Session(TypedDict):
    arch: str
    weights: str | None
    key: str | None
    precision: str
    transform: str


class _Manifest(TypedDict):
    folder: str
    relative_folder: NotRequired[str | None]
    images: int
    dim: int
    readout: str
    transform: str
    precision: str
    digest: str
    network: dict[str, Any]
    session: _Session
    kind: IndexKind
    parameters: dict[str, int]
    recall: _Recall | None
    files: dict[str, _File]


def decode_manifest(content: bytes, what: str, format_: int) -> dict[str, Any]:
    """Decode the manifest of an index, with its checksum.

    Args:
        content: The file.
        what: Its name, for messages.
        format_: The format that can be read.

    Returns:
        The manifest. Every field that is read later has its type, files have names of this folder, and sizes are possible.

    Raises:
        DinoevalError: If the content was changed, has another format, or a field is wrong.
    """
    manifest = decode_sealed(content, dict[str, Any], what)
    if (found := manifest.get("format")) != format_:
        raise DinoevalError(f"it has format {found!r:.20}, expected {format_}")
    convert(manifest, _Manifest, what)
    if problem := _problem(manifest):
        raise DinoevalError(f"{what} is corrupted or was not written by dinoeval: {problem}")
    return manifest


def _problem(manifest: dict[str, Any]) -> str | None:
    approximate = manifest["kind"] != "exact"
    if min(manifest["images"], manifest["dim"]) < 1 or manifest["images"] * manifest["dim"] > _MAX_NUMBERS:
        return f"{manifest['images']} images of {manifest['dim']} dimensions are impossible"
    if wrong := [name for name, value in manifest["parameters"].items() if value < 1]:
        return f"the parameter {wrong[0]} is {manifest['parameters'][wrong[0]]}"
    if approximate and not ({"nprobe", "efSearch"} & manifest["parameters"].keys() and "trained_on" in manifest["parameters"]):
        return f"the parameters of an index of kind {manifest['kind']} are missing"
    if missing := {"rows.faiss", "images.json", *(["neighbours.faiss"] if approximate else [])} - manifest["files"].keys():
        return f"the file {min(missing)} is missing"
    if wrong := [file["name"] for part, file in manifest["files"].items() if not INDEX_FILE.fullmatch(file["name"])]:
        return f"{wrong[0]!r:.100} is not the name of a file of an index"
    return "the folder has a null byte" if "\0" in manifest["folder"] else None


def decode_images(content: bytes, what: str, count: int, record: type) -> dict[str, list[tuple[Any, ...]]]:
    """Decode the list of images of an index.

    Args:
        content: The file.
        what: Its name, for messages.
        count: Number of images in the index.
        record: The dataclass of a file, whose fields a line has in order, the name first.

    Returns:
        The lines of `images` and `bad`.

    Raises:
        DinoevalError: If the content has other types, or another number of images.
    """
    fields = tuple(get_type_hints(record).values())
    lists = decode(content, dict[str, list[tuple[fields]]], what)  # pyright: ignore[reportInvalidTypeForm]
    if lists.keys() != {"images", "bad"} or len(lists["images"]) != count:
        raise DinoevalError(f"{what} does not list the {count:,} images of the index")
    if wrong := [name for part in lists.values() for name, *_ in part if not name or "\0" in name]:
        raise DinoevalError(f"{what} lists the impossible file name {wrong[0]!r}")
    return lists
